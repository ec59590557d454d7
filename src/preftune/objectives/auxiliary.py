"""What else the designer wants: advantage-weighted likelihood on auxiliary rewards, and its value (UPO).

Source: arXiv 2405.17956, named Hybrid Preference Optimization (HPO) before its third version. The paper gives
the form of both terms. Temperature, expectile and weights are not stated in the versions we could read; the
defaults here are usual practice of advantage-weighted regression (AWR, arXiv 1910.00177) and of implicit
Q-learning (IQL, arXiv 2110.06169).
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from preftune.objectives.bounds import Bound, DualDescent, slacks
from preftune.objectives.parts import Reduction
from preftune.objectives.responses import Need, ScoredResponses, Term, Unit
from preftune.objectives.scores import log_likelihood, mean_log_likelihood

LARGEST_EXPONENT = 30.0
"""exp(30) is 1e13, long the only one that counts; the square of a gradient with it still fits in float32."""

DEFAULT_CAP = 20.0
"""Largest factor of a configuration that sets none, as in advantage-weighted regression (AWR)."""
LARGE_FACTOR = 100.0
"""IQL's cap, the highest in use; a response with a larger factor outweighs a whole batch."""

_NEEDS: frozenset[Need] = frozenset({"auxiliary", "value"})
_NEEDS_OF_BOUNDS: frozenset[Need] = frozenset({"bounds", "multipliers"})
_UNIT_OF: dict[Reduction, Unit] = {"token_mean": "response_tokens", "sum": "responses"}


@dataclass(frozen=True)
class Standardization:
    """Mean and scale of the auxiliary reward R over the training set.

    Temperature and value head see (R - mean) / scale, so that their defaults fit every reward; whatever is
    reported is on the scale of R.

    Attributes:
        mean: of R.
        scale: its standard deviation, > 0.
        bounds: on measurements beside R, whose slacks count in the advantage by their multipliers.
    """

    mean: float = 0.0
    scale: float = 1.0
    bounds: tuple[Bound, ...] = ()

    @property
    def needs(self) -> frozenset[Need]:
        """What the advantage needs of the responses."""
        return _NEEDS | _NEEDS_OF_BOUNDS if self.bounds else _NEEDS

    def to_dict(self) -> dict[str, Any]:
        """Numbers for summary.json and rewards.json."""
        found: dict[str, Any] = {"mean": self.mean, "scale": self.scale}
        if self.bounds:
            found["bounds"] = {
                bound.name: {"at_least" if bound.is_least else "at_most": bound.limit, "scale": bound.scale}
                for bound in self.bounds
            }
        return found

    def advantage(self, responses: ScoredResponses) -> Float[Tensor, "responses"]:
        """A = (R - mean) / scale + sum_k lambda_k z_k - V(x), in standard units; its gradient reaches V.

        z_k is the slack of the k-th bound, and lambda_k its multiplier.
        """
        return self.exact_advantage(responses).to(_dtype(responses))

    def exact_advantage(self, responses: ScoredResponses) -> Float[Tensor, "responses"]:
        """The same in float64: R and V are nearly equal where V is good, and an exponent needs its digits."""
        reward, value = cast(Tensor, responses.auxiliary), cast(Tensor, responses.values)
        standard = (reward.double() - self.mean) / self.scale
        if self.bounds:
            slack = slacks(self.bounds, cast(Tensor, responses.bounded))
            standard = standard + (slack * cast(Tensor, responses.multipliers).double()).sum(dim=-1)
        return standard - value.double()


def _dtype(responses: ScoredResponses) -> torch.dtype:
    """What an operation on R and V gives."""
    return torch.promote_types(cast(Tensor, responses.auxiliary).dtype, cast(Tensor, responses.values).dtype)


