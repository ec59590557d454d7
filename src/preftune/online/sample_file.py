"""Sampling for a whole file of prompts, kept as it goes so that a killed run loses at most one chunk."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.data import read_rows
from preftune.errors import InputError
from preftune.online.sampling import Chat, sample_responses

PROMPTS_PER_CHUNK = 64


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
    """Write every row of `prompts` to `output` with its n responses added under `responses`.

    Finished chunks stand in `output` with `.part` behind its name; the same call continues there.

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
        InputError: no `prompt` column, an output that exists, or half a run with other prompts in it.
    """
    table = list(read_rows(prompts))
    _check(table, prompts, output)
    part = output.with_name(output.name + ".part")
    done = _finished(part, table)
    output.parent.mkdir(parents=True, exist_ok=True)
    language_model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    for start in range(done, len(table), PROMPTS_PER_CHUNK):
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
            dtype=torch.bfloat16,
            progress=progress,
        )
        with part.open("a", encoding="utf-8") as file:
            for row, responses in zip(chunk, sampled, strict=True):
                line = {**row, "responses": [response.text for response in responses]}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    part.replace(output)
    return len(table)


def _check(table: list[Any], prompts: Path, output: Path) -> None:
    for number, row in enumerate(table):
        prompt: str | Chat | None = row.get("prompt")
        if not prompt:
            raise InputError(
                f"{prompts} row {number} has no `prompt`; every row needs text or messages there"
            )
    if output.exists():
        raise InputError(f"--output {output} exists; move it, or give another name")


def _finished(part: Path, table: list[Any]) -> int:
    """Rows that an earlier, killed call has written; half a line at the end is taken off."""
    if not part.exists():
        return 0
    whole = [
        line for line in part.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
    ]
    # Only whole chunks count: responses depend on the chunk they were sampled in.
    whole = whole[: len(whole) - len(whole) % PROMPTS_PER_CHUNK]
    for number, (line, row) in enumerate(zip(whole, table, strict=False)):
        if json.loads(line)["prompt"] != row["prompt"]:
            raise InputError(
                f"{part} row {number} has another prompt than the file; delete {part} to start over"
            )
    part.write_text("".join(whole), encoding="utf-8")
    return len(whole)
