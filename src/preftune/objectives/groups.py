"""Losses over all responses of a prompt, by how good each is: no pair has to be chosen.

A response's r is its prior reward, calibrated into [0, 1], where the papers take raw rewards; `reward_scale`
s times r stands for theirs. A group is compared with itself alone, so that all of its responses are needed in
one batch: packing keeps a group whole.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.parts import pair_rewards
from preftune.objectives.responses import Need, ScoredResponses, Term
from preftune.objectives.scores import log_ratio, mean_log_likelihood

_NEEDS: frozenset[Need] = frozenset({"reference", "prior_reward", "groups"})

_NOTHING = -1e30
"""The score of a response that does not count: exp of it is 0, and differences of it are finite."""


def same_group(responses: ScoredResponses) -> Bool[Tensor, "responses responses"]:
    """Whether two responses answer the same prompt; each with itself too."""
    groups = cast(Tensor, responses.groups)
    return groups[:, None] == groups


def log_share(
    scores: Float64[Tensor, "responses"], rivals: Bool[Tensor, "responses responses"]
) -> Float64[Tensor, "responses"]:
    """Log of exp(s_i) / (exp(s_i) + the sum of exp(s_j) over the rivals j of i); 0 without a rival.

    Args:
        scores: of every response.
        rivals: row i has those of response i, itself not among them.
    """
    others = torch.where(rivals, scores, _NOTHING).logsumexp(dim=1)
    return logsigmoid(scores - others)


def _rivals(responses: ScoredResponses) -> Bool[Tensor, "responses responses"]:
    """The other responses of each one's prompt."""
    same = same_group(responses)
    return same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)


def _rewards(responses: ScoredResponses) -> Float64[Tensor, "responses"]:
    return cast(Tensor, responses.prior_reward).double()


def _metrics(
    reward: Float[Tensor, "responses"], values: Float[Tensor, "responses"], responses: ScoredResponses
) -> dict[str, Tensor]:
    """Implicit rewards by pair where there are, the term per response, and r."""
    prior = cast(Tensor, responses.prior_reward)
    return {**pair_rewards(reward, responses), "loss/preference": values, "prior/reward": prior}


@dataclass(frozen=True)
class ContrastAmongResponses:
    """-p log softmax(beta h), with p = softmax(s r) over the prompt's responses (InfoNCA, arXiv 2402.05369).

    Cross-entropy of the implicit rewards with the rewards. Its gradient is beta (softmax(beta h) - p)
    grad l. With two responses and p = 1 and 0 it is DPO.

    With h = 1 and -2, beta = 0.5 and s r = log 3 and 0, p is 3/4 and 1/4, and the loss of the prompt
    3/4 log(1 + exp(-1.5)) + 1/4 log(1 + exp(1.5)).

    Attributes:
        beta: scale of the implicit reward.
        reward_scale: s; with 1 the optimum is that of the expected r less beta times the KL divergence.
    """

    beta: float
    reward_scale: float

    name = "preference"
    needs = _NEEDS

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per response, whose sum over a prompt is averaged over prompts."""
        ratio, rivals = log_ratio(responses), _rivals(responses)
        target = log_share(self.reward_scale * _rewards(responses), rivals).exp()
        values = -(target * log_share(self.beta * ratio.double(), rivals)).to(ratio.dtype)
        return Term(values, "prompts"), _metrics(self.beta * ratio, values, responses)


@dataclass(frozen=True)
class ContrastWithReference:
    """-p log sigma(beta h) - 1/n log sigma(-beta h), with p = softmax(s r) (NCA, arXiv 2402.05369).

    Each response by itself is told from one of the reference's, so that good ones become likelier and not
    only likelier than others. Its gradient is -beta (p sigma(-beta h) - sigma(beta h) / n) grad l.

    With h = 1 and -2, beta = 0.5 and s r = log 3 and 0 the prompt's loss is 3/4 log(1 + exp(-0.5)) +
    1/2 log(1 + exp(0.5)) + 1/4 log(1 + e) + 1/2 log(1 + 1/e).

    Attributes:
        beta: scale of the implicit reward.
        reward_scale: s.
    """

    beta: float
    reward_scale: float

    name = "preference"
    needs = _NEEDS

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per response, whose sum over a prompt is averaged over prompts."""
        ratio, same = log_ratio(responses), same_group(responses)
        target = log_share(self.reward_scale * _rewards(responses), _rivals(responses)).exp()
        implicit = self.beta * ratio.double()
        values = -target * logsigmoid(implicit) - logsigmoid(-implicit) / same.sum(dim=1)
        values = values.to(ratio.dtype)
        return Term(values, "prompts"), _metrics(self.beta * ratio, values, responses)


