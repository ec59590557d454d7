"""Sums of metrics on the device, read by the host once per log line."""

from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

from preftune.objectives import Losses, Unit


class Tally:
    """Running sums and counts of losses and metrics.

    Adding costs no synchronisation with the host and no communication; `means` reduces over processes
    with one collective and reads the device once.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._terms: dict[str, Tensor] = {}

    def add(self, losses: Losses, counts: dict[Unit, Tensor]) -> None:
        """Count a micro-batch: its metrics per item, its terms over `counts` of the micro-batch.

        A term's `loss/<name>` is over the term's own unit, before its weight, whatever the part shows of
        each item: times their weights these add up to `loss`.
        """
        terms: dict[str, tuple[Tensor, Tensor]] = {}
        for name, term in losses.terms.items():
            total, count = term.values.detach().double().sum(), counts[term.unit].double()
            _accumulate(self._terms, name, term.weight * total, count)
            terms[f"loss/{name}"] = total, count
        for name, values in losses.metrics.items():
            total = values.double().sum()
            _accumulate(self._sums, name, *terms.get(name, (total, torch.full_like(total, len(values)))))
        for name, (total, weight) in losses.weighted_means.items():
            _accumulate(self._sums, name, total.detach(), weight.detach())

    def means(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Mean of every metric, and `loss`, the sum over terms of weight times mean; then start again.

        Args:
            reduce: sum over processes of a float64 tensor.
        """
        names = [*self._terms, *self._sums]
        if not names:
            return {}
        stacked: Float64[Tensor, "names 2"] = torch.stack([*self._terms.values(), *self._sums.values()])
        reduced = reduce(stacked).tolist()
        terms = len(self._terms)
        self._sums, self._terms = {}, {}
        loss = sum(total / count for total, count in reduced[:terms])
        # A metric of pairs has no items where responses come alone.
        metrics = zip(names[terms:], reduced[terms:], strict=True)
        return {"loss": loss, **{name: total / count for name, (total, count) in metrics if count}}


def _accumulate(sums: dict[str, Tensor], name: str, total: Tensor, count: Tensor) -> None:
    pair = torch.stack((total, count.to(total.device)))
    sums[name] = sums[name] + pair if name in sums else pair
