"""Trained models: how they are built, loaded and applied."""
