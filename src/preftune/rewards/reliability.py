"""What a prior is worth: whether the probabilities it states are the shares in which the labels agree.

A gap delta states the probability (1 + delta) / 2 that the chosen response beats the rejected one.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64

from preftune.errors import InputError

BINS = 10
"""Equal bins of |delta|, those of the gap's histogram: the stated probability in steps of 0.05."""

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Share:
    """A share and its 95% interval (Wilson's, which stays in [0, 1] and serves at 0 and 1 too)."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs of about the same stated probability.

    Attributes:
        pairs: their number, at least 1.
        probability: mean stated probability of the response that the prior favours, in [0.5, 1].
        agreement: share of them whose label favours it too.
    """

    pairs: int
    probability: float
    agreement: Share


@dataclass(frozen=True)
class Reliability:
    """A prior against the labels. A pair of equal rewards agrees by half.

    Attributes:
        pairs: on which it was measured.
        ties: those whose two rewards are equal.
        agreement: share of pairs whose label is the prior's; the interval takes pairs as independent.
        expected_calibration_error: mean over pairs of |probability - agreement| of their bin.
        bins: by rising probability, without the empty ones.
    """

    pairs: int
    ties: int
    agreement: Share
    expected_calibration_error: float
    bins: tuple[ReliabilityBin, ...]


def reliability(gaps: Float64[np.ndarray, "pairs"]) -> Reliability:
    """Compare what gaps state with what labels say, by the response that the prior favours.

    The label of every pair is that its chosen response is better, so that P(chosen wins) alone has nothing
    to be compared with. Counting each pair in both orders would give the same figures twice, mirrored.

    Args:
        gaps: delta in [-1, 1] of one pair or more, as they are before negative ones are dealt with.
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
    """The share of `count` independent cases with its Wilson interval."""
    spread = _Z**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
    # Rounding may leave [0, 1], or a share of 0 or 1 outside its own interval.
    return Share(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def fit_temperature(differences: Float64[np.ndarray, "pairs"]) -> float:
    """The T that makes the labels likeliest where the chosen response wins with sigma(difference / T).

    In a = 1 / T the log-likelihood is concave. Its slope, the sum of d sigma(-a d), falls from half the sum
    of all d at a = 0 towards the sum of the negative ones: it has one zero where these differ in sign.

    Args:
        differences: score of the chosen response less that of the rejected one, finite.

    Raises:
        InputError: no temperature is likeliest, as the scores never contradict the labels or mostly do.
    """
    # Loading it takes a second, and only this needs it.
    from scipy.optimize import brentq
    from scipy.special import expit

    untied = differences[differences != 0]
    if not untied.sum() > 0:
        raise InputError(
            f"temperature = 'fit': over {len(differences)} pairs the chosen responses score no higher on "
            "average than the rejected ones, so no temperature makes these labels likely: check which column "
            "is chosen and whether a higher score is better, or set a number"
        )
    if untied.min() > 0:
        raise InputError(
            f"temperature = 'fit': in none of {len(differences)} pairs does the rejected response score "
            "higher, so that ever lower temperatures fit ever better; it is so where pairs are built from "
            "these scores: set a number, or fit on pairs labelled by somebody else"
        )
    scale = float(np.abs(untied).max())
    scaled = untied / scale

    def slope(inverse: float) -> float:
        return float((scaled * expit(-inverse * scaled)).sum())

    high = 1.0
    while slope(high) > 0:
        high *= 2
    return scale / float(brentq(slope, 0.0, high, xtol=1e-300, rtol=1e-13, maxiter=1000))
