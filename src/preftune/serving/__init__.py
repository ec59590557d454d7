"""One client for OpenAI-compatible endpoints."""
