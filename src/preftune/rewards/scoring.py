"""Scoring that can be killed at any time: finished scores are kept beside the output and found again."""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from preftune.data import fingerprint_rows
from preftune.data.groups import Group, Text
from preftune.errors import InputError
from preftune.storage.processes import Processes
from preftune.storage.shards import Shards

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """One response of a group: a scorer gives it a number."""

    group: Group
    place: int

    @property
    def content(self) -> Text:
        """The text or messages of the response."""
        return self.group.responses[self.place].content


@dataclass(frozen=True)
class ScoringUnit:
    """Answers that are scored and finished together.

    Attributes:
        places: indices of the answers.
        inputs: the scorer's inputs, such as token ids.
    """

    places: tuple[int, ...]
    inputs: Any


def scored_content(groups: Iterable[Group]) -> str:
    """A hash of everything that a scorer may read of groups: prompts, responses and other columns."""
    groups = list(groups)
    digest = hashlib.sha256(fingerprint_rows(groups).encode())
    for group in groups:
        digest.update(json.dumps(group.columns, default=str).encode() + b"\n")
    return digest.hexdigest()


KeepScores = Callable[[ScoringUnit, list[float]], None]
"""Takes a unit with a number for each of its places, in order, as soon as it is finished."""

ScoreUnits = Callable[[Sequence[ScoringUnit], KeepScores], None]
"""Scores units, in any order."""


def one_by_one(score: Callable[[ScoringUnit], list[float]]) -> ScoreUnits:
    """Scores units in their order by what scores a unit."""

    def score_units(units: Sequence[ScoringUnit], keep: KeepScores) -> None:
        for unit in units:
            keep(unit, score(unit))

    return score_units


@runtime_checkable
class Scorer(Protocol):
    """Gives a number to each response.

    Attributes:
        identity: what decides its scores besides its options, such as a hash of a model's files.
    """

    identity: str

    def plan(self, answers: Sequence[Answer]) -> list[ScoringUnit]:
        """Split the answers into units.

        The split depends only on the answers. The members of a batch decide its rounding, so they must be the
        same after a restart and on another number of processes.
        """
        ...

    def ready(self) -> AbstractContextManager[ScoreUnits]:
        """Load what scoring needs, for as long as the context is open."""
        ...


def score_missing(
    scorer: Scorer,
    answers: Sequence[Answer],
    shards: Shards,
    processes: Processes,
    *,
    title: str,
    progress: bool = False,
    ready: ScoreUnits | None = None,
) -> None:
    """Score this process's share of the answers that are not in a shard yet.

    Args:
        scorer: the scorer.
        answers: all answers, the same in every process.
        shards: read and write finished units here.
        processes: unit i belongs to process i modulo their count.
        title: the name of the scores, for the log.
        progress: show a bar.
        ready: the scorer's function, if it is loaded already.

    Raises:
        InputError: a score is not a finite number.
    """
    finished = shards.rows()
    if finished or ready is None:
        logger.info("%s: %d of %d responses are already scored", title, len(finished), len(answers))
    if len(finished) == len(answers):
        return
    share = scorer.plan(answers)[processes.rank :: processes.count]
    missing = [unit for unit in share if not finished.keys() >= set(unit.places)]
    if missing:
        from rich.progress import Progress

        with nullcontext(ready) if ready else scorer.ready() as score, Progress(disable=not progress) as bar:
            task = bar.add_task(f"Scoring {title}", total=len(missing))

            def keep(unit: ScoringUnit, scores: list[float]) -> None:
                by_place = dict(zip(unit.places, scores, strict=True))
                _require_finite(title, answers, by_place)
                shards.append(by_place, processes.rank)
                bar.advance(task)

            score(missing, keep)


def _require_finite(title: str, answers: Sequence[Answer], scores: Mapping[int, float]) -> None:
    for place, score in scores.items():
        if not math.isfinite(score):
            answer = answers[place]
            raise InputError(
                f"{title}: row {answer.group.row}, response {answer.place} scored {score}, which is no "
                "finite number: leave the row out, or score in another precision"
            )
