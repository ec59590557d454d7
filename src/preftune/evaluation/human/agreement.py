"""How far raters agree beyond chance."""

from collections.abc import Mapping, Sequence

import numpy as np

Ratings = Mapping[str, str]
"""What one rater says of each item."""


def shared_items(raters: Sequence[Ratings]) -> list[str]:
    """The items that every rater rated, in the order of the first."""
    return [item for item in raters[0] if all(item in rater for rater in raters[1:])] if raters else []


def observed_agreement(raters: Sequence[Ratings]) -> float | None:
    """Share of pairs of raters that say the same of an item, over the items that all rated.

    Returns:
        None for fewer than two raters, or no item that all rated.
    """
    counts = _counts(raters)
    return None if counts is None else float(_agreement(counts).mean())


def cohen_kappa(first: Ratings, second: Ratings) -> float | None:
    """Agreement of two raters beyond what their own rates of each label give by chance.

    (p - e) / (1 - e) with p the share of items with the same label, and e the sum over labels of the product
    of both raters' rates. Cohen, "A coefficient of agreement for nominal scales", 1960.

    Returns:
        None if they share no item, or both give one same label to all of them.
    """
    shared = shared_items([first, second])
    if not shared:
        return None
    labels = sorted({rater[item] for rater in (first, second) for item in shared})
    rates = [
        np.array([sum(rater[item] == label for item in shared) for label in labels]) / len(shared)
        for rater in (first, second)
    ]
    same = sum(first[item] == second[item] for item in shared) / len(shared)
    return _beyond_chance(same, float(rates[0] @ rates[1]))


def fleiss_kappa(raters: Sequence[Ratings]) -> float | None:
    """Agreement of several raters beyond what the pooled rates of the labels give by chance.

    (P - e) / (1 - e) with P the mean over items of the share of pairs of raters that agree, and e the sum
    over labels of the squared pooled rate. Items that some rater left out are left out. Fleiss, "Measuring
    nominal scale agreement among many raters", 1971.

    Returns:
        None for fewer than two raters, no item that all rated, or one same label throughout.
    """
    counts = _counts(raters)
    if counts is None:
        return None
    rates = counts.sum(axis=0) / counts.sum()
    return _beyond_chance(float(_agreement(counts).mean()), float(rates @ rates))


def _counts(raters: Sequence[Ratings]) -> "np.ndarray | None":
    """How many raters gave each item (row) each label (column)."""
    shared = shared_items(raters)
    if len(raters) < 2 or not shared:
        return None
    labels = sorted({rater[item] for rater in raters for item in shared})
    return np.array([[sum(rater[item] == label for rater in raters) for label in labels] for item in shared])


def _agreement(counts: np.ndarray) -> np.ndarray:
    """For each item the share of pairs of raters that agree."""
    raters = counts[0].sum()
    pairs: np.ndarray = (counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))
    return pairs


def _beyond_chance(agreement: float, chance: float) -> float | None:
    return None if np.isclose(chance, 1.0) else (agreement - chance) / (1 - chance)
