"""Losses of a pair that know how much better the chosen response is: what the prior is compared with.

The papers take differences of raw rewards. Here a pair's delta is the gap that the prior would take,
calibrated into [0, 1], so that all of them see the same numbers; `reward_scale` times delta stands for a
paper's difference.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.parts import pair_rewards
from preftune.objectives.responses import Need, ScoredResponses, Term
from preftune.objectives.scores import log_ratio

SMALLEST_GAP = 1e-6
"""What a smaller gap counts as where its logarithm is taken."""

GapScaling = Literal["log", "linear"]
"""How a gap becomes an offset."""
LabelOfGap = Literal["sigmoid", "linear"]
"""How a gap becomes the probability that the label is right."""


@runtime_checkable
class GapLink(Protocol):
    """A difference of log-ratios and a reward gap to a loss, pair by pair."""

    @property
    def beta(self) -> float:
        """Scale of the implicit reward beta * h."""

    def __call__(self, margin: Float[Tensor, "pairs"], gap: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """Loss of every pair; `margin` is h_w - h_l, and `gap` is delta."""


@dataclass(frozen=True)
class GapMargin:
    """link(h_w - h_l, delta): a preference loss of log-ratios that the reward gap shapes.

    Attributes:
        link: how both become a loss.
    """

    link: GapLink

    name = "preference"
    needs = frozenset[Need]({"pairs", "reference", "prior_gap"})

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per pair, the implicit rewards, and the gap."""
        ratio = log_ratio(responses)
        gap = cast(Tensor, responses.prior_gap).to(ratio.dtype)
        values = self.link(ratio[responses.chosen] - ratio[responses.rejected], gap)
        rewards = pair_rewards(self.link.beta * ratio, responses)
        return Term(values, "pairs"), {**rewards, f"loss/{self.name}": values, "prior/gap": gap}


