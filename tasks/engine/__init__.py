"""Stages, shards, cache keys and plans; knows no photograph and no model."""
