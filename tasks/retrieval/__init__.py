"""Image-text search."""
