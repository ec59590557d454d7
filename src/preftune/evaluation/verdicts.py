"""What a judge said, one record a verdict: all that the protocols' figures are made of.

Each protocol reads its files into these records and aggregates them, whether they were recorded by upstream's
tool or asked for here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, TypeVar

Shown = TypeVar("Shown")

Results = dict[str, Any]
"""Figures of one model, ready for JSON: protocol, model, baseline, n, win_rate in percent, ..."""


@dataclass(frozen=True)
class Comparison:
    """One verdict on a model's response against the baseline's.

    Attributes:
        question: key of the prompt, the same for every model and in both orders: an instruction or an id.
        preference: from 0 (the baseline's is better) to 1 (the model's is); 0.5 is a draw, and None a verdict
            that could not be read.
        model_first: whether the judge saw the model's response first; None if a file does not say.
        weight: games that the verdict counts for (Arena-Hard: 3 for a strong one).
        turn: of the conversation, from 1.
        category: of the question; empty if it has none.
        model_length: characters of the model's response.
        baseline_length: characters of the baseline's.
    """

    question: str
    preference: float | None
    model_first: bool | None = None
    weight: int = 1
    turn: int = 1
    category: str = ""
    model_length: int | None = None
    baseline_length: int | None = None


@dataclass(frozen=True)
class Rating:
    """One grade of one response.

    Attributes:
        question: key of the prompt.
        rating: the grade; None if it could not be read.
        turn: of the conversation, from 1.
        category: of the question; empty if it has none.
    """

    question: str
    rating: float | None
    turn: int = 1
    category: str = ""


Verdict = Comparison | Rating


@dataclass(frozen=True)
class Recording:
    """The verdicts on one model, as one file or one run has them.

    Attributes:
        model: its name.
        baseline: the name of whom it was compared with; None for ratings.
        verdicts: all comparisons or all ratings, in the order of the file.
        source: for messages.
        named: whether `question` is the prompt's own key, and not just the number of a row in this file.
        notes: what reading the file found, for the results.
    """

    model: str
    baseline: str | None
    verdicts: Sequence[Verdict]
    source: str = ""
    named: bool = True
    notes: Results = field(default_factory=dict)

    @property
    def comparisons(self) -> list[Comparison]:
        """The verdicts that compare."""
        return [verdict for verdict in self.verdicts if isinstance(verdict, Comparison)]

    @property
    def ratings(self) -> list[Rating]:
        """The verdicts that rate."""
        return [verdict for verdict in self.verdicts if isinstance(verdict, Rating)]


def preference_for_model(preference_of_first: float | None, model_first: bool | None) -> float | None:
    """Turn the preference for the response that was shown first into that for the model's."""
    if preference_of_first is None or model_first:
        return preference_of_first
    return 1 - preference_of_first


def as_shown(model: Shown, baseline: Shown, model_first: bool | None) -> tuple[Shown, Shown]:
    """The model's and the baseline's, the one that is shown first before the other."""
    return (model, baseline) if model_first else (baseline, model)


def invalid_rate(verdicts: Sequence[Verdict]) -> float:
    """Share of the verdicts that could not be read; 0 if there are none."""
    return fmean(is_invalid(verdict) for verdict in verdicts) if verdicts else 0.0


def is_invalid(verdict: Verdict) -> bool:
    """Whether it could not be read."""
    return (verdict.preference if isinstance(verdict, Comparison) else verdict.rating) is None


def both_orders(comparisons: Iterable[Comparison]) -> list[tuple[Comparison, Comparison]]:
    """The pairs that were judged in both orders, the one with the model first before the other.

    Several verdicts in one order, as after repeated runs, are paired in the order they come in.
    """
    by_turn: dict[tuple[str, int], list[Comparison]] = {}
    for comparison in comparisons:
        by_turn.setdefault((comparison.question, comparison.turn), []).append(comparison)
    pairs: list[tuple[Comparison, Comparison]] = []
    for verdicts in by_turn.values():
        orders = [
            [verdict for verdict in verdicts if verdict.model_first is first] for first in (True, False)
        ]
        pairs += zip(*orders, strict=False)
    return pairs


def flipped_rate(comparisons: Iterable[Comparison]) -> float | None:
    """Share of the pairs judged in both orders whose winner changed with the order.

    A draw in one order and a winner in the other is a change too. Pairs with a verdict that could not be read
    are left out.

    Returns:
        None if no pair was judged in both orders.
    """
    winners = [(winner(one), winner(other)) for one, other in both_orders(comparisons)]
    flips = [one != other for one, other in winners if one is not None and other is not None]
    return fmean(flips) if flips else None


def winner(comparison: Comparison) -> str | None:
    """Who won: "model", "baseline" or "draw"; None if the verdict could not be read."""
    if comparison.preference is None:
        return None
    if comparison.preference == 0.5:
        return "draw"
    return "model" if comparison.preference > 0.5 else "baseline"
