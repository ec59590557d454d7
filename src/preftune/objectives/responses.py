"""What an objective sees: scored responses, and nothing of models, files or devices.

The fields of ScoredResponses are the registry of numbers: what an objective can need, for each response,
pair or token, is one line there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

Need = str
"""What a part of an objective cannot work without, beyond the policy's own log-probabilities: one of NEEDS.

With "score" it works without those: what is trained is a reward model.
"""

_COUNTS_AND_INDICES = ("lengths", "chosen", "rejected")
"""They say how many responses and pairs there are, and are checked before the rest."""


@dataclass(frozen=True)
class Number:
    """A field of ScoredResponses.

    Attributes:
        per: what has one.
        dtype: of its values; "float32" also stands for the other floating-point dtypes.
        need: the name by which a part asks for it; empty for what every batch has, or may have.
        of: the attribute of the data's Response or Pair that it is read from; empty if it is computed.
        teaches: a response that has it is learned from, with or without a pair.
        is_given: the batch brings it, while the others come from the model that reads the batch.
    """

    per: Literal["response", "pair", "token", "batch", "bound", "response and bound"]
    dtype: Literal["float32", "bool", "int64"] = "float32"
    need: Need = ""
    of: str = ""
    teaches: bool = False
    is_given: bool = False


def _is(*number: Any, **more: Any) -> Mapping[str, Number]:
    return {"number": Number(*number, **more)}


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
        auxiliary: auxiliary reward R, on any scale (UPO, arXiv 2405.17956).
        values: V(x) of each response's prompt, in standard units of R.
        scores: what the reward model that is trained gives each response.
        margins: by how much each pair's chosen response should outscore the rejected one.
        token_logps: log pi_theta of every response token, response after response, in nats; `lengths` says
            where one ends.
        reference_token_logps: the same under the frozen reference policy.
        collision_logps: log sum_v pi_theta(v)^2 over the vocabulary, summed over response tokens, in nats and
            without gradient: what log pi_theta of a sampled token is around (WPO, arXiv 2406.11827).
        weights: what each pair's losses are multiplied by, >= 0; None weighs all pairs alike.
        prior_reward: r of each response in [0, 1] (the prior's, before it is a gap).
        groups: number of each response's prompt in the batch: 0, 1, ... without one left out.
        bounded: what was measured of each response for each bound, in its own units.
        multipliers: lambda >= 0 of each bound, the same for the whole step.

    Raises:
        ValueError: a field has a shape, a dtype or a value that does not fit.
    """

    logps: Float[Tensor, "responses"] | None = field(metadata=_is("response"))
    lengths: Int[Tensor, "responses"] = field(metadata=_is("response", "int64"))
    chosen: Int[Tensor, "pairs"] = field(metadata=_is("pair", "int64", "pairs"))
    rejected: Int[Tensor, "pairs"] = field(metadata=_is("pair", "int64"))
    reference_logps: Float[Tensor, "responses"] | None = field(
        default=None, metadata=_is("response", "float32", "reference", is_given=True)
    )
    prior_gap: Float[Tensor, "pairs"] | None = field(
        default=None, metadata=_is("pair", "float32", "prior_gap", of="gap", is_given=True)
    )
    router_loss: Float[Tensor, ""] | None = field(
        default=None, metadata=_is("batch", "float32", "router_loss")
    )
    labels: Bool[Tensor, "responses"] | None = field(
        default=None, metadata=_is("response", "bool", "labels", of="label", teaches=True, is_given=True)
    )
    divergence: Float[Tensor, ""] | None = field(default=None, metadata=_is("batch", "float32", "divergence"))
    auxiliary: Float[Tensor, "responses"] | None = field(
        default=None,
        metadata=_is("response", "float32", "auxiliary", of="auxiliary", teaches=True, is_given=True),
    )
    values: Float[Tensor, "responses"] | None = field(
        default=None, metadata=_is("response", "float32", "value")
    )
    scores: Float[Tensor, "responses"] | None = field(
        default=None, metadata=_is("response", "float32", "score")
    )
    margins: Float[Tensor, "pairs"] | None = field(
        default=None, metadata=_is("pair", "float32", "margin", of="margin", is_given=True)
    )
    token_logps: Float[Tensor, "response_tokens"] | None = field(
        default=None, metadata=_is("token", "float32", "token_logps")
    )
    reference_token_logps: Float[Tensor, "response_tokens"] | None = field(
        default=None, metadata=_is("token", "float32", "reference_tokens", is_given=True)
    )
    collision_logps: Float[Tensor, "responses"] | None = field(
        default=None, metadata=_is("response", "float32", "collisions")
    )
    weights: Float[Tensor, "pairs"] | None = field(
        default=None, metadata=_is("pair", "float32", of="weight", is_given=True)
    )
    prior_reward: Float[Tensor, "responses"] | None = field(
        default=None,
        metadata=_is("response", "float32", "prior_reward", of="prior_reward", teaches=True, is_given=True),
    )
    groups: Int[Tensor, "responses"] | None = field(
        default=None, metadata=_is("response", "int64", "groups", is_given=True)
    )
    bounded: Float[Tensor, "responses bounds"] | None = field(
        default=None, metadata=_is("response and bound", "float32", "bounds", of="bounded", is_given=True)
    )
    multipliers: Float[Tensor, "bounds"] | None = field(
        default=None, metadata=_is("bound", "float32", "multipliers")
    )

    # Tests check every annotation at run time; here they must meet the messages that people meet.
    __no_type_check__ = True

    def __post_init__(self) -> None:
        for name in dict.fromkeys((*_COUNTS_AND_INDICES, *FIELDS)):
            value = getattr(self, name)
            if value is None and name not in _COUNTS_AND_INDICES:
                continue
            if not isinstance(value, Tensor):
                raise ValueError(f"{name} = {value!r} must be a tensor: convert it with torch.tensor")
            _check_dtype(name, value)
            _check_shape(name, value, self)
            if value.device.type == "cpu":
                _check_values(name, value, len(self.lengths))


