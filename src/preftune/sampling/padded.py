"""Decoding batch by batch, for models whose cache has no separate place for every token.

Sliding windows and recurrent states process all rows of a batch in step, so all rows end at the same place:
prompts are padded on the left, and a batch ends with its longest response.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import Cache

from preftune.errors import InputError
from preftune.sampling.decoding import Advance, Drawn, Prompt, Transcript, device_of, pad_prompts
from preftune.sampling.settings import SamplingSettings

COMPACT_WHEN_FINISHED = 0.25
"""Dropping finished rows copies the cache, so rows are dropped only after this share of them has ended."""


def decode_padded(
    model: nn.Module,
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    ends: frozenset[int],
    rows: int,
    advance: Advance,
) -> list[Drawn]:
    """Every response; see `decode_in_slots`.

    Raises:
        InputError: the model does not keep its state in a `Cache`.
    """
    per_batch = max(1, rows // settings.n)
    responses = []
    for start in range(0, len(prompts), per_batch):
        batch = prompts[start : start + per_batch]
        responses += _decode(model, batch, settings, ends)
        advance(len(batch) * settings.n)
    return responses


@dataclass
class _Rows:
    """Rows that decode together; logits are those of each row's next token.

    Attributes:
        cache: the model's state after the tokens so far, including the padding on the left.
        mask: 0 on the padding.
        position: of the last token read.
    """

    logits: Float[Tensor, "rows vocabulary"]
    cache: Cache
    mask: Int64[Tensor, "rows seen"]
    position: Int64[Tensor, "rows 1"]

    def keep(self, kept: Int64[Tensor, "kept"]) -> None:
        """Keep these rows; a row may be dropped or repeated."""
        self.cache.reorder_cache(kept)
        self.logits, self.mask, self.position = self.logits[kept], self.mask[kept], self.position[kept]

    def read(self, model: nn.Module, token: Int64[Tensor, "rows"]) -> None:
        """Feed one more token of every row to the model."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.position = self.position + 1
        self.logits = model(
            input_ids=token[:, None],
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]


def _prefill(model: nn.Module, prompts: Sequence[Prompt]) -> _Rows:
    """Prefill one row per prompt, up to its last token."""
    ids, mask = pad_prompts(prompts, device_of(model), left=True)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    output = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
    )
    cache = getattr(output, "past_key_values", None)
    if not isinstance(cache, Cache):
        raise InputError(
            f"{type(model).__name__} does not use transformers' Cache, which engine=transformers needs: use "
            "engine=vllm or engine=server"
        )
    return _Rows(output.logits[:, -1], cache, mask, positions[:, -1:])


def _decode(
    model: nn.Module, prompts: Sequence[Prompt], settings: SamplingSettings, ends: frozenset[int]
) -> list[Drawn]:
    """Decode a batch: responses by prompt and sample."""
    rows = _prefill(model, prompts)
    device = rows.logits.device
    transcript = Transcript(prompts, settings, ends, device)
    # The response of each decoding row, and whether it still runs.
    row = torch.arange(len(prompts) * settings.n, device=device)
    running = torch.ones(len(row), dtype=torch.bool, device=device)
    rows.keep(row // settings.n)
    for step in range(settings.max_new_tokens):
        token, ended = transcript.take(rows.logits, row, torch.full_like(row, step))
        running = running & ~ended
        if not running.any():
            break
        if (~running).float().mean() >= COMPACT_WHEN_FINISHED:
            kept = running.nonzero().squeeze(1)
            rows.keep(kept)
            row, token, running = row[kept], token[kept], running[kept]
        rows.read(model, token)
    return transcript.rows()
