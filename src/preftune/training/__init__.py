"""Training: the configuration of a run, the run itself, and a thin subclass of transformers' Trainer."""

from preftune.training.configuration import RunConfig, check_config, read_run_config

__all__ = ["RunConfig", "check_config", "read_run_config"]
