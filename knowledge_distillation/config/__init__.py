"""The language of `distill_config`: entries, schedules, stages and settings, parsed once into frozen data."""
