"""When a student is measured, and by what: evaluators, metrics, the table at the end."""
