"""What else the designer wants: advantage-weighted likelihood on auxiliary rewards, and its value (HPO).

Source: arXiv 2405.17956. The paper gives the form of both terms. It does not give the temperature, the
expectile and the weights; the defaults here are usual practice of advantage-weighted regression (AWR,
arXiv 1910.00177) and of implicit Q-learning (IQL, arXiv 2110.06169).
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

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
_UNIT_OF: dict[Reduction, Unit] = {"token_mean": "response_tokens", "sum": "responses"}


@dataclass(frozen=True)
class Standardization:
    """Mean and scale of the auxiliary reward R over the training set.

    Temperature and value head see (R - mean) / scale, so that their defaults fit every reward; whatever is
    reported is on the scale of R.

    Attributes:
        mean: of R.
        scale: its standard deviation, > 0.
    """

    mean: float = 0.0
    scale: float = 1.0

    def advantage(self, responses: ScoredResponses) -> Float[Tensor, "responses"]:
        """A = (R - mean) / scale - V(x), in standard units; its gradient reaches V."""
        return self.exact_advantage(responses).to(_dtype(responses))

    def exact_advantage(self, responses: ScoredResponses) -> Float[Tensor, "responses"]:
        """The same in float64: R and V are nearly equal where V is good, and an exponent needs its digits."""
        reward, value = cast(Tensor, responses.auxiliary), cast(Tensor, responses.values)
        return (reward.double() - self.mean) / self.scale - value.double()


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
    """

    weight: float
    temperature: float
    reduction: Reduction = "token_mean"
    cap: float | None = None
    standardization: Standardization = Standardization()

    name = "auxiliary"
    needs = _NEEDS

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per response in nats, and the factor of each."""
        factor = self.factor(responses)
        values = -factor * log_likelihood(responses)
        shown = values if self.reduction == "sum" else -factor * mean_log_likelihood(responses)
        term = Term(values, _UNIT_OF[self.reduction], self.weight)
        return term, {f"loss/{self.name}": shown, "auxiliary/factor": factor}

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
    needs = _NEEDS

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
