"""Recompute published figures from the verdicts behind them: `make verify-evaluation`.

The folder holds other people's data, which is not part of this project (docs/evaluate.md says where each file
comes from). Exits with 1 where a figure is further from the published one than allowed.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from preftune.evaluation.alpaca_eval.difficulty import read_difficulty
from preftune.evaluation.alpaca_eval.figures import read_annotations
from preftune.evaluation.arena_hard.figures import RULES
from preftune.evaluation.benchmark import RescoreOptions
from preftune.evaluation.length_control import MAXIMUM_LIKELIHOOD, OFFICIAL, predict_win_rate
from preftune.evaluation.rescoring import read_recordings, rescore_recordings
from preftune.evaluation.verdicts import Results

FOLDER = Path(__file__).parents[2] / "shared" / "fixtures" / "evaluation"

NAMED = ("FuseChat-Gemma-2-9B-Instruct", "NullModel", "claude-2.1")
"""Models whose official length-controlled win rate must be the leaderboard's to 0.01."""

MT_BENCH = {
    "mistral-orpo-capybara": (7.125, 6.5125, 6.81875),
    "mistral-orpo": (6.675, 5.037736, 5.858934),
    "ELYZA-japanese-Llama-2-7b-fast-instruct": (5.05, 3.3, 4.175),
}
"""Turn 1, turn 2, average."""

PAIRS = {"wins": 3, "losses": 2, "ties": 5, "win_rate": 30.0, "loss_rate": 20.0, "win_rate_adjusted": 55.0}
"""Of gpt-4 against gpt-3.5-turbo, counted by hand."""

ARENA_HARD = {
    ("57a9881", "claude-3-5-sonnet-20240620"): (90.87, 88.36, 93.17),
    ("57a9881", "gpt-4o"): (91.03, 88.91, 93.25),
    ("74e8b6f", "claude-3-5-sonnet-20240620"): (88.69, 85.61, 91.31),
    ("74e8b6f", "gpt-4o"): (86.82, 84.39, 89.54),
}
"""Score and 95% interval that upstream's own code (utils_math.py at a06dde2) computes from these battles."""


