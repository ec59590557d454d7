"""The rounds on a terminal: a table that stays in its place, or plain lines where there is no terminal."""

import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from statistics import fmean
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from preftune.online.progress import Progress

STAGES = {
    "round": ("sample", "score", "pair", "train", "evaluate"),
    "batch": ("train", "evaluate"),
}
"""Of a round, by when the policy is updated."""
REFRESHES_PER_SECOND = 2
UNKNOWN = ""


class View:
    """Shows round, stage, progress, the figures of each round, speed and the time left."""

    def __init__(self, rounds: int, update_every: str = "round", console: Console | None = None) -> None:
        """Start with nothing shown.

        Args:
            rounds: how many there are.
            update_every: in `STAGES`.
            console: where it is shown; stderr unless given.
        """
        self._rounds, self._stages = rounds, STAGES[update_every]
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._figures: dict[int, Mapping[str, Any]] = {}
        self._speeds: dict[int, float] = {}
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._now: tuple[int, str, Progress | None, float] | None = None

    def __enter__(self) -> "View":
        if self._console.is_terminal:
            self._live = Live(
                console=self._console,
                get_renderable=self._rendered,
                refresh_per_second=REFRESHES_PER_SECOND,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._now = None
        if self._live:
            self._live.stop()

    def begin(self, number: int, stage: str, progress: Progress | None) -> None:
        """A stage starts, or is found finished; round 0 is the starting model."""
        self._now = (number, stage, progress, time.perf_counter())

    def end(self, number: int, stage: str, seconds: float | None, tokens: int | None = None) -> None:
        """A stage has come to its end.

        Args:
            number: of the round.
            stage: its name.
            seconds: it took; None if an earlier call had finished it.
            tokens: it sampled in all of these seconds, where that is known.
        """
        if seconds is not None:
            self._seconds[stage].append(seconds)
            if tokens and seconds:
                self._speeds[number] = tokens / seconds
        if not self._live:
            took = "kept" if seconds is None else f"{seconds:.1f} s"
            speed = f", {self._speeds[number]:.0f} tokens/s" if seconds and tokens else ""
            self._console.print(f"{_name(number, self._rounds)}: {stage}, {took}{speed}", soft_wrap=True)

    def measured(self, number: int, figures: Mapping[str, Any]) -> None:
        """A round has come to its end, or the starting model is measured."""
        self._figures[number] = figures
        self._now = None
        if not self._live:
            cells = zip(HEADS, self._cells(number), strict=True)
            shown = ", ".join(f"{head} {cell}" for head, cell in cells if cell)
            left = self._time_left()
            self._console.print(
                f"{_name(number, self._rounds)}: {shown}{f'; {left} left' if left else ''}", soft_wrap=True
            )

    def _rendered(self) -> RenderableType:
        table = Table("", *HEADS, title="Held-out prompts, 95% intervals")
        for number in self._figures:
            table.add_row(_name(number, self._rounds), *self._cells(number))
        if self._now is None:
            return table
        number, stage, progress, began = self._now
        # Shards come and go while they are counted, and an error here would stop the view for good.
        share = None
        if progress:
            with suppress(OSError, TypeError, ValueError, ZeroDivisionError):
                share = progress()
        line = Table.grid(padding=(0, 2))
        elapsed = time.perf_counter() - began
        left = self._time_left(elapsed)
        line.add_row(
            f"{_name(number, self._rounds)}: {stage}",
            ProgressBar(total=1, completed=share or 0, width=30, pulse=share is None),
            f"{_clock(elapsed)} in this stage{f', {left} left' if left else ''}",
        )
        return Group(table, line)

    def _cells(self, number: int) -> list[str]:
        figures = self._figures[number]
        evaluation, pairs = figures.get("evaluation"), figures.get("pairs")
        gap = pairs["gap"] if pairs else None
        speed = self._speeds.get(number)
        return [
            _interval(evaluation and evaluation["reward"]),
            _interval(evaluation and number and evaluation["win_rate"]),
            _interval(evaluation and number and evaluation["drift"]),
            _interval(evaluation and evaluation["entropy"]),
            _interval(figures.get("samples")),
            UNKNOWN if gap is None else f"{gap:.3f}",
            UNKNOWN if speed is None else f"{speed:.0f}",
        ]

    def _time_left(self, elapsed: float = 0.0) -> str:
        """Seconds of the stages to come, as long as they took in earlier rounds; empty until one is over."""
        if not all(self._seconds[stage] for stage in self._stages):
            return UNKNOWN
        means = {stage: fmean(self._seconds[stage]) for stage in self._stages}
        number, seconds = max(self._figures, default=0), 0.0
        if self._now:
            number, stage, *_ = self._now
            to_come = [means[each] for each in self._stages[self._stages.index(stage) :]]
            seconds = sum(to_come) - min(elapsed, to_come[0])
        return _clock(seconds + sum(means.values()) * (self._rounds - number))


HEADS = ("reward", "win rate", "drift", "entropy", "reward of samples", "gap", "tokens/s")


def _name(number: int, rounds: int) -> str:
    return f"round {number} of {rounds}" if number else "start"


def _interval(figure: Mapping[str, float] | int | None) -> str:
    if not isinstance(figure, Mapping):
        return UNKNOWN
    return f"{figure['mean']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
