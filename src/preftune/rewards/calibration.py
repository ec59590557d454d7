"""From raw scores to the reward gap: scores become prior rewards r in [0, 1], and pairs get a gap delta.

MaPPO (arXiv 2507.21183) weighs the rejected response by delta = r_chosen - r_rejected, so scores need a
common scale. The user chooses that scale (an entry of CALIBRATIONS, or a function), and what to do with pairs
whose scores contradict the preference: delta < 0 would raise the rejected response.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from inspect import getdoc, isfunction, signature
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from preftune.data.groups import Group, Pair, Response
from preftune.data.stored import StoredGroups
from preftune.errors import InputError, NothingLeftError
from preftune.objectives.imports import REFERENCE, import_named
from preftune.rewards.reliability import Reliability, fit_temperature, reliability

Fitted = Mapping[str, tuple[float, ...]]
"""Numbers that a calibration has fitted to the training scores, by name."""

NegativeGap = Literal["drop", "swap", "clip", "error"]
"""How to handle a pair whose rejected response scores higher than its chosen one."""

MAX_KNOTS = 4096
"""Most scores that the quantile calibration keeps; with more, a reward is at most 1 / MAX_KNOTS too low."""


@dataclass(frozen=True)
class Kind:
    """One way to calibrate.

    Attributes:
        summary: one line of help.
        fit: from training scores to the fitted numbers; None if there is nothing to fit.
        reward: from score, temperature and fitted numbers to r in [0, 1]; None if only differences have a
            value.
        has_temperature: whether it uses the temperature.
    """

    summary: str
    fit: Callable[[Float64[np.ndarray, "scores"]], Fitted] | None
    reward: Callable[[float, float, Fitted], float] | None
    has_temperature: bool = False


def _range(scores: Float64[np.ndarray, "scores"]) -> Fitted:
    low, high = float(scores.min()), float(scores.max())
    if low == high:
        raise InputError(
            f"calibration 'minmax' needs different scores, and all {len(scores)} are {low}: use other "
            "scores, or another calibration"
        )
    return {"low": (low,), "high": (high,)}


def _cumulative_shares(scores: Float64[np.ndarray, "scores"]) -> Fitted:
    knots, counts = np.unique(scores, return_counts=True)
    shares = np.cumsum(counts) / len(scores)
    if len(knots) > MAX_KNOTS:
        kept = np.unique(np.searchsorted(shares, np.arange(1, MAX_KNOTS + 1) / MAX_KNOTS - 1e-12))
        knots, shares = knots[kept], shares[kept]
    return {"knots": tuple(knots.tolist()), "shares": tuple(shares.tolist())}


def _sigmoid_reward(score: float, temperature: float, fitted: Fitted) -> float:
    return _sigma(score / temperature)


def _identity_reward(score: float, temperature: float, fitted: Fitted) -> float:
    return score


def _minmax_reward(score: float, temperature: float, fitted: Fitted) -> float:
    # Halves, since the difference of two huge numbers can be beyond float64.
    low, high = fitted["low"][0] / 2, fitted["high"][0] / 2
    return min(max((score / 2 - low) / (high - low), 0.0), 1.0)


def _quantile_reward(score: float, temperature: float, fitted: Fitted) -> float:
    position = bisect_right(fitted["knots"], score)
    return fitted["shares"][position - 1] if position else 0.0


CALIBRATIONS: Mapping[str, Kind] = {
    "sigmoid": Kind("r = sigma(score / T) (MaPPO App. D.2.4)", None, _sigmoid_reward, has_temperature=True),
    "identity": Kind("r = score, already in [0, 1]", None, _identity_reward),
    "minmax": Kind("r = position between the lowest and highest training score", _range, _minmax_reward),
    "quantile": Kind("r = share of training scores up to this one", _cumulative_shares, _quantile_reward),
    "bradley_terry": Kind(
        "delta = 2 sigma((s_w - s_l) / T) - 1, from scores or a margin", None, None, has_temperature=True
    ),
}


def kind_named(name: str) -> Kind:
    """An entry of CALIBRATIONS, or the user's own as `module:name`: a `Kind`, or a function of a score.

    Raises:
        InputError: there is none of this name, or the module cannot be imported.
    """
    if name in CALIBRATIONS:
        return CALIBRATIONS[name]
    if not REFERENCE.fullmatch(name):
        near = get_close_matches(name.lower(), CALIBRATIONS, n=1)
        fix = f"did you mean {near[0]!r}?" if near else "set one of them, or module:function"
        raise InputError(f"calibration = {name!r} must be one of {', '.join(CALIBRATIONS)}: {fix}")
    try:
        own = import_named(name, "calibration", lambda found: isinstance(found, Kind) or isfunction(found))
    except ValueError as error:
        raise InputError(f"calibration = {name!r}: {error}") from error.__cause__
    return own if isinstance(own, Kind) else _kind_of(own)


def _kind_of(function: Callable[..., float]) -> Kind:
    """A user's function of a score, and of the temperature if it has a parameter of that name."""
    takes_temperature = "temperature" in signature(function).parameters

    def reward(score: float, temperature: float, fitted: Fitted) -> float:
        try:
            return float(function(score, temperature=temperature) if takes_temperature else function(score))
        except Exception as error:
            raise InputError(
                f"calibration {function.__module__}:{function.__name__} failed on the score {score}: "
                f"{type(error).__name__}: {error}; it must return a number in [0, 1]"
            ) from error

    return Kind(getdoc(function) or function.__name__, None, reward, takes_temperature)


