"""Scoring that can be killed at any moment: what is finished stands beside the output and is found again."""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
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
    """One response of a group: what a scorer gives a number to."""

    group: Group
    place: int

    @property
    def content(self) -> Text:
        """What was answered."""
        return self.group.responses[self.place].content


@dataclass(frozen=True)
class ScoringUnit:
    """Answers that are scored together, finished together or not at all.

    Attributes:
        places: indices of the answers.
        inputs: what the scorer made of them, such as their token ids.
    """

    places: tuple[int, ...]
    inputs: Any


def scored_content(groups: Iterable[Group]) -> str:
    """A hash of all that a scorer may read of groups: what is asked and answered, and the other columns."""
    groups = list(groups)
    digest = hashlib.sha256(fingerprint_rows(groups).encode())
    for group in groups:
        digest.update(json.dumps(group.columns, default=str).encode() + b"\n")
    return digest.hexdigest()


ScoreUnit = Callable[[ScoringUnit], list[float]]
"""A number for each place of a unit, in order."""


@runtime_checkable
class Scorer(Protocol):
    """Something that gives responses numbers.

    Attributes:
        identity: what decides its scores besides its options, such as a hash of a model's files.
        workers: units scored at the same time in a process.
    """

    identity: str
    workers: int

    def plan(self, answers: Sequence[Answer]) -> list[ScoringUnit]:
        """Cut the answers into units.

        The cut depends on nothing but the answers: what stands together in a batch decides its rounding, and
        is the same after a restart and on another number of processes.
        """
        ...

    def ready(self) -> AbstractContextManager[ScoreUnit]:
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
    ready: ScoreUnit | None = None,
) -> None:
    """Score this process's share of what no shard holds yet.

    Args:
        scorer: what scores.
        answers: all of them, the same in every process.
        shards: where finished units are found and go.
        processes: unit i belongs to process i modulo their count.
        title: what is scored, for the log.
        progress: show a bar.
        ready: of the scorer, where it is loaded already.

    Raises:
        InputError: a score is no finite number.
    """
    finished = shards.rows()
    if finished or ready is None:
        logger.info("%s: %d of %d responses are scored", title, len(finished), len(answers))
    if len(finished) == len(answers):
        return
    share = scorer.plan(answers)[processes.rank :: processes.count]
    missing = [unit for unit in share if not finished.keys() >= set(unit.places)]
    if missing:
        from rich.progress import track

        with nullcontext(ready) if ready else scorer.ready() as score:
            results = _finite(title, answers, _results(score, missing, scorer.workers))
            bar = track(results, f"Scoring {title}", len(missing), disable=not progress)
            for unit, scores in bar:
                shards.append(dict(zip(unit.places, scores, strict=True)), processes.rank)


def _finite(
    title: str, answers: Sequence[Answer], results: Iterator[tuple[ScoringUnit, list[float]]]
) -> Iterator[tuple[ScoringUnit, list[float]]]:
    """The results, as long as they are numbers."""
    for unit, scores in results:
        for place, score in zip(unit.places, scores, strict=True):
            if not math.isfinite(score):
                answer = answers[place]
                raise InputError(
                    f"{title}: row {answer.group.row}, response {answer.place} scored {score}, which is no "
                    "finite number: leave the row out, or score in another precision"
                )
        yield unit, scores


def _results(
    score: ScoreUnit, units: Sequence[ScoringUnit], workers: int
) -> Iterator[tuple[ScoringUnit, list[float]]]:
    """Units with their scores, as they are finished; where one fails, those at work come before that."""
    if workers == 1:
        for unit in units:
            yield unit, score(unit)
        return
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(score, unit): unit for unit in units}
        failure: BaseException | None = None
        try:
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                if error := future.exception():
                    failure = failure or error
                    # Not the pool's shutdown, which never tells as_completed of what it cancels.
                    for other in futures:
                        other.cancel()
                else:
                    yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failure:
            raise failure
