"""Measure a policy on held-out prompts: reward, win rate, drift and entropy of its samples.

May import everything below it: data, storage, models, rewards, sampling and training. `online`, `sweep`,
`evaluation` and `report` use it.
"""