FIELDS: Mapping[str, Number] = {each.name: each.metadata["number"] for each in fields(ScoredResponses)}
"""Every field of ScoredResponses."""

NUMBERS: Mapping[str, Number] = {name: number for name, number in FIELDS.items() if number.is_given}
"""What a batch brings for its responses, pairs or tokens, by name."""

NEEDS: Mapping[Need, str] = {number.need: name for name, number in FIELDS.items() if number.need}
"""What a part can need, and the field that has it."""


def _check_dtype(field: str, value: Tensor) -> None:
    if FIELDS[field].dtype == "bool":
        fits, rule = value.dtype == torch.bool, "torch.bool"
    elif FIELDS[field].dtype == "int64":
        fits, rule = value.dtype in (torch.int32, torch.int64), "torch.int64 or torch.int32"
    else:
        fits, rule = value.is_floating_point(), "a floating-point dtype"
    if not fits:
        raise ValueError(f"{field} has dtype {value.dtype}, and must have {rule}: convert it")


def _check_shape(field: str, value: Tensor, responses: ScoredResponses) -> None:
    shape = tuple(value.shape)
    if field in _COUNTS_AND_INDICES and value.dim() != 1:
        raise ValueError(f"{field} has shape {shape}, and must have one dimension: flatten it")
    if FIELDS[field].per == "response":
        expected, rule = tuple(responses.lengths.shape), "one number for each response, as lengths has"
    elif FIELDS[field].per == "pair":
        expected, rule = tuple(responses.chosen.shape), "one number for each pair, as chosen has"
    elif FIELDS[field].per == "token":
        expected, rule = (
            (_token_count(value, responses),),
            "one number for each response token, as many as lengths add up to",
        )
    elif FIELDS[field].per == "response and bound":
        expected, rule = (len(responses.lengths), shape[-1] if shape else 1), "a row for each response"
    elif FIELDS[field].per == "bound":
        count = 0 if responses.bounded is None else responses.bounded.shape[-1]
        expected, rule = (count,), "one number for each bound, as bounded has"
    else:
        expected, rule = (), "a single number without dimensions"
    if shape != expected:
        raise ValueError(f"{field} has shape {shape}, and must have {expected}: give {rule}")


