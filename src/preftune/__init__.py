"""Preference tuning for language models when you know more than "A beats B".

>>> import preftune
>>> sorted(preftune.__all__)[:3]
['InputError', 'PreferenceTrainer', 'Run']
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preftune.api.average import average as average
    from preftune.api.evaluate import evaluate as evaluate
    from preftune.api.evaluate import rescore as rescore
    from preftune.api.inspect import inspect as inspect
    from preftune.api.iterate import iterate as iterate
    from preftune.api.iterate import plan_rounds as plan_rounds
    from preftune.api.merge import merge as merge
    from preftune.api.push import push as push
    from preftune.api.run import Run as Run
    from preftune.api.sample import sample as sample
    from preftune.api.score import score as score
    from preftune.api.train import check as check
    from preftune.api.train import train as train
    from preftune.api.trainer import PreferenceTrainer as PreferenceTrainer
    from preftune.errors import InputError as InputError
    from preftune.rewards.score_file import score_file as score_file
    from preftune.sampling.sample_file import sample_file as sample_file

__version__ = "0.1.0"

# Loaded at first use: torch and transformers take seconds.
_PLACES = {
    "InputError": "preftune.errors",
    "PreferenceTrainer": "preftune.api.trainer",
    "Run": "preftune.api.run",
    "average": "preftune.api.average",
    "check": "preftune.api.train",
    "evaluate": "preftune.api.evaluate",
    "inspect": "preftune.api.inspect",
    "iterate": "preftune.api.iterate",
    "merge": "preftune.api.merge",
    "plan_rounds": "preftune.api.iterate",
    "push": "preftune.api.push",
    "rescore": "preftune.api.evaluate",
    "sample": "preftune.api.sample",
    "sample_file": "preftune.sampling.sample_file",
    "score": "preftune.api.score",
    "score_file": "preftune.rewards.score_file",
    "train": "preftune.api.train",
}
__all__ = [
    "InputError",
    "PreferenceTrainer",
    "Run",
    "average",
    "check",
    "evaluate",
    "inspect",
    "iterate",
    "merge",
    "plan_rounds",
    "push",
    "rescore",
    "sample",
    "sample_file",
    "score",
    "score_file",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'preftune' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
