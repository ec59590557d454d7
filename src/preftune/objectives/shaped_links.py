"""Links that are no convex function of the margin: a target distribution, and a loss found by a search."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class ReverseKL:
    """KL(q || p), q = (sigma(u), sigma(-u)), u = beta m, and p = (1 - e, e): EXO, arXiv 2402.00856, Eq. 16.

    Its slope in u is sigma(u) sigma(-u) (u - log((1 - e) / e)): the margin has a target, and pairs far from
    it on either side are left alone. With u = log((1 - e) / e) the loss is 0.

    Attributes:
        beta: scale of the implicit reward beta * score.
        label_smoothing: e, in (0, 0.5): the probability that the rejected response is the better one.
    """

    beta: float
    label_smoothing: float

    def __call__(self, margin: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """Loss of every pair."""
        wrong = torch.tensor(self.label_smoothing, dtype=margin.dtype, device=margin.device)
        win, lose = functional.logsigmoid(self.beta * margin), functional.logsigmoid(-self.beta * margin)
        return win.exp() * (win - torch.log1p(-wrong)) + lose.exp() * (lose - wrong.log())


@dataclass(frozen=True)
class LogRatioModulated:
    """-log sigma(u) (1 - w) + exp(-u) w, w = sigma(u / tau), u = beta m: DiscoPOP, arXiv 2406.08414, Eq. 5.

    The exponential never grows: where u is very negative, w is smaller still if tau <= 1.

    Attributes:
        beta: scale of the implicit reward beta * score.
        tau: in (0, 1]; how wide the transition from logistic to exponential is, in units of u.
    """

    beta: float
    tau: float

    def __call__(self, margin: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
        """Loss of every pair."""
        u = self.beta * margin
        exponential = torch.exp(functional.logsigmoid(u / self.tau) - u)
        return exponential - functional.logsigmoid(u) * torch.exp(functional.logsigmoid(-u / self.tau))
