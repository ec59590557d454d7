"""Score a data set's responses and write the scores as columns that a run's prior and rewards read."""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

from preftune.data import Asked, LoadedGroups, load_groups, read_rows
from preftune.data.columns import GROUP_COLUMNS
from preftune.data.sources import GIVEN_ROWS
from preftune.errors import InputError
from preftune.models import load_tokenizer
from preftune.rewards.auxiliary import COLUMN_PREFIX
from preftune.rewards.measures import MEASURES
from preftune.rewards.scoring import Answer, score_missing, scored_content
from preftune.rewards.sources import Scoring, Specification, resolve_source
from preftune.storage.files import as_lines
from preftune.storage.processes import Processes
from preftune.storage.shards import Shards, refuse_existing, write_shared

logger = logging.getLogger(__name__)

SCORES_OF = dict(reversed(GROUP_COLUMNS))
"""The column of a group's scores, by the column of its responses."""


def score_file(
    data: Any,
    output: Path,
    rewards: Sequence[Specification] = (),
    *,
    names: Sequence[str] | None = None,
    prior: Specification | None = None,
    split: str = "train",
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    progress: bool = False,
) -> int:
    """Write the rows of a data set with columns of raw scores.

    A reward's column has its name: pairs get NAME_chosen and NAME_rejected, groups a list in NAME, single
    responses a number in NAME. The prior's columns are those that a run reads scores from: score_chosen and
    score_rejected, a list in `scores`, or `score`. Groups in the layout of a public data set also get
    `prompt` and `responses`, because a run would otherwise read that layout's own scores.

    Finished scores are kept in `.part` files beside `output`, named by a hash of the data and the scorers:
    the same call resumes from them and gives the same file, on any number of processes.

    Args:
        data: any source that `load_groups` reads.
        output: JSON Lines.
        rewards: sources of scores, see `resolve_source`.
        names: names of their columns; by default their own.
        prior: source of the prior's scores.
        split: the split to read.
        tokenizer: folder or hub name, for measures that count tokens.
        trust_remote_code: run the code of models that have their own.
        progress: show a bar per reward.

    Returns:
        The number of rows written; rows that give no group are dropped, and the log says why.

    Raises:
        InputError: a specification, the data or the output is wrong.
    """
    refuse_existing(output)
    _check_rewards(rewards)
    _check_prior(prior)
    table = read_rows(data, split)
    rows = list(table)
    resolve = partial(
        resolve_source,
        tokenizer=load_tokenizer(tokenizer) if tokenizer else None,
        locate=table.locate,
        trust_remote_code=trust_remote_code,
    )
    scorings = [
        resolve("--reward", specification, name=name)
        for specification, name in zip(rewards, names or repeat(None, len(rewards)), strict=True)
    ]
    loaded = load_groups(data, asked=Asked(needs_pairs=False), split=split, keep_columns=True)
    columns = [_reward_columns(scoring.name, loaded) for scoring in scorings]
    if prior is not None:
        scorings.append(resolve("--prior", prior))
        columns.append(_prior_columns(loaded))
    _check_columns(columns, table.columns, data)
    if loaded.report.dropped:
        logger.warning("%s", loaded.report.summary())
    answers = [Answer(group, place) for group in loaded.groups for place in range(len(group.responses))]
    content = scored_content(loaded.groups)
    shards = [Shards(output, _key(content, scoring)) for scoring in scorings]

    def work(processes: Processes) -> None:
        for scoring, finished in zip(scorings, shards, strict=True):
            score_missing(scoring.scorer, answers, finished, processes, title=scoring.name, progress=progress)

    def joined() -> str:
        scores = [finished.in_order(len(answers)) for finished in shards]
        plain = prior is not None and not _is_plain(loaded)
        return as_lines(_rows(rows, loaded, columns, scores, plain=plain))

    write_shared(output, shards, work, joined)
    return len(loaded.groups)


def _rows(
    rows: Sequence[Mapping[str, Any]],
    loaded: LoadedGroups,
    columns: Sequence[tuple[str, ...]],
    scores: Sequence[Sequence[float]],
    *,
    plain: bool,
) -> Iterable[dict[str, Any]]:
    """The rows with their scores."""
    stop = 0
    for group in loaded.groups:
        start, stop = stop, stop + len(group.responses)
        row = dict(rows[group.row])
        if plain:
            row |= {"prompt": group.prompt, "responses": [response.content for response in group.responses]}
        for names, numbers in zip(columns, scores, strict=True):
            own = numbers[start:stop]
            if len(names) == 2:
                row.update(zip(names, own, strict=True))
            else:
                row[names[0]] = own if loaded.columns.shape == "groups" else own[0]
        yield row


# --- columns ---


def _reward_columns(name: str, loaded: LoadedGroups) -> tuple[str, ...]:
    return (f"{name}_chosen", f"{name}_rejected") if loaded.columns.shape == "pairwise" else (name,)


def _prior_columns(loaded: LoadedGroups) -> tuple[str, ...]:
    """The columns that a run reads scores from."""
    if loaded.columns.shape == "pairwise":
        return "score_chosen", "score_rejected"
    if loaded.columns.shape == "labelled":
        return ("score",)
    return (SCORES_OF.get(loaded.columns.responses[0], "scores"),)


def _is_plain(loaded: LoadedGroups) -> bool:
    """Whether a run reads scores beside the responses in this layout."""
    columns = loaded.columns
    return columns.shape != "groups" or (columns.prompt == "prompt" and columns.responses[0] in SCORES_OF)


def _check_columns(columns: Sequence[tuple[str, ...]], found: Sequence[str], data: Any) -> None:
    written = [name for names in columns for name in names]
    taken = [name for name in written if name in found]
    if taken:
        source = data if isinstance(data, str | Path) else GIVEN_ROWS
        raise InputError(f"{source} already has the column {taken[0]!r}: rename or remove it")
    twice = [name for name in written if written.count(name) > 1]
    if twice:
        raise InputError(
            f"the column {twice[0]!r} would be written twice: give the source once, or rename one column "
            "(NAME:name=OTHER)"
        )


def _check_rewards(rewards: Sequence[Specification]) -> None:
    for specification in rewards:
        if isinstance(specification, str) and specification.startswith(COLUMN_PREFIX):
            raise InputError(
                f"--reward {specification}: a run can read this column of the data directly; remove the "
                "option (only --prior takes columns)"
            )


def _check_prior(prior: Specification | None) -> None:
    name = prior.partition(":")[0] if isinstance(prior, str) else ""
    if name in MEASURES and MEASURES[name].goal != "maximise":
        raise InputError(
            f"--prior {prior}: a prior needs a score that is higher for the better response, and {name} is "
            "not: use --reward, or give your own function"
        )


# --- what decides the scores ---


def _key(content: str, scoring: Scoring) -> str:
    return hashlib.sha256(repr((content, scoring.content)).encode()).hexdigest()
