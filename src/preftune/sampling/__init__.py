"""Draws, decoding, engines, and the sample file."""
