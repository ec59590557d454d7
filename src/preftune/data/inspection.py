"""Figures of groups that are worth a look before training: lengths, cuts, repetitions, ties, length bias."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from preftune.data.groups import Group, TokenizedGroup, text_key
from preftune.data.tokenization import LengthLimits

LEVELS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
"""Shares of the data that the quantiles of lengths are for."""


@dataclass(frozen=True)
class LengthCut:
    """What a limit cuts.

    Attributes:
        max_length: the limit, in tokens of prompt and response.
        responses: those that are longer.
        tokens: of their ends, beyond the limit.
        without_room: groups whose prompt alone reaches the limit, which are dropped.
    """

    max_length: int
    responses: int
    tokens: int
    without_room: int


@dataclass(frozen=True)
class LengthBias:
    """Whether the labels prefer length.

    Attributes:
        pairs: number of pairs.
        longer: share of them whose chosen response has more tokens.
        equal: share of them with as many.
        difference: mean of chosen less rejected, in tokens.
    """

    pairs: int
    longer: float
    equal: float
    difference: float


def length_quantiles(lengths: Sequence[int]) -> tuple[int, ...]:
    """For each of `LEVELS` the least length that so large a share of the data does not exceed.

    Args:
        lengths: at least one.
    """
    ordered = sorted(lengths)
    # Rounded, since 0.95 * 20 is a little more than 19.
    return tuple(ordered[max(ceil(round(level * len(ordered), 9)) - 1, 0)] for level in LEVELS)


def measure_cut(groups: Iterable[TokenizedGroup], limits: LengthLimits) -> LengthCut:
    """What limits cut of groups that were not cut yet; prompts are cut first."""
    responses = tokens = without_room = 0
    for group in groups:
        prompt = min(len(group.prompt), limits.max_prompt_length or len(group.prompt))
        room = limits.max_length - prompt
        if room < 1:
            without_room += 1
            continue
        beyond = [len(response) - room for response in group.responses if len(response) > room]
        responses += len(beyond)
        tokens += sum(beyond)
    return LengthCut(limits.max_length, responses, tokens, without_room)


def length_bias(groups: Iterable[TokenizedGroup]) -> LengthBias | None:
    """Lengths of chosen against rejected responses, in tokens; None where there is no pair."""
    differences = np.array(
        [
            len(group.responses[pair.chosen]) - len(group.responses[pair.rejected])
            for group in groups
            for pair in group.pairs
        ],
        dtype=np.int64,
    )
    if not len(differences):
        return None
    return LengthBias(
        pairs=len(differences),
        longer=float((differences > 0).mean()),
        equal=float((differences == 0).mean()),
        difference=float(differences.mean()),
    )


def count_equal_pairs(groups: Iterable[TokenizedGroup]) -> int:
    """Pairs of two responses with the same tokens."""
    return sum(
        np.array_equal(group.responses[pair.chosen], group.responses[pair.rejected])
        for group in groups
        for pair in group.pairs
    )


def count_tied_pairs(groups: Iterable[Group]) -> int | None:
    """Pairs whose scores are equal, or whose margin is 0; None where no pair has a score or margin."""
    differences = []
    for group in groups:
        for pair in group.pairs:
            chosen, rejected = group.responses[pair.chosen].score, group.responses[pair.rejected].score
            if chosen is not None and rejected is not None:
                differences.append(chosen - rejected)
            elif pair.margin is not None:
                differences.append(pair.margin)
    return sum(difference == 0 for difference in differences) if differences else None


def count_repeated_prompts(groups: Iterable[Group]) -> int:
    """Groups whose prompt an earlier group has too."""
    keys = [text_key(group.prompt) for group in groups]
    return len(keys) - len(set(keys))


def rows_shared(held_out: Iterable[Group], train: Iterable[Group]) -> list[int]:
    """Rows of held-out groups whose prompt is trained on."""
    trained = {text_key(group.prompt) for group in train}
    return [group.row for group in held_out if text_key(group.prompt) in trained]
