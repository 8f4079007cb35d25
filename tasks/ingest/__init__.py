"""Data sets: photographs and captions in files."""
