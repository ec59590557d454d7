"""MT-Bench: two turns, graded from 1 to 10 alone, or compared pairwise in both orders.

Upstream is FastChat's `llm_judge`, and its rules decide what a text says and what is left out.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from preftune.errors import InputError
from preftune.evaluation.benchmark import Rescorer
from preftune.evaluation.files import Record, read_objects, require
from preftune.evaluation.resampling import VerdictCounts, mean, tally
from preftune.evaluation.verdicts import (
    Comparison,
    Rating,
    Recording,
    Results,
    both_orders,
    flipped_rate,
    invalid_rate,
)

NAME = "mt_bench"

RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
"""The first that is found anywhere counts."""

WINNERS = {"[[A]]": "A", "[[B]]": "B", "[[C]]": "tie"}
"""Looked for in this order."""

UNREAD = -1

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
FIRST_QUESTION = 81
QUESTIONS_EACH = 10

NEEDS_REFERENCE = ("math", "reasoning", "coding")
"""Categories that the judge sees a reference answer for."""


def read_rating(judgment: str) -> float | None:
    """The grade in a judge's text, or None."""
    for pattern in RATINGS:
        found = pattern.search(judgment)
        if found:
            return float(found[1])
    return None


def read_winner(judgment: str) -> str | None:
    """Who wins in a judge's text: A, B, tie, or None."""
    return next((winner for mark, winner in WINNERS.items() if mark in judgment), None)


def categories(questions: Iterable[str]) -> Mapping[str, str]:
    """Category of each question, if all have the numbers of MT-Bench's own 80, which go by tens."""
    numbers = {question: _place(question) for question in questions}
    if any(place is None for place in numbers.values()):
        return {}
    return {question: CATEGORIES[place] for question, place in numbers.items() if place is not None}


def read_judgments(path: Path, baseline: str | None = None) -> list[Recording]:
    """Read FastChat's judgment files, `*_single.jsonl` or `*_pair.jsonl`: one recording a model.

    Args:
        path: of the file.
        baseline: whom the others are compared with in a file of pairs. Without it, it is the model that is in
            every row, and of two such the file's `model_1`.

    Raises:
        InputError: the file has another shape.
    """
    rows = read_objects(path)
    if "g1_winner" in rows[0]:
        return _read_pairs(path, rows, baseline)
    keys = ("question_id", "model", "score", "turn")
    for row in rows:
        require(path, row, keys, "an MT-Bench judgment")
    models = dict.fromkeys(row["model"] for row in rows)
    return [_read_ratings(path, [row for row in rows if row["model"] == model]) for model in models]


def aggregate_mt_bench(recording: Recording, seed: int = 0) -> Results:
    """Every figure of a model: of its grades, or of its comparisons with a baseline.

    Raises:
        InputError: no verdict could be read.
    """
    figures = _of_comparisons if recording.comparisons else _of_ratings
    head: Results = {"protocol": NAME, "model": recording.model, "baseline": recording.baseline}
    return head | figures(recording, seed) | recording.notes


class MTBenchRescorer(Rescorer):
    """Of FastChat's judgment files. See `Rescorer`."""

    def read(self, path: Path) -> list[Recording]:
        """See `read_judgments`."""
        return read_judgments(path, self.options.baseline)

    def figures(self, recording: Recording) -> Results:
        """See `aggregate_mt_bench`."""
        return aggregate_mt_bench(recording, self.options.seed)

    def count(self, recording: Recording) -> VerdictCounts:
        """Of pairs as they are settled."""
        return tally(settle(recording.comparisons) or recording.ratings)


def settle(games: Sequence[Comparison]) -> list[Comparison]:
    """One verdict for each pair of orders: whoever wins both, and else a draw.

    A pair with a verdict that could not be read is left out.
    """
    return [
        replace(
            one, preference=one.preference if one.preference == other.preference else 0.5, model_first=None
        )
        for one, other in both_orders(games)
        if one.preference is not None and other.preference is not None
    ]


def _of_ratings(recording: Recording, seed: int) -> Results:
    """Grades: the average pools both turns, and questions are resampled with all their grades."""
    ratings = recording.ratings
    estimate = mean(tally(ratings), seed)
    turns = sorted({rating.turn for rating in ratings})
    by_category = {
        category: _average(rating for rating in ratings if rating.category == category)
        for category in CATEGORIES
        if any(rating.category == category for rating in ratings)
    }
    return {
        "n": sum(rating.rating is not None for rating in ratings),
        "average": _average(ratings),
        **estimate.results(),
        **{f"turn_{turn}": _average(rating for rating in ratings if rating.turn == turn) for turn in turns},
        "categories": by_category,
        "invalid_rate": invalid_rate(ratings),
    }


