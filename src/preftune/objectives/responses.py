"""What an objective sees: scored responses, and nothing of models, files or devices."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Need = Literal[
    "pairs",
    "reference",
    "prior_gap",
    "router_loss",
    "labels",
    "divergence",
    "auxiliary",
    "value",
    "score",
    "margin",
]
"""What a part of an objective cannot work without, beyond the policy's own log-probabilities.

With "score" it works without those: what is trained is a reward model.
"""

_PER_RESPONSE = ("logps", "lengths", "reference_logps", "labels", "auxiliary", "values", "scores")
_PER_PAIR = ("chosen", "rejected", "prior_gap", "margins")
_COUNTS_AND_INDICES = ("lengths", "chosen", "rejected")
# The first three say how many responses and pairs there are, and what they are must be known first.
_CHECKED = dict.fromkeys((*_COUNTS_AND_INDICES, *_PER_RESPONSE, *_PER_PAIR, "router_loss", "divergence"))


@dataclass(frozen=True)
class ScoredResponses:
    """Responses with their log-probabilities or scores, and the pairs among them.

    Shapes and dtypes are checked when it is made; values too where a tensor is on the CPU, since reading
    one from another device would wait for it.

    Attributes:
        logps: log pi_theta(y given x) summed over response tokens, in nats; None from a reward model.
        lengths: number of response tokens (the end-of-sequence token included).
        chosen: index of each pair's chosen response.
        rejected: index of each pair's rejected response.
        reference_logps: the same sums under the frozen reference policy.
        prior_gap: delta = r_chosen - r_rejected in [0, 1] (MaPPO, arXiv 2507.21183, Eq. 5).
        router_loss: how unevenly a mixture's routers load its experts, over all tokens of the batch, a
            prompt's tokens counted once for each of its responses (arXiv 2101.03961, Eq. 4).
        labels: whether each response is desirable (KTO, arXiv 2402.01306).
        divergence: z0 >= 0, an estimate of KL(policy || reference) over the whole step, in nats (KTO).
        auxiliary: auxiliary reward R, on any scale (HPO, arXiv 2405.17956).
        values: V(x) of each response's prompt, in standard units of R.
        scores: what the reward model that is trained gives each response.
        margins: by how much each pair's chosen response should outscore the rejected one.

    Raises:
        ValueError: a field has a shape, a dtype or a value that does not fit.
    """

    logps: Float[Tensor, "responses"] | None
    lengths: Int[Tensor, "responses"]
    chosen: Int[Tensor, "pairs"]
    rejected: Int[Tensor, "pairs"]
    reference_logps: Float[Tensor, "responses"] | None = None
    prior_gap: Float[Tensor, "pairs"] | None = None
    router_loss: Float[Tensor, ""] | None = None
    labels: Bool[Tensor, "responses"] | None = None
    divergence: Float[Tensor, ""] | None = None
    auxiliary: Float[Tensor, "responses"] | None = None
    values: Float[Tensor, "responses"] | None = None
    scores: Float[Tensor, "responses"] | None = None
    margins: Float[Tensor, "pairs"] | None = None

    # Tests check every annotation at run time; here they must meet the messages that people meet.
    __no_type_check__ = True

    def __post_init__(self) -> None:
        for field in _CHECKED:
            value = getattr(self, field)
            if value is None and field not in _COUNTS_AND_INDICES:
                continue
            if not isinstance(value, Tensor):
                raise ValueError(f"{field} = {value!r} must be a tensor: convert it with torch.tensor")
            _check_dtype(field, value)
            _check_shape(field, value, self)
            if value.device.type == "cpu":
                _check_values(field, value, len(self.lengths))


def _check_dtype(field: str, value: Tensor) -> None:
    if field == "labels":
        fits, rule = value.dtype == torch.bool, "torch.bool"
    elif field in _COUNTS_AND_INDICES:
        fits, rule = value.dtype in (torch.int32, torch.int64), "torch.int64 or torch.int32"
    else:
        fits, rule = value.is_floating_point(), "a floating-point dtype"
    if not fits:
        raise ValueError(f"{field} has dtype {value.dtype}, and must have {rule}: convert it")


def _check_shape(field: str, value: Tensor, responses: ScoredResponses) -> None:
    shape = tuple(value.shape)
    if field in _COUNTS_AND_INDICES and value.dim() != 1:
        raise ValueError(f"{field} has shape {shape}, and must have one dimension: flatten it")
    if field in _PER_RESPONSE:
        expected, rule = tuple(responses.lengths.shape), "one number for each response, as lengths has"
    elif field in _PER_PAIR:
        expected, rule = tuple(responses.chosen.shape), "one number for each pair, as chosen has"
    else:
        expected, rule = (), "a single number without dimensions"
    if shape != expected:
        raise ValueError(f"{field} has shape {shape}, and must have {expected}: give {rule}")


def _check_values(field: str, value: Tensor, count: int) -> None:
    """Values that a mistake makes; NaN in what a model computes is left to whoever trains it."""
    if field in ("chosen", "rejected"):
        wrong, rule = (value < 0) | (value >= count), f"an index of one of the {count} responses, from 0 on"
    elif field == "lengths":
        wrong, rule = value < 0, "a number of tokens >= 0"
    elif field == "prior_gap":
        wrong, rule = ~((value >= 0) & (value <= 1)), "a gap in [0, 1]: calibrate the data's scores"
    elif field == "divergence":
        wrong, rule = value < 0, "an estimate >= 0: clamp it at 0"
    else:
        return
    if wrong.any():
        place = f"[{int(wrong.nonzero()[0, 0])}]" if value.dim() else ""
        raise ValueError(f"{field}{place} = {value[wrong][0].item():g} must be {rule}")


Unit = Literal["pairs", "chosen_tokens", "responses", "response_tokens"]
"""What a term's mean is taken over."""


def count_units(lengths: Int[Tensor, "responses"], chosen: Int[Tensor, "pairs"]) -> dict[Unit, Tensor]:
    """Number of items of every unit, as scalar tensors; they add up over micro-batches and processes."""
    return {
        "pairs": torch.full((), len(chosen), device=lengths.device),
        "chosen_tokens": lengths[chosen].sum(),
        "responses": torch.full((), len(lengths), device=lengths.device),
        "response_tokens": lengths.sum(),
    }


@dataclass(frozen=True)
class Term:
    """One summand of a loss, per item: the caller sums `values` and divides by the count of `unit`.

    Attributes:
        values: float32 (or wider) losses; per pair or per response, even when the mean is over tokens.
        unit: what the mean is over.
        weight: the term's factor in the total loss.
    """

    values: Float[Tensor, "items"]
    unit: Unit
    weight: float = 1.0


@dataclass(frozen=True)
class Losses:
    """What an objective returns: terms by name, and detached per-item metrics by name."""

    terms: dict[str, Term]
    metrics: dict[str, Float[Tensor, " _"]]

    def total(self, counts: dict[Unit, Tensor]) -> Float[Tensor, ""]:
        """Sum over terms of weight * sum(values) / count of the term's unit.

        Pass `count_units` of this batch for its own mean, or the sums over a whole accumulated,
        distributed batch: the micro-batches' totals then add up to the mean over all of it.
        """
        return torch.stack(
            [term.weight * term.values.sum() / counts[term.unit] for term in self.terms.values()]
        ).sum()
