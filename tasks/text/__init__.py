"""Captions: tokens, stop words, vocabulary."""