@dataclass(frozen=True)
class OffsetByGap:
    """-log sigma(beta m - alpha f(s delta)), where f is the logarithm or nothing (ODPO, arXiv 2402.10571).

    The chosen implicit reward must be higher by the offset. A logarithm makes the offset negative where
    s delta < 1, so that pairs that hardly differ cost next to nothing; a gap under 1e-6 counts as 1e-6.

    With beta = 0.5, m = 3, alpha = 1 and s = 2, delta = 0.5 has the offset log 1 = 0, or linear 1.
    """

    beta: float
    alpha: float
    scaling: GapScaling
    reward_scale: float

    def __call__(self, margin: Float[Tensor, "pairs"], gap: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """Loss of every pair, in float64 inside: few offsets are numbers of float32."""
        reward = self.reward_scale * gap.double()
        if self.scaling == "log":
            reward = torch.log(self.reward_scale * gap.double().clamp(min=SMALLEST_GAP))
        return -logsigmoid(self.beta * margin.double() - self.alpha * reward).to(margin.dtype)


@dataclass(frozen=True)
class WeightedByGap:
    """-s delta log sigma(beta m): a pair counts by its gap (scaled DPO, arXiv 2410.01257)."""

    beta: float
    reward_scale: float

    def __call__(self, margin: Float[Tensor, "pairs"], gap: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """Loss of every pair."""
        return -self.reward_scale * gap * logsigmoid(self.beta * margin)


@dataclass(frozen=True)
class WeightedByMargin:
    """-w log sigma(beta m), with w = sigma(c r) / sigma(r), r = s delta (MADPO, arXiv 2510.05342).

    c falls from near c_max at a small r to c_min at a large one, and is 1 at r = tau: c = c_min + (c_max
    - c_min) / (1 + (c_max - 1) / (1 - c_min) exp(steepness (r - tau))). So w amplifies pairs below tau
    and dampens those above.

    At r = 0 every w is 1; at r = tau, c = 1 and w = 1.
    """

    beta: float
    reward_scale: float
    c_max: float
    c_min: float
    steepness: float
    tau: float

    def __call__(self, margin: Float[Tensor, "pairs"], gap: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """Loss of every pair."""
        reward = self.reward_scale * gap
        odds = (self.c_max - 1) / (1 - self.c_min) * torch.exp(self.steepness * (reward - self.tau))
        factor = self.c_min + (self.c_max - self.c_min) / (1 + odds)
        weight = torch.sigmoid(factor * reward) / torch.sigmoid(reward)
        return -weight * logsigmoid(self.beta * margin)


@dataclass(frozen=True)
class SquaredGap:
    """(beta m - s delta)^2: regression of the implicit reward's difference on the reward's."""

    beta: float
    reward_scale: float

    def __call__(self, margin: Float[Tensor, "pairs"], gap: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """Loss of every pair."""
        return (self.beta * margin - self.reward_scale * gap) ** 2


@dataclass(frozen=True)
class SoftLabel:
    """-p log sigma(beta m) - (1 - p) log sigma(-beta m), with p of the gap (MMPO, arXiv 2410.03145).

    Its gradient is beta (sigma(beta m) - p) grad m, and ends at p. MMPO's p is sigma(s delta)
    (`sigmoid`). Ours is (1 + delta) / 2 (`linear`): the gap of the calibration `bradley_terry` is 2
    sigma(d / T) - 1, and gives sigma(d / T).

    With delta = 0.5, `linear`, and beta m = 0 the loss is log 2, its slope beta (1/2 - 3/4).
    """

    beta: float
    label: LabelOfGap
    reward_scale: float

    def __call__(self, margin: Float[Tensor, "pairs"], gap: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """Loss of every pair, in float64 inside: p and sigma are nearly equal where it ends."""
        gap, implicit = gap.double(), self.beta * margin.double()
        label = torch.sigmoid(self.reward_scale * gap) if self.label == "sigmoid" else (1 + gap) / 2
        return -(label * logsigmoid(implicit) + (1 - label) * logsigmoid(-implicit)).to(margin.dtype)


@dataclass(frozen=True)
class BernoulliKL:
    """KL between the probabilities sigma(s delta) of the rewards and sigma(beta m) of the policy.

    Backward is KL(rewards || policy), forward KL(policy || rewards), as NeMo-Aligner names them.

    With beta m = 0 and s delta = log 3 the backward one is 0.75 log(0.75 / 0.5) + 0.25 log(0.25 / 0.5).

    Attributes:
        beta: scale of the implicit reward.
        reward_scale: s.
        forward: which of the two.
    """

    beta: float
    reward_scale: float
    forward: bool

    def __call__(self, margin: Float[Tensor, "pairs"], gap: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """Loss of every pair, in float64 inside: it is a difference of what becomes equal."""
        first, second = self.reward_scale * gap.double(), self.beta * margin.double()
        if self.forward:
            first, second = second, first
        chosen = torch.sigmoid(first) * (logsigmoid(first) - logsigmoid(second))
        rejected = torch.sigmoid(-first) * (logsigmoid(-first) - logsigmoid(-second))
        return (chosen + rejected).to(margin.dtype)


DISTANCES: Mapping[str, Callable[[float, float], GapLink]] = {
    "backward_kl": partial(BernoulliKL, forward=False),
    "forward_kl": partial(BernoulliKL, forward=True),
    "squared": SquaredGap,
}
"""Distances of RPO by name; each takes beta and the reward's scale."""


@dataclass(frozen=True)
class ClippedReference:
    """-log sigma(beta (l_w - l_l - max(0, rho_w - rho_l))): DPO whose reference never excuses a wrong order.

    Source: HyPO (Hybrid-DPO), arXiv 2602.11902. Where the reference prefers the rejected response, DPO is
    satisfied once the policy prefers it less; here the reference then counts as neutral.

    With beta = 0.5, l_w - l_l = 2 and rho_w - rho_l = -1 it is log(1 + exp(-1)), and DPO's log(1 +
    exp(-1.5)).

    Attributes:
        beta: scale of the implicit reward.
    """

    beta: float

    name = "preference"
    needs = frozenset[Need]({"pairs", "reference"})

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per pair, the implicit rewards, and whether the reference was clipped."""
        ratio, reference = log_ratio(responses), cast(Tensor, responses.reference_logps)
        chosen, rejected = responses.chosen, responses.rejected
        # What the reference's margin lacks to 0: adding it to DPO's leaves the other pairs as they are.
        missing = (reference[chosen] - reference[rejected]).clamp(max=0)
        values = -logsigmoid(self.beta * (ratio[chosen] - ratio[rejected] + missing))
        metrics = {
            **pair_rewards(self.beta * ratio, responses),
            f"loss/{self.name}": values,
            "reference/clipped": missing < 0,
        }
        return Term(values, "pairs"), metrics
