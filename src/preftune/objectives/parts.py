"""The summands of an objective. A published loss is one of them, or a few side by side."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, cast, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from preftune.objectives.credit import reweighted, token_share
from preftune.objectives.links import Link
from preftune.objectives.needs import needs_of
from preftune.objectives.priors import PRIORS, Prior
from preftune.objectives.responses import Need, ScoredResponses, Term, Unit
from preftune.objectives.scores import Score, log_likelihood, log_ratio, mean_log_likelihood, reward_score

Reduction = Literal["token_mean", "sum"]
"""Over what a likelihood is averaged: all chosen tokens of the batch, or its pairs."""

Shift = Callable[[ScoredResponses], Float[Tensor, "pairs"]]
"""One number per pair, in units of the score."""

LEAST_FALL = 0.01
"""Nats, 1% of the probability: policy and reference that are equal differ by rounding."""

_UNIT_OF: dict[Reduction, Unit] = {"token_mean": "chosen_tokens", "sum": "pairs"}


@runtime_checkable
class Part(Protocol):
    """One summand: it declares what it needs and returns a term with the metrics that explain it."""

    @property
    def name(self) -> str:
        """The term's name; its loss is reported as `loss/<name>`."""

    @property
    def needs(self) -> frozenset[Need]:
        """What the responses must carry."""

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term, and metrics per pair."""


def pair_rewards(reward: Float[Tensor, "responses"], responses: ScoredResponses) -> dict[str, Tensor]:
    """Metrics of every pair's implicit rewards; a tie does not count as accurate."""
    chosen, rejected = reward[responses.chosen], reward[responses.rejected]
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": chosen > rejected,
    }


def displacement(responses: ScoredResponses) -> dict[str, Tensor]:
    """Metrics of what training did to a pair so far: whether log pi is under the reference's by LEAST_FALL.

    A margin also grows where both fall and the rejected response falls faster. The chosen one's probability
    then goes to responses that nobody asked for (likelihood displacement, arXiv 2410.08847; squeezing).
    """
    fell = log_ratio(responses) < -LEAST_FALL
    chosen, rejected = fell[responses.chosen], fell[responses.rejected]
    return {"displacement/chosen": chosen, "displacement/both": chosen & rejected}


