"""The length-controlled win rate: what the judge would say if both responses were equally long.

logit P(model wins) = b1 tanh(d / std(d)) + b2 difficulty + b3, where d is the baseline's length less the
model's, in characters, and the difficulty of an instruction was fitted once over many models. The win rate is
the mean P at d = 0 (arXiv 2404.04475). Where no difficulty is known the b2 term is left out, which is
upstream's `length_controlled_minimal`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from preftune.errors import InputError
from preftune.evaluation.logistic import fit_logistic, influences, sigmoid
from preftune.evaluation.resampling import REACH

OFFICIAL = "official"
MAXIMUM_LIKELIHOOD = "maximum_likelihood"
MODES = (OFFICIAL, MAXIMUM_LIKELIHOOD)

SMALL_SAMPLE = 100
"""Below it the coefficient of length is mostly noise, and a warning says so."""

SMALLEST_SHARE = 1e-9
FOLDS = 5
REGULARISER_WEIGHT = 0.1
"""Of each regulariser row: upstream's lambda of 0.2, shared by the two variants of the baseline."""


@dataclass(frozen=True)
class Regulariser:
    """Verdicts on longer and shorter variants of the baseline, which keep the fit close to what length does.

    They carry no b3: no model is in them.

    Attributes:
        preference: in [0, 1].
        length: standardised difference of lengths, before the tanh.
        difficulty: of the instruction.
    """

    preference: Float64[np.ndarray, "rows"]
    length: Float64[np.ndarray, "rows"]
    difficulty: Float64[np.ndarray, "rows"]


@dataclass(frozen=True)
class LengthControlled:
    """A fitted length control.

    Attributes:
        win_rate: in percent.
        standard_error: of it, over prompts: how the fit and the mean would vary with the prompts.
        predictions: P(model wins) on each prompt at equal lengths.
        coefficients: b1 `length`, b2 `difficulty` (absent in the minimal form) and b3 `model`.
        regularised: whether the regulariser rows took part.
    """

    win_rate: float
    standard_error: float
    predictions: Float64[np.ndarray, "prompts"]
    coefficients: Mapping[str, float]
    regularised: bool

    @property
    def interval(self) -> tuple[float, float]:
        """95%, by the normal approximation, within 0 and 100."""
        half = REACH * self.standard_error
        return max(0.0, self.win_rate - half), min(100.0, self.win_rate + half)


@dataclass(frozen=True)
class _Rows:
    """What is fitted: features, the probability that the model wins, and a weight for each row."""

    features: Float64[np.ndarray, "rows columns"]
    target: Float64[np.ndarray, "rows"]
    weight: Float64[np.ndarray, "rows"]


def small_sample_warnings(prompts: int) -> list[str]:
    """That prompts are few; empty if they are not."""
    if prompts >= SMALL_SAMPLE:
        return []
    return [
        f"{prompts} prompts are few for length control: use about {SMALL_SAMPLE} to separate the effect of "
        "length from chance"
    ]


def control_length(
    preference: Float64[np.ndarray, "prompts"],
    model_length: Float64[np.ndarray, "prompts"],
    baseline_length: Float64[np.ndarray, "prompts"],
    difficulty: Float64[np.ndarray, "prompts"] | None = None,
    regulariser: Regulariser | None = None,
    mode: str = OFFICIAL,
) -> LengthControlled:
    """Fit and predict at equal lengths.

    Args:
        preference: in [0, 1]; nan where the verdict could not be read. Such prompts are predicted, as
            upstream does, but not fitted.
        model_length: characters of the model's responses.
        baseline_length: characters of the baseline's.
        difficulty: of the instructions; None leaves the term out, and the regulariser with it.
        regulariser: rows about the baseline alone.
        mode: `official`, upstream's choice of an L1 penalty by cross-validation, or `maximum_likelihood`.

    Raises:
        InputError: the mode is unknown, fewer than five verdicts could be read, or every difference of the
            lengths is the same, so that length cannot be told from the model.
    """
    if mode not in MODES:
        raise InputError(f"mode = {mode!r}: must be one of {', '.join(MODES)}")
    known = ~np.isnan(preference)
    difference = baseline_length - model_length
    if known.sum() < FOLDS:
        raise InputError(
            f"length control needs {FOLDS} verdicts that can be read, and there are {known.sum()}"
        )
    if np.isnan(difference).any():
        raise InputError("length control needs the length of every response")
    if np.ptp(difference) == 0:
        raise InputError(
            f"length control: the responses' lengths differ by {difference[0]:g} characters on every prompt, "
            "so the effect of length cannot be told from the model's"
        )
    length = np.tanh(difference / difference.std(ddof=1))
    one = np.ones_like(length)
    columns = [length, one] if difficulty is None else [length, difficulty, one]
    features = np.stack(columns, axis=1)
    rows = _Rows(features[known], preference[known], one[known])
    if regulariser is not None and difficulty is not None:
        rows = _with_regulariser(rows, regulariser)
    coefficients = (
        _fit_official(rows) if mode == OFFICIAL else fit_logistic(rows.features, rows.target, rows.weight)
    )
    equal = features.copy()
    equal[:, 0] = 0
    predictions = sigmoid(equal @ coefficients)
    names = ("length", "model") if difficulty is None else ("length", "difficulty", "model")
    return LengthControlled(
        win_rate=100 * float(predictions.mean()),
        standard_error=100 * _standard_error(rows, known, equal, coefficients),
        predictions=predictions,
        coefficients=dict(zip(names, coefficients.tolist(), strict=True)),
        regularised=regulariser is not None and difficulty is not None,
    )