@dataclass(frozen=True)
class Calibration:
    """A fitted calibration, built by `fit_calibration`.

    Attributes:
        kind: a name in CALIBRATIONS, or `module:name`.
        temperature: divides the scores, for the kinds that use it.
        fitted: the numbers fitted to the training scores.

    Raises:
        InputError: the kind is unknown, or the temperature is not a finite number > 0.
    """

    kind: str
    temperature: float = 1.0
    fitted: Fitted = field(default_factory=dict)

    def __post_init__(self) -> None:
        has_temperature = kind_named(self.kind).has_temperature
        if isinstance(self.temperature, bool) or not 0 < self.temperature < math.inf:
            raise InputError(
                f"temperature = {self.temperature!r} must be a finite number > 0: set such a number, or "
                "remove the key to use 1"
            )
        if self.temperature != 1 and not has_temperature:
            raise _useless_temperature(self.kind, self.temperature)

    def reward(self, response: Response, row: int) -> float:
        """Prior reward r of a response, in [0, 1].

        Args:
            response: one that has a score.
            row: where it came from, for the message.

        Raises:
            InputError: the score is missing, is not finite or is outside [0, 1] if the kind needs that range;
                or the kind gives a value only to pairs.
        """
        function = kind_named(self.kind).reward
        if function is None:
            raise InputError(
                f"calibration {self.kind!r} gives a value only to pairs, and a single response needs one: "
                "use 'sigmoid', 'minmax', 'quantile' or 'identity'"
            )
        if response.score is None:
            raise InputError(
                f"row {row}: a response has no score, and calibration {self.kind!r} needs one for both "
                "responses of a pair, and for all where a method learns from groups: add the scores, remove "
                "the row, or use 'bradley_terry' if the data has pairs with margins"
            )
        reward = function(_finite(response.score, "score", row), self.temperature, self.fitted)
        if not 0 <= reward <= 1:
            if self.kind not in CALIBRATIONS:
                raise InputError(
                    f"row {row}: calibration {self.kind!r} gives {reward} for the score {response.score}: "
                    "let it return a number in [0, 1]"
                )
            raise InputError(
                f"row {row}: score {response.score} must be in [0, 1] for calibration {self.kind!r}: scale "
                "the scores, or use 'sigmoid', 'minmax' or 'quantile'"
            )
        return reward

    def gap(self, pair: Pair, group: Group) -> float:
        """The reward gap delta = r_chosen - r_rejected of a pair, in [-1, 1].

        Raises:
            InputError: a score or margin is missing or not usable; the message names the group's row.
        """
        chosen, rejected = group.responses[pair.chosen], group.responses[pair.rejected]
        if kind_named(self.kind).reward is None:
            difference = _score_difference(pair, chosen, rejected, group.row)
            return math.tanh(difference / self.temperature / 2)  # which is 2 sigma(x) - 1
        return self.reward(chosen, group.row) - self.reward(rejected, group.row)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        fitted = {name: list(values) for name, values in self.fitted.items()}
        return {"kind": self.kind, "temperature": self.temperature, "fitted": fitted}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "Calibration":
        """The calibration that `to_dict` wrote; other keys of the mapping are ignored.

        Raises:
            InputError: the kind or the temperature cannot be used.
        """
        fitted = {name: tuple(values) for name, values in saved["fitted"].items()}
        return cls(saved["kind"], saved["temperature"], fitted)


