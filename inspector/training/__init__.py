"""Training of the small name model: its corpus and its training run."""
