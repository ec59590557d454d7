"""One kernel over the whole row against attention span by span."""

import copy

import pytest
import torch

from preftune.data.packing import Span
from preftune.models.attention import shared_prompt_attention
from preftune.models.flex import BLOCK, block_mask

# On the CPU FlexAttention runs as plain operations and has no backward pass.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

CPU = torch.device("cpu")


def spans_of(*groups: tuple[int, ...]) -> tuple[Span, ...]:
    """The spans of groups, each given as its prompt's length and its responses' lengths."""
    spans: list[Span] = []
    row = 0
    for prompt, first, *others in groups:
        prompt_start, prompt_stop = row, row + prompt
        row = prompt_stop + first
        spans.append(Span(prompt_start, row, prompt_start, prompt_start))
        for length in others:
            spans.append(Span(row, row + length, prompt_start, prompt_stop))
            row += length
    return tuple(spans)


LAYOUTS = {
    "one block": spans_of((7, 4, 6), (3, 5, 2)),
    "whole blocks": spans_of((128, 64, 64)),
    "skipped blocks": spans_of((150, 40, 160, 3), (90, 200, 20)),
    "one response": spans_of((100, 60), (5, 90)),
    "one-token prompts": spans_of((1, 130, 1, 2), (1, 1), (1, 70, 70)),
}

SETTINGS = {
    "plain": {},
    "window": {"sliding_window": 37},
    "window of one": {"sliding_window": 1},
    "softcap": {"softcap": 2.0},
    "sinks": {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0, 3.0, -2.0])},
    "all": {
        "sliding_window": 130,
        "softcap": 1.5,
        "s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0, 3.0, -2.0]),
    },
}


@pytest.mark.parametrize("kv_heads", [6, 2])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("spans", LAYOUTS.values(), ids=LAYOUTS)
def test_it_is_the_attention_of_the_spans(spans: tuple[Span, ...], settings: dict, kv_heads: int) -> None:
    """Outputs agree to 1e-5 over layouts, windows, caps, sinks and grouped queries."""
    torch.manual_seed(0)
    tokens = spans[-1].stop
    query, key, value = (torch.randn(1, heads, tokens, 16) for heads in (6, kv_heads, kv_heads))
    expected, output = (
        shared_prompt_attention(
            torch.nn.Identity(),
            query,
            key,
            value,
            None,
            spans=spans,
            scaling=0.3,
            flex=flex,
            **settings,
        )[0]
        for flex in (False, True)
    )
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 37, 200])
@pytest.mark.parametrize("spans", LAYOUTS.values(), ids=LAYOUTS)
def test_blocks_are_exact(spans: tuple[Span, ...], window: int | None) -> None:
    """A block is listed if and only if a token in it is seen, and as full if and only if all are."""
    tokens = spans[-1].stop
    blocks = -(-tokens // BLOCK)
    seen = torch.zeros(blocks * BLOCK, blocks * BLOCK, dtype=torch.bool)
    for span in spans:
        text = [*range(span.prefix_start, span.prefix_stop), *range(span.start, span.stop)]
        for position in range(span.prefix_stop - span.prefix_start, len(text)):
            start = 0 if window is None else max(0, position - window + 1)
            seen[text[position], text[start : position + 1]] = True
    by_block = seen.view(blocks, BLOCK, blocks, BLOCK).sum(dim=(1, 3))
    mask = block_mask(spans, window, CPU)
    full = copy.copy(mask)
    full.kv_num_blocks = torch.zeros_like(full.kv_num_blocks)
    assert torch.equal(mask.to_dense()[0, 0].bool(), by_block > 0)
    assert torch.equal(full.to_dense()[0, 0].bool(), by_block == BLOCK * BLOCK)


def test_most_blocks_of_two_long_groups_are_skipped() -> None:
    """Two groups, each of a prompt and two responses, 10 blocks long: 56 of 400, where causal has 210."""
    group = (4 * BLOCK, 3 * BLOCK, 3 * BLOCK)
    mask = block_mask(spans_of(group, group), None, CPU)
    # Per group: prompt 1 + 2 + 3 + 4, then twice a response that sees 4 and 1, 2 or 3 of its own.
    assert mask.to_dense().sum() == 2 * (10 + 2 * (3 * 4 + 6))
    full = mask.full_kv_num_blocks
    assert full is not None
    # Only the diagonal needs the mask inside the block.
    assert mask.kv_num_blocks.tolist() == [[[1] * 20]]
    assert full.sum() == mask.to_dense().sum() - 20


def test_masks_are_built_once() -> None:
    """Layers that ask for the same window get the same object, and another window another mask."""
    spans = spans_of((300, 300))
    mask = block_mask(spans, None, CPU)
    assert block_mask(spans_of((300, 300)), None, CPU) is mask
    assert block_mask(spans, 16, CPU).to_dense().sum() < mask.to_dense().sum()
