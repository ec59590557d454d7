"""Run the same configuration at several values of a key, and compare the results.

Here live the points of a sweep, their runs and their evaluation. May import every package up to online;
report pages arrive as callables.
"""
