"""Photographs: headers, decoding, cropping."""
