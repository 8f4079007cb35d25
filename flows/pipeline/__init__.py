"""The graph of stages."""
