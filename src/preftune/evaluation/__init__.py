"""Benchmarks: ask models and judges, and turn their verdicts into figures with intervals.

Here live a core that runs any benchmark, and one folder for each: alpaca_eval, arena_hard, mt_bench,
head_to_head, human, academic. May import every package up to measuring except training.
"""