def _of_comparisons(recording: Recording, seed: int) -> Results:
    """Pairs, in percent. `win_rate` is FastChat's share of wins; the adjusted one counts a draw as half."""
    settled = settle(recording.comparisons)
    adjusted = mean(tally(settled), seed)
    won = mean(
        tally(replace(verdict, preference=float(verdict.preference == 1)) for verdict in settled), seed
    )
    preferences = [verdict.preference for verdict in settled]
    wins, losses, ties = (preferences.count(value) for value in (1.0, 0.0, 0.5))
    return {
        "n": len(settled),
        "wins": wins,
        "losses": losses,
        "ties": ties,
        "win_rate": 100 * won.value,
        **won.results(100.0),
        "loss_rate": 100 * losses / len(settled),
        "win_rate_adjusted": 100 * adjusted.value,
        "win_rate_adjusted_interval": adjusted.results(100.0)["interval"],
        "invalid_rate": invalid_rate(recording.comparisons),
        "flipped_rate": flipped_rate(recording.comparisons),
    }


def _average(ratings: Iterable[Rating]) -> float | None:
    known = [rating.rating for rating in ratings if rating.rating is not None]
    return fmean(known) if known else None


def _place(question: str) -> int | None:
    """Which of the categories a question number is in."""
    if not question.isdecimal():
        return None
    place = (int(question) - FIRST_QUESTION) // QUESTIONS_EACH
    return place if 0 <= place < len(CATEGORIES) else None


def _read_ratings(path: Path, rows: Sequence[Record]) -> Recording:
    """Grades as recorded, and how many of the judge's texts say something else."""
    named = categories(str(row["question_id"]) for row in rows)
    ratings = [
        Rating(
            str(row["question_id"]),
            None if row["score"] == UNREAD else _grade(path, row["score"]),
            int(row["turn"]),
            named.get(str(row["question_id"]), ""),
        )
        for row in rows
    ]
    texts = [
        (row["judgment"], rating.rating)
        for row, rating in zip(rows, ratings, strict=True)
        if isinstance(row.get("judgment"), str)
    ]
    otherwise = sum(read_rating(text) != rating for text, rating in texts)
    notes = {"recomputed": len(texts), "recomputed_otherwise": otherwise} if texts else {}
    return Recording(rows[0]["model"], None, ratings, str(path), notes=notes)


def _read_pairs(path: Path, rows: Sequence[Record], baseline: str | None) -> list[Recording]:
    for row in rows:
        require(path, row, ("question_id", "model_1", "model_2", "g1_winner", "g2_winner"), "a pair judgment")
    names = dict.fromkeys(name for row in rows for name in (row["model_1"], row["model_2"]))
    everywhere = [name for name in names if all(name in (row["model_1"], row["model_2"]) for row in rows)]
    against = baseline or next(iter(everywhere), None)
    if against is None or against not in names:
        raise InputError(
            f"{path}: baseline = {against!r}: must be one of {', '.join(names)}: name it with --baseline"
        )
    found: dict[str, list[Comparison]] = {}
    for row in rows:
        if against not in (row["model_1"], row["model_2"]):
            continue
        side = "model_2" if row["model_1"] == against else "model_1"
        games = [
            # In the first game model_1 is A, in the second model_2 is.
            Comparison(
                str(row["question_id"]),
                _outcome(path, row[game], side),
                model_first=(side == "model_1") == (game == "g1_winner"),
                turn=int(row.get("turn", 1)),
            )
            for game in ("g1_winner", "g2_winner")
        ]
        found.setdefault(row[side], []).extend(games)
    return [Recording(model, against, verdicts, str(path)) for model, verdicts in found.items()]


def _outcome(path: Path, winner: Any, side: str) -> float | None:
    """What a game says for the model on a side."""
    if winner == "error":
        return None
    if winner not in ("model_1", "model_2", "tie"):
        raise InputError(f"{path}: winner = {winner!r}: must be model_1, model_2, tie or error")
    return 0.5 if winner == "tie" else float(winner == side)


def _grade(path: Path, score: Any) -> float:
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise InputError(f"{path}: score = {score!r}: must be a number, or {UNREAD} for none")
    return float(score)
