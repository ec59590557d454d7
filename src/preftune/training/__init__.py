"""Training: the configuration of a run, the run itself, and a thin subclass of transformers' Trainer.

Here live preparation and checks, batches, records and hooks. Names no method, data set, reward or benchmark.
May import objectives, data, serving, storage, models, rewards and sampling.
"""

from preftune.training.configuration import RunConfig, check_config, read_run_config

__all__ = ["RunConfig", "check_config", "read_run_config"]
