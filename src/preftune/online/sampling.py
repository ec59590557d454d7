"""Sampling n responses per prompt: each prompt is read once, then all rows decode together."""

import copy
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from rich.progress import Progress
from torch import Tensor, nn
from transformers import Cache, PreTrainedTokenizerBase

from preftune.errors import InputError

Chat = Sequence[dict[str, str]]

# Dropping finished rows copies the cache, so it waits until this share of the rows has ended.
COMPACT_WHEN_FINISHED = 0.25


@dataclass(frozen=True)
class SampledResponse:
    """One sampled response.

    Attributes:
        text: the decoded response, without special tokens.
        tokens: its token ids, with the end-of-sequence token where there is one.
        finished: whether the model ended it; False where `max_new_tokens` cut it off.
    """

    text: str
    tokens: tuple[int, ...]
    finished: bool


@dataclass(frozen=True)
class _Prompt:
    """A tokenized prompt, its place in the caller's list and one uniform draw per row and step."""

    index: int
    tokens: Int64[Tensor, "prompt_tokens"]
    uniforms: Float32[Tensor, "n steps"]


def sample_responses(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Chat],
    *,
    n: int = 8,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    seed: int = 0,
    rows: int = 128,
    dtype: torch.dtype | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> list[list[SampledResponse]]:
    """Samples `n` responses to every prompt.

    A prompt draws from its own generator, seeded by `seed` and its tokens: up to rounding in the model, which
    shows in 16 bits, its responses do not depend on the other prompts or on `rows`. A prompt given twice gets
    different responses.

    Args:
        model: a causal language model, with adapters or without; its train or eval mode is left as it was.
        tokenizer: its tokenizer; chat prompts go through its chat template.
        prompts: plain text, or the messages of a chat.
        n: responses per prompt.
        max_new_tokens: longest response, in tokens.
        temperature: divides the logits; 0 takes the likeliest token.
        seed: any integer.
        rows: responses decoded together, more where n is larger; more rows are faster and take more memory.
        dtype: decodes with a copy of the weights in this precision; None uses the model itself.
        chat_template_kwargs: passed on to the chat template.
        progress: draws a progress bar on the terminal.

    Returns:
        For every prompt, in the order given, its n responses.

    Raises:
        InputError: n, max_new_tokens or rows is below 1, the temperature is negative or a prompt is empty.
    """
    _check_settings(n=n, max_new_tokens=max_new_tokens, rows=rows, temperature=temperature)
    asked = [prompt_tokens(tokenizer, prompt, chat_template_kwargs) for prompt in prompts]
    tokenized = _with_draws(asked, n=n, steps=max_new_tokens, seed=seed)
    # Neighbours in length share a batch, so that little of it is padding.
    tokenized.sort(key=lambda prompt: len(prompt.tokens))
    per_batch = max(1, rows // n)
    responses: dict[int, list[SampledResponse]] = {}
    ends = _end_tokens(model, tokenizer)
    with _decoding(model, dtype) as decoder, Progress(disable=not progress) as bar:
        task = bar.add_task("sampling", total=len(tokenized))
        for start in range(0, len(tokenized), per_batch):
            batch = tokenized[start : start + per_batch]
            generated = _decode(decoder, batch, ends, temperature)
            for prompt, row_tokens in zip(batch, generated, strict=True):
                responses[prompt.index] = [_response(tokenizer, tokens, ends) for tokens in row_tokens]
            bar.advance(task, len(batch))
    return [responses[index] for index in range(len(tokenized))]


def _check_settings(*, n: int, max_new_tokens: int, rows: int, temperature: float) -> None:
    for name, value in {"n": n, "max_new_tokens": max_new_tokens, "rows": rows}.items():
        if value < 1:
            raise InputError(f"{name}={value}: {name} must be at least 1.")
    if temperature < 0:
        raise InputError(f"temperature={temperature}: it must be 0 (greedy) or more.")


def prompt_tokens(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Chat,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a prompt as it is sampled from; messages go through the chat template."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    text = tokenizer.apply_chat_template(
        list(prompt), add_generation_prompt=True, tokenize=False, **(chat_template_kwargs or {})
    )
    # The template writes the special tokens itself.
    return list(tokenizer(str(text), add_special_tokens=False)["input_ids"])


def _with_draws(asked: list[list[int]], *, n: int, steps: int, seed: int) -> list[_Prompt]:
    """Prompts with the draws that decide their responses."""
    prompts = []
    repeats: Counter[tuple[int, ...]] = Counter()
    for index, ids in enumerate(asked):
        if not ids:
            raise InputError(f"prompts[{index}] is empty: a prompt needs at least one token.")
        generator = torch.Generator().manual_seed(_prompt_seed(seed, ids, repeats[tuple(ids)]))
        repeats[tuple(ids)] += 1
        # Drawn in 64 bits: 32-bit draws come in steps of 2^-24, too coarse for the rarest tokens.
        uniforms = torch.rand(n, steps, generator=generator, dtype=torch.float64).float()
        prompts.append(_Prompt(index, torch.tensor(ids), uniforms))
    return prompts


def _prompt_seed(seed: int, ids: list[int], repeat: int) -> int:
    digest = hashlib.sha256(repr((seed, ids, repeat)).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _end_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = set(configured) if isinstance(configured, list) else {configured}
    return frozenset(int(end) for end in ends | {tokenizer.eos_token_id} if end is not None)


@contextmanager
def _decoding(model: nn.Module, dtype: torch.dtype | None) -> Iterator[nn.Module]:
    """Yields the model, or its copy in `dtype`, ready to decode; every module of the model keeps its mode."""
    in_training = [module for module in model.modules() if module.training]
    if dtype is None or all(parameter.dtype == dtype for parameter in model.parameters()):
        decoder = model
    else:
        decoder = copy.deepcopy(model)
        # Parameters only: buffers hold the rotary frequencies, which lose positions in 16 bits.
        for parameter in decoder.parameters():
            parameter.data = parameter.data.to(dtype)
    decoder.eval()
    try:
        with torch.inference_mode():
            yield decoder
    finally:
        for module in in_training:
            module.training = True


@dataclass
class _Rows:
    """Rows that decode together; logits are those of each row's next token.

    Attributes:
        cache: keys and values so far, the padding in front included.
        mask: 0 on the padding.
        position: of the last token read.
    """

    logits: Float[Tensor, "rows vocabulary"]
    cache: Cache
    mask: Int64[Tensor, "rows seen"]
    position: Int64[Tensor, "rows 1"]

    def keep(self, kept: Int64[Tensor, "kept"]) -> None:
        """Drop or repeat rows."""
        self.cache.reorder_cache(kept)
        self.logits, self.mask, self.position = self.logits[kept], self.mask[kept], self.position[kept]

    def read(self, model: nn.Module, token: Int64[Tensor, "rows"]) -> None:
        """Read one more token in every row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.position = self.position + 1
        self.logits = model(
            input_ids=token[:, None],
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]


def _prefill(model: nn.Module, prompts: list[_Prompt]) -> _Rows:
    """One row per prompt, read up to its last token."""
    device = next(model.parameters()).device
    ids, mask = _left_pad([prompt.tokens.to(device) for prompt in prompts])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    output = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
    )
    return _Rows(output.logits[:, -1], output.past_key_values, mask, positions[:, -1:])


def _decode(
    model: nn.Module, prompts: list[_Prompt], ends: frozenset[int], temperature: float
) -> list[list[list[int]]]:
    """Token ids of every response, by prompt and row, up to and with the token that ends it."""
    rows = _prefill(model, prompts)
    device = rows.logits.device
    uniforms = torch.cat([prompt.uniforms for prompt in prompts]).to(device)
    count, steps = uniforms.shape
    n = count // len(prompts)
    rows.keep(torch.arange(len(prompts), device=device).repeat_interleave(n))

    end_ids = torch.tensor(sorted(ends), dtype=torch.int64, device=device)
    generated = torch.zeros(count, steps, dtype=torch.int64, device=device)
    lengths = torch.full((count,), steps, device=device)
    # Where each decoding row stands in `generated`, and whether it still runs.
    place = torch.arange(count, device=device)
    running = torch.ones(count, dtype=torch.bool, device=device)
    for step in range(steps):
        token = _draw(rows.logits, uniforms[place, step], temperature)
        generated[place, step] = token
        ended = running & torch.isin(token, end_ids)
        lengths[place[ended]] = step + 1
        running &= ~ended
        if step + 1 == steps or not running.any():
            break
        if (~running).float().mean() >= COMPACT_WHEN_FINISHED:
            kept = running.nonzero().squeeze(1)
            rows.keep(kept)
            place, token, running = place[kept], token[kept], running[kept]
        rows.read(model, token)
    cut = [row[:length] for row, length in zip(generated.tolist(), lengths.tolist(), strict=True)]
    return [cut[start : start + n] for start in range(0, count, n)]


def _left_pad(
    sequences: list[Int64[Tensor, "_"]],
) -> tuple[Int64[Tensor, "prompts longest"], Int64[Tensor, "prompts longest"]]:
    """Token ids with padding in front, and the mask that is 0 on it."""
    longest = max(len(sequence) for sequence in sequences)
    ids = sequences[0].new_zeros(len(sequences), longest)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = sequence
        mask[row, longest - len(sequence) :] = 1
    return ids, mask


def _draw(
    logits: Float[Tensor, "rows vocabulary"], uniforms: Float32[Tensor, "rows"], temperature: float
) -> Int64[Tensor, "rows"]:
    """The token at each row's uniform draw on the cumulative distribution; the likeliest at temperature 0."""
    if temperature == 0:
        return logits.argmax(-1)
    # In place, since a vocabulary-wide tensor per operation costs more than the operation.
    weights = logits.float() - logits.amax(-1, keepdim=True)
    cumulative = weights.div_(temperature).exp_().cumsum_(-1)
    total = cumulative[:, -1:]
    # A draw rounded up to the total would lie behind the last token that can be drawn.
    target = (uniforms[:, None] * total).minimum(total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)


def _response(tokenizer: PreTrainedTokenizerBase, tokens: list[int], ends: frozenset[int]) -> SampledResponse:
    text = str(tokenizer.decode(tokens, skip_special_tokens=True))
    return SampledResponse(text=text, tokens=tuple(tokens), finished=tokens[-1] in ends)
