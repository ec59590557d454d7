"""The length-controlled win rate, on verdicts made by the model that it fits."""

import numpy as np
import pytest
from jaxtyping import Float64

from preftune.errors import InputError
from preftune.evaluation.length_control import (
    MAXIMUM_LIKELIHOOD,
    MODES,
    OFFICIAL,
    Regulariser,
    control_length,
    predict_win_rate,
)

COUNT = 240
RANDOM = np.random.default_rng(0)
BASELINE = RANDOM.integers(200, 3000, COUNT).astype(float)
MODEL = RANDOM.integers(200, 3000, COUNT).astype(float)
DIFFICULTY = RANDOM.normal(size=COUNT)
DIFFERENCE = BASELINE - MODEL
TANH = np.tanh(DIFFERENCE / DIFFERENCE.std(ddof=1))


def sigmoid(logit: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """The logistic function."""
    return 1 / (1 + np.exp(-logit))


VERDICTS = sigmoid(-1.5 * TANH + 0.7 * DIFFICULTY - 0.4)
"""Exactly as the model has it, with b1 = -1.5, b2 = 0.7 and b3 = -0.4."""


def test_maximum_likelihood_finds_the_coefficients() -> None:
    """It gives back b1, b2, b3, and the mean of sigmoid(b2 difficulty + b3)."""
    found = control_length(VERDICTS, MODEL, BASELINE, DIFFICULTY, mode=MAXIMUM_LIKELIHOOD)
    assert found.coefficients == pytest.approx({"length": -1.5, "difficulty": 0.7, "model": -0.4}, abs=1e-5)
    assert found.win_rate == pytest.approx(100 * sigmoid(0.7 * DIFFICULTY - 0.4).mean(), abs=1e-4)


def test_official_fit_penalises_a_little() -> None:
    """The L1 penalty draws every coefficient towards 0, and the win rate moves by less than half a point."""
    official = control_length(VERDICTS, MODEL, BASELINE, DIFFICULTY)
    likelihood = control_length(VERDICTS, MODEL, BASELINE, DIFFICULTY, mode=MAXIMUM_LIKELIHOOD)
    for name, value in official.coefficients.items():
        assert 0 < value / likelihood.coefficients[name] < 1
    assert official.win_rate == pytest.approx(likelihood.win_rate, abs=0.5)


def test_official_fit_of_a_model_that_never_wins() -> None:
    """All losses are a win rate near 0, not the 50% of a fit that knows one label; one win is about 1%."""
    gap = np.linspace(-300, 300, 100)
    verdicts = np.zeros(100)
    assert control_length(verdicts, 1000 - gap, np.full(100, 1000.0)).win_rate < 0.5
    verdicts[40] = 1
    assert control_length(verdicts, 1000 - gap, np.full(100, 1000.0)).win_rate < 3


def test_length_that_does_not_matter_changes_nothing() -> None:
    """A model preferred with 0.8 whether longer or shorter: 80% either way, without difficulties."""
    signs = np.tile([1.0, -1.0], 10)
    found = control_length(np.full(20, 0.8), 500 - 100 * signs, np.full(20, 500.0), mode=MAXIMUM_LIKELIHOOD)
    assert found.win_rate == pytest.approx(80, abs=1e-4)
    assert found.coefficients == pytest.approx({"length": 0, "model": np.log(4)}, abs=1e-5)


def test_a_model_that_wins_by_length_alone_is_even() -> None:
    """It is longer by 100 to 2000 characters, and that is all: 50%, though it wins 70% of the time."""
    gap = -np.linspace(100, 2000, 50)
    verdicts = sigmoid(-1.2 * np.tanh(gap / gap.std(ddof=1)))
    found = control_length(verdicts, 1000 - gap, np.full(50, 1000.0), mode=MAXIMUM_LIKELIHOOD)
    assert verdicts.mean() > 0.7
    assert found.win_rate == pytest.approx(50, abs=1e-3)


def test_regulariser_rows_count_for_a_tenth_and_name_no_model() -> None:
    """Rows that say the opposite of length pull b1 from -1.5 towards +1.5, and are not predicted."""
    opposite = Regulariser(sigmoid(1.5 * TANH), DIFFERENCE / DIFFERENCE.std(ddof=1), np.zeros(COUNT))
    found = control_length(VERDICTS, MODEL, BASELINE, DIFFICULTY, opposite, MAXIMUM_LIKELIHOOD)
    assert found.regularised
    assert -1.5 < found.coefficients["length"] < -1.0
    assert len(found.predictions) == COUNT
    alone = control_length(VERDICTS, MODEL, BASELINE, None, opposite, MAXIMUM_LIKELIHOOD)
    assert not alone.regularised


@pytest.mark.parametrize("mode", MODES)
def test_unread_verdicts_are_predicted_but_not_fitted(mode: str) -> None:
    """With five verdicts missing the fit is that of the others, and the mean is over all prompts."""
    some = VERDICTS.copy()
    some[:5] = np.nan
    # The same spread of lengths, so that the features are those of all prompts.
    found = control_length(some, MODEL, BASELINE, DIFFICULTY, mode=mode)
    assert len(found.predictions) == COUNT
    logit = found.coefficients["difficulty"] * DIFFICULTY + found.coefficients["model"]
    assert found.predictions == pytest.approx(sigmoid(logit))
    if mode == MAXIMUM_LIKELIHOOD:
        assert found.coefficients["model"] == pytest.approx(-0.4, abs=1e-5)


def test_standard_error_is_that_of_resampling_prompts_and_refitting() -> None:
    """Within 15% of the spread over 200 resamples of noisy verdicts, and far from that of the mean alone."""
    random = np.random.default_rng(1)
    noisy = (random.random(COUNT) < VERDICTS).astype(float)

    def fit(rows: Float64[np.ndarray, "prompts"]) -> float:
        return control_length(
            noisy[rows], MODEL[rows], BASELINE[rows], DIFFICULTY[rows], mode=MAXIMUM_LIKELIHOOD
        ).win_rate

    resampled = [fit(random.integers(0, COUNT, COUNT)) for _ in range(200)]
    found = control_length(noisy, MODEL, BASELINE, DIFFICULTY, mode=MAXIMUM_LIKELIHOOD)
    assert found.standard_error == pytest.approx(np.std(resampled), rel=0.15)
    assert 100 * found.predictions.std() / np.sqrt(COUNT) < 0.6 * found.standard_error
    low, high = found.interval
    assert (high - low) / 2 == pytest.approx(1.959964 * found.standard_error)


def test_any_two_models_can_be_compared_by_their_coefficients() -> None:
    """b3 of 1 against 0 is sigmoid(1) = 0.731059; the other way round is the rest of 100."""
    ours, theirs = {"difficulty": 0.5, "model": 1.0}, {"difficulty": 0.5, "model": 0.0}
    assert predict_win_rate(ours, theirs, DIFFICULTY) == pytest.approx(73.1059, abs=1e-4)
    assert predict_win_rate(ours, theirs, None) == pytest.approx(73.1059, abs=1e-4)
    harder = {"difficulty": 2.0, "model": 0.3}
    both = predict_win_rate(ours, harder, DIFFICULTY) + predict_win_rate(harder, ours, DIFFICULTY)
    assert both == pytest.approx(100)


@pytest.mark.parametrize(
    ("verdicts", "model", "mode", "rule"),
    [
        (VERDICTS, MODEL, "fast", "mode = 'fast': must be one of official, maximum_likelihood"),
        (VERDICTS, BASELINE - 7, OFFICIAL, "differ by 7 characters on every prompt"),
        (np.where(np.arange(COUNT) < 4, VERDICTS, np.nan), MODEL, OFFICIAL, "needs 5 verdicts"),
        (VERDICTS, np.where(np.arange(COUNT) < 4, MODEL, np.nan), OFFICIAL, "length of every response"),
    ],
)
def test_what_cannot_be_controlled_is_an_error(
    verdicts: Float64[np.ndarray, "prompts"], model: Float64[np.ndarray, "prompts"], mode: str, rule: str
) -> None:
    """The message says why."""
    with pytest.raises(InputError, match=rule):
        control_length(verdicts, model, BASELINE, mode=mode)
