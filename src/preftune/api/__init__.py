"""The Python API: objects or names in, objects out; the command line calls these functions and no others.

It may import every package but the command line. `preftune` itself offers the names, loaded at first use.
"""
