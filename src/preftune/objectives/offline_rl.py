"""What UPO (once HPO) is compared with: other ways to learn from auxiliary rewards, from the same tensors.

Offline reinforcement learning with a value (offline PPO, A-LoL, DRO-V) and DPO with a margin (MODPO). Here
a response is one action: a log-ratio h is a sum over its tokens and its reward comes at its end, so that the
advantage A = R - V(x) is one number a response. Where a paper has these per token, its part says so. R is
standardised over the training set, and V is learned beside the policy, from the policy's own reading of the
prompt, where the papers train it before or in a network of its own.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from preftune.objectives.auxiliary import LARGEST_EXPONENT, Standardization, ValueRegression
from preftune.objectives.links import Logistic
from preftune.objectives.parts import pair_rewards
from preftune.objectives.responses import Need, ScoredResponses, Term
from preftune.objectives.scores import log_likelihood, log_ratio

_NEEDS: frozenset[Need] = frozenset({"reference", "auxiliary", "value"})


def importance_ratio(responses: ScoredResponses) -> Float[Tensor, "responses"]:
    """The ratio q = pi_theta(y given x) / pi_ref(y given x) of whole responses, held at exp(30).

    Its gradient is q grad log pi, where it is held too: a bad response is never too likely to be unlearned.
    """
    ratio = log_ratio(responses)
    # The difference is 0 and carries the gradient; taking the excess from a large ratio would round.
    return torch.exp(ratio.detach().clamp(max=LARGEST_EXPONENT) + (ratio - ratio.detach()))


@dataclass(frozen=True)
class ClippedSurrogate:
    """-min(q A, clip(q, 1 - eps, 1 + eps) A) against a reference that stays where it is (offline PPO).

    Source: KTO, arXiv 2402.01306, Section 3.3, with the loss of PPO, arXiv 1707.06347, Eq. 7. Its gradient
    is -q A grad log pi, and none once q is over 1 + eps and A > 0, or q under 1 - eps and A < 0. There q and
    A are per token (A by GAE, standardised over the batch) and rewards are +1 and -1; here they are per
    response, which the paper names as the more stable choice, so that eps bounds the change of a whole
    response. The authors' code clips to [eps, 1 / eps] with eps = 0.5.

    With h = log 2 and clip 0.5, q = 2: at A = 1 the loss is -1.5 without gradient, at A = -1 it is 2.

    Attributes:
        clip: eps, in (0, 1).
        standardization: of R.
    """

    clip: float
    standardization: Standardization

    name = "policy"
    needs = _NEEDS

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per response, its ratio, and whether clipping holds it; h by pair where there are."""
        advantage = self.standardization.advantage(responses).detach()
        ratio = importance_ratio(responses)
        free = ratio * advantage
        held = ratio.clamp(1 - self.clip, 1 + self.clip) * advantage
        values = -torch.minimum(free, held)
        metrics = {
            f"loss/{self.name}": values,
            "policy/ratio": ratio,
            "policy/clipped": held < free,
            **pair_rewards(log_ratio(responses), responses),
        }
        return Term(values, "responses"), metrics


