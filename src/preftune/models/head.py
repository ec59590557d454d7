"""Log-probabilities of response tokens without ever holding the logits of all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

from preftune.models.adapters import trained_copy

LOGITS_PER_CHUNK = 2**24
"""Logits held at a time, in the precision of their product: many enough for fast matrix products."""
LOGITS_PER_STRIP = 2**20
"""Logits widened to float32 at a time: few enough for a CPU's cache."""

Logits = Float[Tensor, "tokens vocabulary"]


@dataclass(frozen=True)
class Transform:
    """What a model does to the logits after its head, and the slope of that as a function of its result."""

    apply: Callable[[Logits, float], Logits]
    slope: Callable[[Logits, float], Logits | float]


TRANSFORMS: dict[str, Transform] = {
    "final_logit_softcapping": Transform(
        lambda logits, cap: cap * torch.tanh(logits / cap), lambda capped, cap: 1 - (capped / cap) ** 2
    ),
    "logits_scaling": Transform(lambda logits, divisor: logits / divisor, lambda _, divisor: 1 / divisor),
    "logit_scale": Transform(lambda logits, factor: logits * factor, lambda _, factor: factor),
}
"""By the configuration key that asks for it."""


def response_token_logps(
    head: nn.Module,
    config: PretrainedConfig,
    hidden: Float[Tensor, "response_tokens width"],
    targets: Int64[Tensor, "response_tokens"],
) -> Float32[Tensor, "response_tokens"]:
    """Log p(target) in nats from final hidden states, a chunk of tokens at a time.

    Each chunk's logits are recomputed in the backward pass.

    Args:
        head: the language model's output embedding, tied or not, biased or not. One that is more than a
            matrix and a bias (under LoRA, sharded, hooked) is called as it is, at more memory traffic.
        config: the model's configuration, for `TRANSFORMS`.
        hidden: hidden states that predict the targets.
        targets: token ids.
    """
    transforms, chunk = _plan(config)
    head = trained_copy(head)
    if _is_plain(head):
        score: Callable[..., Tensor] = _ChunkedLogps.apply
        return score(hidden, head.weight, head.bias, targets, transforms, chunk)

    def chunk_logps(rows: Tensor, ids: Tensor) -> Tensor:
        logits = head(rows)
        for transform, value in transforms:
            logits = transform.apply(logits, value)
        return _target_logps(logits, ids)

    return torch.cat(
        [
            # Without dropout nothing in a chunk is random, and there is no generator state to keep.
            checkpoint(chunk_logps, rows, ids, use_reentrant=False, preserve_rng_state=_has_dropout(head))
            for rows, ids in zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True)
        ]
    )


@torch.no_grad()
def response_token_collisions(
    head: nn.Module, config: PretrainedConfig, hidden: Float[Tensor, "response_tokens width"]
) -> Float32[Tensor, "response_tokens"]:
    """Log sum_v p(v)^2 over the vocabulary, in nats and without gradient, a chunk of tokens at a time.

    Args:
        head: the language model's output embedding.
        config: the model's configuration, for `TRANSFORMS`.
        hidden: hidden states that predict the tokens.
    """
    transforms, chunk = _plan(config)
    found = []
    for rows in torch.split(hidden, chunk):
        logits = head(rows)
        for transform, value in transforms:
            logits = transform.apply(logits, value)
        found += [collisions(strip.float()) for strip in torch.split(logits, _strip(logits))]
    return torch.cat(found)


def collisions(logits: Float32[Tensor, "tokens vocabulary"]) -> Float32[Tensor, "tokens"]:
    """Log sum_v p(v)^2 with p = softmax(logits): the chance that two draws are the same token."""
    return (2 * logits).logsumexp(dim=1) - 2 * logits.logsumexp(dim=1)


def _plan(config: PretrainedConfig) -> tuple[list[tuple[Transform, float]], int]:
    """What the model does to its logits, and of how many tokens they are held at a time."""
    config = config.get_text_config()
    transforms = [
        (transform, float(getattr(config, key)))
        for key, transform in TRANSFORMS.items()
        if getattr(config, key, None) is not None
    ]
    return transforms, max(1, LOGITS_PER_CHUNK // config.vocab_size)


def _is_plain(head: nn.Module) -> bool:
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    return type(head) is nn.Linear and not any(hooks) and not isinstance(head.weight, DTensor)


def _has_dropout(head: nn.Module) -> bool:
    return head.training and any(isinstance(part, nn.Dropout) and part.p > 0 for part in head.modules())


def _target_logps(logits: Logits, targets: Int64[Tensor, "tokens"]) -> Float32[Tensor, "tokens"]:
    logits = logits.float()
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1)