def predict_win_rate(
    model: Mapping[str, float],
    baseline: Mapping[str, float],
    difficulty: Float64[np.ndarray, "instructions"] | None,
) -> float:
    """Win rate, in percent, of a model over any other that was judged against the same third one.

    logit P = (b2 - b2') difficulty + (b3 - b3'), where the dashes are the other's: upstream's rule. The third
    itself has coefficients of 0.

    Args:
        model: coefficients of a `LengthControlled`.
        baseline: coefficients of the other.
        difficulty: of the instructions; None for coefficients without that term.
    """
    logit = np.asarray(model["model"] - baseline["model"])
    if difficulty is not None:
        logit = logit + (model["difficulty"] - baseline["difficulty"]) * difficulty
    return 100 * float(sigmoid(logit).mean())


def _with_regulariser(rows: _Rows, regulariser: Regulariser) -> _Rows:
    """The regulariser's rows first, which is upstream's order: folds and the solver's seed depend on it."""
    nobody = np.zeros_like(regulariser.length)
    features = np.stack([np.tanh(regulariser.length), regulariser.difficulty, nobody], axis=1)
    return _Rows(
        np.concatenate([features, rows.features]),
        np.concatenate([regulariser.preference, rows.target]),
        np.concatenate([nobody + REGULARISER_WEIGHT, rows.weight]),
    )


def _fit_official(rows: _Rows) -> Float64[np.ndarray, "columns"]:
    """Upstream's fit: liblinear's L1 logistic regression without intercept, C by five folds of log loss.

    A probability y becomes two rows, label 1 with weight y and label 0 with weight 1 - y, in the same fold.
    """
    # Loading it takes seconds, and only this needs it.
    import sklearn
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.metrics import make_scorer
    from sklearn.model_selection import GroupKFold

    count = len(rows.target)
    labels = np.repeat([1, 0], count)
    # liblinear drops rows of weight 0: with nothing but losses it would know one label only.
    target = np.clip(rows.target, SMALLEST_SHARE, 1 - SMALLEST_SHARE)
    probability = np.concatenate([target, 1 - target])
    weight = np.tile(rows.weight, 2)
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_scorer(_log_loss, response_method="predict_proba", greater_is_better=False)
        model = LogisticRegressionCV(
            l1_ratios=(1.0,),
            solver="liblinear",
            fit_intercept=False,
            cv=GroupKFold(FOLDS),
            scoring=scorer.set_score_request(probability=True, weight=True),
            random_state=123,
            use_legacy_attributes=False,
        ).set_fit_request(sample_weight=True)
        model.fit(
            np.tile(rows.features, (2, 1)),
            labels,
            sample_weight=probability * weight,
            groups=np.tile(np.arange(count), 2),
            probability=probability,
            weight=weight,
        )
    return np.asarray(model.coef_[0], dtype=np.float64)


def _log_loss(
    label: Int64[np.ndarray, "rows"],
    predicted: Float64[np.ndarray, "rows"],
    *,
    probability: Float64[np.ndarray, "rows"],
    weight: Float64[np.ndarray, "rows"],
) -> float:
    """Mean weighted log loss of a fold, where `probability` is that of the row's own label."""
    target = np.where(label == 1, probability, 1 - probability)
    predicted = np.clip(predicted, 1e-15, 1 - 1e-15)
    loss = target * np.log(predicted) + (1 - target) * np.log1p(-predicted)
    return -float(np.mean(loss * weight))


def _standard_error(
    rows: _Rows,
    known: Bool[np.ndarray, "prompts"],
    equal: Float64[np.ndarray, "prompts columns"],
    coefficients: Float64[np.ndarray, "columns"],
) -> float:
    """Infinitesimal jackknife over prompts: to first order, what resampling prompts and refitting would give.

    A prompt acts by its own P and by moving the fit. The standard error of the P alone, which is upstream's,
    leaves the fit out.
    """
    count = len(equal)
    predictions = sigmoid(equal @ coefficients)
    slope = (predictions * (1 - predictions)) @ equal / count
    moves = np.zeros(count)
    # The regulariser's rows come first and are no prompts.
    of_rows = influences(rows.features, rows.target, rows.weight, coefficients)
    moves[known] = of_rows[-int(known.sum()) :] @ slope
    influence = predictions - predictions.mean() + count * moves
    return float(influence.std(ddof=1) / np.sqrt(count))