def fit_calibration(kind: str, temperature: float | Literal["fit"], groups: Sequence[Group]) -> Calibration:
    """Fit on the training groups' scores, all responses that have one, in a pair or not.

    Args:
        kind: a name in CALIBRATIONS, or `module:name`.
        temperature: 1 unless the kind has one; `fit` for the one that makes the labels of the training pairs
            likeliest under sigma((s_w - s_l) / T).
        groups: the training split only, so that the others are judged on its scale.

    Raises:
        InputError: the kind or the temperature cannot be used, a score is missing or not finite, or there
            are no scores to fit on.
    """
    if temperature == "fit":
        unfitted = Calibration(kind)
        if not kind_named(kind).has_temperature:
            raise _useless_temperature(kind, temperature)
        return replace(unfitted, temperature=fit_temperature(_score_differences(unfitted, groups)))
    unfitted = Calibration(kind, temperature)
    fit = kind_named(kind).fit
    if fit is None:
        return unfitted
    scores = [
        _finite(response.score, "score", group.row)
        for group in groups
        for response in group.responses
        if response.score is not None
    ]
    if not scores:
        raise InputError(
            f"calibration {kind!r} is fitted on scores, but no response has one: add the scores, or use "
            "'bradley_terry' if the data has margins"
        )
    return replace(unfitted, fitted=fit(np.array(scores)))


@dataclass(frozen=True)
class PriorReport:
    """Statistics of the prior on the data: agreement with the labels, and gaps after handling negative ones.

    Attributes:
        negative_gap: how negative gaps are handled.
        negative: pairs whose rejected response scored higher.
        dropped, swapped, clipped: number of those pairs that were dropped, swapped or clipped.
        dropped_groups: groups that lost their last pair.
        pairs: pairs that remain.
        mean_gap: their mean delta.
        histogram: their number in ten equal bins over [0, 1].
        share_below_05, share_above_95: their shares with delta < 0.05 and > 0.95.
        warning: a problem to know before training with these gaps, or None.
        reliability: agreement of the prior with the labels, before negative gaps are handled.
    """

    negative_gap: str
    negative: int
    dropped: int
    swapped: int
    clipped: int
    dropped_groups: int
    pairs: int
    mean_gap: float
    histogram: tuple[int, ...]
    share_below_05: float
    share_above_95: float
    warning: str | None
    reliability: Reliability


def apply_prior(
    groups: Sequence[Group], calibration: Calibration, negative_gap: str
) -> tuple[StoredGroups, PriorReport]:
    """Set every pair's gap in [0, 1]. Groups without pairs do not change.

    Args:
        groups: groups with scores, or pairs with margins, that the calibration can use.
        calibration: fitted on the training groups.
        negative_gap: `drop` the pair (and its group if it has no other), `swap` chosen and rejected, `clip`
            the gap to 0, or stop with an `error`.

    Returns:
        The groups with gaps, and the report.

    Raises:
        InputError: a score is missing or not usable, a gap is negative with `error`, or no pair remains.
    """
    if negative_gap not in _NEGATIVE_GAP:
        raise InputError(
            f"negative_gap = {negative_gap!r} must be one of {', '.join(_NEGATIVE_GAP)}: set one of them"
        )
    given: list[float] = []
    left: list[float] = []

    def with_gaps() -> Iterator[Group]:
        for group in groups:
            pairs: list[Pair] = []
            for pair in group.pairs:
                gap = calibration.gap(pair, group)
                given.append(gap)
                kept = replace(pair, gap=gap) if gap >= 0 else _NEGATIVE_GAP[negative_gap](pair, group, gap)
                pairs.extend([kept] if kept else [])
            left.extend(pair.gap for pair in pairs if pair.gap is not None)
            if pairs or not group.pairs:
                yield replace(group, pairs=tuple(pairs))

    stored = StoredGroups(with_gaps())
    gaps = np.array(left, dtype=np.float64)
    negative = sum(gap < 0 for gap in given)
    if not len(gaps):
        raise NothingLeftError(
            f"no pair is left for the prior ({negative} had a negative gap and negative_gap is "
            f"{negative_gap!r}): check that the chosen column is right and that a higher score is better"
        )
    against_labels = reliability(np.array(given, dtype=np.float64))
    report = _report(
        gaps, calibration.kind, negative_gap, negative, len(groups) - len(stored), against_labels
    )
    squeezed = _squeezed(groups, calibration, report.mean_gap)
    return stored, replace(report, warning=squeezed or report.warning)


