"""Each prompt with a response to another one: what the divergence from the reference is estimated on."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from jaxtyping import Int32

from preftune.data.groups import TokenizedGroup
from preftune.errors import NothingLeftError

TRIES = 32
"""Groups that are asked for a response the receiving group does not have itself."""


def mismatched(groups: Sequence[TokenizedGroup], seed: int, max_length: int) -> list[TokenizedGroup]:
    """Give every group a `mismatched` one: its prompt with one response to another prompt.

    KTO (arXiv 2402.01306) estimates KL(policy || reference) on such pairs. Each group gives to one other, as
    long as no prompt has more than half of the groups. A group without any response that is new to the
    receiver, by its token ids, is passed over for the next one; after `TRIES` such groups, as in yes-or-no
    data, a response that the receiver has too is taken.

    Args:
        groups: of a whole split.
        seed: decides who gives to whom, and which response.
        max_length: tokens of prompt + response; a response that does not fit is cut at its end.

    Raises:
        NothingLeftError: all groups have the same prompt.
    """
    random = np.random.default_rng(seed)
    result = list(groups)
    for receiver, givers in _givers(groups, random):
        group = groups[receiver]
        response = _draw(group, (groups[giver] for giver in islice(givers, TRIES)), max_length, random)
        result[receiver] = replace(group, mismatched=TokenizedGroup(group.prompt, (response,), ()))
    return result


def _givers(
    groups: Sequence[TokenizedGroup], random: np.random.Generator
) -> Iterator[tuple[int, Iterator[int]]]:
    """Every group, and all groups with another prompt in the order in which it asks them."""
    by_prompt: dict[bytes, list[int]] = {}
    for index in random.permutation(len(groups)).tolist():
        by_prompt.setdefault(groups[index].prompt.tobytes(), []).append(index)
    if len(by_prompt) < 2:
        raise NothingLeftError(
            f"The {len(groups)} rows have one prompt between them, and the objective compares with responses "
            "to other prompts. Give data with at least two prompts."
        )
    # In a circle where equal prompts are neighbours, as many steps as the most frequent prompt has groups
    # lead from any group to one with another prompt, and no two to the same one. If that prompt has more than
    # half of the groups, the others are gone around as often as it takes.
    circle = [index for same in by_prompt.values() for index in same]
    steps = max(len(same) for same in by_prompt.values())
    stop = 0
    for same in by_prompt.values():
        stop += len(same)
        for place, receiver in enumerate(same):
            yield receiver, _others(circle, stop, len(same), place + steps - len(same))


def _others(circle: Sequence[int], stop: int, same: int, first: int) -> Iterator[int]:
    """Once around all but the `same` groups before `stop`, from the `first` one behind it."""
    count = len(circle) - same
    return (circle[(stop + (first + step) % count) % len(circle)] for step in range(count))


def _draw(
    group: TokenizedGroup, givers: Iterable[TokenizedGroup], max_length: int, random: np.random.Generator
) -> Int32[np.ndarray, "tokens"]:
    """One response of the first giver that has any that is not the group's own."""
    own = {response.tobytes() for response in group.responses}
    for giver in givers:
        responses = [response[: max_length - len(group.prompt)] for response in giver.responses]
        foreign = [response for response in responses if response.tobytes() not in own]
        if foreign:
            return foreign[random.integers(len(foreign))]
    return responses[random.integers(len(responses))]
