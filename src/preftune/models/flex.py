"""Shared-prompt attention as one FlexAttention kernel over the packed row: the path for CUDA."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask, flex_attention

from preftune.data.packing import Span

BLOCK = 128
"""Rows and columns of a block that the kernel computes or skips as a whole; FlexAttention's own default."""

_compiled_attention: Callable[..., Any] = torch.compile(flex_attention, fullgraph=True)
"""Compiled at the first call.

Rows are not padded to a multiple of `BLOCK`: the kernels mask their own edge, and padding would copy queries,
keys and values in every layer. The first row length is compiled as a constant, the second makes it a symbol,
and no other length compiles again. Without `fullgraph` too many recompilations would fall back, in silence,
to an eager version that holds all scores.
"""


def flex_shared_prompt(
    query: Float[Tensor, "1 heads tokens dim"],
    key: Float[Tensor, "1 kv_heads tokens dim"],
    value: Float[Tensor, "1 kv_heads tokens dim"],
    spans: tuple[Span, ...],
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, "heads"] | None = None,
) -> Float[Tensor, "1 heads tokens dim"]:
    """Attend over the whole row at once, skipping the blocks in which nobody sees anybody.

    Args:
        query: rotated queries.
        key: rotated keys; fewer heads than the queries' under grouped-query attention.
        value: values.
        spans: who attends to whom.
        scale: factor of the scores.
        window: number of positions (not rows) a query looks back, itself included.
        softcap: scores become softcap * tanh(scores / softcap) (Gemma 2).
        sinks: one attention sink's score per head (gpt-oss).
    """
    # Lambdas, which the compiler can trace also where every function is wrapped in type checks.
    cap = (
        None
        if softcap is None
        else lambda score, batch, head, row, other: softcap * torch.tanh(score / softcap)
    )
    attention: Any = _compiled_attention if query.is_cuda else flex_attention
    output: Tensor
    extra: AuxOutput
    # Floats stay constants of the kernel: inductor may reuse a stale value of one that it has made a symbol
    # (pytorch#194976). With them as constants, passes with and without gradients, and first lengths, a run
    # can need more kernels than the default limit of 8.
    with torch._dynamo.config.patch(specialize_float=True, recompile_limit=64):
        output, extra = attention(
            query,
            key,
            value,
            score_mod=cap,
            block_mask=block_mask(spans, window, query.device),
            scale=scale,
            enable_gqa=True,
            return_aux=AuxRequest(lse=sinks is not None),
        )
    if sinks is None or extra.lse is None:
        return output
    # A sink adds exp(sink) to the softmax's denominator, which was exp(lse).
    kept = torch.sigmoid(extra.lse - sinks.float()[:, None])
    return output * kept[..., None].to(output.dtype)


@lru_cache(maxsize=8)
def block_mask(spans: tuple[Span, ...], window: int | None, device: torch.device) -> BlockMask:
    """Which blocks of a batch's scores are computed, for layers that look `window` positions back.

    Kept for the batch's other layers and passes. What is visible is counted in tokens * blocks steps: no mask
    of tokens * tokens exists.
    """
    prefix_from, prefix_to, own_from = _visible(spans, window, device)
    tokens = len(own_from)
    own_to = torch.arange(1, tokens + 1, dtype=torch.int32, device=device)
    visible = _count_by_block(prefix_from, prefix_to) + _count_by_block(own_from, own_to)
    full = visible == BLOCK * BLOCK
    return BlockMask.from_kv_blocks(
        *_listed((visible > 0) & ~full),
        *_listed(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda batch, head, row, other: (
            ((other >= prefix_from[row]) & (other < prefix_to[row]))
            | ((other >= own_from[row]) & (other <= row))
        ),
        seq_lengths=(tokens, tokens),
    )


def _visible(
    spans: Sequence[Span], window: int | None, device: torch.device
) -> tuple[Int32[Tensor, "tokens"], Int32[Tensor, "tokens"], Int32[Tensor, "tokens"]]:
    """For each row: where the part of its prefix that it sees begins and ends, and where its own begins."""
    tokens = spans[-1].stop
    bounds = torch.tensor([(s.start, s.prefix_start, s.prefix_stop) for s in spans], dtype=torch.int32)
    lengths = torch.tensor([span.stop - span.start for span in spans])
    by_row = bounds.to(device).repeat_interleave(lengths.to(device), dim=0, output_size=tokens)
    # Each in storage of its own: views would be other inputs to the compiled kernel than a window's results.
    own_from, prefix_from, prefix_to = (column.contiguous() for column in by_row.unbind(dim=1))
    if window is not None:
        first = torch.arange(tokens, dtype=torch.int32, device=device) - (window - 1)
        # The prompt's last token is the position right before the response's first, whatever lies between.
        prefix_from = torch.maximum(prefix_from, first - (own_from - prefix_to))
        own_from = torch.maximum(own_from, first)
    return prefix_from, prefix_to, own_from


def _count_by_block(
    begin: Int32[Tensor, "tokens"], end: Int32[Tensor, "tokens"]
) -> Int[Tensor, "blocks blocks"]:
    """How many (row, column) of each block have begin[row] <= column < end[row]."""
    tokens = len(begin)
    left = torch.arange(0, tokens, BLOCK, dtype=torch.int32, device=begin.device)
    overlap = torch.minimum(end[:, None], left + BLOCK) - torch.maximum(begin[:, None], left)
    padded = functional.pad(overlap.clamp(min=0), (0, 0, 0, -tokens % BLOCK))
    return padded.view(len(left), BLOCK, len(left)).sum(dim=1)


def _listed(
    blocks: Bool[Tensor, "rows columns"],
) -> tuple[Int32[Tensor, "1 1 rows"], Int32[Tensor, "1 1 rows columns"]]:
    """FlexAttention's format: how many blocks each row has, and their columns in front of all others."""
    columns = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(dim=1, dtype=torch.int32)[None, None], columns.int()[None, None]
