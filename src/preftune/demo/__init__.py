"""The offline demo: a small model, prompts with checkable instructions, and its scored responses.

Here live the packaged data, the scripts that made it, and the run of the demo. May import every package but
the command line.
"""
