"""Attention over a packed row: each response sees its prompt and itself.

It is registered with transformers' `AttentionInterface`, and the batch's spans reach it as a keyword of the
model's forward. No model code is touched, and no mask over the whole row exists. It runs in plain operations
everywhere, and as one FlexAttention kernel on CUDA.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface

from preftune.data.packing import Span

SHARED_PROMPT = "preftune_shared_prompt"
"""The name under which `shared_prompt_attention` is registered."""
SHARED_PROMPT_FLEX = "preftune_shared_prompt_flex"
"""The name of the same by FlexAttention."""
IMPLEMENTATIONS = (SHARED_PROMPT_FLEX, SHARED_PROMPT)
"""Both, the faster on CUDA first."""
BLOCK = 128
"""Queries whose scores are held at a time: few enough to stay in cache and to skip most unseen keys."""


def implementations(device: torch.device) -> tuple[str, ...]:
    """Names to set as a model's attention implementation, the fastest on `device` first."""
    return IMPLEMENTATIONS if device.type == "cuda" else (SHARED_PROMPT,)


def shared_prompt_attention(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens dim"],
    key: Float[Tensor, "1 kv_heads tokens dim"],
    value: Float[Tensor, "1 kv_heads tokens value_dim"],
    attention_mask: None,
    *,
    spans: tuple[Span, ...],
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, "heads"] | None = None,
    windows_seen: set[int | None] | None = None,
    flex: bool = False,
    **unused: Any,
) -> tuple[Float[Tensor, "1 tokens heads value_dim"], None]:
    """Attend block by block of queries, each block to the keys its span shows it.

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
        flex: use FlexAttention.
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
    if flex:
        from preftune.models.flex import flex_shared_prompt  # its compiler takes seconds to import

        output = flex_shared_prompt(query, key, value, spans, scale, sliding_window, softcap, s_aux)
        return output.transpose(1, 2), None
    attend: Callable[..., Tensor] = _BlockedAttention.apply
    with _full_precision(query):
        return attend(query[0], key[0], value[0], s_aux, spans, scale, sliding_window, softcap)[None], None


@dataclass(frozen=True)
class _Block:
    """Consecutive queries and the keys they see, whose positions lead up to and include the queries' own."""

    rows: slice
    seen: tuple[slice, ...]


def _blocks(spans: tuple[Span, ...], window: int | None) -> Iterator[_Block]:
    for span in spans:
        for start in range(span.start, span.stop, BLOCK):
            stop = min(start + BLOCK, span.stop)
            # How many positions before its own the block's first query sees.
            back = stop if window is None else window - 1
            own = slice(max(span.start, start - back), stop)
            prefix = slice(
                max(span.prefix_start, span.prefix_stop - back + start - own.start), span.prefix_stop
            )
            yield _Block(slice(start, stop), (prefix, own) if prefix.start < prefix.stop else (own,))


