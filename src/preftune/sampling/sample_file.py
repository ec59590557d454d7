"""Sampling for a whole file of prompts, in shards that stand beside the output until all are there."""

import hashlib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preftune.data import read_rows
from preftune.data.shapes import GROUP_COLUMNS, SCORE_COLUMNS
from preftune.data.sources import GIVEN_ROWS
from preftune.errors import InputError
from preftune.rewards.scoring import launched_processes
from preftune.sampling.engine import Generated
from preftune.sampling.engines import build_engine
from preftune.sampling.settings import SamplingSettings
from preftune.storage.files import as_lines, write_whole

logger = logging.getLogger(__name__)

PROMPTS_PER_CHUNK = 64
"""In a shard at most: what a killed process loses."""
CHUNKS = 8
"""Shards of a small file, for a few processes to share; none is smaller than what decodes together."""
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
    progress: bool = False,
) -> int:
    """Write every row of `prompts` to `output` with its n responses.

    They stand under `responses`; `response_tokens` and `finish_reasons` are lists beside it, and `sampler`
    says with what engine and settings they were sampled. Columns about other responses (`chosen`, `scores`,
    ...) are left out: beside new responses they would be read as theirs.

    Finished shards stand in `.part` files beside `output`, named by a hash of the prompts, the settings and
    the model's content: the same call continues there, on any number of processes, and another call never
    does. File and settings alone decide where shards begin, so the output does not depend on the number of
    processes.

    Args:
        model: folder or hub name; for `engine="server"` the name it has there.
        prompts: anything that `preftune.data.read_rows` reads, with a `prompt` column.
        output: JSON Lines.
        n: responses per prompt.
        max_new_tokens: longest response, in tokens.
        temperature: divides the logits; 0 is greedy.
        seed: the same seed gives the same responses.
        rows: responses decoded together.
        top_p: see `SamplingSettings`.
        engine: a name in `ENGINES`.
        progress: show a bar per shard.

    Returns:
        The number of prompts.

    Raises:
        InputError: the model cannot be read, a row has no prompt, the output exists, or a setting is out of
            its range.
    """
    settings = SamplingSettings(n, max_new_tokens, temperature, top_p, seed)
    table = list(read_rows(prompts))
    check_prompts(table, prompts, output)
    sampling = build_engine(engine, model, rows)
    processes = launched_processes()
    size = min(PROMPTS_PER_CHUNK, max(rows // n, math.ceil(len(table) / CHUNKS)))
    starts = range(0, len(table), size)
    content = [sampling.identity, asdict(settings), size, table]
    shards = Shards(output, hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:12])
    repeated = repeats(table)
    sampler = {**sampling.description, **asdict(settings)}
    # Nobody writes the output before everybody has seen that there is none.
    processes.wait()
    with ExitStack() as stack:
        sample = None
        for number in range(processes.rank, len(starts), processes.count):
            if shards.find(number) is not None:
                continue
            sample = sample or stack.enter_context(sampling.ready())
            part = slice(starts[number], starts[number] + size)
            groups = sample(
                [row["prompt"] for row in table[part]], repeated[part], settings, progress=progress
            )
            rows_of_part = zip(table[part], groups, strict=True)
            shards.write(number, as_lines(answered(row, group, sampler) for row, group in rows_of_part))
    processes.wait()
    if processes.rank == 0:
        shards.whole(output, "".join(shards.read(number) for number in range(len(starts))))
        shards.remove()
    return len(table)


@dataclass(frozen=True)
class Shards:
    """Finished shards beside an output; each is whole or not there.

    A shard's name carries a hash of its content, so that one that was damaged later is sampled again.

    Attributes:
        output: what they are joined to.
        key: a hash of all that decides them; another key never reads these files.
    """

    output: Path
    key: str

    def find(self, number: int) -> Path | None:
        """The file of a finished shard; one that was damaged is deleted."""
        for file in self._files(rf"\.{number:05d}\.(\w{{16}})\.part"):
            if file.suffixes[-2] == f".{_checksum(file.read_bytes())}":
                return file
            logger.warning("%s is damaged: its prompts are sampled again", file)
            file.unlink()
        return None

    def write(self, number: int, text: str) -> None:
        """Keep a shard."""
        name = f"{self.output.name}.{self.key}.{number:05d}.{_checksum(text.encode())}.part"
        self.whole(self.output.with_name(name), text)

    def whole(self, path: Path, text: str) -> None:
        """Write a file at once.

        Raises:
            InputError: there is no room for it, or it may not be written.
        """
        try:
            write_whole(path, text)
        except OSError as error:
            raise InputError(
                f"{path} cannot be written: {error.strerror}. Finished shards are kept: settle it and start "
                "again"
            ) from error

    def read(self, number: int) -> str:
        """A shard's content.

        Raises:
            InputError: another process has not left it.
        """
        file = self.find(number)
        if file is None:
            raise InputError(f"{self.output}: shard {number} is missing or damaged; start the call again")
        return file.read_text(encoding="utf-8")

    def remove(self) -> None:
        """Delete the files, and what killed processes left of theirs."""
        for file in self._files(r"\..*\.part"):
            file.unlink(missing_ok=True)

    def _files(self, ending: str) -> list[Path]:
        folder = self.output.parent
        named = re.compile(re.escape(f"{self.output.name}.{self.key}") + ending)
        return (
            sorted(file for file in folder.iterdir() if named.fullmatch(file.name)) if folder.is_dir() else []
        )


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


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
    """For every row, how many before it have the same prompt."""
    before: Counter[str] = Counter()
    counts = []
    for row in table:
        prompt = json.dumps(row["prompt"], sort_keys=True)
        counts.append(before[prompt])
        before[prompt] += 1
    return counts


def is_prompt(value: object) -> bool:
    """Whether it can be asked: text that is not empty, or messages of text."""
    if isinstance(value, str):
        return bool(value)
    return (
        isinstance(value, Sequence)
        and bool(value)
        and all(
            isinstance(message, Mapping)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in value
        )
    )


def check_prompts(table: Sequence[Mapping[str, Any]], source: Any, output: Path | None) -> None:
    """Refuse rows without a prompt, and an output that exists.

    Raises:
        InputError: there are no rows, one has no prompt, or the output exists.
    """
    prompts = source if isinstance(source, str | Path) else GIVEN_ROWS
    if not table:
        raise InputError(f"{prompts} has no rows; give some prompts")
    for number, row in enumerate(table):
        if not is_prompt(row.get("prompt")):
            raise InputError(
                f"{prompts} row {number} has no `prompt`; every row needs text there, or messages with role "
                "and content"
            )
    if output is not None and output.exists():
        raise InputError(f"--output {output} exists; move it, or give another name")
