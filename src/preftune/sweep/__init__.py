"""Sweep: the same run at several values of a key, and what each gains and pays."""
