"""How sure a figure is: prompts are drawn again, since verdicts on the same prompt are not independent."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64

from preftune.errors import InputError
from preftune.evaluation.verdicts import Comparison, Results, Verdict

RESAMPLES = 2_000
LEVEL = 0.95
REACH = NormalDist().inv_cdf((1 + LEVEL) / 2)
"""Standard errors from the middle of an interval to its ends, by the normal approximation."""

VerdictCounts = Mapping[str, tuple[float, float]]
"""For each prompt the sum of its verdicts and their number, both weighted by games."""


@dataclass(frozen=True)
class Estimate:
    """A figure with what resampling says about it.

    Attributes:
        value: over all prompts.
        standard_error: standard deviation over resamples; None for a single prompt.
        interval: 95%, from the percentiles of the resamples; None for a single prompt.
    """

    value: float
    standard_error: float | None
    interval: tuple[float, float] | None

    def results(self, scale: float = 1.0) -> Results:
        """Standard error and interval for the results; a scale of 100 makes percent of shares."""
        return {
            "standard_error": None if self.standard_error is None else scale * self.standard_error,
            "interval": None if self.interval is None else [scale * end for end in self.interval],
        }


@dataclass(frozen=True)
class Difference:
    """One model against another on the prompts that both have.

    Attributes:
        prompts: their number.
        estimate: the first's figure less the second's, with prompts resampled for both together.
        better: prompts on which the first does better.
        worse: prompts on which it does worse.
        p_value: of the sign test.
    """

    prompts: int
    estimate: Estimate
    better: int
    worse: int
    p_value: float

    def results(self, name: str, scale: float = 1.0) -> Results:
        """For the results; a scale of 100 makes percent of shares."""
        return {
            name: scale * self.estimate.value,
            "interval": self.estimate.results(scale)["interval"],
            "better": self.better,
            "worse": self.worse,
            "p_value": self.p_value,
        }


def tally(verdicts: Iterable[Verdict]) -> VerdictCounts:
    """Gather verdicts by prompt, over orders and turns; those that could not be read are left out."""
    found: dict[str, tuple[float, float]] = {}
    for verdict in verdicts:
        if isinstance(verdict, Comparison):
            value, weight = verdict.preference, verdict.weight
        else:
            value, weight = verdict.rating, 1
        if value is not None:
            total, count = found.get(verdict.question, (0.0, 0.0))
            found[verdict.question] = (total + weight * value, count + weight)
    return found


def mean(counted: VerdictCounts, seed: int = 0) -> Estimate:
    """The mean over all verdicts, each prompt being drawn or not with all of its own.

    Args:
        counted: one prompt or more.
        seed: of the resamples.

    Raises:
        InputError: there are no prompts.
    """
    if not counted:
        raise InputError("no verdict could be read, so there is nothing to average")
    return _resample(_columns(counted, counted), seed)


def difference(ours: VerdictCounts, theirs: VerdictCounts, seed: int = 0) -> Difference:
    """Compare two models on the prompts they share.

    Raises:
        InputError: they share none.
    """
    shared = [prompt for prompt in ours if prompt in theirs]
    if not shared:
        raise InputError("the two models were judged on no prompt in common, so they cannot be compared")
    columns = np.concatenate([_columns(ours, shared), _columns(theirs, shared)], axis=1)
    # Rounding in the last bit must not decide who did better.
    gaps = np.round(columns[:, 0] / columns[:, 1] - columns[:, 2] / columns[:, 3], 12)
    better, worse = int((gaps > 0).sum()), int((gaps < 0).sum())
    return Difference(len(shared), _resample(columns, seed), better, worse, sign_test(better, worse))


def sign_test(wins: int, losses: int) -> float:
    """Probability of a split at least as uneven if either side were as likely to win; draws say nothing.

    Exact and two-sided.
    """
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def decided_by_prompt(counted: VerdictCounts, seed: int = 0) -> Results:
    """Win rate in percent with its interval, and the prompts that are won, tied and lost.

    Args:
        counted: preferences in [0, 1], where 1/2 is a tie.
        seed: of the resamples.

    Raises:
        InputError: there is no prompt.
    """
    estimate = mean(counted, seed)
    prompts = [total / count for total, count in counted.values()]
    wins = sum(preference > 0.5 for preference in prompts)
    losses = sum(preference < 0.5 for preference in prompts)
    return {
        "n": len(prompts),
        "win_rate": 100 * estimate.value,
        **estimate.results(100.0),
        "wins": wins,
        "ties": len(prompts) - wins - losses,
        "losses": losses,
        "sign_test_p": sign_test(wins, losses),
    }


def _columns(counted: VerdictCounts, prompts: Iterable[str]) -> Float64[np.ndarray, "prompts 2"]:
    return np.array([counted[prompt] for prompt in prompts], dtype=np.float64)


def _resample(columns: Float64[np.ndarray, "prompts columns"], seed: int) -> Estimate:
    """Ratio of the first two columns' sums, less that of the next two where there are four."""
    value = float(_ratio(columns.sum(0)))
    count = len(columns)
    if count < 2:
        return Estimate(value, None, None)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    resampled = _ratio(draws @ columns)
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(resampled.std(ddof=1)), (float(low), float(high)))


def _ratio(sums: Float64[np.ndarray, "*draws columns"]) -> Float64[np.ndarray, "*draws"]:
    ratio = sums[..., 0] / sums[..., 1]
    return np.asarray(ratio - sums[..., 2] / sums[..., 3] if sums.shape[-1] == 4 else ratio)