@dataclass(frozen=True)
class LeftoverLikelihood:
    """-sg(clip(q, 1 - eps, 1 + eps) max(A, 0)) log pi: likelihood of what beats its prompt's value (A-LoL).

    Source: arXiv 2305.14718, Section 2, where a response is one action too. Its gradient is
    -clip(q, 1 - eps, 1 + eps) A grad log pi where A > 0 and none elsewhere. The paper finds V on the
    reference beforehand, leaves the other responses out and prefers those of a large A; here they count in
    the mean, as zeros, and all are seen alike.

    With log pi = -4, h = log 1.5, A = 2 and clip 0.9 the loss is 1.5 * 2 * 4 = 12.

    Attributes:
        clip: eps, in (0, 1).
        reference_free: take 1 for the ratio (the paper's A-LoL ref-free).
        standardization: of R.
    """

    clip: float
    reference_free: bool
    standardization: Standardization

    name = "policy"

    @property
    def needs(self) -> frozenset[Need]:
        """Auxiliary rewards and their value, and the reference's log-probabilities unless without them."""
        return _NEEDS - {"reference"} if self.reference_free else _NEEDS

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per response in nats, its factor, and whether it is learned from; rewards by pair."""
        advantage = self.standardization.advantage(responses).detach()
        factor = advantage.clamp(min=0)
        if not self.reference_free:
            factor = factor * importance_ratio(responses).detach().clamp(1 - self.clip, 1 + self.clip)
        score = log_likelihood if self.reference_free else log_ratio
        values = -factor * log_likelihood(responses)
        metrics = {
            f"loss/{self.name}": values,
            "policy/factor": factor,
            "policy/kept": advantage > 0,
            **pair_rewards(score(responses), responses),
        }
        return Term(values, "responses"), metrics


@dataclass(frozen=True)
class RewardRegression:
    """(sg(A) - tau h)^2 / (2 tau): the policy's half of DRO-V (arXiv 2405.19107).

    Its gradient is -(A - tau h) grad log pi: Eq. 8 over tau, as the paper trains. Where it vanishes together
    with the value's, pi is proportional to pi_ref exp(R / tau). The paper has log-ratios of whole responses
    and standardised rewards too.

    With A = 1, h = -1 and tau = 2 the residual is 3 and the loss 9 / 4.

    Attributes:
        tau: how much a nat of log-ratio weighs against a standard deviation of R.
        standardization: of R.
    """

    tau: float
    standardization: Standardization

    name = "policy"
    needs = _NEEDS

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per response; tau h by pair where there are."""
        reward = self.tau * log_ratio(responses)
        values = (self.standardization.advantage(responses).detach() - reward) ** 2 / (2 * self.tau)
        return Term(values, "responses"), {f"loss/{self.name}": values, **pair_rewards(reward, responses)}


@dataclass(frozen=True)
class SoftValueRegression:
    """weight * (A - tau sg(h))^2 / 2: the value's half of DRO-V (arXiv 2405.19107).

    Its gradient is -(A - tau h) grad V (Eq. 7): V is no mean of R but of R - tau h, in the end
    tau log E[exp(R / tau)] over the reference's responses. The paper has V in a network of its own, one for
    each token.

    With A = 1, h = -1 and tau = 2 the residual is 3 and the loss 9 / 2.

    Attributes:
        weight: its factor in the total loss.
        tau: as in `RewardRegression`.
        standardization: of R.
    """

    weight: float
    tau: float
    standardization: Standardization

    name = "value"
    needs = _NEEDS

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per response; R, V, A and its square as `ValueRegression` reports them."""
        _, metrics = ValueRegression(self.weight, 0.5, self.standardization)(responses)
        residual = self.standardization.advantage(responses) - self.tau * log_ratio(responses).detach()
        values = residual**2 / 2
        return Term(values, "responses", self.weight), {**metrics, f"loss/{self.name}": values}


@dataclass(frozen=True)
class RewardMargin:
    """-log sigma(beta / w (h_w - h_l) - (1 - w) / w (R_w - R_l)): MODPO (arXiv 2310.03708, Eq. 11).

    DPO whose margin is what the preference asks for beyond the auxiliary rewards: beta h then stands for
    w times the preference's reward plus (1 - w) R. With w = 1 it is DPO. The gradient is
    -(beta / w) (1 - sigma(u)) (grad l_w - grad l_l). The paper's R comes from reward models on their own
    scale; here it is in standard deviations. V plays no part.

    With beta = 0.5, w = 0.5, h_w - h_l = 3 and R_w - R_l = -1, u = 3 + 1 and the loss log(1 + exp(-4)).

    Attributes:
        beta: scale of the implicit reward beta * h.
        preference_weight: w, in (0, 1].
        standardization: of R.
    """

    beta: float
    preference_weight: float
    standardization: Standardization

    name = "preference"
    needs = frozenset[Need]({"pairs", "reference", "auxiliary"})

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per pair, the implicit rewards beta h, which R leaves alone, and R per response."""
        ratio, reward = log_ratio(responses), cast(Tensor, responses.auxiliary)
        chosen, rejected = responses.chosen, responses.rejected
        asked = (reward[chosen] - reward[rejected]) / self.standardization.scale
        margin = ratio[chosen] - ratio[rejected] - (1 - self.preference_weight) / self.beta * asked
        values = Logistic(self.beta / self.preference_weight)(margin)
        metrics = {
            f"loss/{self.name}": values,
            "auxiliary/reward": reward,
            **pair_rewards(self.beta * ratio, responses),
        }
        return Term(values, "pairs"), metrics
