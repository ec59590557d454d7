"""Style control for Arena-Hard: the win rate at equal length and equal use of headers, lists and bold text.

Strengths of all models and the effects of style are fitted together, in a Bradley-Terry model whose logit is
strength + sum of b_k z_k, where z_k is the difference of a style feature over its standard deviation. The
features are upstream's: (m - b) / (m + b) for length, and (m - b) / (m + b + 1) for the density of each kind
of markup.

Upstream (lmarena/arena-hard-auto, show_result.py) does otherwise, and is not followed, in that it

- subtracts the features' mean too, so that its win rate is the one at the pooled models' average difference
  from the baseline, not at no difference, and moves when another model joins;
- in v2, for length or markup alone, takes columns of the whole design, the first of which is a model;
- in v0.1 fits with scikit-learn's default L2 penalty, and in v2 stops its optimiser after 50 steps;
- in v2 gives the median of resampled fits for the fit;
- resamples games, though those on one prompt go together.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from preftune.errors import InputError
from preftune.evaluation.files import Record, read_objects
from preftune.evaluation.logistic import fit_logistic, influences, sigmoid
from preftune.evaluation.resampling import REACH
from preftune.evaluation.verdicts import Comparison, Recording

FEATURES = ("length", "headers", "lists", "bold")

_CODE = re.compile(r"```[^`]*```")
_MARKUP: Mapping[str, re.Pattern[str]] = {
    "headers": re.compile(r"^#{1,6}\s", re.MULTILINE),
    "lists": re.compile(r"^\s*(?:\d+\.|[-*+])\s", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
}
_RECORDED = {"headers": "header_count", "lists": "list_count", "bold": "bold_count"}


@dataclass(frozen=True)
class Style:
    """What an answer looks like.

    Attributes:
        characters: of its text.
        tokens: as its file says; None if it does not.
        counts: of each kind of markup, outside of code blocks.
    """

    characters: int
    tokens: int | None
    counts: Mapping[str, int]


@dataclass(frozen=True)
class StyleControlled:
    """One model at equal style.

    Attributes:
        win_rate: in percent.
        interval: 95%, over prompts.
        coefficients: of the standardised features, shared by all models of the fit; positive where the judge
            likes more.
    """

    win_rate: float
    interval: tuple[float, float]
    coefficients: Mapping[str, float]


Styles = Mapping[str, Mapping[str, Style]]
"""Styles by model and question."""


def count_style(text: str, tokens: int | None = None) -> Style:
    """Count characters and markup; markup in code blocks is code."""
    prose = _CODE.sub("", text)
    return Style(len(text), tokens, {name: len(found.findall(prose)) for name, found in _MARKUP.items()})


def read_styles(paths: Sequence[Path]) -> Styles:
    """Read answer files of Arena-Hard, either version: with their own counts where they have them.

    Raises:
        InputError: a row has no answer in it.
    """
    found: dict[str, dict[str, Style]] = {}
    for path in paths:
        for row in read_objects(path):
            try:
                model, question, style = _read_answer(row)
            except (KeyError, IndexError, TypeError) as error:
                raise InputError(
                    f"{path}: a row without an answer ({error}): give answers as Arena-Hard writes them, "
                    "with uid, model and messages, or question_id, model_id and choices"
                ) from error
            found.setdefault(model, {})[question] = style
    return found


def control_style(
    recordings: Sequence[Recording], answers: Styles, features: Sequence[str] = FEATURES
) -> list[StyleControlled]:
    """Fit all models against their common baseline.

    Args:
        recordings: of different models against the same baseline.
        answers: of each of them and of the baseline, to every question judged.
        features: of FEATURES, those to control.

    Raises:
        InputError: an answer is missing, or a feature is unknown.
    """
    unknown = [feature for feature in features if feature not in FEATURES]
    if unknown or not features:
        raise InputError(f"style = {', '.join(unknown) or 'nothing'}: must be of {', '.join(FEATURES)}")
    games = [
        (index, game)
        for index, recording in enumerate(recordings)
        for game in recording.comparisons
        if game.preference is not None
    ]
    pairs = [_styles(recordings[index], game, answers) for index, game in games]
    weight = np.array([game.weight for _, game in games], dtype=np.float64)
    target = np.array([game.preference for _, game in games], dtype=np.float64)
    # Tokens where every answer has them, and else characters: never one against the other.
    counted = all(style.tokens is not None for pair in pairs for style in pair)
    raw = np.array([[_difference(name, *pair, counted) for name in features] for pair in pairs])
    centred = raw - np.average(raw, axis=0, weights=weight)
    spread = np.sqrt(np.average(centred**2, axis=0, weights=weight))
    # A feature that never differs has no effect to find.
    standard = raw / np.where(spread > 0, spread, 1.0)
    design = np.concatenate([np.eye(len(recordings))[[index for index, _ in games]], standard], axis=1)
    coefficients = fit_logistic(design, target, weight)
    errors = _standard_errors([game.question for _, game in games], design, target, weight, coefficients)
    effects = dict(zip(features, coefficients[len(recordings) :].tolist(), strict=True))
    reach = REACH * errors
    ends = [100 * sigmoid(coefficients + sign * reach) for sign in (0, -1, 1)]
    return [
        StyleControlled(float(middle), (float(low), float(high)), effects)
        for middle, low, high in list(zip(*ends, strict=True))[: len(recordings)]
    ]


def _standard_errors(
    questions: Sequence[str],
    design: Float64[np.ndarray, "games columns"],
    target: Float64[np.ndarray, "games"],
    weight: Float64[np.ndarray, "games"],
    coefficients: Float64[np.ndarray, "columns"],
) -> Float64[np.ndarray, "columns"]:
    """Of the coefficients, over prompts: all games on a prompt move the fit together."""
    moves = influences(design, target, weight, coefficients)
    places = {question: place for place, question in enumerate(dict.fromkeys(questions))}
    by_prompt = np.zeros((len(places), design.shape[1]))
    np.add.at(by_prompt, [places[question] for question in questions], moves)
    return np.asarray(np.sqrt((by_prompt**2).sum(axis=0)))


def _styles(recording: Recording, game: Comparison, answers: Styles) -> tuple[Style, Style]:
    """Of the model's answer and of the baseline's."""
    found = []
    for name in (recording.model, str(recording.baseline)):
        if game.question not in answers.get(name, {}):
            raise InputError(
                f"{recording.source}: no answer of {name} to {game.question}: give its answer file too"
            )
        found.append(answers[name][game.question])
    return found[0], found[1]


def _difference(feature: str, model: Style, baseline: Style, counted: bool) -> float:
    sizes = [float((style.tokens if counted else style.characters) or 0) for style in (model, baseline)]
    if feature == "length":
        return (sizes[0] - sizes[1]) / max(sum(sizes), 1.0)
    ours, theirs = (
        style.counts[feature] / (size + 1) for style, size in zip((model, baseline), sizes, strict=True)
    )
    return (ours - theirs) / (ours + theirs + 1)


def _read_answer(row: Record) -> tuple[str, str, Style]:
    if "messages" in row:
        content = row["messages"][-1]["content"]
        text = content["answer"] if isinstance(content, dict) else content
        model, question, recorded = row["model"], row["uid"], row.get("metadata")
    else:
        turn = row["choices"][0]["turns"][0]
        text = turn["content"] if isinstance(turn, dict) else turn
        model, question, recorded = row["model_id"], row["question_id"], row.get("conv_metadata")
    style = count_style(text)
    if recorded:
        counts = {name: _total(recorded[key]) for name, key in _RECORDED.items()}
        style = Style(len(text), int(recorded["token_len"]), counts)
    return model, str(question), style


def _total(count: Any) -> int:
    """Counts by kind, or a count."""
    return sum(count.values()) if isinstance(count, dict) else int(count)