class _BlockedAttention(torch.autograd.Function):
    """softmax(Q K^T) V, block by block in plain operations; the backward pass takes the softmax again.

    Scores are taken in float32, the other products in the inputs' type.
    """

    @staticmethod
    def forward(
        context: Any,
        query: Float[Tensor, "heads tokens dim"],
        key: Float[Tensor, "kv_heads tokens dim"],
        value: Float[Tensor, "kv_heads tokens value_dim"],
        sinks: Float[Tensor, "heads"] | None,
        spans: tuple[Span, ...],
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Float[Tensor, "tokens heads value_dim"]:
        context.save_for_backward(query, key, value, sinks)
        context.spans, context.scale, context.window, context.softcap = spans, scale, window, softcap
        output = value.new_empty(query.shape[1], query.shape[0], value.shape[2])
        outputs = _group(output.transpose(0, 1), len(key))
        queries, keys = _group(_wide(query), len(key)) * scale, _wide(key)
        sinks = None if sinks is None else _group(sinks, len(key))
        for block in _blocks(spans, window):
            weights, _ = _weights(queries[:, :, block.rows], _take(keys, block), sinks, window, softcap)
            outputs[:, :, block.rows] = _product(weights.to(value.dtype), _take(value, block))
        return output

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with _full_precision(gradients[0]):
            return (*_gradients(context, gradients[0]), None, None, None, None)


def _gradients(context: Any, by_output: Float[Tensor, "tokens heads value_dim"]) -> tuple[Tensor | None, ...]:
    """Gradients of queries, keys, values and sinks."""
    query, key, value, sinks = context.saved_tensors
    by_outputs = _group(by_output.to(value.dtype).transpose(0, 1), len(key))
    wide_queries, wide_keys = _group(_wide(query), len(key)) * context.scale, _wide(key)
    queries = wide_queries.to(query.dtype)
    by_query, by_key = torch.empty_like(queries), torch.zeros_like(wide_keys)
    by_value = torch.zeros_like(value, dtype=wide_keys.dtype)
    grouped_sinks = None if sinks is None else _group(_wide(sinks), len(key))
    by_sinks = None if grouped_sinks is None else torch.zeros_like(grouped_sinks)
    for block in _blocks(context.spans, context.window):
        weights, slope = _weights(
            wide_queries[:, :, block.rows],
            _take(wide_keys, block),
            grouped_sinks,
            context.window,
            context.softcap,
        )
        outer = by_outputs[:, :, block.rows].contiguous()
        _add(by_value, block, _product_over_queries(weights.to(value.dtype), outer))
        by_weights = _product(outer, _take(value, block).transpose(1, 2))
        # The softmax's gradient: W (dW - sum_j W_j dW_j).
        by_scores = by_weights * weights
        total = by_scores.sum(dim=3, keepdim=True)
        by_scores -= weights * total
        if by_sinks is not None:
            by_sinks -= ((1 - weights.sum(dim=3)) * total[..., 0]).sum(dim=2)
        if slope is not None:
            by_scores *= slope
        by_scores = by_scores.to(query.dtype)
        _add(by_key, block, _product_over_queries(by_scores, queries[:, :, block.rows]))
        by_query[:, :, block.rows] = _product(by_scores, _take(key, block))
    return (
        by_query.mul_(context.scale).flatten(0, 1),
        by_key.to(key.dtype),
        by_value.to(value.dtype),
        None if by_sinks is None else by_sinks.flatten().to(sinks.dtype),
    )


def _weights(
    queries: Float[Tensor, "kv_heads group queries dim"],
    keys: Float[Tensor, "kv_heads keys dim"],
    sinks: Float[Tensor, "kv_heads group"] | None,
    window: int | None,
    softcap: float | None,
) -> tuple[Float[Tensor, "kv_heads group queries keys"], Float[Tensor, "kv_heads group queries keys"] | None]:
    """Attention weights, and the slope of the capped scores where there is a cap."""
    scores = _product(queries, keys.transpose(1, 2))
    slope = None
    if softcap is not None:
        scores = (scores / softcap).tanh_()
        slope = 1 - scores**2
        scores *= softcap
    count, seen = scores.shape[2:]
    # The last keys are the queries' own, of which each sees those up to itself.
    scores[..., seen - count :] += _triangle(scores.device, scores.dtype)[:count, :count]
    if window is not None and seen > window:
        back = torch.arange(seen - count, seen, device=scores.device)[:, None]
        back = back - torch.arange(seen, device=scores.device)
        scores.masked_fill_(back >= window, -torch.inf)
    if sinks is None:
        return scores.softmax(dim=3), slope
    column = sinks[:, :, None, None].expand(-1, -1, count, 1).to(scores.dtype)
    return torch.cat((scores, column), dim=3).softmax(dim=3)[..., :seen], slope


@cache
def _triangle(device: torch.device, dtype: torch.dtype) -> Float[Tensor, "block block"]:
    """-inf above the diagonal, zero elsewhere."""
    return torch.full((BLOCK, BLOCK), -torch.inf, dtype=dtype, device=device).triu(1)


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Autocast would narrow the scores' product, and may or may not be on in the backward pass."""
    return torch.autocast(tensor.device.type, enabled=False)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _group(tensor: Float[Tensor, "heads *rest"], kv_heads: int) -> Float[Tensor, "kv_heads group *rest"]:
    """Heads that share a key's head side by side, so that one product serves them all."""
    return tensor.reshape(kv_heads, -1, *tensor.shape[1:])


def _product(left: Float[Tensor, "kv_heads group rows inner"], right: Tensor) -> Tensor:
    result = left.flatten(1, 2) @ right
    return result.view(*left.shape[:3], -1)


def _product_over_queries(left: Tensor, right: Tensor) -> Float[Tensor, "kv_heads keys dim"]:
    return left.flatten(1, 2).transpose(1, 2) @ right.flatten(1, 2)


def _take(tensor: Float[Tensor, "kv_heads tokens dim"], block: _Block) -> Tensor:
    parts = [tensor[:, rows] for rows in block.seen]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _add(sums: Float[Tensor, "kv_heads tokens dim"], block: _Block, seen: Tensor) -> None:
    parts = torch.split(seen, [rows.stop - rows.start for rows in block.seen], dim=1)
    for rows, part in zip(block.seen, parts, strict=True):
        sums[:, rows] += part


AttentionInterface.register(SHARED_PROMPT, shared_prompt_attention)
AttentionInterface.register(SHARED_PROMPT_FLEX, partial(shared_prompt_attention, flex=True))
