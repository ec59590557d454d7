"""Two models on the same prompts, judged in both orders: who wins, and whether the order decided it."""

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from preftune.errors import InputError
from preftune.evaluation.length_control import MAXIMUM_LIKELIHOOD, control_length, small_sample_warnings
from preftune.evaluation.resampling import decided_by_prompt, tally
from preftune.evaluation.verdicts import Comparison, Recording, Results, flipped_rate, invalid_rate, winner

NAME = "head_to_head"


def aggregate_head_to_head(recording: Recording) -> Results:
    """The figures of a head-to-head.

    A prompt is a win where the mean preference over both orders is above 1/2: won in both, or won in one and
    drawn in the other. One win each is a tie, as are two draws. Win rates are in percent and a tie is half a
    win; the interval and the sign test are over prompts.

    Args:
        recording: of comparisons.

    Raises:
        InputError: no verdict could be read.
    """
    comparisons = recording.comparisons
    counted = tally(comparisons)
    prompts = {question: total / count for question, (total, count) in counted.items()}
    flipped = flipped_rate(comparisons)
    return {
        "protocol": NAME,
        "model": recording.model,
        "baseline": recording.baseline,
        **decided_by_prompt(counted),
        "position_consistency": None if flipped is None else 1 - flipped,
        "first_shown_wins": first_shown_rate(comparisons),
        "invalid_rate": invalid_rate(comparisons),
        **_length_controlled(comparisons, prompts),
    }


def first_shown_rate(comparisons: Sequence[Comparison]) -> float | None:
    """Share of the decided verdicts that go to the answer shown first; 1/2 is a judge that order leaves cold.

    Returns:
        None if no verdict is decided.
    """
    decided = [
        (winner(comparison) == "model") == comparison.model_first
        for comparison in comparisons
        if winner(comparison) in ("model", "baseline") and comparison.model_first is not None
    ]
    return fmean(decided) if decided else None


def _length_controlled(comparisons: Sequence[Comparison], prompts: dict[str, float]) -> Results:
    """The win rate at equal lengths, without a term for difficulty; None, with a warning, without a fit."""
    lengths = {verdict.question: (verdict.model_length, verdict.baseline_length) for verdict in comparisons}
    model, baseline = np.array([lengths[question] for question in prompts], dtype=np.float64).T
    found: Results = {"length_controlled_win_rate": None, "warnings": small_sample_warnings(len(prompts))}
    try:
        fitted = control_length(np.array(list(prompts.values())), model, baseline, mode=MAXIMUM_LIKELIHOOD)
    except InputError as error:
        found["warnings"].append(str(error))
        return found
    return found | {
        "length_controlled_win_rate": fitted.win_rate,
        "length_controlled_standard_error": fitted.standard_error,
    }
