"""Anything that gives the teacher's features of a batch: a frozen model, or a cache of its features."""
