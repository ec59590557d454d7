"""Attention over a packed row: each response sees its prompt and itself.

The function is registered with transformers' `AttentionInterface`; the batch's spans reach it as a keyword
of the model's forward. No model code is touched, and no mask over the whole row exists.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from preftune.data.packing import Span

SHARED_PROMPT = "preftune_shared_prompt"
"""The name under which `shared_prompt_attention` is registered."""


def shared_prompt_attention(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens dim"],
    key: Float[Tensor, "1 kv_heads tokens dim"],
    value: Float[Tensor, "1 kv_heads tokens dim"],
    attention_mask: None,
    *,
    spans: Sequence[Span],
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, "heads"] | None = None,
    windows_seen: set[int | None] | None = None,
    **unused: Any,
) -> tuple[Float[Tensor, "1 tokens heads dim"], None]:
    """Attend span by span.

    Dropout is left out: a preference loss compares two policies, and noise in one of them is an error.

    Args:
        module: the attention layer; unused.
        query: rotated queries.
        key: rotated keys; fewer heads than the queries' under grouped-query attention.
        value: values.
        attention_mask: None, since transformers builds no mask for this implementation.
        spans: who attends to whom.
        scaling: factor of the scores, 1 / sqrt(dim) when None.
        sliding_window: number of positions (not rows) a query looks back, itself included.
        softcap: scores become softcap * tanh(scores / softcap) (Gemma 2).
        s_aux: one attention sink's score per head (gpt-oss).
        windows_seen: where given, collects every layer's `sliding_window`.
        **unused: what a model passes to other implementations.

    Raises:
        NotImplementedError: the model adds a bias of its own to the scores.
    """
    if attention_mask is not None or unused.get("position_bias") is not None:
        raise NotImplementedError(
            "attention scores with a mask or bias of the model's own cannot share prompts"
        )
    if torch.is_autocast_enabled(query.device.type):
        # Rotary embeddings may have widened queries and keys but not values.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if windows_seen is not None:
        windows_seen.add(sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    parts = []
    for span in spans:
        own = slice(span.start, span.stop)
        keys, values = key[:, :, own], value[:, :, own]
        if span.prefix_stop > span.prefix_start:
            prefix = slice(span.prefix_start, span.prefix_stop)
            keys = torch.cat((key[:, :, prefix], keys), dim=2)
            values = torch.cat((value[:, :, prefix], values), dim=2)
        mask = _mask(span.stop - span.start, keys.shape[2], sliding_window, query.device)
        if softcap is None and s_aux is None:
            part = functional.scaled_dot_product_attention(
                query[:, :, own], keys, values, mask, is_causal=mask is None, scale=scale, enable_gqa=True
            )
        else:
            part = _explicit_attention(query[:, :, own], keys, values, mask, scale, softcap, s_aux)
        parts.append(part.transpose(1, 2))
    return torch.cat(parts, dim=1), None


def _mask(
    queries: int, keys: int, window: int | None, device: torch.device
) -> Bool[Tensor, "queries keys"] | None:
    """Causal and windowed by distance in positions, which in [prefix, own] is distance in rows.

    None stands for plain causal attention.
    """
    if queries == keys and (window is None or keys <= window):
        return None
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _explicit_attention(
    query: Float[Tensor, "1 heads queries dim"],
    key: Float[Tensor, "1 kv_heads keys dim"],
    value: Float[Tensor, "1 kv_heads keys dim"],
    mask: Bool[Tensor, "queries keys"] | None,
    scale: float,
    softcap: float | None,
    sinks: Float[Tensor, "heads"] | None,
) -> Float[Tensor, "1 heads queries dim"]:
    """Attention in plain operations, for the scores that fused kernels cannot change."""
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.float().masked_fill(~mask, float("-inf"))
    if sinks is not None:
        sink = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, sink), dim=3)
    weights = scores.softmax(dim=3)[..., : key.shape[2]]
    return weights.to(value.dtype) @ value


AttentionInterface.register(SHARED_PROMPT, shared_prompt_attention)
