"""Likelihood after a text that says whether a response is good: conditional fine-tuning (CSFT)."""

from dataclasses import dataclass
from typing import cast

from jaxtyping import Bool
from torch import Tensor

from preftune.objectives.responses import Need, ScoredResponses, Term
from preftune.objectives.scores import log_likelihood, mean_log_likelihood


@dataclass(frozen=True)
class ConditionalLikelihood:
    """-log pi(y given x, c) of every response, as a mean over tokens, where the text c says good or bad.

    Source: conditional training (arXiv 2302.08582), and CSFT in the code of KTO (arXiv 2402.01306). c follows
    the prompt and is given, not learned: log pi is of the response's own tokens. The gradient is
    -grad log pi, for good responses and bad ones; what sets them apart is c, and whoever samples writes the
    good one.

    With log pi = -4 on 2 tokens and -6 on 4 the loss is 10 / 6.
    """

    name = "likelihood"
    needs = frozenset[Need]({"labels"})

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, Tensor]]:
        """The term per response in nats, the loss per token of each, and log-probabilities by label."""
        desirable = cast(Bool[Tensor, "responses"], responses.labels)
        logps = log_likelihood(responses)
        metrics = {
            f"loss/{self.name}": -mean_log_likelihood(responses),
            "logps/chosen": logps[desirable],
            "logps/rejected": logps[~desirable],
        }
        return Term(-logps, "response_tokens"), metrics
