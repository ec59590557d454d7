"""What the two ways of decoding share: prompts, what their rows have drawn, and reading prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from preftune.sampling.draws import draw, uniforms
from preftune.sampling.settings import SamplingSettings

Advance = Callable[[int], None]
"""Called with the number of responses that have ended."""


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt.

    Attributes:
        index: its place in the caller's list.
        tokens: its ids.
        seeds: one for each of its responses, see `sample_seed`.
    """

    index: int
    tokens: tuple[int, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Drawn:
    """One response as it was drawn.

    Attributes:
        tokens: its ids, up to and including the one that ends it.
        logp: logarithm of the probability with which they were drawn, summed over them, in nats.
    """

    tokens: list[int]
    logp: float


class Transcript:
    """What all rows have drawn. Row `prompt * n + sample` is one response."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        ends: frozenset[int],
        device: torch.device,
    ) -> None:
        seeds = [seed for prompt in prompts for seed in prompt.seeds]
        self._settings = settings
        self._ends = torch.tensor(sorted(ends), dtype=torch.int64, device=device)
        self._uniforms = torch.stack([uniforms(seed, settings.max_new_tokens) for seed in seeds]).to(device)
        self._tokens = torch.zeros(self._uniforms.shape[:2], dtype=torch.int64, device=device)
        self._logps = torch.zeros(self._tokens.shape, dtype=torch.float32, device=device)

    def take(
        self,
        logits: Float[Tensor, "rows vocabulary"],
        row: Int64[Tensor, "rows"],
        step: Int64[Tensor, "rows"],
    ) -> tuple[Int64[Tensor, "rows"], Bool[Tensor, "rows"]]:
        """Draw the next token of some rows.

        Returns:
            The tokens, and a mask of those that are the last of their row.
        """
        settings = self._settings
        token, logp = draw(logits, self._uniforms[row, step], settings.temperature, settings.top_p)
        self._tokens[row, step] = token
        self._logps[row, step] = logp
        return token, torch.isin(token, self._ends) | (step + 1 == settings.max_new_tokens)

    def rows(self) -> list[Drawn]:
        """Every row's response."""
        ended = torch.isin(self._tokens, self._ends)
        ended[:, -1] = True
        lengths = (ended.int().argmax(-1) + 1).tolist()
        return [
            Drawn(tokens[:length], fsum(logps[:length]))
            for tokens, logps, length in zip(
                self._tokens.tolist(), self._logps.tolist(), lengths, strict=True
            )
        ]


def pad_prompts(
    prompts: Sequence[Prompt], device: torch.device, *, left: bool
) -> tuple[Int64[Tensor, "prompts longest"], Int64[Tensor, "prompts longest"]]:
    """Token ids, padded on the left or the right, and a mask that is 0 on padding."""
    longest = max(len(prompt.tokens) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        count = len(prompt.tokens)
        place = slice(longest - count, None) if left else slice(count)
        ids[row, place] = torch.tensor(prompt.tokens)
        mask[row, place] = 1
    return ids.to(device), mask.to(device)


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's input."""
    device: Any = next(model.parameters()).device
    return torch.device(device)
