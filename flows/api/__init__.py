"""Cutline: from folders of photographs to captions."""
