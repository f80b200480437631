"""Entries and features in, loss and named terms out: fitting, projections, masks, averages."""
