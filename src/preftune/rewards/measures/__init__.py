"""The built-in measures, from a text to a number: one function each, in any file of this folder.

Every one takes English prose for granted but `length`, `regex`, `valid_json` and `toxicity`.
"""

from importlib import import_module
from pkgutil import iter_modules

from preftune.rewards.measures.measure import MEASURES, Goal, Measure, TextMeasure

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["MEASURES", "Goal", "Measure", "TextMeasure"]
