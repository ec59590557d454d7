"""What became of the rounds: `summary.json` and the page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.measuring.comparison import ModelComparison, Pages, side_by_side
from preftune.measuring.samples import SampleRewards
from preftune.measuring.statistics import ends_of
from preftune.measuring.tradeoff import START, SweepPoint
from preftune.online.evaluation import ANSWERS_FILE
from preftune.online.training import RUN_FOLDER
from preftune.storage.files import REPORT_FILE, read_lines, write_json
from preftune.storage.manifest import Figures

NOTES = (
    "A run is the training of one round, on pairs of what the policy answered at the round's start. Changes "
    "of log-probability are within the round, on pairs of the starting model's answers to held-out prompts.",
    "Rewards are of samples to held-out prompts, before the first round and after each. Win rate: the share "
    "of comparisons with the starting model's samples to the same prompt that have the higher reward; a tie "
    "is half a win. Entropy: -log p per token, in nats, as a mean over responses.",
)


@dataclass
class Outcome:
    """Figures of the rounds so far.

    Attributes:
        rounds: how many there are to be.
        start: the starting policy's, on held-out prompts.
        figures: each round's, by its number.
        last_good: the last round that no guard has stopped; 0 is none.
        stopped: the round in which a guard has stopped the rest, and why.
    """

    rounds: int
    start: Figures = field(default_factory=dict)
    figures: dict[int, Figures] = field(default_factory=dict)
    last_good: int = 0
    stopped: dict[str, Any] | None = None


def write_outcome(
    output: Path, outcome: Outcome, folders: Mapping[int, Path], start: Path, pages: Pages
) -> None:
    """Write the summary, and the page once a round has been measured."""
    summary = {
        "rounds": outcome.rounds,
        "last_good": outcome.last_good,
        "stopped": outcome.stopped,
        "start": outcome.start,
        "figures": {f"round {number}": figures for number, figures in outcome.figures.items()},
    }
    write_json(output / "summary.json", summary)
    measured = {
        f"round {number}": (folders[number], figures["evaluation"])
        for number, figures in outcome.figures.items()
        if "evaluation" in figures
    }
    if not measured:
        # An earlier configuration's, if there is one.
        (output / REPORT_FILE).unlink(missing_ok=True)
        return
    notes = list(NOTES)
    if outcome.stopped:
        notes.append("Stopped in round {round} by {reason}.".format(**outcome.stopped))
    before = ends_of(outcome.start["reward"])
    every = {START: (start, outcome.start), **measured}
    comparison = ModelComparison(
        title=f"Online rounds: {len(outcome.figures)} of {outcome.rounds}",
        runs={name: folder / RUN_FOLDER for name, (folder, _) in measured.items()},
        rewards={
            name: SampleRewards(before=before, after=ends_of(figures["reward"]))
            for name, (_, figures) in measured.items()
        },
        samples=side_by_side(
            {name: read_lines(folder / ANSWERS_FILE) for name, (folder, _) in every.items()}, "scores"
        ),
        notes=notes,
        points=[_point(name, figures) for name, (_, figures) in every.items()],
    )
    pages.comparison(output / REPORT_FILE, comparison)


def _point(name: str, figures: Figures) -> SweepPoint:
    shown = ("win_rate", "entropy", "tokens", "finished")
    return SweepPoint(
        name=name,
        accuracy=None,
        drift=ends_of(figures["drift"]),
        reward=ends_of(figures["reward"]),
        measurements={figure.replace("_", " "): ends_of(figures[figure]) for figure in shown},
    )
