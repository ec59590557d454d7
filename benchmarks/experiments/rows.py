"""The settings' data: training pairs, validation and test prompts. Nothing is written."""

import gzip
import json
import math
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from experiments.sizes import Sizes
from experiments.variations import PairRow, best_and_worst_of
from preftune.demo.data import demo_rows
from preftune.errors import InputError

GRADED, HARMLESS = "alpaca_graded.jsonl.gz", "hh_harmless_test.jsonl.gz"
LONGEST_PROMPT = 300
"""Characters of a graded prompt."""
LONGEST_CONVERSATION = 600
HARMLESS_TRAINING = 800
SHUFFLE_SEED = 0
SMALLEST_ODDS = 1e-6

Group = dict[str, Any]
"""`prompt` as messages, `responses`, `scores`, and what a judge needs."""


@dataclass(frozen=True)
class Splits:
    """A setting's groups, or pairs where a prompt has two responses without scores.

    Attributes:
        train, validation, test: of prompts that no other split has.
        judge: of prompts for a reward model alone.
    """

    train: list[Group]
    validation: list[Group]
    test: list[Group]
    judge: list[Group]


@lru_cache
def splits_of(part: str, where: Path | None, sizes: Sizes) -> Splits:
    """The data of part a, b or c.

    Raises:
        InputError: a file is not there.
    """
    if part == "a":
        train, held_out = demo_rows("train"), demo_rows("held_out")
        count = min(sizes.validation_prompts, len(train) // 2)
        return _limited(Splits(train[:-count], train[-count:], held_out, []), sizes)
    if part == "b":
        groups = [_graded(row) for row in _read(where, GRADED) if len(row["prompt"]) <= LONGEST_PROMPT]
        return _limited(_dealt(groups, sizes, sizes.judge_prompts), sizes)
    pairs = [pair for row in _read(where, HARMLESS) if (pair := _harmless(row))]
    return _limited(_dealt(pairs, sizes, 0), sizes, HARMLESS_TRAINING)


def _read(where: Path | None, name: str) -> list[dict[str, Any]]:
    if where is None or not (where / name).is_file():
        raise InputError(f"--where={where} has no file {name}: name the folder with the preference data")
    with gzip.open(where / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _dealt(groups: list[Group], sizes: Sizes, for_judge: int) -> Splits:
    random.Random(SHUFFLE_SEED).shuffle(groups)
    judge, rest = groups[:for_judge], groups[for_judge:]
    validation, rest = rest[: sizes.validation_prompts], rest[sizes.validation_prompts :]
    test_count = min(sizes.test_prompts, 40)
    return Splits(rest[test_count:], validation, rest[:test_count], judge)


def _limited(splits: Splits, sizes: Sizes, most: int | None = None) -> Splits:
    limits = [limit for limit in (sizes.training_prompts, most) if limit is not None]
    train = splits.train[: min(limits)] if limits else splits.train
    validation, test = splits.validation[: sizes.validation_prompts], splits.test[: sizes.test_prompts]
    return Splits(train, validation, test, splits.judge)


def _graded(row: dict[str, Any]) -> Group:
    prompt = [{"role": "user", "content": row["prompt"]}]
    return {"prompt": prompt, "responses": row["responses"], "scores": row["scores"]}


def _harmless(row: dict[str, Any]) -> Group | None:
    """The conversation up to its last turn, and both last turns; None if they are too long or the same."""
    before, _, chosen = row["chosen"].rpartition("\n\nAssistant:")
    other, _, rejected = row["rejected"].rpartition("\n\nAssistant:")
    texts = [chosen.strip(), rejected.strip()]
    if before != other or not all(texts) or texts[0] == texts[1] or len(before) > LONGEST_CONVERSATION:
        return None
    messages = []
    for turn in before.split("\n\nHuman:")[1:]:
        human, *assistant = turn.split("\n\nAssistant:")
        messages.append({"role": "user", "content": human.strip()})
        messages += [{"role": "assistant", "content": text.strip()} for text in assistant]
    if not messages or not all(message["content"] for message in messages):
        return None
    return {"prompt": messages, "responses": texts, "scores": [1.0, 0.0]}


def pairs_of(groups: list[Group], responses: int = 8) -> list[PairRow]:
    """Best against worst of each group; groups that tie have none."""
    found = [best_and_worst_of(row["prompt"], row["responses"], row["scores"], responses) for row in groups]
    return [row for row in found if row is not None]


def as_log_odds(rows: list[PairRow]) -> list[PairRow]:
    """The pairs with log-odds for scores that are probabilities."""
    keys = ("score_chosen", "score_rejected")
    return [row | {key: _log_odds(row[key]) for key in keys} for row in rows]


def _log_odds(probability: float) -> float:
    inside = min(1 - SMALLEST_ODDS, max(SMALLEST_ODDS, probability))
    return math.log(inside / (1 - inside))
