"""A policy on held-out prompts."""
