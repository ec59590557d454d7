"""Scoring that can be killed at any moment: what is finished stands beside the output and is found again."""

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from preftune.data import fingerprint_rows
from preftune.data.groups import Group, Text
from preftune.errors import InputError

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
class Unit:
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


ScoreUnit = Callable[[Unit], list[float]]
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

    def plan(self, answers: Sequence[Answer]) -> list[Unit]:
        """Cut the answers into units.

        The cut depends on nothing but the answers: what stands together in a batch decides its rounding, and
        is the same after a restart and on another number of processes.
        """
        ...

    def ready(self) -> AbstractContextManager[ScoreUnit]:
        """Load what scoring needs, for as long as the context is open."""
        ...


@dataclass(frozen=True)
class Processes:
    """The processes that score together.

    Attributes:
        rank: this one's number.
        count: how many there are.
        wait: returns once all have called it.
    """

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None


def launched_processes() -> Processes:
    """Those that `torchrun` or `accelerate launch` started; without them, one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    import torch
    from accelerate import PartialState

    # One process may have finished hours before another.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=30))
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone)


class Shards:
    """Finished scores in append-only files beside the output, one for each process.

    A line holds a finished unit as [index, score] pairs. Every process reads the files of all, so a restart
    may have another number of them. A line that was cut when its process died is no JSON and is passed over.
    """

    def __init__(self, output: Path, key: str) -> None:
        """Name the files.

        Args:
            output: what the scores are for.
            key: a hash of all that decides them; another key never reads these files.
        """
        self._folder = output.parent
        self._stem = f"{output.name}.{key}"

    def scores(self) -> dict[int, float]:
        """What is finished, by the answer's index."""
        found: dict[int, float] = {}
        for file in self._files():
            for line in file.read_bytes().split(b"\n"):
                try:
                    found.update(json.loads(line))
                except ValueError:
                    continue
        return found

    def append(self, rank: int, results: Iterator[tuple[Unit, list[float]]]) -> None:
        """Write each result as soon as it is there."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{self._stem}.{rank}.part").open("ab") as file:
            # Ends the line that an earlier process may have left cut.
            start = b"\n" if file.tell() else b""
            for unit, scores in results:
                pairs = [list(pair) for pair in zip(unit.places, scores, strict=True)]
                file.write(start + json.dumps(pairs).encode() + b"\n")
                file.flush()
                start = b""

    def remove(self) -> None:
        """Delete the files, once the scores are in the output."""
        for file in self._files():
            file.unlink()

    def _files(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        named = re.compile(rf"{re.escape(self._stem)}\.\d+\.part")
        return sorted(file for file in self._folder.iterdir() if named.fullmatch(file.name))


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
    finished = shards.scores()
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
            shards.append(processes.rank, iter(bar))


def _finite(
    title: str, answers: Sequence[Answer], results: Iterator[tuple[Unit, list[float]]]
) -> Iterator[tuple[Unit, list[float]]]:
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


def _results(score: ScoreUnit, units: Sequence[Unit], workers: int) -> Iterator[tuple[Unit, list[float]]]:
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
