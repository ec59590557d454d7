"""Continuous batching: rows decode in slots, and a prompt enters as soon as enough slots are free.

Every slot has its own length: its keys begin at the first place of the cache, without padding on the left.
A row that ends leaves its slot before the next step.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from preftune.sampling.decoding import Advance, Drawn, Prompt, Transcript, device_of, pad_prompts
from preftune.sampling.settings import SamplingSettings

ROOM_AHEAD = 128
"""Tokens that a new cache has room for after the longest prompt: few responses reach the longest length."""
GROWTH = 1.5
"""Growth of a full cache; each growth copies it."""


def decode_in_slots(
    model: nn.Module,
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    ends: frozenset[int],
    rows: int,
    advance: Advance,
) -> list[Drawn] | None:
    """Every response, in the order of the prompts.

    Args:
        model: in evaluation mode.
        prompts: sorted, so that prompts of similar length are neighbours.
        settings: for all prompts.
        ends: tokens that end a response.
        rows: responses decoded together; n if that is larger.
        advance: called with the number of responses that have ended.

    Returns:
        The responses; None if the model's cache is not the keys and values of all tokens.
    """
    n = settings.n
    transcript = Transcript(prompts, settings, ends, device_of(model))
    longest = max(len(prompt.tokens) for prompt in prompts)
    room = longest + settings.max_new_tokens
    slots = Slots(model, transcript, max(1, min(rows // n, len(prompts))) * n, room)
    waiting = deque(enumerate(prompts))
    while waiting or slots.active:
        while waiting and slots.free >= n:
            batch = [waiting.popleft() for _ in range(min(len(waiting), slots.free // n))]
            read = _prefill(model, [prompt for _, prompt in batch])
            if read is None:
                return None
            advance(slots.admit(read, batch[0][0] * n, n))
        if slots.active:
            advance(slots.decode())
    return transcript.rows()


@dataclass(frozen=True)
class Prefill:
    """Prompts that the model has read: logits of their next tokens, the cache, and their lengths."""

    logits: Float[Tensor, "prompts vocabulary"]
    cache: Cache
    lengths: Int64[Tensor, "prompts"]


def _prefill(model: nn.Module, prompts: Sequence[Prompt]) -> Prefill | None:
    """Prefill prompts; None if rows of the cache cannot have their own lengths."""
    # Pad on the right: no token of a prompt attends to padding there.
    ids, mask = pad_prompts(prompts, device_of(model), left=False)
    lengths = mask.sum(1)
    positions, place = torch.unique(lengths - 1, return_inverse=True)
    output = model(input_ids=ids, use_cache=True, logits_to_keep=positions)
    cache = getattr(output, "past_key_values", None)
    if not isinstance(cache, Cache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    behind = output.logits[torch.arange(len(prompts), device=place.device), place]
    return Prefill(behind, cache, lengths)


class SlotLayer(DynamicLayer):
    """One layer's keys and values, with room for more tokens."""

    def __init__(self, slots: "Slots", like: DynamicLayer) -> None:
        super().__init__()
        self._slots = slots
        self.lazy_initialization(like.keys, like.values)
        self.keys, self.values = (
            part.new_zeros(slots.rows, part.shape[1], slots.capacity, part.shape[3])
            for part in (like.keys, like.values)
        )

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write one token of every active row to its place, and return what the rows attend to."""
        slots = self._slots
        active = torch.arange(slots.active, device=key_states.device)
        # Under autocast, rotated keys are float32 and values are 16 bits.
        self.keys[active, :, slots.seen] = key_states[:, :, 0].to(self.keys.dtype)
        self.values[active, :, slots.seen] = value_states[:, :, 0].to(self.values.dtype)
        window = slice(slots.active), slice(None), slice(slots.longest + 1)
        return self.keys[window], self.values[window]

    def get_seq_length(self) -> int:
        """Tokens in the longest row."""
        return self._slots.longest

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the attended part."""
        return self._slots.longest + query_length, 0

    def parts(self) -> tuple[Tensor, Tensor]:
        """Keys and values."""
        return self.keys, self.values

    def grow(self, capacity: int) -> None:
        """Make room for more tokens."""
        self.keys, self.values = (
            torch.cat([part, part.new_zeros(*part.shape[:2], capacity - part.shape[2], part.shape[3])], dim=2)
            for part in self.parts()
        )


