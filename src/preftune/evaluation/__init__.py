"""Judging models: benchmarks' protocols, the figures made of their verdicts, and how sure these are."""
