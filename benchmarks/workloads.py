"""What is measured: batches of real tokens in shapes that preference data has."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from preftune.data import Pair, TokenizedGroup
from preftune.demo.data import demo_rows
from preftune.models import load_tokenizer

SEED = 0

Range = tuple[int, int]


@dataclass(frozen=True)
class Workload:
    """The shape of a batch, and what is done with it.

    Attributes:
        name: as it stands in the results.
        prompts: fewest and most tokens of a prompt; lengths are uniform.
        responses: fewest and most tokens of a response.
        groups: prompts in the batch.
        pairs: pairs of each prompt, every one with two responses of its own.
        prompt_over_response: where given, every prompt is this many times as long as each of its responses.
        lora: train rank-16 adapters on all linear layers instead of all weights.
        task: "step" trains; "reference" scores the responses under the reference.
    """

    name: str
    prompts: Range = (100, 400)
    responses: Range = (50, 300)
    groups: int = 4
    pairs: int = 1
    prompt_over_response: int | None = None
    lora: bool = False
    task: str = "step"

    def shrunk(self, divisor: int) -> "Workload":
        """The same shape with all lengths divided; for trying the benchmark out."""
        values = vars(self) | {
            key: tuple(max(4, length // divisor) for length in vars(self)[key])
            for key in ("prompts", "responses")
        }
        return Workload(**values)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("chat"),
        Workload("long_prompt", prompts=(280, 560), responses=(70, 140), prompt_over_response=4),
        Workload("eight_responses", groups=1, pairs=4),
        Workload("lora", lora=True),
        Workload("reference", groups=16, task="reference"),
    )
}


def draw_groups(workload: Workload, model: str) -> list[TokenizedGroup]:
    """The workload's batch: the demo's texts, end to end, cut to seeded lengths."""
    random = np.random.default_rng(SEED)
    prompts, responses = (_Tape(ids) for ids in _demo_tokens(model))
    groups = []
    for _ in range(workload.groups):
        count = 2 * workload.pairs
        lengths = random.integers(*workload.responses, size=count, endpoint=True).tolist()
        prompt = int(random.integers(*workload.prompts, endpoint=True))
        if workload.prompt_over_response:
            lengths = [lengths[0]] * count
            prompt = workload.prompt_over_response * lengths[0]
        pairs = tuple(Pair(2 * index, 2 * index + 1) for index in range(workload.pairs))
        groups.append(TokenizedGroup(prompts.cut(prompt), tuple(map(responses.cut, lengths)), pairs))
    return groups


class _Tape:
    """Hands out consecutive pieces of a long text, from the start again at its end."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = np.array(ids, dtype=np.int32)
        self._place = 0

    def cut(self, length: int) -> np.ndarray:
        where = np.arange(self._place, self._place + length)
        self._place += length
        return self._ids.take(where, mode="wrap")


def _demo_tokens(model: str) -> tuple[list[int], list[int]]:
    """Token ids of all prompts and of all responses of the demo."""
    tokenizer = load_tokenizer(model)
    rows = demo_rows("train")
    prompts = [message["content"] for row in rows for message in row["prompt"]]
    responses = [response for row in rows for response in row["responses"]]
    encoded = [
        tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for texts in (prompts, responses)
    ]
    return list(chain(*encoded[0])), list(chain(*encoded[1]))


def count_tokens(groups: Sequence[TokenizedGroup]) -> dict[str, int]:
    """Tokens of a batch, as each side lays it out.

    `packed` counts every prompt once; `pairs` counts it for every response; `padded` also counts what fills
    up rows when all pairs are in one batch.
    """
    rows = [len(g.prompt) + len(r) for g in groups for r in g.responses]
    return {
        "prompts": sum(len(group.prompt) for group in groups),
        "responses": sum(len(response) for group in groups for response in group.responses),
        "packed": sum(group.packed_tokens for group in groups),
        "pairs": sum(rows),
        "padded": max(rows) * len(rows),
    }


def write_groups(path: Path, groups: Sequence[TokenizedGroup]) -> None:
    """Write groups as JSON, for a worker to read."""
    content = [
        {
            "prompt": group.prompt.tolist(),
            "responses": [response.tolist() for response in group.responses],
            "pairs": [(pair.chosen, pair.rejected) for pair in group.pairs],
            "per_response": {name: values.tolist() for name, values in group.per_response.items()},
        }
        for group in groups
    ]
    path.write_text(json.dumps(content), encoding="utf-8")


def read_groups(path: Path) -> list[TokenizedGroup]:
    """What `write_groups` wrote."""
    return [_group(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def _group(entry: dict[str, Any]) -> TokenizedGroup:
    return TokenizedGroup(
        np.array(entry["prompt"], dtype=np.int32),
        tuple(np.array(response, dtype=np.int32) for response in entry["responses"]),
        tuple(Pair(chosen, rejected) for chosen, rejected in entry["pairs"]),
        {name: np.array(values, dtype=np.float32) for name, values in entry["per_response"].items()},
    )