def with_prior_rewards(groups: Sequence[Group], calibration: Calibration) -> StoredGroups:
    """Set every response's prior reward r in [0, 1].

    Raises:
        InputError: a score is missing or not usable, or the calibration gives a value only to pairs.
    """

    def rewarded(group: Group) -> tuple[Response, ...]:
        return tuple(
            replace(response, prior_reward=calibration.reward(response, group.row))
            for response in group.responses
        )

    return StoredGroups(replace(group, responses=rewarded(group)) for group in groups)


def with_margins(groups: Sequence[Group]) -> StoredGroups:
    """Set every pair's margin to its raw score difference; without scores, keep the data's margin.

    It is negative if the scores contradict the preference.

    Raises:
        InputError: a pair has no scores and no margin, or one that is not finite.
    """

    def completed(pair: Pair, group: Group) -> Pair:
        chosen, rejected = group.responses[pair.chosen], group.responses[pair.rejected]
        return replace(pair, margin=_score_difference(pair, chosen, rejected, group.row))

    return StoredGroups(
        replace(group, pairs=tuple(completed(pair, group) for pair in group.pairs)) for group in groups
    )


def _drop(pair: Pair, group: Group, gap: float) -> None:
    return None


def _swap(pair: Pair, group: Group, gap: float) -> Pair:
    margin = None if pair.margin is None else -pair.margin
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen, margin=margin, gap=-gap)


def _clip(pair: Pair, group: Group, gap: float) -> Pair:
    return replace(pair, gap=0.0)


def _refuse(pair: Pair, group: Group, gap: float) -> None:
    chosen, rejected = group.responses[pair.chosen].score, group.responses[pair.rejected].score
    found = (
        f"the margin is {pair.margin}"
        if chosen is None or rejected is None
        else f"the chosen response scores {chosen} and the rejected one {rejected}"
    )
    raise InputError(
        f"row {group.row}: {found}, so the gap is {gap:.4g}. A negative gap would raise the rejected "
        "response: set prior.negative_gap to drop, swap or clip, or correct the row"
    )


_NEGATIVE_GAP: Mapping[str, Callable[[Pair, Group, float], Pair | None]] = {
    "drop": _drop,
    "swap": _swap,
    "clip": _clip,
    "error": _refuse,
}


def _report(
    gaps: Float64[np.ndarray, "pairs"],
    kind: str,
    negative_gap: str,
    negative: int,
    dropped_groups: int,
    against_labels: Reliability,
) -> PriorReport:
    counts, _ = np.histogram(gaps, bins=10, range=(0.0, 1.0))
    mean = float(gaps.mean())
    return PriorReport(
        negative_gap=negative_gap,
        negative=negative,
        dropped=negative if negative_gap == "drop" else 0,
        swapped=negative if negative_gap == "swap" else 0,
        clipped=negative if negative_gap == "clip" else 0,
        dropped_groups=dropped_groups,
        pairs=len(gaps),
        mean_gap=mean,
        histogram=tuple(counts.tolist()),
        share_below_05=float((gaps < 0.05).mean()),
        share_above_95=float((gaps > 0.95).mean()),
        warning=_warning(kind, mean, float((gaps < 0.05).mean())),
        reliability=against_labels,
    )


