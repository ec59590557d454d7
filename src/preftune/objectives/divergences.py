"""Other divergences from the reference than the reverse KL: f-DPO (arXiv 2309.16240)."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from preftune.objectives.auxiliary import LARGEST_EXPONENT
from preftune.objectives.responses import Need, ScoredResponses
from preftune.objectives.scores import log_ratio

DivergenceName = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
DIVERGENCES: tuple[DivergenceName, ...] = get_args(DivergenceName)


@dataclass(frozen=True)
class DivergenceScore:
    """f'(q) of the ratio q = exp(h), with f'(1) = 0: a score of 0 is as likely as under the reference.

    - `reverse_kl`: h, as in dpo.
    - `forward_kl`: 1 - 1 / q.
    - `js_divergence`: log(2 q / (1 + q)).
    - `alpha_divergence`: (1 - q^-alpha) / alpha, which is forward_kl for alpha = 1 and nears reverse_kl at 0.

    With h = 0 each is 0, with the slope 1 (`js_divergence`: 1 / 2). 1 / q stops at exp(30); its gradient is
    that of 1 / q there.

    Attributes:
        name: of the divergence.
        alpha: in (0, 1], of `alpha_divergence`; other divergences leave it alone.
    """

    name: DivergenceName
    alpha: float = 1.0

    needs = frozenset[Need]({"reference"})

    def __call__(self, responses: ScoredResponses) -> Float[Tensor, "responses"]:
        """The score of every response.

        Raises:
            ValueError: the responses carry no reference log-probabilities.
        """
        ratio = log_ratio(responses)
        if self.name == "reverse_kl":
            return ratio
        if self.name == "js_divergence":
            return math.log(2) + functional.logsigmoid(ratio)
        alpha = 1.0 if self.name == "forward_kl" else self.alpha
        exponent = -alpha * ratio
        held = exponent.detach().clamp(max=LARGEST_EXPONENT) + (exponent - exponent.detach())
        # Each side keeps its digits: the value's around h = 0, and the gradient's where 1 / q is small.
        return torch.where(held > -0.5, -torch.expm1(held), 1 - torch.exp(held)) / alpha
