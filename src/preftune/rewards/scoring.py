"""Scoring that can be killed at any time: finished scores are kept beside the output and found again."""

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


ScoreUnit = Callable[[ScoringUnit], list[float]]
"""Returns a number for each place of a unit, in order."""


@runtime_checkable
class Scorer(Protocol):
    """Gives a number to each response.

    Attributes:
        identity: everything besides its options that decides its scores, such as a hash of a model's files.
        workers: units scored concurrently in a process.
    """

    identity: str
    workers: int

    def plan(self, answers: Sequence[Answer]) -> list[ScoringUnit]:
        """Split the answers into units.

        The split depends only on the answers. The members of a batch decide its rounding, so they must be the
        same after a restart and on another number of processes.
        """
        ...

    def ready(self) -> AbstractContextManager[ScoreUnit]:
        """Load what scoring needs and keep it while the context is open."""
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
        from rich.progress import track

        with nullcontext(ready) if ready else scorer.ready() as score:
            results = _finite(title, answers, _results(score, missing, scorer.workers))
            bar = track(results, f"Scoring {title}", len(missing), disable=not progress)
            for unit, scores in bar:
                shards.append(dict(zip(unit.places, scores, strict=True)), processes.rank)


def _finite(
    title: str, answers: Sequence[Answer], results: Iterator[tuple[ScoringUnit, list[float]]]
) -> Iterator[tuple[ScoringUnit, list[float]]]:
    """Yield the results, and check that scores are finite."""
    for unit, scores in results:
        for place, score in zip(unit.places, scores, strict=True):
            if not math.isfinite(score):
                answer = answers[place]
                raise InputError(
                    f"{title}: row {answer.group.row}, response {answer.place} has the score {score}, which "
                    "is not finite: remove the row, or score in another precision"
                )
        yield unit, scores


def _results(
    score: ScoreUnit, units: Sequence[ScoringUnit], workers: int
) -> Iterator[tuple[ScoringUnit, list[float]]]:
    """Units with their scores, as they finish; if one fails, running units finish before the error."""
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
                    # The pool's shutdown would cancel requests without telling as_completed.
                    for other in futures:
                        other.cancel()
                else:
                    yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failure:
            raise failure
