"""AlpacaEval 2: one verdict an instruction, in an order drawn from its text, as a probability.

The judge sees two outputs, m and M, and its next token's log-probabilities say how likely each is the better
one. Upstream is `weighted_alpaca_eval_gpt4_turbo` of tatsu-lab/alpaca_eval.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from preftune.errors import InputError
from preftune.evaluation.alpaca_eval.difficulty import Difficulty, match, read_difficulty
from preftune.evaluation.benchmark import RescoreOptions, Rescorer
from preftune.evaluation.files import Record, read_objects, require
from preftune.evaluation.length_control import (
    OFFICIAL,
    control_length,
    predict_win_rate,
    small_sample_warnings,
)
from preftune.evaluation.resampling import mean, tally
from preftune.evaluation.verdicts import (
    Comparison,
    Recording,
    Results,
    invalid_rate,
    preference_for_model,
    winner,
)

NAME = "alpaca_eval"

FIRST, SECOND = "m", "M"
"""The judge's names for the output that it sees first and for the other."""

DIFFICULTY_BASELINE = "gpt4_1106_preview"
"""The baseline that upstream's difficulties were fitted against."""

AGREES = 1e-6
"""Recorded and recomputed preference differ by less, which is above what files round to."""


def is_switched(instruction: str) -> bool:
    """Whether the model's output is shown before the baseline's: upstream's rule, with its seed of 0."""
    return random.Random(f"is_switched_outputs{instruction}0").choices([False, True])[0]


def preference_from_log_probs(top_log_probs: Mapping[str, float]) -> float | None:
    """Probability that the first output is the better one, from the first token of the verdict.

    Args:
        top_log_probs: log-probability of each token that the judge reports; one of m and M may be missing and
            counts as impossible.

    Returns:
        None if neither token is there.
    """
    first, second = (top_log_probs.get(token, -math.inf) for token in (FIRST, SECOND))
    if first == second == -math.inf:
        return None
    # The likelier one becomes exp(0), so that the division is safe.
    highest = max(first, second)
    return math.exp(first - highest) / (math.exp(first - highest) + math.exp(second - highest))


def read_annotations(path: Path) -> list[Recording]:
    """Read verdicts: upstream's `annotations.json`, or the slim shape with lists instead of rows.

    Upstream's `preference` runs from 1 (the baseline is better) to 2; 0 and 1.5 are draws, null is none.

    Raises:
        InputError: the file has neither shape, or a preference is out of range.
    """
    rows = read_objects(path)
    if any(isinstance(row.get("preference"), list) for row in rows):
        return [_read_slim(path, row) for row in rows]
    keys = ("instruction", "output_1", "output_2", "generator_1", "generator_2", "preference")
    for row in rows:
        require(path, row, keys, "an AlpacaEval annotation")
    pairs = dict.fromkeys((row["generator_2"], row["generator_1"]) for row in rows)
    return [
        _read_rows(path, [row for row in rows if (row["generator_2"], row["generator_1"]) == pair])
        for pair in pairs
    ]


def aggregate_alpaca_eval(
    recording: Recording,
    difficulty: Difficulty | None = None,
    *,
    mode: str = OFFICIAL,
    by_position: bool = False,
    seed: int = 0,
) -> Results:
    """Every figure of a model, in percent.

    Args:
        recording: comparisons, one an instruction.
        difficulty: of the instructions; without it length is controlled by length alone.
        mode: of the length control.
        by_position: match difficulties as upstream does.
        seed: of the resamples.

    Raises:
        InputError: no verdict could be read, or difficulties do not belong to these instructions.
    """
    verdicts = recording.comparisons
    read = [100 * verdict.preference for verdict in verdicts if verdict.preference is not None]
    estimate = mean(tally(verdicts), seed)
    winners = [winner(verdict) for verdict in verdicts]
    wins, losses, draws = (winners.count(name) for name in ("model", "baseline", "draw"))
    results: Results = {
        "protocol": NAME,
        "model": recording.model,
        "baseline": recording.baseline,
        "n": len(read),
        "win_rate": float(np.mean(read)),
        "standard_error": float(np.std(read, ddof=1) / math.sqrt(len(read))) if len(read) > 1 else None,
        "interval": estimate.results(100.0)["interval"],
        "discrete_win_rate": 100 * (wins + 0.5 * draws) / len(read),
        "wins": wins,
        "losses": losses,
        "ties": draws,
        "invalid_rate": invalid_rate(verdicts),
    }
    if all(verdict.model_length is not None for verdict in verdicts):
        results["avg_length"] = float(np.mean([verdict.model_length for verdict in verdicts]))
    results |= _length_controlled(recording, difficulty, mode, by_position)
    return results | recording.notes