class _ChunkedLogps(torch.autograd.Function):
    """The head's product, log-softmax and choice of the target in one, for a plain matrix.

    With z = h W^T + b and p = softmax(z), the gradient of g * log p(t) by z is g (e_t - p). g scales the
    narrow side of both products (h and the result) instead of the wide one, so p is rounded once.
    """

    @staticmethod
    def forward(
        context: Any,
        hidden: Float[Tensor, "tokens width"],
        weight: Float[Tensor, "vocabulary width"],
        bias: Float[Tensor, "vocabulary"] | None,
        targets: Int64[Tensor, "tokens"],
        transforms: list[tuple[Transform, float]],
        chunk: int,
    ) -> Float32[Tensor, "tokens"]:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        context.transforms, context.chunk, context.dtype = transforms, chunk, dtype
        cast = weight.to(dtype), None if bias is None else bias.to(dtype)
        logps = hidden.new_empty(len(hidden), dtype=torch.float32)
        normalizers = torch.empty_like(logps)
        with torch.autocast(kind, enabled=False):
            for start in range(0, len(hidden), chunk):
                rows = slice(start, start + chunk)
                logits, _ = _logits(hidden[rows].to(dtype), *cast, transforms)
                strips = torch.split(logits, _strip(logits))
                normalizers[rows] = torch.cat([strip.float().logsumexp(dim=1) for strip in strips])
                logps[rows] = logits.gather(1, targets[rows, None])[:, 0].float() - normalizers[rows]
        context.save_for_backward(hidden, weight, bias, targets, normalizers)
        return logps

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalizers = context.saved_tensors
        dtype = context.dtype
        cast = weight.to(dtype), None if bias is None else bias.to(dtype)
        scale = gradients[0][:, None]
        wants_weight, wants_bias = context.needs_input_grad[1], context.needs_input_grad[2]
        by_hidden = torch.empty_like(hidden) if context.needs_input_grad[0] else None
        # Sums over chunks are taken in at least float32, whatever the products' precision.
        wide = torch.promote_types(weight.dtype, torch.float32)
        by_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        by_bias = torch.zeros_like(bias, dtype=wide) if wants_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), context.chunk):
                rows = slice(start, start + context.chunk)
                here = hidden[rows].to(dtype)
                logits, slope = _logits(here, *cast, context.transforms)
                by_logits = _target_minus_softmax_(logits, normalizers[rows], targets[rows])
                by_logits = by_logits * slope if isinstance(slope, Tensor) else by_logits
                factor = scale[rows] if isinstance(slope, Tensor) else scale[rows] * slope
                if by_hidden is not None:
                    by_hidden[rows] = (by_logits @ cast[0]) * factor
                if by_weight is not None:
                    by_weight += by_logits.T @ (hidden[rows] * factor).to(dtype)
                if by_bias is not None:
                    by_bias += (by_logits * factor).sum(dim=0)
        return (
            by_hidden,
            None if by_weight is None else by_weight.to(weight.dtype),
            None if by_bias is None else by_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _strip(logits: Logits) -> int:
    """How many tokens' logits are widened at a time."""
    return max(1, LOGITS_PER_STRIP // logits.shape[1])


def _target_minus_softmax_(
    logits: Logits, normalizers: Float32[Tensor, "tokens"], targets: Int64[Tensor, "tokens"]
) -> Logits:
    """e_t - softmax, in place; the difference is taken in float32, since it is small for a sure token."""
    strips = (torch.split(tensor, _strip(logits)) for tensor in (logits, normalizers, targets))
    for strip, normalizer, target in zip(*strips, strict=True):
        wide = (strip.float() - normalizer[:, None]).exp_().neg_()
        wide.scatter_add_(1, target[:, None], torch.ones_like(wide[:, :1]))
        strip.copy_(wide)
    return logits


def _logits(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocabulary width"],
    bias: Float[Tensor, "vocabulary"] | None,
    transforms: list[tuple[Transform, float]],
) -> tuple[Logits, Logits | float]:
    """Transformed logits, and the derivative of each by what the head put out."""
    logits = nn.functional.linear(hidden, weight, bias)
    slope: Logits | float = 1.0
    for transform, value in transforms:
        logits = transform.apply(logits, value)
        slope = slope * transform.slope(logits, value)
    return logits, slope
