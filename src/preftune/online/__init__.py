"""Online training: sample from the policy, score, pair and train, in rounds or batch by batch.

Here live the configuration of rounds, their plan, stages, guards and view. May import every package up to
measuring; report pages arrive as callables.
"""
