"""Margins that look at tokens: those behind the shared length count less, or likely pairs count more."""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from preftune.objectives.credit import reweighted
from preftune.objectives.parts import Margin
from preftune.objectives.responses import Need, ScoredResponses, Term
from preftune.objectives.scores import mean_log_likelihood


@dataclass(frozen=True, kw_only=True)
class LengthDiscountedMargin(Margin):
    """A margin whose scores count tokens behind the shorter length by alpha (LD-DPO, arXiv 2409.06411).

    With token log-ratios (1, 1, 1) and (-1) and alpha = 0.5 the scores are 1 + 0.5 + 0.5 = 2 and -1.

    Attributes:
        alpha: in [0, 1]; 1 is the plain margin, bit for bit, and 0 leaves those tokens out.

    Raises:
        ValueError: the prior goes by tokens too.
    """

    alpha: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior.credit is not None:
            raise ValueError("a prior by tokens and a length discount both weigh tokens: use one of them")

    @property
    def needs(self) -> frozenset[Need]:
        """What the margin needs, and log-probabilities of tokens."""
        return super().needs | {"token_logps", "reference_tokens"}

    def sides(
        self, _: Float[Tensor, "responses"], responses: ScoredResponses
    ) -> tuple[Float[Tensor, "pairs"], Float[Tensor, "pairs"], dict[str, Tensor]]:
        """The discounted s_w and s_l of every pair."""
        chosen, rejected = responses.chosen, responses.rejected
        shared = torch.minimum(responses.lengths[chosen], responses.lengths[rejected])
        longest = max(int(responses.lengths.max()), 1)
        behind = torch.arange(longest, device=shared.device) >= shared[:, None]
        weights = 1 - (1 - self.alpha) * behind.to(cast(Tensor, responses.token_logps).dtype)
        first, second = (self.score(reweighted(responses, side, weights)) for side in (chosen, rejected))
        return first, second, {}


@dataclass(frozen=True, kw_only=True)
class LikelihoodWeightedMargin(Margin):
    """A margin's loss times w(y_w) w(y_l), how likely both are (WPO, arXiv 2406.11827, Eq. 2).

    w(y) = exp(mean over tokens of log pi(y_t) - log sum_v pi(v)^2), without gradient: around 1 for what the
    policy would sample, less for what it would not. The authors' code holds the product at 1.

    With mean log pi of -1 and -2 and mean log sum_v pi(v)^2 of -0.5 and -1.5 the weight is exp(-1).

    Attributes:
        cap: the largest product; None for any.
    """

    cap: float | None = None

    @property
    def needs(self) -> frozenset[Need]:
        """What the margin needs, and how likely the policy is to draw a token twice."""
        return super().needs | {"collisions"}

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The weighted preference term per pair, and the weight."""
        term, metrics = super().__call__(responses)
        counts: Int[Tensor, responses] = responses.lengths.clamp(min=1)
        expected = cast(Tensor, responses.collision_logps) / counts
        fit = (mean_log_likelihood(responses) - expected).detach()
        weight = torch.exp(fit[responses.chosen] + fit[responses.rejected]).clamp(
            max=torch.inf if self.cap is None else self.cap
        )
        values = weight * term.values
        return Term(values, term.unit), {**metrics, "weight/likelihood": weight, f"loss/{self.name}": values}
