"""Attention in blocks against all scores at once, over more than one block and in both directions."""

import pytest
import torch
from torch import Tensor

from preftune.data.packing import Span
from preftune.models.attention import BLOCK, shared_prompt_attention

HEADS, DIM = 6, 8

LAYOUTS: dict[str, tuple[Span, ...]] = {
    "one block": (Span(0, 11, 0, 0), Span(11, 17, 0, 7)),
    "edges of blocks": (Span(0, 2 * BLOCK, 0, 0), Span(2 * BLOCK, 3 * BLOCK, 0, BLOCK)),
    "two groups": (
        Span(0, 190, 0, 0),
        Span(190, 350, 0, 150),
        Span(350, 351, 0, 150),
        Span(351, 641, 351, 351),
        Span(641, 661, 351, 441),
    ),
}

SETTINGS = {
    "plain": (None, None, False),
    "window of one": (1, None, False),
    "window within a block": (37, None, False),
    "window over blocks": (200, None, False),
    "capped": (None, 1.5, False),
    "sinks": (None, None, True),
    "all": (130, 1.5, True),
}


def all_at_once(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    spans: tuple[Span, ...],
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Softmax of every score in the row, with a mask written down from the spans' meaning."""
    tokens, repeats = query.shape[1], len(query) // len(key)
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    for span in spans:
        text = [*range(span.prefix_start, span.prefix_stop), *range(span.start, span.stop)]
        for position in range(span.prefix_stop - span.prefix_start, len(text)):
            first = 0 if window is None else max(0, position - window + 1)
            seen[text[position], text[first : position + 1]] = True
    scores = query @ key.repeat_interleave(repeats, dim=0).transpose(1, 2) * 0.3
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks[:, None, None].expand(-1, tokens, 1)), dim=2)
    weights = scores.softmax(dim=2)[..., :tokens]
    return (weights @ value.repeat_interleave(repeats, dim=0)).transpose(0, 1)


@pytest.mark.parametrize("kv_heads", [6, 2])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("spans", LAYOUTS.values(), ids=LAYOUTS)
def test_blocks_change_nothing(
    spans: tuple[Span, ...], settings: tuple[int | None, float | None, bool], kv_heads: int
) -> None:
    """Outputs and every gradient equal those of all scores at once to 1e-10 in float64."""
    torch.manual_seed(0)
    window, softcap, with_sinks = settings
    tokens = spans[-1].stop
    shapes = [(HEADS, tokens, DIM), (kv_heads, tokens, DIM), (kv_heads, tokens, 2 * DIM)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    sinks = torch.randn(HEADS, dtype=torch.float64, requires_grad=True) if with_sinks else None
    learned = inputs if sinks is None else [*inputs, sinks]
    query, key, value = inputs
    output = shared_prompt_attention(
        torch.nn.Identity(),
        query[None],
        key[None],
        value[None],
        None,
        spans=spans,
        scaling=0.3,
        sliding_window=window,
        softcap=softcap,
        s_aux=sinks,
    )[0][0]
    expected = all_at_once(query, key, value, sinks, spans, window, softcap)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    direction = torch.randn_like(expected)
    found, wanted = (torch.autograd.grad((o * direction).sum(), learned) for o in (output, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
