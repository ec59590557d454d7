"""The reward that a policy is trained on and measured by: higher is better."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from preftune.data.groups import Group, Response, as_answer, as_text
from preftune.errors import InputError
from preftune.rewards.auxiliary import COLUMN_PREFIX
from preftune.rewards.functions import function_name
from preftune.rewards.measures import MEASURES
from preftune.rewards.scoring import Answer, ScoreUnits, score_missing
from preftune.rewards.sources import Scoring, Specification, resolve_source
from preftune.storage.hashing import hash_json
from preftune.storage.processes import Processes
from preftune.storage.shards import Shards

AnsweredRow = Mapping[str, Any]
"""A row with `prompt`, its `responses`, and other columns about them."""

OF_EACH_RESPONSE = frozenset({"response_tokens", "finish_reasons", "finished"})
"""Columns of sampled rows that are a list with a value for each response."""


class PolicyReward:
    """A scorer with a direction, from a specification of `preftune score`.

    Attributes:
        specification: its name and options.
        identity: everything that decides its scores.
    """

    def __init__(self, specification: Specification, tokenizer: PreTrainedTokenizerBase) -> None:
        """Resolve the specification; weights are loaded later.

        Args:
            specification: as in `preftune score --prior`, a built-in measure with a goal (a measure to
                minimise is negated), or a function.
            tokenizer: the policy's.

        Raises:
            InputError: the source does not exist, reads columns of the data, or has no goal.
        """
        self.specification = specification if isinstance(specification, str) else function_name(specification)
        self._scoring: Scoring = resolve_source("reward", specification, tokenizer=tokenizer)
        name = str(self._scoring.content[0])
        if name.startswith(COLUMN_PREFIX):
            raise InputError(f"reward={specification}: sampled responses have no columns; use another source")
        if name in MEASURES and MEASURES[name].goal is None:
            raise InputError(
                f"reward={specification}: {name} has no default goal; give a module:function that returns "
                "a higher number for a better response"
            )
        self._sign = -1.0 if name in MEASURES and MEASURES[name].goal == "minimise" else 1.0
        self.identity = hash_json([self._sign, *map(repr, self._scoring.content)])
        self._ready: ScoreUnits | None = None

    def score(self, rows: Sequence[AnsweredRow], output: Path) -> list[list[float]]:
        """The rewards of every row's `responses`, in order.

        Finished rewards are kept beside `output`, as in `preftune score`, until `forget`.

        Raises:
            InputError: the reward fails, or does not return a finite number.
        """
        self.score_share(rows, output, Processes())
        numbers = iter(self._shards(rows, output).in_order(sum(len(row["responses"]) for row in rows)))
        return [[self._sign * next(numbers) for _ in row["responses"]] for row in rows]

    def score_share(self, rows: Sequence[AnsweredRow], output: Path, processes: Processes) -> None:
        """Score this process's share of the responses that have no kept score beside `output`."""
        scoring, shards = self._scoring, self._shards(rows, output)
        answers = _answers(rows)
        score_missing(scoring.scorer, answers, shards, processes, title=scoring.name, ready=self._ready)

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Keep the scorer in memory while the context is open."""
        with self._scoring.scorer.ready() as self._ready:
            try:
                yield
            finally:
                self._ready = None

    def forget(self, rows: Sequence[AnsweredRow], output: Path) -> None:
        """Remove the scores kept beside `output`. Call it after `output` is written."""
        self._shards(rows, output).remove()

    def _shards(self, rows: Sequence[AnsweredRow], output: Path) -> Shards:
        return Shards(output, hash_json([self.identity, list(rows)]))


def _answers(rows: Iterable[AnsweredRow]) -> list[Answer]:
    return [Answer(group, place) for group in _groups(rows) for place in range(len(group.responses))]


def _groups(rows: Iterable[AnsweredRow]) -> list[Group]:
    return [
        Group(
            prompt=as_text(row["prompt"]),
            responses=tuple(Response(as_answer(text, row["prompt"])) for text in row["responses"]),
            pairs=(),
            row=number,
            columns={column: value for column, value in row.items() if column not in ("prompt", "responses")},
            response_columns=OF_EACH_RESPONSE.intersection(row),
        )
        for number, row in enumerate(rows)
    ]