class Slots:
    """Rows that decode together; active rows come first.

    Attributes:
        rows: number of slots.
        active: slots in use.
        capacity: tokens a slot has room for.
        longest: tokens in the longest active row.
        seen: tokens read in each active row.
        row, step, token: for each active row its number in the transcript, the number of tokens drawn, and
            the last of them, which the model has not read yet.
    """

    def __init__(self, model: nn.Module, transcript: Transcript, rows: int, most: int) -> None:
        self._model, self._transcript, self._most = model, transcript, most
        self.rows, self.capacity, self.active, self.longest = rows, 0, 0, 0
        empty = torch.zeros(0, dtype=torch.int64, device=device_of(model))
        self.seen, self.row, self.step, self.token = empty, empty, empty, empty
        self._cache: Cache | None = None

    @property
    def free(self) -> int:
        """Number of free slots."""
        return self.rows - self.active

    def admit(self, read: Prefill, first_row: int, n: int) -> int:
        """Start the n responses of each prompt, the first as row `first_row`.

        Returns:
            The number of responses that ended with their first token.
        """
        lengths = read.lengths
        longest = int(lengths.max())
        if self._cache is None:
            self.capacity = min(self._most, longest + ROOM_AHEAD)
            self._cache = Cache(layers=[SlotLayer(self, layer) for layer in read.cache.layers])
        self._make_room(longest + 1)
        begin, count = self.active, len(lengths) * n
        for layer, source in zip(self._cache.layers, read.cache.layers, strict=True):
            for part, tokens in zip(layer.parts(), (source.keys, source.values), strict=True):
                part[begin : begin + count, :, :longest] = tokens[:, :, :longest].repeat_interleave(n, 0)
        row = torch.arange(first_row, first_row + count, device=lengths.device)
        step = torch.zeros_like(row)
        token, ended = self._transcript.take(read.logits.repeat_interleave(n, 0), row, step)
        self.seen = torch.cat([self.seen, lengths.repeat_interleave(n)])
        self.row, self.step = torch.cat([self.row, row]), torch.cat([self.step, step + 1])
        self.token = torch.cat([self.token, token])
        self.active += count
        return self._retire(torch.cat([ended.new_zeros(begin), ended]))

    def decode(self) -> int:
        """Draw one more token in every active row.

        Returns:
            The number of rows that ended with it.
        """
        self._make_room(self.longest + 1)
        attended = torch.arange(self.longest + 1, device=self.seen.device) <= self.seen[:, None]
        output = self._model(
            input_ids=self.token[:, None],
            attention_mask=attended.long(),
            position_ids=self.seen[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self.seen = self.seen + 1
        self.token, ended = self._transcript.take(output.logits[:, -1], self.row, self.step)
        self.step = self.step + 1
        return self._retire(ended)

    def _retire(self, ended: Bool[Tensor, "active"]) -> int:
        """Move the last running rows into the slots of ended rows."""
        running = self.active - int(ended.sum())
        if running < self.active:
            place = torch.arange(running, device=ended.device)
            place[ended[:running]] = (~ended[running:]).nonzero().squeeze(1) + running
            self._move(place, ended[:running].nonzero().squeeze(1))
            self.seen, self.row, self.step, self.token = (
                each[place] for each in (self.seen, self.row, self.step, self.token)
            )
        count, self.active = self.active - running, running
        self.longest = int(self.seen.max()) if running else 0
        return count

    def _move(self, place: Int64[Tensor, "running"], holes: Int64[Tensor, "holes"]) -> None:
        """Fill holes in the cache with the rows at `place`."""
        if self._cache is None or not len(holes):
            return
        sources = place[holes]
        length = int(self.seen[sources].max())
        for layer in self._cache.layers:
            for part in layer.parts():
                part[holes, :, :length] = part[sources, :, :length]

    def _make_room(self, tokens: int) -> None:
        if tokens > self.capacity and self._cache is not None:
            self.capacity = min(self._most, max(tokens, round(self.capacity * GROWTH)))
            for layer in self._cache.layers:
                layer.grow(self.capacity)
