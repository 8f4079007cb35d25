"""One module per data-set layout."""
