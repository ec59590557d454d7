"""Balance among the experts of a mixture: a term of the policy's routers, whatever the method."""

from dataclasses import dataclass
from typing import cast

from torch import Tensor

from preftune.objectives.responses import Need, ScoredResponses, Term


@dataclass(frozen=True)
class RouterBalance:
    """weight * load-balancing loss (Switch Transformer, arXiv 2101.03961, Eq. 4-6).

    The loss is a product of two means over tokens, so losses of micro-batches do not add up to that of
    the whole step: the step's is their mean, weighted by response tokens.

    Attributes:
        weight: its factor in the total loss, `router_aux_loss_coef` in a model's configuration.
    """

    weight: float

    name = "router"
    needs = frozenset[Need]({"router_loss"})

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The batch's loss once for each response token; as a metric, once for each response."""
        loss = cast(Tensor, responses.router_loss)
        term = Term(loss * responses.lengths, "response_tokens", self.weight)
        return term, {f"loss/{self.name}": loss.expand(len(responses.lengths))}
