"""From a photograph's features to a caption."""
