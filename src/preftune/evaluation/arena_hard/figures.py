"""Arena-Hard: both orders of every prompt, and a strong verdict counts for three games.

Against a single baseline the Bradley-Terry win rate is the weighted mean of the games. Upstream is
lmarena/arena-hard-auto, whose v0.1 and v2 read verdicts, and state intervals, by different rules.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from preftune.errors import InputError
from preftune.evaluation.arena_hard.style_control import FEATURES, control_style, read_styles
from preftune.evaluation.benchmark import Rescorer
from preftune.evaluation.files import Record, read_objects, require
from preftune.evaluation.resampling import mean, tally
from preftune.evaluation.verdicts import (
    Comparison,
    Recording,
    Results,
    flipped_rate,
    invalid_rate,
    preference_for_model,
)

NAME = "arena_hard"

STRONG = 3
"""Games that a strong verdict counts for."""

LABELS: Mapping[str, tuple[float, int]] = {
    "A>>B": (1.0, STRONG),
    "A>B": (1.0, 1),
    "A=B": (0.5, 1),
    "B>A": (0.0, 1),
    "B>>A": (0.0, STRONG),
}
"""Preference for A, and games."""

OUTCOMES: Mapping[str, float] = {"wins": 1.0, "losses": 0.0, "ties": 0.5}

MIRRORED: Mapping[str, str] = {"A<<B": "B>>A", "A<B": "B>A", "B=A": "A=B", "B<A": "A>B", "B<<A": "A>>B"}
"""Other spellings, which only v2 takes."""


@dataclass(frozen=True)
class Rules:
    """What differs between upstream's versions.

    Attributes:
        baselines: by category.
        patterns: of a verdict in the judge's text, the first that is found counting.
        last_verdict: several different verdicts in a text: the last one counts, or none.
        whole_prompts: a verdict that cannot be read drops the other order's too.
        spellings: labels, as the judge may write them.
        percentiles: ends of upstream's interval.
        rounds: resamples of upstream's interval. v0.1 always draws the same 100; v2 draws 100 other ones each
            time, so more of them come closer to what it says on average.
    """

    baselines: Mapping[str, str]
    patterns: tuple[str, ...]
    last_verdict: bool
    whole_prompts: bool
    spellings: Mapping[str, tuple[float, int]]
    percentiles: tuple[float, float]
    rounds: int

    def meaning(self, label: str | None) -> tuple[float | None, int]:
        """The preference for the answer that is shown first, and the games that the verdict counts for."""
        return self.spellings.get(label or "", (None, 1))


V01_CATEGORY = "arena-hard-v0.1"

RULES: Mapping[str, Rules] = {
    "v0.1": Rules(
        baselines={V01_CATEGORY: "gpt-4-0314", "": "gpt-4-0314"},
        patterns=(r"\[\[([AB<>=]+)\]\]",),
        last_verdict=False,
        whole_prompts=False,
        spellings=LABELS,
        percentiles=(2.5, 97.5),
        rounds=100,
    ),
    "v2": Rules(
        baselines={
            "hard_prompt": "o3-mini-2025-01-31",
            "coding": "o3-mini-2025-01-31",
            "math": "o3-mini-2025-01-31",
            "creative_writing": "gemini-2.0-flash-001",
        },
        patterns=(r"\[\[([AB<>=]+)\]\]", r"\[([AB<>=]+)\]"),
        last_verdict=True,
        whole_prompts=True,
        spellings={**LABELS, **{label: LABELS[meaning] for label, meaning in MIRRORED.items()}},
        percentiles=(5.0, 95.0),
        rounds=1000,
    ),
}


def read_label(judgment: str, rules: Rules) -> str | None:
    """The verdict in a judge's text, as it is written there; None if there is none, or no single one."""
    text = judgment.upper() if rules.last_verdict else judgment
    for pattern in rules.patterns:
        labels = re.findall(pattern, text)
        if labels:
            return labels[-1] if rules.last_verdict or len(set(labels)) == 1 else None
    return None


