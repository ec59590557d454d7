"""The prompts of the rounds: equal parts of one source, in which no prompt comes twice."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from preftune.data import Asked, load_groups, read_rows
from preftune.errors import InputError
from preftune.measuring.held_out import PromptRow
from preftune.online.configuration import IterateConfig
from preftune.sampling.sample_file import ABOUT_RESPONSES, is_prompt
from preftune.sampling.sampler import prompt_tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompts:
    """What is asked.

    Attributes:
        parts: of the training prompts, one for each round and all of the same size.
        left_out: training prompts that did not go into equal parts.
        held_out: what every round is measured on.
        longest: tokens of the longest prompt.
    """

    parts: tuple[tuple[PromptRow, ...], ...]
    left_out: int
    held_out: tuple[PromptRow, ...]
    longest: int


def read_prompts(config: IterateConfig, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Prompts:
    """Read both sources, and deal the training prompts to the rounds by `seed`.

    A prompt that comes twice in a source, or in both, is trained on or measured once; held-out prompts are
    never trained on. Longer ones than `max_tokens` are left out.

    Raises:
        InputError: a source cannot be read, or leaves too few prompts.
    """
    held_out = _distinct("held_out", config.held_out, config.held_out_split, tokenizer, max_tokens)
    found = _distinct("prompts", config.prompts, config.prompts_split, tokenizer, max_tokens)
    training = {key: row for key, row in found.items() if key not in held_out}
    if len(training) < len(found):
        logger.warning("prompts: %d are held out and not trained on", len(found) - len(training))
    if len(held_out) < 2:
        raise InputError(
            f"held_out={config.held_out} has {len(held_out)} usable prompts, and intervals need 2: add "
            "prompts"
        )
    each = len(training) // config.rounds
    if not each:
        raise InputError(
            f"prompts={config.prompts} has {len(training)} usable prompts for rounds={config.rounds}; give "
            "more prompts, or fewer rounds"
        )
    order = np.random.default_rng(config.seed).permutation(len(training))
    rows = list(training.values())
    parts = tuple(
        tuple(rows[place] for place in order[start : start + each])
        for start in range(0, each * config.rounds, each)
    )
    left_out = len(training) - each * config.rounds
    if left_out:
        logger.info("prompts: %d are dropped, so that all rounds get %d", left_out, each)
    asked = [row["prompt"] for row in (*rows, *held_out.values())]
    longest = max(len(prompt_tokens(tokenizer, prompt)) for prompt in asked)
    return Prompts(parts, left_out, tuple(held_out.values()), longest)


def _distinct(
    key: str, source: str, split: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> dict[str, PromptRow]:
    """The first row of each prompt that is short enough, by the prompt's text."""
    rows = [_only_asked(row) for row in _rows(key, source, split)]
    distinct: dict[str, PromptRow] = {}
    for row in rows:
        distinct.setdefault(json.dumps(row["prompt"], sort_keys=True), row)
    fitting = {
        text: row
        for text, row in distinct.items()
        if len(prompt_tokens(tokenizer, row["prompt"])) <= max_tokens
    }
    for count, what in (
        (len(rows) - len(distinct), "come twice"),
        (len(distinct) - len(fitting), f"have more than {max_tokens} tokens"),
    ):
        if count:
            logger.info("%s=%s: %d rows are dropped, which %s", key, source, count, what)
    return fitting


def _rows(key: str, source: str, split: str) -> Sequence[Mapping[str, Any]]:
    """Rows with a `prompt`, whatever else the source has."""
    table = read_rows(source, split)
    if "prompt" not in table.columns:
        loaded = load_groups(source, asked=Asked(needs_pairs=False), split=split, keep_columns=True)
        return [{"prompt": group.prompt, **group.columns} for group in loaded.groups]
    rows = list(table)
    for number, row in enumerate(rows):
        if not is_prompt(row.get("prompt")):
            raise InputError(
                f"{key}: {table.locate(number)} has no `prompt`: set it to text, or to messages with role "
                "and content"
            )
    return rows


def _only_asked(row: Mapping[str, Any]) -> PromptRow:
    kept = {column: value for column, value in row.items() if column not in ABOUT_RESPONSES}
    prompt = row["prompt"]
    return {**kept, "prompt": prompt if isinstance(prompt, str) else [dict(message) for message in prompt]}
