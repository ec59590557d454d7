"""Two models on any prompts."""
