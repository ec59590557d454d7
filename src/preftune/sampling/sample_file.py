"""Sampling for a whole file of prompts, chunk by chunk. Finished chunks are kept beside the output."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from preftune.data import read_rows
from preftune.data.columns import GROUP_COLUMNS, SCORE_COLUMNS
from preftune.data.messages import as_content
from preftune.data.rules import BadRow
from preftune.data.sources import GIVEN_ROWS
from preftune.errors import InputError
from preftune.sampling.engine import Generated, SamplingEngine
from preftune.sampling.engines import build_engine
from preftune.sampling.settings import SamplingSettings
from preftune.storage.files import as_lines
from preftune.storage.processes import Processes
from preftune.storage.shards import Shards, refuse_existing, write_shared

PROMPTS_PER_CHUNK = 64
"""Largest chunk: what a killed process loses."""
CHUNKS = 8
"""Chunks of a small file, for a few processes to share; a chunk has at least the prompts decoded together."""
ABOUT_RESPONSES = {
    *("chosen", "rejected", "completion", "label"),
    *("response_tokens", "finish_reasons", "sampler"),
}.union(*SCORE_COLUMNS, *GROUP_COLUMNS)
"""Columns that describe the responses a row came with."""


def sample_file(
    model: str,
    prompts: Any,
    output: Path,
    *,
    n: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    rows: int,
    top_p: float = 1.0,
    engine: str = "transformers",
    price: str | None = None,
    max_cost: float | None = None,
    progress: bool = False,
) -> int:
    """Write every row of `prompts` to `output` with its n responses.

    The column `responses` holds them. `response_tokens` and `finish_reasons` are lists of the same length,
    and `sampler` records the engine and settings. Columns about other responses (`chosen`, `scores`, ...) are
    dropped, because readers would take them for columns of the new responses.

    Finished chunks are kept in `.part` files beside `output`, named by a hash of the prompts, the settings
    and the model's content: only the same call resumes from them, on any number of processes. The file and
    the settings alone decide where chunks begin, so the output does not depend on the number of processes.

    Args:
        model: folder or hub name; for `engine="server"` the name it has there.
        prompts: anything that `preftune.data.read_rows` reads, with a `prompt` column.
        output: JSON Lines.
        n: responses per prompt.
        max_new_tokens: longest response, in tokens.
        temperature: divides the logits; 0 is greedy.
        seed: the same seed gives the same responses.
        rows: responses decoded at the same time.
        top_p: see `SamplingSettings`.
        engine: a name in `ENGINES`.
        price: see `build_engine`.
        max_cost: see there.
        progress: show a bar per chunk.

    Returns:
        The number of prompts.

    Raises:
        InputError: the model cannot be read, a row has no prompt, the output exists, or a setting is out of
            range.
    """
    settings = SamplingSettings(n, max_new_tokens, temperature, top_p, seed)
    table = list(read_rows(prompts))
    check_prompts(table, prompts, output)
    sampling = build_engine(engine, model, rows, price=price, max_cost=max_cost)
    size = min(PROMPTS_PER_CHUNK, max(rows // n, math.ceil(len(table) / CHUNKS)))
    content = [sampling.identity, asdict(settings), size, table]
    shards = Shards(output, hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest())

    def work(processes: Processes) -> None:
        chunks = [slice(start, start + size) for start in range(0, len(table), size)]
        share = chunks[processes.rank :: processes.count]
        _sample_missing(sampling, table, share, settings, shards, processes.rank, progress)

    write_shared(output, [shards], work, lambda: as_lines(shards.in_order(len(table))))
    return len(table)


def _sample_missing(
    sampling: SamplingEngine,
    table: Sequence[Mapping[str, Any]],
    chunks: Sequence[slice],
    settings: SamplingSettings,
    shards: Shards,
    rank: int,
    progress: bool,
) -> None:
    """Answer the chunks of prompts that no shard holds yet."""
    repeated = repeats(table)
    finished = shards.rows()
    missing = [chunk for chunk in chunks if not finished.keys() >= set(range(len(table))[chunk])]
    if not missing:
        return
    about = {**sampling.description, **asdict(settings)}
    with sampling.ready(shards.replies) as ask:
        for chunk in missing:
            rows = table[chunk]
            groups = ask([row["prompt"] for row in rows], repeated[chunk], settings, progress=progress)
            places = range(len(table))[chunk]
            shards.append(
                {
                    place: answered(row, group, about)
                    for place, row, group in zip(places, rows, groups, strict=True)
                },
                rank,
            )


def answered(
    row: Mapping[str, Any], group: Sequence[Generated], sampler: Mapping[str, Any]
) -> dict[str, Any]:
    """A prompt's row with its responses, without columns about others."""
    return {
        **{column: value for column, value in row.items() if column not in ABOUT_RESPONSES},
        "responses": [response.text for response in group],
        "response_tokens": [response.tokens for response in group],
        "finish_reasons": [response.finish_reason for response in group],
        "sampler": sampler,
    }


def repeats(table: Sequence[Mapping[str, Any]]) -> list[int]:
    """For every row, the number of earlier rows with the same prompt."""
    before: Counter[str] = Counter()
    counts = []
    for row in table:
        prompt = json.dumps(row["prompt"], sort_keys=True)
        counts.append(before[prompt])
        before[prompt] += 1
    return counts


def is_prompt(value: object) -> bool:
    """Whether it can be asked: text that is not empty, or messages."""
    try:
        return bool(as_content(value, "prompt"))
    except BadRow:
        return False


def check_prompts(table: Sequence[Mapping[str, Any]], source: Any, output: Path | None) -> None:
    """Refuse rows without a prompt, and an output that exists.

    Raises:
        InputError: there are no rows, one has no prompt, or the output exists.
    """
    prompts = source if isinstance(source, str | Path) else GIVEN_ROWS
    if not table:
        raise InputError(f"{prompts} has no rows: give a file with prompts")
    for number, row in enumerate(table):
        if not is_prompt(row.get("prompt")):
            raise InputError(
                f"{prompts} row {number} has no `prompt`: set it to text, or to messages with role and "
                "content"
            )
    if output is not None:
        refuse_existing(output)