@dataclass(frozen=True)
class Check:
    """A published figure, ours, and how far they may be apart."""

    figure: str
    published: float
    ours: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether they are close enough."""
        return abs(self.ours - self.published) <= self.allowed


def alpaca_eval_checks(folder: Path, mode: str, models: Sequence[str] = ()) -> Iterator[Check]:
    """Win rates and length-controlled win rates, of all models or some, against the leaderboard.

    The leaderboard matched difficulties by position, so this does too.
    """
    leaderboard = _read_rows(folder / "leaderboard.csv")
    files = sorted((folder / "annotations_slim").glob("*.json"))
    files = [file for file in files if not models or file.stem in models]
    settings = RescoreOptions(difficulty=folder / "df_gamed_reconstructed.csv", by_position=True, mode=mode)
    for ours in _rescore("alpaca_eval", files, settings):
        name, published = ours["model"], leaderboard[ours["model"]]
        for figure, key in (("win rate", "win_rate"), ("standard error", "standard_error")):
            yield Check(f"{name}: {figure}", float(published[key]), ours[key], 1e-4)
        allowed = 0.12 if mode == MAXIMUM_LIKELIHOOD else 0.01 if name in NAMED else 0.16
        controlled = float(published["length_controlled_winrate"])
        yield Check(f"{name}: {mode} LC", controlled, ours["length_controlled_win_rate"], allowed)
        if mode == OFFICIAL and published["lc_standard_error"] and "lc_standard_error" in ours:
            error = float(published["lc_standard_error"])
            yield Check(f"{name}: LC standard error", error, ours["lc_standard_error"], 1e-3)


def order_checks(folder: Path) -> Iterator[Check]:
    """The raw completions of a file, read in the order that the rule gives, are the recorded verdicts."""
    [recording] = read_annotations(folder / "annotations_full_gpt-3.5-turbo-1106.json")
    found = recording.notes
    identical = sum(verdict.preference == 0.5 for verdict in recording.comparisons)
    reproduced = found["recomputed"] - found["recomputed_otherwise"] + identical
    yield Check("order of pairs: rows reproduced", len(recording.verdicts), reproduced, 0)
    yield Check("order of pairs: largest difference", 0.0, found["recomputed_difference"], 1e-6)


def weight_checks(folder: Path) -> Iterator[Check]:
    """Published coefficients give the published length-controlled win rates, with upstream's rule for pairs.

    NullModel's row of the leaderboard is of another fit than its published coefficients.
    """
    leaderboard = _read_rows(folder / "leaderboard.csv")
    difficulty = read_difficulty(folder / "df_gamed_reconstructed.csv").values
    nothing = {"difficulty": 0.0, "model": 0.0}
    models = {file.stem for file in (folder / "annotations_slim").glob("*.json")} - {"NullModel"}
    for name, row in _read_rows(folder / "glm_weights.csv").items():
        if name in models:
            values = [float(value) for value in list(row.values())[1:]]
            weights = dict(zip(("length", "difficulty", "model"), values, strict=True))
            published = float(leaderboard[name]["length_controlled_winrate"])
            ours = predict_win_rate(weights, nothing, difficulty)
            yield Check(f"{name}: LC of its published weights", published, ours, 0.01)


def mt_bench_checks(folder: Path) -> Iterator[Check]:
    """Averages of grades, and outcomes of pairs."""
    singles = sorted((folder / "judgments").glob("*_single.jsonl"))
    for ours in _rescore("mt_bench", singles, RescoreOptions()):
        for key, published in zip(("turn_1", "turn_2", "average"), MT_BENCH[ours["model"]], strict=True):
            yield Check(f"{ours['model']}: {key}", published, ours[key], 5e-7)
        yield Check(f"{ours['model']}: grades read otherwise", 0, ours["recomputed_otherwise"], 0)
    [ours] = _rescore("mt_bench", sorted((folder / "judgments").glob("*_pair.jsonl")), RescoreOptions())
    for key, published in PAIRS.items():
        yield Check(f"{ours['model']} against {ours['baseline']}: {key}", published, ours[key], 1e-9)


def arena_hard_checks(folder: Path) -> Iterator[Check]:
    """Scores and upstream's intervals; and the rule of its published intervals on its published resamples."""
    for file in sorted(folder.glob("battles_*.jsonl")):
        for ours in _rescore("arena_hard", [file], RescoreOptions(upstream_intervals=True)):
            commit = file.stem.removeprefix("battles_")
            score, low, high = ARENA_HARD[commit, ours["model"]]
            name = f"{ours['model']} ({commit})"
            yield Check(f"{name}: score", score, ours["win_rate"], 0.01)
            for end, published, value in zip(
                ("low", "high"), (low, high), ours["upstream_interval"], strict=True
            ):
                yield Check(f"{name}: upstream's {end} end", published, value, 0.5)
    for line in (folder / "bootstrap_stats_arena_hard.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        low, high = np.percentile(row["results"], RULES["v0.1"].percentiles)
        yield Check(f"{row['model']}: low end of its resamples", row["lower"], float(low), 0.5)
        yield Check(f"{row['model']}: high end of its resamples", row["upper"], float(high), 0.5)


def all_checks(folder: Path) -> Iterator[Check]:
    """Everything."""
    for mode in (OFFICIAL, MAXIMUM_LIKELIHOOD):
        yield from alpaca_eval_checks(folder / "alpaca_eval", mode)
    yield from order_checks(folder / "alpaca_eval")
    yield from weight_checks(folder / "alpaca_eval")
    yield from mt_bench_checks(folder / "mt_bench")
    yield from arena_hard_checks(folder / "arena_hard")


def print_checks(checks: Sequence[Check]) -> None:
    """One line a figure."""
    table = Table("figure", "published", "ours", "difference", "allowed", "")
    for check in checks:
        numbers = (check.published, check.ours, check.ours - check.published)
        cells = [f"{number:.6g}" if index < 2 else f"{number:+.2g}" for index, number in enumerate(numbers)]
        table.add_row(check.figure, *cells, f"{check.allowed:g}", "" if check.holds else "MISSED")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main() -> None:
    """Verify a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    folder = parser.parse_args().folder
    if not folder.is_dir():
        sys.exit(f"{folder} is not there: give the folder of published verdicts (docs/evaluate.md)")
    checks = list(all_checks(folder))
    print_checks(checks)
    missed = [check for check in checks if not check.holds]
    for kind in (OFFICIAL, MAXIMUM_LIKELIHOOD):
        gaps = [
            abs(check.ours - check.published) for check in checks if check.figure.endswith(f": {kind} LC")
        ]
        print(f"{kind}: {len(gaps)} models, mean difference {np.mean(gaps):.3f}, largest {max(gaps):.3f}")
    print(f"{len(checks) - len(missed)} of {len(checks)} figures hold")
    sys.exit(bool(missed))


def _rescore(protocol: str, files: Sequence[Path], settings: RescoreOptions) -> list[Results]:
    return rescore_recordings(protocol, read_recordings(protocol, files, settings), settings)


def _read_rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row[""]: row for row in csv.DictReader(file)}


if __name__ == "__main__":
    main()
