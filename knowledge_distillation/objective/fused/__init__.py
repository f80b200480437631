"""Losses computed from what their features are made of, or summed in one step."""
