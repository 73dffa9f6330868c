"""Measurements: one file per question that ``inspector bench`` answers."""