def _token_count(value: Tensor, responses: ScoredResponses) -> int:
    """How many numbers by token there must be; adding up lengths on another device would wait for it."""
    return int(responses.lengths.sum()) if value.device.type == "cpu" else value.numel()


def _check_values(field: str, value: Tensor, count: int) -> None:
    """Values that a mistake makes; NaN in what a model computes is left to whoever trains it."""
    if field in ("chosen", "rejected"):
        wrong, rule = (value < 0) | (value >= count), f"an index of one of the {count} responses, from 0 on"
    elif field == "lengths":
        wrong, rule = value < 0, "a number of tokens >= 0"
    elif field == "prior_gap":
        wrong, rule = ~((value >= 0) & (value <= 1)), "a gap in [0, 1]: calibrate the data's scores"
    elif field == "weights":
        wrong, rule = ~(value.isfinite() & (value >= 0)), "a finite number >= 0"
    elif field == "prior_reward":
        wrong, rule = ~((value >= 0) & (value <= 1)), "a reward in [0, 1]: calibrate the data's scores"
    elif field == "groups":
        # The last number tells how many prompts there are.
        last = len(set(value.tolist())) - 1
        wrong, rule = (value < 0) | (value > last), f"a prompt's number from 0 to {last}: number them so"
    elif field == "divergence":
        wrong, rule = value < 0, "an estimate >= 0: clamp it at 0"
    else:
        return
    if wrong.any():
        place = f"[{int(wrong.nonzero()[0, 0])}]" if value.dim() else ""
        raise ValueError(f"{field}{place} = {value[wrong][0].item():g} must be {rule}")


Unit = Literal["pairs", "chosen_tokens", "responses", "response_tokens", "prompts"]
"""What a term's mean is taken over."""

UNITS_OF_PAIRS: frozenset[Unit] = frozenset({"pairs", "chosen_tokens"})
"""Those of terms that have a value per pair, which the pair's weight multiplies."""


def count_units(
    lengths: Int[Tensor, "responses"],
    chosen: Int[Tensor, "pairs"],
    groups: Int[Tensor, "responses"] | None = None,
) -> dict[Unit, Tensor]:
    """Number of items of every unit, as scalar tensors; they add up over micro-batches and processes.

    Args:
        lengths: tokens of each response.
        chosen: of each pair.
        groups: the number of each response's prompt; without it prompts are not counted.
    """
    counts: dict[Unit, Tensor] = {
        "pairs": torch.full((), len(chosen), device=lengths.device),
        "chosen_tokens": lengths[chosen].sum(),
        "responses": torch.full((), len(lengths), device=lengths.device),
        "response_tokens": lengths.sum(),
    }
    return counts if groups is None else {**counts, "prompts": groups.max() + 1}


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
    """What an objective returns.

    Attributes:
        terms: summands of the loss by name.
        metrics: detached values per item, by name.
        weighted_means: metrics that are means with weights, by name: the weighted sum and that of the
            weights, both of which add up over micro-batches and processes.
    """

    terms: dict[str, Term]
    metrics: dict[str, Float[Tensor, " _"]]
    weighted_means: dict[str, Float64[Tensor, "2"]] = field(default_factory=dict)

    def total(self, counts: dict[Unit, Tensor]) -> Float[Tensor, ""]:
        """Sum over terms of weight * sum(values) / count of the term's unit.

        Pass `count_units` of this batch for its own mean, or the sums over a whole accumulated,
        distributed batch: the micro-batches' totals then add up to the mean over all of it.

        Raises:
            ValueError: a term's unit was not counted.
        """
        missing = {term.unit for term in self.terms.values()} - counts.keys()
        if missing:
            raise ValueError(
                f"counts has no {', '.join(sorted(missing))}, which a term is averaged over: give "
                "count_units the groups of the responses"
            )
        return torch.stack(
            [term.weight * term.values.sum() / counts[term.unit] for term in self.terms.values()]
        ).sum()