@dataclass(frozen=True)
class Margin:
    """link(s_w - delta * s_l): the preference loss of a pair (MaPPO, arXiv 2507.21183, Eq. 8, 12, 14, 16).

    Its gradient with the logistic link is -beta (1 - sigma(u)) (grad s_w - delta grad s_l), Eq. 10.

    Attributes:
        score: what s is.
        link: how the margin becomes a loss.
        prior: where delta comes from.
        reward: the score that `rewards/*` report as beta * score; `score` itself unless given.
        shift: what is added to every margin, whatever the prior; it says what it needs (`needs_of`).
        data_margin: whether s_w must exceed s_l by the pair's own margin, as the data gives it.

    Raises:
        ValueError: a score does not say what it needs.
    """

    score: Score
    link: Link
    prior: Prior = PRIORS["none"]
    reward: Score | None = None
    shift: Shift | None = None
    data_margin: bool = False

    name = "preference"

    def __post_init__(self) -> None:
        _ = self.needs

    @property
    def needs(self) -> frozenset[Need]:
        """Pairs, and what score and prior need."""
        own = {"pairs", "margin"} if self.data_margin else {"pairs"}
        functions = (self.score, self.reward or self.score, self.shift or self.score)
        return self.prior.needs.union(own, *map(needs_of, functions))

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The preference term per pair, and the implicit rewards, which the prior leaves alone."""
        score = self.score(responses)
        delta = self.prior.delta(responses).to(score.dtype)
        chosen, rejected, explained = self.sides(score, responses)
        margin = chosen - delta * rejected
        if self.shift is not None:
            margin = margin + self.shift(responses)
        if self.data_margin:
            margin = margin - cast(Tensor, responses.margins).to(score.dtype)
        reward = score if self.reward is None else self.reward(responses)
        metrics = {**pair_rewards(self.link.beta * reward, responses), **explained}
        if "prior_gap" in self.prior.needs:
            metrics["prior/gap"] = delta
        values = self.link(margin)
        return Term(values, unit="pairs"), {**metrics, f"loss/{self.name}": values}

    def sides(
        self, score: Float[Tensor, "responses"], responses: ScoredResponses
    ) -> tuple[Float[Tensor, "pairs"], Float[Tensor, "pairs"], dict[str, Tensor]]:
        """s_w and s_l of every pair, s_l by tokens where the prior is, with metrics that explain them."""
        if self.prior.credit is None:
            return score[responses.chosen], score[responses.rejected], {}
        weights = self.prior.credit(responses)
        rejected = self.score(reweighted(responses, responses.rejected, weights))
        return score[responses.chosen], rejected, {"prior/token_share": token_share(responses, weights)}


@dataclass(frozen=True)
class ChosenLikelihood:
    """weight * NLL of the chosen response (the second summand of MaPPO Eq. 16; CPO, arXiv 2401.08417).

    Attributes:
        weight: the lambda.
        reduction: `token_mean` averages over all chosen tokens of the batch, so that a long response
            counts more; `sum` adds up each response and averages over pairs.
    """

    weight: float
    reduction: Reduction = "token_mean"

    name = "chosen_likelihood"
    needs = frozenset[Need]()

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per pair, in nats, and as a metric the pair's loss in the reduction's own measure."""
        values = -log_likelihood(responses)[responses.chosen]
        # The term's values are sums either way (the caller divides by tokens or by pairs), but a metric
        # is averaged over pairs: there only a per-token number can be read beside the loss.
        shown = values if self.reduction == "sum" else -mean_log_likelihood(responses)[responses.chosen]
        return Term(values, _UNIT_OF[self.reduction], self.weight), {f"loss/{self.name}": shown}


@dataclass(frozen=True)
class MixedPart:
    """weight * part, one of several methods' in a mix.

    Its term is `part.name/label`, so that methods with parts of one name stand beside each other.

    Attributes:
        part: what is weighted.
        weight: its factor, on top of the part's own.
        label: the method's name in the mix.
        is_first: whether it belongs to the first method of the mix, whose figures keep their names.
    """

    part: Part
    weight: float
    label: str
    is_first: bool

    @property
    def name(self) -> str:
        """The part's name and the label."""
        return f"{self.part.name}/{self.label}"

    @property
    def needs(self) -> frozenset[Need]:
        """Those of the part."""
        return self.part.needs

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The part's term with its weight, and its metrics, those of later methods with the label."""
        term, metrics = self.part(responses)
        named = {self._named(metric): values for metric, values in metrics.items()}
        return replace(term, weight=self.weight * term.weight), named

    def _named(self, metric: str) -> str:
        """Losses are always told apart; of auxiliary rewards there is one set in a mix."""
        is_shared = self.is_first or metric.startswith("auxiliary/")
        return metric if is_shared and not metric.startswith("loss/") else f"{metric}/{self.label}"


@dataclass(frozen=True)
class Centring:
    """weight * (s_w + s_l)^2: keeps a reward model's scores around 0 (arXiv 2312.09244, Eq. 2).

    A preference fixes only the difference of two scores; this fixes what is added to both.

    With s_w = 1 and s_l = -3 it is weight * 4.

    Attributes:
        weight: its factor in the total loss.
    """

    weight: float

    name = "centring"
    needs = frozenset[Need]({"pairs", "score"})

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per pair."""
        score = reward_score(responses)
        values = (score[responses.chosen] + score[responses.rejected]) ** 2
        return Term(values, "pairs", self.weight), {f"loss/{self.name}": values}