def _squeezed(groups: Sequence[Group], calibration: Calibration, mean_gap: float) -> str | None:
    """Warn if the default calibration meets scores that need none."""
    if (calibration.kind, calibration.temperature) != ("sigmoid", 1):
        return None
    both = [
        [group.responses[place].score for place in (pair.chosen, pair.rejected)]
        for group in groups
        for pair in group.pairs
    ]
    scores = np.array(both, dtype=np.float64)
    # A missing score is NaN, and lies nowhere.
    if not ((scores >= 0) & (scores <= 1)).all():
        return None
    return (
        f"all scores are in [0, 1], and calibration 'sigmoid' shrinks their differences: the mean reward gap "
        f"is {mean_gap:.2f}, and {np.abs(scores[:, 0] - scores[:, 1]).mean():.2f} with 'identity'; set "
        "prior.calibration=identity if the scores are rewards already"
    )


def _warning(kind: str, mean_gap: float, share_below_05: float) -> str | None:
    """Warn if gaps are near 0 or 1: the prior then has no effect, and the loss is another method's."""
    if mean_gap > 0.95:
        return (
            f"the mean reward gap is {mean_gap:.3f}: with gaps near 1 the prior has no effect and the loss "
            f"equals the base method; use a softer calibration ({_softer(kind)})"
        )
    if mean_gap < 0.05:
        return (
            f"the mean reward gap is {mean_gap:.3f}: with gaps near 0 the rejected responses have no effect "
            f"and only the chosen ones are trained on; {_sharper(kind)}"
        )
    if share_below_05 > 0.3:
        return (
            f"{share_below_05:.0%} of the reward gaps are below 0.05: on this scale the scores hardly "
            f"differ, and the rejected responses have almost no effect; {_sharper(kind)}"
        )
    return None


def _softer(kind: str) -> str:
    return "a higher prior.temperature" if kind_named(kind).has_temperature else "sigmoid, with a temperature"


_SHARPER = {
    "minmax": "minmax for scores of a fixed range",
    "identity": "identity for scores in [0, 1]",
    "quantile": "quantile where the order alone counts",
}
"""Calibrations that spread scores, each with what it is for."""


def _sharper(kind: str) -> str:
    """What spreads gaps that are near 0, where a calibration is in use that does not."""
    if kind == "quantile":
        return (
            "quantile spreads scores already, and the pairs' own are close: choose pairs that lie further "
            "apart (data.pair_rule=best_worst), or train without the prior"
        )
    # A few extreme scores take the range for themselves: no other fixed range helps.
    found = [why for name, why in _SHARPER.items() if name == "quantile" or kind not in _SHARPER]
    found += ["a lower prior.temperature"] * kind_named(kind).has_temperature
    return f"set prior.calibration to what spreads the scores ({', or '.join(found)})"


def _useless_temperature(kind: str, temperature: float | Literal["fit"]) -> InputError:
    users = " and ".join(name for name, found in CALIBRATIONS.items() if found.has_temperature)
    return InputError(
        f"temperature = {temperature!r} has no effect on calibration {kind!r}, only on {users}: remove it, "
        "or use one of those"
    )


def _score_differences(calibration: Calibration, groups: Sequence[Group]) -> Float64[np.ndarray, "pairs"]:
    """Score of chosen minus score of rejected, for every pair."""
    differences = []
    for group in groups:
        for pair in group.pairs:
            calibration.gap(pair, group)  # raises an error for a pair that the calibration cannot use
            chosen, rejected = group.responses[pair.chosen], group.responses[pair.rejected]
            differences.append(_score_difference(pair, chosen, rejected, group.row))
    return np.array(differences, dtype=np.float64)


def _score_difference(pair: Pair, chosen: Response, rejected: Response, row: int) -> float:
    """Difference of the scores if both responses have one, else the margin."""
    if chosen.score is not None and rejected.score is not None:
        return _finite(chosen.score, "score", row) - _finite(rejected.score, "score", row)
    if pair.margin is None:
        raise InputError(
            f"row {row}: a pair needs two scores or a margin, and has none: add them, or remove the row"
        )
    return _finite(pair.margin, "margin", row)


def _finite(number: float, name: str, row: int) -> float:
    if not math.isfinite(number):
        raise InputError(f"row {row}: {name} {number} must be a finite number: correct it, or remove the row")
    return float(number)


def _sigma(x: float) -> float:
    """The logistic function, computed with tanh, which does not overflow."""
    return 0.5 * (1 + math.tanh(x / 2))