def pair(games: Sequence[Comparison], rules: Rules) -> list[Comparison]:
    """Both orders of a prompt: where the rules say so, one that cannot be read takes the other with it."""
    if rules.whole_prompts and any(game.preference is None for game in games):
        return [replace(game, preference=None, weight=1) for game in games]
    return list(games)


def read_verdicts(path: Path, baseline: str | None = None) -> list[Recording]:
    """Read judgments of either version, or battles: one recording for each model and category.

    Args:
        path: JSON Lines. Judgments have `model`, `games` and `uid` or `question_id`; battles `model_a`,
            `model_b` and `winner`, with strong verdicts already written three times.
        baseline: its name, where neither the file nor the version says it.

    Raises:
        InputError: the file has another shape, or no baseline is known.
    """
    rows = read_objects(path)
    if "winner" in rows[0]:
        return _read_battles(path, rows, baseline)
    found: dict[tuple[str, str, str], list[Comparison]] = {}
    for row in rows:
        require(path, row, ("model", "games"), "an Arena-Hard judgment")
        category = str(row.get("category", ""))
        rules = RULES[version_of(category)]
        against = row.get("baseline") or baseline or rules.baselines.get(category)
        if against is None:
            raise InputError(
                f"{path}: no baseline is known for category {category!r}: name it with --baseline"
            )
        question = _question(path, row)
        games = []
        for game, model_first in zip(row["games"], (False, True), strict=False):
            first, weight = rules.meaning(_label(path, game))
            preference = preference_for_model(first, model_first)
            games.append(Comparison(question, preference, model_first, weight, category=category))
        found.setdefault((row["model"], against, category), []).extend(pair(games, rules))
    return [
        Recording(
            model, against, verdicts, str(path), notes={"category": category, "version": version_of(category)}
        )
        for (model, against, category), verdicts in found.items()
    ]


def version_of(category: str) -> str:
    """Which rules a question is judged by: since v2 they have categories of their own."""
    return "v0.1" if category in ("", V01_CATEGORY) else "v2"


def aggregate_arena_hard(recording: Recording, seed: int = 0) -> Results:
    """Every figure of a model, in percent; `n` counts games.

    Args:
        recording: comparisons in both orders, or battles.
        seed: of the resamples.

    Raises:
        InputError: no verdict could be read.
    """
    verdicts = recording.comparisons
    counted = tally(verdicts)
    estimate = mean(counted, seed)
    results: Results = {
        "protocol": NAME,
        "model": recording.model,
        "baseline": recording.baseline,
        "n": sum(verdict.weight for verdict in verdicts if verdict.preference is not None),
        "prompts": len(counted),
        "win_rate": 100 * estimate.value,
        **estimate.results(100.0),
        **{outcome: _games(verdicts, preference) for outcome, preference in OUTCOMES.items()},
        "invalid_rate": invalid_rate(verdicts),
        "flipped_rate": flipped_rate(verdicts),
    }
    return results | recording.notes


