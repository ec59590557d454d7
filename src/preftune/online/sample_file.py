"""Sampling for a whole file of prompts, kept as it goes so that a killed run loses at most one chunk."""

import hashlib
import json
from pathlib import Path
from typing import Any

from preftune.data import read_rows
from preftune.data.shapes import GROUP_COLUMNS, SCORE_COLUMNS
from preftune.errors import InputError
from preftune.online.sampling import sample_responses
from preftune.policy import (
    generation_device,
    generation_dtype,
    load_config,
    load_language_model,
    load_tokenizer,
)

PROMPTS_PER_CHUNK = 64
ABOUT_RESPONSES = {"chosen", "rejected", "completion", "label"}.union(*SCORE_COLUMNS, *GROUP_COLUMNS)
"""Columns that describe the responses a row came with."""


def sample_file(
    model: str,
    prompts: Path,
    output: Path,
    *,
    n: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    rows: int,
    progress: bool = False,
) -> int:
    """Write every row of `prompts` to `output` with its n responses under `responses`.

    Columns about other responses (`chosen`, `scores`, ...) are left out: beside new responses they would be
    read as theirs.

    Finished chunks stand in a `.part` file beside `output`, named by a hash of the prompts and settings: the
    same call continues there, and another call never does.

    Args:
        model: folder or hub name.
        prompts: any file that `preftune.data.read_rows` reads, with a `prompt` column.
        output: JSON Lines.
        n: responses per prompt.
        max_new_tokens: longest response, in tokens.
        temperature: divides the logits; 0 is greedy.
        seed: the same seed gives the same responses.
        rows: responses decoded together.
        progress: show a bar per chunk.

    Returns:
        The number of prompts.

    Raises:
        InputError: the model cannot be read, a row has no prompt, or the output exists.
    """
    load_config(model)
    table = list(read_rows(prompts))
    _check(table, prompts, output)
    settings = [model, n, max_new_tokens, temperature, seed, PROMPTS_PER_CHUNK, table]
    digest = hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()[:12]
    part = output.with_name(f"{output.name}.{digest}.part")
    output.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(model)
    device = generation_device()
    language_model = load_language_model(model, generation_dtype(device)).to(device)
    for start in range(_finished(part), len(table), PROMPTS_PER_CHUNK):
        chunk = table[start : start + PROMPTS_PER_CHUNK]
        sampled = sample_responses(
            language_model,
            tokenizer,
            [row["prompt"] for row in chunk],
            n=n,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            # A prompt that comes again in another chunk gets other responses.
            seed=seed + start,
            rows=rows,
            progress=progress,
        )
        with part.open("a", encoding="utf-8") as file:
            for row, responses in zip(chunk, sampled, strict=True):
                kept = {column: value for column, value in row.items() if column not in ABOUT_RESPONSES}
                line = {**kept, "responses": [response.text for response in responses]}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    part.replace(output)
    return len(table)


def _check(table: list[Any], prompts: Path, output: Path) -> None:
    for number, row in enumerate(table):
        if not row.get("prompt"):
            raise InputError(
                f"{prompts} row {number} has no `prompt`; every row needs text or messages there"
            )
    if output.exists():
        raise InputError(f"--output {output} exists; move it, or give another name")


def _finished(part: Path) -> int:
    """Rows that an earlier, killed call has written; what it left of its last chunk is taken off."""
    if not part.exists():
        return 0
    # Not splitlines: responses may hold other line separators than the file's.
    whole = part.read_text(encoding="utf-8").split("\n")[:-1]
    whole = whole[: len(whole) - len(whole) % PROMPTS_PER_CHUNK]
    part.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
    return len(whole)
