"""`preftune.score`: numbers for every response of a data set."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.api.keywords import NamedOrRows
from preftune.data import read_rows
from preftune.rewards.score_file import score_file
from preftune.rewards.sources import Specification


def score(
    data: NamedOrRows,
    rewards: Specification | Sequence[Specification] | Mapping[str, Specification] = (),
    *,
    prior: Specification | None = None,
    split: str = "train",
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    output: str | Path | None = None,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Score every response by reward models, judges, measures or functions.

    Args:
        data: a file, folder or hub name, a `datasets.Dataset`, or rows.
        rewards: what to score by, one or several, as columns of its name: what `preftune score --reward`
            takes, or functions (prompts, completions, **columns) -> one number for each completion; a mapping
            names the columns.
        prior: the same for the prior's columns (`score_chosen` and `score_rejected`, or `scores`).
        split: the split to read.
        tokenizer: folder or hub name, for measures that count tokens.
        trust_remote_code: run code of models that have their own.
        output: JSON Lines file to write; a call that was killed continues there.
        progress: show a bar for each reward.

    Returns:
        The rows with columns of raw scores; `PreferenceTrainer` takes them as they are.

    Raises:
        InputError: a reward or the data cannot be used.
    """
    if isinstance(rewards, str) or callable(rewards):
        rewards = [rewards]
    named = dict(rewards) if isinstance(rewards, Mapping) else {}
    specifications = list(named.values()) if named else list(rewards)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scored.jsonl" if output is None else Path(output)
        score_file(
            data,
            file,
            specifications,
            names=list(named) or None,
            prior=prior,
            split=split,
            tokenizer=tokenizer,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
        return [dict(row) for row in read_rows(file)]