def resample_games(recordings: Sequence[Recording], rules: Rules) -> list[tuple[float, float]]:
    """Upstream's interval of each model, in percent: the games of all models are drawn again, one by one.

    Two games on one prompt, and the three of a strong verdict, count as independent, so it is too narrow. The
    draws are those of upstream's v0.1, numpy's old generator with seed 42, over the games in file order.

    Args:
        recordings: the models that upstream would have in one folder, in the order of its files.
        rules: of the version.
    """
    wins = [
        (index, verdict.preference)
        for index, recording in enumerate(recordings)
        for verdict in recording.comparisons
        for _ in range(verdict.weight)
        if verdict.preference is not None
    ]
    model, preference = (np.array(column) for column in zip(*wins, strict=True))
    random = np.random.RandomState(42)
    rounds = []
    for _ in range(rules.rounds):
        drawn = random.choice(len(model), size=len(model), replace=True)
        total = np.bincount(model[drawn], preference[drawn], minlength=len(recordings))
        rounds.append(total / np.bincount(model[drawn], minlength=len(recordings)))
    low, high = np.percentile(100 * np.array(rounds), rules.percentiles, axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


class ArenaHardRescorer(Rescorer):
    """Of judgments and battles. See `Rescorer`."""

    own_options = ("upstream_intervals", "answers")

    def read(self, path: Path) -> list[Recording]:
        """See `read_verdicts`."""
        return read_verdicts(path, self.options.baseline)

    def figures(self, recording: Recording) -> Results:
        """See `aggregate_arena_hard`."""
        return aggregate_arena_hard(recording, self.options.seed)

    def add_joint_figures(self, recordings: Sequence[Recording], results: Sequence[Results]) -> None:
        """Upstream's intervals and style control, where they are asked for."""
        if self.options.upstream_intervals:
            _add_upstream_intervals(recordings, results)
        if self.options.answers:
            self._add_style_control(recordings, results)

    def _add_style_control(self, recordings: Sequence[Recording], results: Sequence[Results]) -> None:
        """One fit for all models against the same baseline on the same category."""
        styles = read_styles(self.options.answers)
        features = FEATURES if self.options.style is None else self.options.style
        groups: dict[tuple[str | None, str], list[int]] = {}
        for place, recording in enumerate(recordings):
            groups.setdefault((recording.baseline, recording.notes.get("category", "")), []).append(place)
        for places in groups.values():
            fits = control_style([recordings[place] for place in places], styles, features)
            for place, fit in zip(places, fits, strict=True):
                results[place]["style_controlled_win_rate"] = fit.win_rate
                results[place]["style_controlled_interval"] = list(fit.interval)
                results[place]["style_control"] = {"coefficients": dict(fit.coefficients)}


def _add_upstream_intervals(recordings: Sequence[Recording], results: Sequence[Results]) -> None:
    """Upstream draws the games of all models in its folder together: here, of all with the same rules."""
    for version, rules in RULES.items():
        places = [
            place
            for place, recording in enumerate(recordings)
            if recording.notes.get("version", "v0.1") == version
        ]
        if places:
            intervals = resample_games([recordings[place] for place in places], rules)
            for place, interval in zip(places, intervals, strict=True):
                results[place]["upstream_interval"] = list(interval)


def _games(verdicts: Sequence[Comparison], preference: float) -> int:
    return sum(verdict.weight for verdict in verdicts if verdict.preference == preference)


def _question(path: Path, row: Record) -> str:
    for key in ("uid", "question_id"):
        if key in row:
            return str(row[key])
    raise InputError(f"{path}: a row has no uid or question_id: add one")


def _label(path: Path, game: Any) -> str | None:
    """What upstream's tool read from the judgment, and None if it failed."""
    if game is None:
        return None
    if not isinstance(game, dict) or "score" not in game:
        raise InputError(f"{path}: a game without score: give the judgments as upstream writes them")
    return game["score"]  # type: ignore[no-any-return]


def _read_battles(path: Path, rows: Sequence[Record], baseline: str | None) -> list[Recording]:
    """Battles do not say who was seen first."""
    for row in rows:
        require(path, row, ("model_a", "model_b", "winner"), "a battle")
    names = {row["model_a"] for row in rows} | {row["model_b"] for row in rows}
    everywhere = [name for name in names if all(name in (row["model_a"], row["model_b"]) for row in rows)]
    first = rows[0]["model_a"]
    against = baseline or (first if first in everywhere else next(iter(everywhere), None))
    if against not in everywhere:
        raise InputError(
            f"{path}: {against or 'no model'} is in every battle, and a baseline must be: the models are "
            f"{', '.join(sorted(names))}; give battles against one baseline, and name it with --baseline"
        )
    found: dict[str, list[Comparison]] = {}
    for row in rows:
        is_first = row["model_a"] != against
        model = row["model_a"] if is_first else row["model_b"]
        winners = {
            "model_a": float(is_first),
            "model_b": float(not is_first),
            "tie": 0.5,
            "tie (bothbad)": 0.5,
        }
        if row["winner"] not in winners:
            raise InputError(f"{path}: winner = {row['winner']!r}: must be one of {', '.join(winners)}")
        found.setdefault(model, []).append(Comparison(_question(path, row), winners[row["winner"]]))
    return [Recording(model, against, verdicts, str(path)) for model, verdicts in found.items()]
