"""Entries, models and one probe batch in, the bound, checked, printable plan out."""