@dataclass(frozen=True)
class AdvantageLikelihood:
    """weight * -sg(exp(A / temperature)) * log pi(y given x), on every response, preferred or not.

    Its gradient is -exp(A / temperature) grad log pi: responses that do better than their prompt lets expect
    become likelier. No sampling, importance weights or clipping. With all advantages equal it is plain
    likelihood.

    On one response of 2 tokens with log pi = -4, R = 1.5, mean 1, scale 0.5, V = 0.5 and temperature 0.5:
    A = (1.5 - 1) / 0.5 - 0.5 = 0.5, the factor is e, and the loss 4e / 2 = 2e per token.

    Attributes:
        weight: its factor in the total loss (gamma in the paper).
        temperature: small ones tell advantages apart, large ones are plain likelihood.
        reduction: `token_mean` averages over all response tokens; `sum` adds up each response and averages
            over responses.
        cap: largest factor exp(A / temperature); None is the paper's.
        standardization: of R.
        rate: by how much a slack of one standard deviation changes a bound's multiplier in a step.
        largest_multiplier: where multipliers stop.
    """

    weight: float
    temperature: float
    reduction: Reduction = "token_mean"
    cap: float | None = None
    standardization: Standardization = Standardization()
    rate: float = 0.1
    largest_multiplier: float = 10.0

    name = "auxiliary"

    @property
    def needs(self) -> frozenset[Need]:
        """Auxiliary rewards and their value, and bounds where there are some."""
        return self.standardization.needs

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """On measurements; the responses must have a measurement and a multiplier for each."""
        return self.standardization.bounds

    @property
    def dual(self) -> DualDescent | None:
        """How the multipliers of the bounds move; None without bounds."""
        return DualDescent(self.bounds, self.rate, self.largest_multiplier) if self.bounds else None

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per response in nats, and the factor of each."""
        factor = self.factor(responses)
        values = -factor * log_likelihood(responses)
        shown = values if self.reduction == "sum" else -factor * mean_log_likelihood(responses)
        term = Term(values, _UNIT_OF[self.reduction], self.weight)
        metrics = {f"loss/{self.name}": shown, "auxiliary/factor": factor}
        for place, bound in enumerate(self.bounds):
            multiplier = cast(Tensor, responses.multipliers)[place]
            metrics[f"bounds/{bound.name}/multiplier"] = multiplier.expand(len(factor))
        return term, metrics

    def weighted_means(self, responses: ScoredResponses) -> dict[str, Float64[Tensor, "2"]]:
        """Of each bounded measurement: its sum over responses, weighted by their factors, and the weights'.

        Both add up over micro-batches and processes.
        """
        if not self.bounds:
            return {}
        factor = self.factor(responses).double()
        measured = cast(Tensor, responses.bounded).double()
        return {
            f"bounds/{bound.name}/mean": torch.stack(((factor * measured[:, place]).sum(), factor.sum()))
            for place, bound in enumerate(self.bounds)
        }

    def factor(self, responses: ScoredResponses) -> Float[Tensor, "responses"]:
        """exp(A / temperature) of every response, without gradient."""
        advantage = self.standardization.exact_advantage(responses).detach()
        return self._factor(advantage).to(_dtype(responses))

    def predicted(self, rewards: Float[Tensor, "responses"]) -> "PredictedFactors":
        """The factors before the first step, where V is the mean of R.

        Args:
            rewards: R of the training responses, one at least.
        """
        factors = self._factor((rewards.double() - self.standardization.mean) / self.standardization.scale)
        at_cap = 0.0 if self.cap is None else float((factors >= self.cap).double().mean())
        return PredictedFactors(float(factors.mean()), float(factors.max()), self.cap, at_cap)

    def _factor(self, advantage: Float[Tensor, "responses"]) -> Float[Tensor, "responses"]:
        factor = torch.exp((advantage / self.temperature).clamp(max=LARGEST_EXPONENT))
        return factor if self.cap is None else factor.clamp(max=self.cap)


@dataclass(frozen=True)
class PredictedFactors:
    """exp(A / temperature) of the training responses before the first step.

    Attributes:
        mean: of them.
        largest: of them.
        cap: what bounds them; None if nothing does.
        share_at_cap: of the responses whose factor the cap bounds.
    """

    mean: float
    largest: float
    cap: float | None
    share_at_cap: float

    @property
    def warning(self) -> str | None:
        """What to do about factors that let one response decide a batch; None where there are none."""
        if self.largest <= LARGE_FACTOR:
            return None
        bound = "not set" if self.cap is None else f"{self.cap:g}"
        return (
            f"objective.auxiliary.cap is {bound}, and the largest factor exp(advantage / temperature) of the "
            f"training responses is {self.largest:,.0f} at the start, their mean {self.mean:,.3g}: few "
            f"responses decide everything. Set objective.auxiliary.cap={DEFAULT_CAP:g} (the default), or a "
            "higher objective.auxiliary.temperature"
        )


@dataclass(frozen=True)
class ValueRegression:
    """weight * abs(expectile - 1(A < 0)) A^2: expectile regression of V(x) on R (IQL, Eq. 5).

    At 0.5 it is half the squared error, and V the mean; above, V leans to the better responses of a prompt.
    Its gradient reaches V alone.

    With A = 0.5 and expectile 0.7 it is 0.7 * 0.25 = 0.175; with A = -0.5, 0.3 * 0.25 = 0.075.

    Attributes:
        weight: its factor in the total loss (c_V).
        expectile: in (0, 1).
        standardization: of R.
    """

    weight: float
    expectile: float
    standardization: Standardization = Standardization()

    name = "value"

    @property
    def needs(self) -> frozenset[Need]:
        """Auxiliary rewards and their value, and bounds where there are some."""
        return self.standardization.needs

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """On measurements; the responses must have a measurement and a multiplier for each."""
        return self.standardization.bounds

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per response; R, V and A on the scale of R, and A's square on that scale squared."""
        advantage = self.standardization.advantage(responses)
        values = (self.expectile - (advantage < 0).to(advantage.dtype)).abs() * advantage**2
        shown = advantage * self.standardization.scale
        scale, value = self.standardization, cast(Tensor, responses.values)
        metrics = {
            f"loss/{self.name}": values,
            "auxiliary/reward": cast(Tensor, responses.auxiliary),
            # Not R - A, which has no digits of V left where R is far from it.
            "auxiliary/value": scale.mean + scale.scale * value,
            "auxiliary/advantage": shown,
            "auxiliary/squared_error": shown**2,
        }
        return Term(values, "responses", self.weight), metrics
