"""Preference tuning for language models when you know more than "A beats B"."""

__version__ = "0.1.0"
