"""Sampling with transformers: each prompt is prefilled once, then all its responses decode together."""

import copy
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress
from torch import nn
from transformers import PreTrainedTokenizerBase

from preftune.data import encode_prompt, end_tokens
from preftune.errors import InputError
from preftune.models.config_files import check_token_ids
from preftune.sampling.decoding import Advance, Drawn, Prompt
from preftune.sampling.draws import sample_seed
from preftune.sampling.padded import decode_padded
from preftune.sampling.settings import Conversation, SamplingSettings
from preftune.sampling.slots import decode_in_slots

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampledResponse:
    """One sampled response.

    Attributes:
        text: the decoded response, without special tokens.
        tokens: its token ids, with the end-of-sequence token if there is one.
        finished: whether the model ended it; False if `max_new_tokens` truncated it.
        logp: logarithm of the probability with which it was drawn, summed over its tokens, in nats; the
            model's own at temperature 1 and top_p 1.
    """

    text: str
    tokens: tuple[int, ...]
    finished: bool
    logp: float


def sample_responses(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Conversation],
    *,
    n: int = 8,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    rows: int = 128,
    repeats: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> list[list[SampledResponse]]:
    """Sample `n` responses to every prompt.

    Every response has its own random generator, seeded by `seed`, the prompt's tokens, the number of earlier
    prompts that are the same, and the response's number. A response does not depend on the other prompts, on
    `rows` or on `n`, except through rounding in the model, which shows in 16 bits.

    Args:
        model: a causal language model, with or without adapters; its train or eval mode does not change.
        tokenizer: its tokenizer; chat prompts go through its chat template.
        prompts: plain text, or the messages of a chat.
        n: responses per prompt.
        max_new_tokens: longest response, in tokens.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: draws among the likeliest tokens that together have this probability; 1 draws among all.
        seed: any integer.
        rows: responses decoded together; n if that is larger. More rows are faster and take more memory.
        repeats: for every prompt, the number of earlier ones that are the same; None counts in `prompts`.
        dtype: decode with a copy of the weights in this precision; None uses the model itself.
        chat_template_kwargs: passed to the chat template.
        progress: show a progress bar on the terminal.

    Returns:
        The n responses of every prompt, in the order given.

    Raises:
        InputError: a setting is out of range (see `SamplingSettings`) or a prompt is empty.
    """
    settings = SamplingSettings(n, max_new_tokens, temperature, top_p, seed)
    if rows < 1:
        raise InputError(f"rows={rows} must be >= 1: set a number from 1 on")
    asked = [tuple(prompt_tokens(tokenizer, prompt, chat_template_kwargs)) for prompt in prompts]
    seeded = _with_seeds(asked, repeats, settings)
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    if embeddings is not None:
        check_token_ids("prompts", asked, embeddings.weight.shape[0])
    # Prompts of similar length are read together, the longest first: if memory is short, it fails at once.
    seeded.sort(key=lambda prompt: len(prompt.tokens), reverse=True)
    ends = _end_tokens(model, tokenizer, is_chat=any(not isinstance(prompt, str) for prompt in prompts))
    with _decoding(model, dtype) as decoder, Progress(disable=not progress) as bar:
        task = bar.add_task("sampling", total=len(seeded) * n)
        drawn = _decode(decoder, seeded, settings, ends, rows, lambda ended: bar.advance(task, ended))
    responses = [_response(tokenizer, each, ends) for each in drawn]
    by_prompt = {prompt.index: responses[i * n : (i + 1) * n] for i, prompt in enumerate(seeded)}
    return [by_prompt[index] for index in range(len(seeded))]


def prompt_tokens(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Conversation,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a prompt as it is sampled from: as in training."""
    return encode_prompt(tokenizer, prompt, chat_template_kwargs)


def _with_seeds(
    asked: Sequence[tuple[int, ...]], repeats: Sequence[int] | None, settings: SamplingSettings
) -> list[Prompt]:
    """Prompts with the seeds of their responses."""
    prompts = []
    before: Counter[tuple[int, ...]] = Counter()
    for index, tokens in enumerate(asked):
        if not tokens:
            raise InputError(f"prompts[{index}] is empty: give a prompt of at least one token")
        repeat = before[tokens] if repeats is None else repeats[index]
        before[tokens] += 1
        seeds = tuple(sample_seed(settings, tokens, repeat, sample) for sample in range(settings.n))
        prompts.append(Prompt(index, tokens, seeds))
    return prompts


def _decode(
    model: nn.Module,
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    ends: frozenset[int],
    rows: int,
    advance: Advance,
) -> list[Drawn]:
    """Decode every response, in slots if the model's cache allows it."""
    if not prompts:
        return []
    drawn = decode_in_slots(model, prompts, settings, ends, rows, advance)
    if drawn is None:
        logger.info(
            "%s does not cache keys and values of every token: sampling batch by batch",
            type(model).__name__,
        )
        drawn = decode_padded(model, prompts, settings, ends, rows, advance)
    return drawn


def _end_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, is_chat: bool) -> frozenset[int]:
    """What stops a response: what the model's configuration names, and what training ends responses with."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = set(configured) if isinstance(configured, list) else {configured}
    return end_tokens(tokenizer, is_chat=is_chat) | {int(end) for end in ends if end is not None}


@contextmanager
def _decoding(model: nn.Module, dtype: torch.dtype | None) -> Iterator[nn.Module]:
    """Yield the model, or a copy in `dtype`, ready to decode; every module keeps its mode."""
    in_training = [module for module in model.modules() if module.training]
    if dtype is None or all(parameter.dtype == dtype for parameter in model.parameters()):
        decoder = model
    else:
        decoder = copy.deepcopy(model)
        # Only parameters: buffers hold the rotary frequencies, which lose positions in 16 bits.
        for parameter in decoder.parameters():
            parameter.data = parameter.data.to(dtype)
    decoder.eval()
    try:
        with torch.inference_mode():
            yield decoder
    finally:
        for module in in_training:
            module.training = True


def _response(tokenizer: PreTrainedTokenizerBase, drawn: Drawn, ends: frozenset[int]) -> SampledResponse:
    text = str(tokenizer.decode(drawn.tokens, skip_special_tokens=True))
    return SampledResponse(text, tuple(drawn.tokens), drawn.tokens[-1] in ends, drawn.logp)