@dataclass(frozen=True)
class RankLikelihood:
    """-log of exp(beta h_i) over the sum of exp(beta h_j) of i and what ranks below it (Plackett-Luce).

    Source: DPO, arXiv 2305.18290, Appendix A.3. With two responses it is DPO. Where rewards are equal,
    the data give no rank: each of the equals has the others in its sum (Breslow's way with ties).

    With beta = 1 and h = 0 for all of three ranked responses the prompt's loss is log 3 + log 2.

    Attributes:
        beta: scale of the implicit reward.
    """

    beta: float

    name = "preference"
    needs = _NEEDS

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per response, whose sum over a prompt is averaged over prompts."""
        ratio, reward = log_ratio(responses), _rewards(responses)
        below = _rivals(responses) & (reward <= reward[:, None])
        values = -log_share(self.beta * ratio.double(), below).to(ratio.dtype)
        return Term(values, "prompts"), _metrics(self.beta * ratio, values, responses)


@dataclass(frozen=True)
class QuantileRegression:
    """(q - beta log Z - beta h)^2, where q is the share of the prompt's responses with no more than r.

    Source: QRPO, arXiv 2507.08068. Of the reference's responses q is uniform in [0, 1], so that Z is
    beta (exp(1 / beta) - 1) (Eq. 11) and h has a target of its own, without a pair. The paper takes q among
    answers of the reference that are only scored; here a prompt's responses are compared with each other, and
    should be the reference's.

    With beta = 1 log Z is log(e - 1) = 0.5413: of h = 1 and q = 1 the loss is 0.5413^2.

    Attributes:
        beta: scale of the log-ratio against the quantile.
    """

    beta: float

    name = "preference"
    needs = _NEEDS

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per response."""
        ratio, reward, same = log_ratio(responses), _rewards(responses), same_group(responses)
        quantile = (same & (reward <= reward[:, None])).double().sum(dim=1) / same.sum(dim=1)
        target = quantile - self.beta * log_partition(self.beta)
        values = ((target - self.beta * ratio.double()) ** 2).to(ratio.dtype)
        metrics = {**_metrics(self.beta * ratio, values, responses), "prior/quantile": quantile}
        return Term(values, "responses"), metrics


def log_partition(beta: float) -> float:
    """Log Z = log(beta (exp(1 / beta) - 1)), of a reward that is uniform in [0, 1] (QRPO, Eq. 11).

    The authors' code leaves out the 1, which is nothing at small beta.
    """
    return math.log(beta) + 1 / beta + math.log(-math.expm1(-1 / beta))


@dataclass(frozen=True)
class DecisionDistillation:
    """-sg(q) log p, with p = softmax(lbar / T), and q proportional to p exp(eta r / T).

    Source: DDO-RM, arXiv 2604.11119. p is how the policy, without a reference, chooses among the prompt's
    responses, by likelihood per token; q is p after a step towards the rewards, by which the policy is to
    choose. Its gradient is (p - q) / T grad lbar.

    With lbar equal, T = 1 and eta r = log 3 and 0, q is 3/4 and 1/4, and the prompt's loss log 2.

    Attributes:
        eta: how far q goes.
        temperature: T.
    """

    eta: float
    temperature: float

    name = "preference"
    needs = frozenset[Need]({"prior_reward", "groups"})

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per response, whose sum over a prompt is averaged over prompts."""
        score, rivals = mean_log_likelihood(responses), _rivals(responses)
        own = score.double() / self.temperature
        # The paper takes the mean reward under p off r first, which is the same for all of a prompt.
        target = log_share(own.detach() + self.eta / self.temperature * _rewards(responses), rivals).exp()
        values = -(target * log_share(own, rivals)).to(score.dtype)
        return Term(values, "prompts"), _metrics(score, values, responses)