def _length_controlled(
    recording: Recording, difficulty: Difficulty | None, mode: str, by_position: bool
) -> Results:
    """The length-controlled figures; None, with a warning, where they cannot be had."""
    verdicts = recording.comparisons
    warnings = []
    found: Results = {"length_controlled_win_rate": None}
    matched = None
    if difficulty is not None:
        matched = match(difficulty, recording, by_position)
        warnings.append(matched.warning)
        if recording.baseline != DIFFICULTY_BASELINE:
            warnings.append(
                f"the baseline is {recording.baseline}, and upstream's difficulties are those against "
                f"{DIFFICULTY_BASELINE}: remove --difficulty unless yours are for this baseline"
            )
    elif recording.baseline == DIFFICULTY_BASELINE:
        warnings.append(
            "length is controlled without the instructions' difficulty, so the length-controlled win rate is "
            "not comparable with the leaderboard's: give --difficulty"
        )
    warnings += small_sample_warnings(len(verdicts))
    if recording.model == recording.baseline:
        # Upstream's rule: a model against itself is even.
        found |= {"length_controlled_win_rate": 50.0, "length_controlled_standard_error": 0.0}
    else:
        try:
            controlled = control_length(
                _numbers([verdict.preference for verdict in verdicts]),
                _numbers([verdict.model_length for verdict in verdicts]),
                _numbers([verdict.baseline_length for verdict in verdicts]),
                None if matched is None else matched.values,
                None if difficulty is None else difficulty.regulariser,
                mode,
            )
        except InputError as error:
            warnings.append(str(error))
        else:
            predictions = 100 * controlled.predictions
            found |= {
                "length_controlled_win_rate": controlled.win_rate,
                "length_controlled_standard_error": controlled.standard_error,
                "length_controlled_interval": controlled.interval,
                # Upstream's, which takes the fit for certain.
                "lc_standard_error": float(predictions.std(ddof=1) / math.sqrt(len(predictions))),
                "length_control": {
                    "mode": mode,
                    "difficulty_by": None if matched is None else matched.by,
                    "regularised": controlled.regularised,
                    "coefficients": dict(controlled.coefficients),
                },
            }
    return found | {"warnings": [warning for warning in warnings if warning]}


def _numbers(values: Sequence[float | int | None]) -> Float64[np.ndarray, "verdicts"]:
    """With nan for what is missing."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


class AlpacaEvalRescorer(Rescorer):
    """Of `annotations.json`. See `Rescorer`."""

    own_options = ("difficulty",)

    def __init__(self, options: RescoreOptions) -> None:
        """Read the difficulties.

        Raises:
            InputError: they cannot be read.
        """
        super().__init__(options)
        given = options.difficulty
        self._difficulty = None if given is None else read_difficulty(given, options.instructions)

    def read(self, path: Path) -> list[Recording]:
        """See `read_annotations`."""
        return read_annotations(path)

    def figures(self, recording: Recording) -> Results:
        """See `aggregate_alpaca_eval`."""
        options = self.options
        return aggregate_alpaca_eval(
            recording,
            self._difficulty,
            mode=options.mode,
            by_position=options.by_position,
            seed=options.seed,
        )

    def add_to_difference(self, figures: Results, ours: Results, theirs: Results) -> None:
        """The length-controlled win rate against the other model, where both were fitted."""
        fits = [one.get("length_control") for one in (ours, theirs)]
        if all(fits):
            own, other = (fit["coefficients"] for fit in fits if fit)
            values = self._difficulty.values if self._difficulty else None
            figures["length_controlled_win_rate"] = predict_win_rate(own, other, values)


# --- upstream's shapes ---


def _read_slim(path: Path, content: Record) -> Recording:
    columns = ("preference", "len_model", "len_baseline")
    require(path, content, ("model", "baseline", *columns), "the slim shape")
    sizes = {name: len(content[name]) for name in columns}
    names = content.get("instruction")
    if names is not None:
        sizes["instruction"] = len(names)
    if len(set(sizes.values())) > 1:
        raise InputError(f"{path}: {sizes}: each list must have one entry an instruction")
    keys = names if names is not None else map(str, range(sizes["preference"]))
    verdicts = [
        Comparison(
            key,
            _preference(path, preference),
            is_switched(key) if names is not None else None,
            model_length=model_length,
            baseline_length=baseline_length,
        )
        for key, preference, model_length, baseline_length in zip(
            keys, *(content[name] for name in columns), strict=True
        )
    ]
    return Recording(content["model"], content["baseline"], verdicts, str(path), named=names is not None)


def _read_rows(path: Path, rows: Sequence[Record]) -> Recording:
    """Rows of one model; what their completions say is compared with what was recorded of them."""
    verdicts = []
    differences = []
    for row in rows:
        switched = is_switched(row["instruction"])
        recorded = _preference(path, row["preference"])
        recomputed = _recompute(row, switched)
        if recomputed is not None and recorded is not None:
            differences.append(abs(recomputed - recorded))
        verdicts.append(
            Comparison(
                row["instruction"],
                recomputed if row["preference"] is None else recorded,
                switched,
                model_length=len(row["output_2"] or ""),
                baseline_length=len(row["output_1"] or ""),
            )
        )
    notes: Results = {}
    if differences:
        notes = {
            "recomputed": len(differences),
            "recomputed_otherwise": sum(difference > AGREES for difference in differences),
            "recomputed_difference": max(differences),
        }
    return Recording(rows[0]["generator_2"], rows[0]["generator_1"], verdicts, str(path), notes=notes)


def _recompute(row: Record, model_first: bool) -> float | None:
    """The preference that the raw completion gives; None if it has no log-probabilities."""
    completion = row.get("raw_completion")
    try:
        alternatives: Iterable[Any] = completion["logprobs"]["content"][0]["top_logprobs"]  # type: ignore[index]
        top = {alternative["token"]: float(alternative["logprob"]) for alternative in alternatives}
    except (TypeError, KeyError, IndexError):
        return None
    if not all(map(math.isfinite, top.values())):
        return None
    return preference_for_model(preference_from_log_probs(top), model_first)


def _preference(path: Path, value: Any) -> float | None:
    """From upstream's 1 to 2 into 0 to 1."""
    if value is None or value != value:  # JSON written by pandas may hold NaN
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value == 0 or 1 <= value <= 2):
        raise InputError(f"{path}: preference = {value!r}: must be 0 for a draw, or from 1 to 2")
    return 0.5 if value == 0 else float(value) - 1
