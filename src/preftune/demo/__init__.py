"""The offline demo: a small model, prompts with checkable instructions, and its scored responses."""
