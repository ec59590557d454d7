"""Reliability of a prior: whether the probabilities that it predicts match the shares of labels that agree.

A gap delta predicts that the chosen response beats the rejected one with probability (1 + delta) / 2.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64

from preftune.errors import InputError

BINS = 10
"""Equal bins of |delta|, as in the histogram of gaps: the predicted probability in steps of 0.05."""

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Share:
    """A share and its 95% interval (Wilson's, which stays in [0, 1] and is valid at 0 and 1 too)."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs of about the same predicted probability.

    Attributes:
        pairs: their number, at least 1.
        probability: mean predicted probability of the response that the prior prefers, in [0.5, 1].
        agreement: share of them whose label prefers it too.
    """

    pairs: int
    probability: float
    agreement: Share


@dataclass(frozen=True)
class Reliability:
    """Agreement of a prior with the labels. A pair of equal rewards counts as half an agreement.

    Attributes:
        pairs: number of measured pairs.
        ties: pairs whose two rewards are equal.
        agreement: share of pairs whose label agrees with the prior; the interval assumes independent pairs.
        expected_calibration_error: mean over pairs of |probability - agreement| of their bin.
        bins: in order of rising probability, without empty ones.
    """

    pairs: int
    ties: int
    agreement: Share
    expected_calibration_error: float
    bins: tuple[ReliabilityBin, ...]


def reliability(gaps: Float64[np.ndarray, "pairs"]) -> Reliability:
    """Compare the predictions of gaps with the labels, by the response that the prior prefers.

    The label of every pair says that its chosen response is better, so P(chosen wins) alone has nothing to be
    compared with. Counting each pair in both orders would give the same figures twice, mirrored.

    Args:
        gaps: delta in [-1, 1] of at least one pair, before negative gaps are handled.
    """
    favoured = (1 + np.abs(gaps)) / 2
    agrees = (1 + np.sign(gaps)) / 2
    places = np.digitize(np.abs(gaps), np.linspace(0, 1, BINS + 1)[1:-1])
    bins = tuple(
        ReliabilityBin(
            int(inside.sum()),
            float(favoured[inside].mean()),
            share_interval(float(agrees[inside].mean()), int(inside.sum())),
        )
        for inside in (places == place for place in np.unique(places))
    )
    distance = sum(found.pairs * abs(found.probability - found.agreement.share) for found in bins)
    return Reliability(
        pairs=len(gaps),
        ties=int((gaps == 0).sum()),
        agreement=share_interval(float(agrees.mean()), len(gaps)),
        expected_calibration_error=distance / len(gaps),
        bins=bins,
    )


def share_interval(share: float, count: int) -> Share:
    """A share of `count` independent cases with its Wilson interval."""
    spread = _Z**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
    # Rounding may exceed [0, 1], or leave a share of 0 or 1 outside its interval.
    return Share(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def fit_temperature(differences: Float64[np.ndarray, "pairs"]) -> float:
    """The maximum-likelihood T if the chosen response wins with probability sigma(difference / T).

    The log-likelihood is concave in a = 1 / T. Its slope, the sum of d sigma(-a d), falls from half the sum
    of all d at a = 0 towards the sum of the negative d: it has one zero if these differ in sign.

    Args:
        differences: score of the chosen response minus score of the rejected one, finite.

    Raises:
        InputError: no temperature is the most likely, because the scores contradict the labels never or
            mostly.
    """
    # Imported here because it takes a second to load.
    from scipy.optimize import brentq
    from scipy.special import expit

    untied = differences[differences != 0]
    if not untied.sum() > 0:
        raise InputError(
            f"temperature = 'fit': in {len(differences)} pairs the chosen responses do not score higher on "
            "average than the rejected ones, so no temperature fits: check that the chosen column is right "
            "and that a higher score is better, or set a number"
        )
    if untied.min() > 0:
        raise InputError(
            f"temperature = 'fit': the rejected response never scores higher in {len(differences)} pairs, so "
            "a lower temperature always fits better. This happens if the pairs are built from these scores: "
            "set a number, or fit on pairs with independent labels"
        )
    scale = float(np.abs(untied).max())
    scaled = untied / scale

    def slope(inverse: float) -> float:
        return float((scaled * expit(-inverse * scaled)).sum())

    high = 1.0
    while slope(high) > 0:
        high *= 2
    return scale / float(brentq(slope, 0.0, high, xtol=1e-300, rtol=1e-13, maxiter=1000))
