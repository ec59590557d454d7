"""What is varied in the data: pure functions of training pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PairRow = dict[str, Any]
"""`prompt`, `chosen`, `rejected`, `score_chosen`, `score_rejected`."""
Rows = Sequence[PairRow]

NEAR_TIE = 0.07
NOISE = 0.2
BIAS = 0.2
EPOCH_PAIRS = 16


def gap(row: PairRow) -> float:
    """How much better the chosen response is by the scores."""
    return float(row["score_chosen"] - row["score_rejected"])


def flip(rows: Rows, share: float) -> list[PairRow]:
    """Exchange the responses of this share of the rows, the smallest gaps first."""
    places = sorted(range(len(rows)), key=lambda place: gap(rows[place]))
    flipped = set(places[: round(share * len(rows))])
    return [_flipped(row) if place in flipped else row for place, row in enumerate(rows)]


def _flipped(row: PairRow) -> PairRow:
    # The scores stay in their places: they side with the wrong label.
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


def add_noise(rows: Rows, deviation: float, seed: int) -> list[PairRow]:
    """Add normal noise to all scores, and cut them to [0, 1]; the labels stay."""
    noise = np.random.default_rng(seed).normal(0, deviation, size=(len(rows), 2))
    return [
        _scored(row, row["score_chosen"] + first, row["score_rejected"] + second)
        for row, (first, second) in zip(rows, noise.tolist(), strict=True)
    ]


def add_length_bias(rows: Rows, bonus: float) -> list[PairRow]:
    """Add `bonus` to the score of the pair's longer response, and cut it to [0, 1]; the labels stay."""
    changed = []
    for row in rows:
        longer = len(row["chosen"]) > len(row["rejected"])
        chosen = row["score_chosen"] + (bonus if longer else 0)
        changed.append(_scored(row, chosen, row["score_rejected"] + (0 if longer else bonus)))
    return changed


def _scored(row: PairRow, chosen: float, rejected: float) -> PairRow:
    return row | {"score_chosen": min(1.0, max(0.0, chosen)), "score_rejected": min(1.0, max(0.0, rejected))}


def best_and_worst_of(
    prompt: Any, responses: Sequence[str], scores: Sequence[float], n: int
) -> PairRow | None:
    """The pair of the first n responses; None where their scores tie."""
    first = list(scores[:n])
    best, worst = first.index(max(first)), first.index(min(first))
    if first[best] == first[worst]:
        return None
    return {
        "prompt": prompt,
        "chosen": responses[best],
        "rejected": responses[worst],
        "score_chosen": float(first[best]),
        "score_rejected": float(first[worst]),
    }


@dataclass(frozen=True)
class Variation:
    """One change of the training data.

    Attributes:
        change: from pairs to pairs.
        responses: of each prompt that pairs are made from.
        epochs: over the first pairs, in place of the kept steps.
        pairs: their number.
    """

    change: Callable[[Rows], list[PairRow]] = list
    responses: int = 8
    epochs: int | None = None
    pairs: int = EPOCH_PAIRS


VARIATIONS: Mapping[str, Variation] = {
    "10% flipped": Variation(lambda rows: flip(rows, 0.1)),
    "30% flipped": Variation(lambda rows: flip(rows, 0.3)),
    "noisy scores": Variation(lambda rows: add_noise(rows, NOISE, seed=0)),
    "scores like length": Variation(lambda rows: add_length_bias(rows, BIAS)),
    "no near ties": Variation(lambda rows: [row for row in rows if gap(row) >= NEAR_TIE]),
    "best of 2": Variation(responses=2),
    **{f"{epochs} epochs": Variation(epochs=epochs) for epochs in (1, 2, 4, 8)},
}
ALL_ONCE = "every pair once"
OF_VALUES: Mapping[str, Variation] = {ALL_ONCE: Variation(epochs=1, pairs=800)}
"""Enough prompts for the value head to learn from."""
EVERY = {**VARIATIONS, **OF_VALUES}
