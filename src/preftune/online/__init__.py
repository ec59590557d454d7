"""Sampling from the policy, so that it can be scored, paired and trained on."""
