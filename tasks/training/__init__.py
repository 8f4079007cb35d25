"""Training of each model."""
