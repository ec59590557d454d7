"""Policy gradients on a prompt's own samples, compared with each other, with the prior in every pair of them.

The leave-one-out advantage of a response is a mean over pairs: with n responses of rewards r,

    sum_i (r_i - mean of the others' r) l_i = 1 / (n - 1) * sum over pairs (r_w - r_l) (l_w - l_l),

w the better of a pair. The prior enters as it does in MaPPO's losses (arXiv 2507.21183, Eq. 8), on the score
of the worse one: (r_w - r_l) (l_w - delta l_l). MaPPO leaves this for later work; this form is ours.

The responses must be the policy's own, and one step is made on them: the ratio of the policy to the one that
sampled is then 1, and clipping it would change nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from preftune.objectives.groups import same_group
from preftune.objectives.parts import pair_rewards
from preftune.objectives.priors import PRIORS, Prior
from preftune.objectives.responses import FIELDS, Need, ScoredResponses, Term
from preftune.objectives.scores import log_likelihood, log_ratio, mean_log_likelihood

SMALLEST_SPREAD = 1e-4
"""Added to a standard deviation of rewards, as TRL does."""


def pairwise_advantage(
    reward: Float[Tensor, "responses"], responses: ScoredResponses, prior: Prior
) -> Float[Tensor, "responses"]:
    """The factor of each response's log-likelihood: the sum over its pairs of r_w - r_l, or -delta times it.

    With r = 1, 0.5 and 0 of one prompt and delta = 1: 1.5, 0 and -1.5. With delta the reward gap:
    0.5 + 1 = 1.5, then 0.5 - 0.5 * 0.5 = 0.25, and -1 * 1 - 0.5 * 0.5 = -1.25.

    Args:
        reward: r; for the plain method any other number too.
        responses: which of them share a prompt.
        prior: gives delta of a pair.
    """
    better = same_group(responses) & (reward[:, None] > reward)
    chosen, rejected = better.nonzero(as_tuple=True)
    difference = reward[chosen] - reward[rejected]
    gap = difference if prior.needs else None
    of_pairs: dict[str, Any] = {name: None for name, number in FIELDS.items() if number.per == "pair"}
    pairs = replace(responses, **of_pairs | {"chosen": chosen, "rejected": rejected, "prior_gap": gap})
    delta = prior.delta(pairs).to(reward.dtype)
    factor = torch.zeros_like(reward)
    return factor.index_add(0, chosen, difference).index_add(0, rejected, -delta * difference)


def _surrogate(
    advantage: Float[Tensor, "responses"], score: Float[Tensor, "responses"]
) -> Float[Tensor, "responses"]:
    """-A in value, -A grad s in gradient."""
    return -advantage.detach() * (1 + score - score.detach())


@dataclass(frozen=True)
class LeaveOneOut:
    """-A grad l with A = R - the mean R of the prompt's other samples, R = r - beta sg(h) (RLOO).

    Source: arXiv 2402.14740, Eq. 8, with its reward (Eq. 2). Its value is -A, as TRL reports it. The prior
    weighs r alone; the divergence stays whole.

    With r = 1, 0.5 and 0 and beta = 0, A is 0.75, 0 and -0.75.

    Attributes:
        beta: weight of the divergence from the reference in R; with 0 there is no reference.
        prior: gives delta; see the module.
    """

    beta: float
    prior: Prior = PRIORS["none"]

    name = "preference"

    @property
    def needs(self) -> frozenset[Need]:
        """Rewards by prompt, and the reference where it is in R."""
        rewards = frozenset[Need]({"prior_reward", "groups"})
        return rewards | {"reference"} if self.beta > 0 else rewards

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per response."""
        score = log_likelihood(responses)
        reward = cast(Tensor, responses.prior_reward).to(score.dtype)
        advantage = pairwise_advantage(reward, responses, self.prior)
        if self.beta > 0:
            closeness = -self.beta * log_ratio(responses).detach()
            advantage = advantage + pairwise_advantage(closeness, responses, PRIORS["none"])
        advantage = advantage / (same_group(responses).sum(dim=1) - 1).clamp(min=1)
        return _term(advantage, score, log_ratio if self.beta > 0 else log_likelihood, responses)


@dataclass(frozen=True)
class GroupRelative:
    """-A grad lbar with A = (r - mean r) / std r over the prompt's samples (GRPO).

    Source: arXiv 2402.03300, Eq. 3 and Section 4.1.2, without the divergence. Its value is -A.

    With r = 1, 0.5 and 0 the standard deviation is 0.5, and A is 1, 0 and -1.

    Attributes:
        scale_rewards: divide by the standard deviation (as the paper does; Dr. GRPO, arXiv 2503.20783, does
            not).
        prior: gives delta; see the module.
    """

    scale_rewards: bool
    prior: Prior = PRIORS["none"]

    name = "preference"
    needs = frozenset[Need]({"prior_reward", "groups"})

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per response."""
        score = mean_log_likelihood(responses)
        reward = cast(Tensor, responses.prior_reward).to(score.dtype)
        same = same_group(responses).to(score.dtype)
        count = same.sum(dim=1)
        advantage = pairwise_advantage(reward, responses, self.prior) / count
        if self.scale_rewards:
            squares = (same * (reward - (same @ reward / count)[:, None]) ** 2).sum(dim=1)
            advantage = advantage / ((squares / (count - 1).clamp(min=1)).sqrt() + SMALLEST_SPREAD)
        return _term(advantage, score, log_likelihood, responses)


def _term(
    advantage: Float[Tensor, "responses"],
    score: Float[Tensor, "responses"],
    reported: Callable[[ScoredResponses], Tensor],
    responses: ScoredResponses,
) -> tuple[Term, dict[str, Tensor]]:
    values = _surrogate(advantage, score)
    metrics = {
        **pair_rewards(reported(responses), responses),
        "loss/preference": values,
        "policy/advantage": advantage,
        "prior/reward": cast(Tensor, responses.prior_reward),
    }
    return Term(values, "responses"), metrics
