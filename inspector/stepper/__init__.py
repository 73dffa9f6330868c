"""Stepping through a generation in a terminal: ``inspector step``. The application, what it shows, and what computes for it."""
