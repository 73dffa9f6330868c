"""Gathers what the report page shows of models and runs."""
