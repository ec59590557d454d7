"""The published methods, one frozen dataclass each: its fields are its options, `parts` is its loss.

A new method is a class in the file of its family, under `@published`, and nothing else: configuration,
command line, checks and lists of methods read METHODS.
"""

# Lists of methods show them in the order of these files.
from preftune.objectives.methods import margins, noisy_labels, variants, tokens, anchored  # noqa: F401, I001
from preftune.objectives.methods import labels, auxiliary_rewards, reward_models  # noqa: F401
from preftune.objectives.methods import reward_gaps, groups  # noqa: F401
from preftune.objectives.methods.additions import Auxiliary, OfEveryMethod, OfPairs
from preftune.objectives.methods.method import METHODS, Method, published

__all__ = ["METHODS", "Auxiliary", "Method", "OfEveryMethod", "OfPairs", "published"]
