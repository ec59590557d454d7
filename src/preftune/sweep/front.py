"""Which rewards a sweep weighs against one another."""

from collections.abc import Sequence

from preftune.data.rules import suggest
from preftune.errors import InputError
from preftune.rewards import AuxiliaryReward
from preftune.sweep.points import WEIGHTS, Point
from preftune.training.configuration import RunConfig

SIZES = (2, 3)
"""Axes that a front may have."""


def front_names(
    asked: Sequence[str],
    configs: Sequence[RunConfig],
    points: Sequence[Point],
    rewards: Sequence[AuxiliaryReward],
) -> tuple[str, ...]:
    """The rewards of the front; none where none are asked for and no weights of two or more are swept.

    Args:
        asked: names that the caller gives.
        configs: of the runs.
        points: what they set.
        rewards: those that can be measured on samples.

    Raises:
        InputError: there are not two or three, or one cannot be measured on samples.
    """
    is_swept = any(WEIGHTS in point.values for point in points)
    measured = [reward.name for reward in rewards]
    if not asked and not is_swept:
        return ()
    swept = dict.fromkeys(name for config in configs for name in config.reward_sum.weights)
    names = tuple(dict.fromkeys(asked)) or tuple(name for name in swept if name in measured)
    if not asked and len(names) < min(SIZES):
        return ()
    for name in names:
        if name not in measured:
            raise InputError(
                f"--front {','.join(names)}: {name!r} is no reward that can be measured on samples"
                f"{suggest(name, measured)}; there are {', '.join(measured) or 'none'}"
            )
    if len(names) not in SIZES:
        raise InputError(
            f"a front weighs two or three rewards against one another, and here are {len(names)} "
            f"({', '.join(names)}): pass --front NAME,NAME or --front NAME,NAME,NAME"
        )
    return names
