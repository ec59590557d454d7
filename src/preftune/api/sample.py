"""`preftune.sample`: responses of a model, given by name or as an object."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedTokenizerBase

from preftune.api.keywords import loaded_tokenizer
from preftune.data import read_rows
from preftune.errors import InputError
from preftune.models import PackedReader
from preftune.sampling.engine import Sample
from preftune.sampling.engines import build_engine
from preftune.sampling.sample_file import answered, check_prompts, repeats, sample_file
from preftune.sampling.settings import Conversation, SamplingSettings
from preftune.sampling.transformers_engine import sampler
from preftune.storage.files import as_lines, write_whole

PromptsOrRows = Sequence[str | Conversation | Mapping[str, Any]] | str | Path | Any
"""Texts, chats, rows with a `prompt` column, a `datasets.Dataset` of such rows, or a file of them."""


def sample(
    model: str | Path | nn.Module,
    prompts: PromptsOrRows,
    *,
    n: int = 8,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    rows: int = 64,
    engine: str = "transformers",
    price: str | None = None,
    max_cost: float | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    output: str | Path | None = None,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Sample n responses to every prompt, each prompt read once for all of them.

    Args:
        model: a name, a folder, or a loaded model, with adapters or without; for `engine="server"` the name
            it has there.
        prompts: texts, chats, rows with a column `prompt`, or a file of such rows.
        n: responses to a prompt.
        max_new_tokens: longest response, in tokens.
        temperature: divides the logits; 0 is greedy.
        top_p: draws among the likeliest tokens that together have this probability.
        seed: the same seed gives the same responses.
        rows: responses decoded together; for a server, requests at the same time.
        engine: "transformers", "vllm" or "server".
        price: what a million tokens of prompts and of responses cost at a server, as in "2.5,10".
        max_cost: stop before this process spends more at a server.
        processing_class: a loaded model's tokenizer; found by the model's name unless given.
        output: JSON Lines file to write; with a model's name, a call that was killed continues there.
        progress: show a bar.

    Returns:
        The prompts' rows with `responses`, `response_tokens`, `finish_reasons` and `sampler`;
        `datasets.Dataset.from_list` makes a data set of them.

    Raises:
        InputError: the model, a prompt or a setting cannot be used.
    """
    settings = SamplingSettings(n, max_new_tokens, temperature, top_p, seed)
    spending: dict[str, Any] = {"price": price, "max_cost": max_cost}
    source = prompts if isinstance(prompts, str | Path) else as_prompt_rows(prompts)
    by_name = isinstance(model, str | Path)
    if output is not None and by_name:
        options = asdict(settings) | {"rows": rows, "engine": engine, "progress": progress, **spending}
        sample_file(str(model), source, Path(output), **options)
        return [dict(row) for row in read_rows(output)]
    table = list(read_rows(source))
    check_prompts(table, source, None if output is None else Path(output))
    if by_name:
        found = build_engine(engine, str(model), rows, **spending)
        described, ready = found.description, found.ready()
    else:
        if engine != "transformers" or price is not None or max_cost is not None:
            raise InputError(
                f"engine={engine!r}, price={price}, max_cost={max_cost}: a loaded model is given, and a "
                "server samples from a model by its name: leave them out, or give the name"
            )
        described = {"engine": engine, "version": transformers.__version__, "model": type(model).__name__}
        ready = _loaded(model, processing_class, rows)
    with ready as ask:
        groups = ask([row["prompt"] for row in table], repeats(table), settings, progress=progress)
    about = {**described, **asdict(settings)}
    sampled = [answered(row, group, about) for row, group in zip(table, groups, strict=True)]
    if output is not None:
        write_whole(Path(output), as_lines(sampled))
    return sampled


def as_prompt_rows(prompts: Any) -> Any:
    """Rows with a `prompt`; texts and chats get one."""
    if not isinstance(prompts, list | tuple):
        return prompts
    return [prompt if isinstance(prompt, Mapping) else {"prompt": prompt} for prompt in prompts]


@contextmanager
def _loaded(model: Any, processing_class: PreTrainedTokenizerBase | None, rows: int) -> Iterator[Sample]:
    """A loaded model as an engine; what a trainer holds samples as the language model in it."""
    held = model.own_attention() if isinstance(model, PackedReader) else nullcontext(model)
    with held as language_model:
        yield sampler(language_model, loaded_tokenizer(language_model, processing_class), rows)
