"""The sources of scores for `preftune score`, by their specification on the command line."""

import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from preftune.data.rules import suggest
from preftune.errors import InputError
from preftune.models.content import model_content
from preftune.objectives.options import Option, parameter_options
from preftune.rewards.auxiliary import (
    COLUMN_PREFIX,
    OF_EVERY_REWARD,
    AuxiliaryReward,
    Where,
    check_reward_options,
    resolve_reward,
)
from preftune.rewards.functions import function_content, function_name
from preftune.rewards.implicit import ImplicitReward
from preftune.rewards.judge import Judge
from preftune.rewards.measures import MEASURES
from preftune.rewards.measuring import GROUPS_PER_CALL, measure_groups
from preftune.rewards.reward_model import RewardModelScorer
from preftune.rewards.rules import COLUMN
from preftune.rewards.scoring import Answer, Scorer, ScoreUnits, ScoringUnit, one_by_one

if TYPE_CHECKING:
    import transformers

SPECIFICATION = re.compile(r"(?P<source>.+?)(?::(?P<options>\w+=.*))?", re.DOTALL)


@dataclass(frozen=True)
class Source:
    """A kind of scorer, specified by a prefix and a name.

    Attributes:
        build: the scorer, from what follows the prefix and its options.
        summary: one line for people.
    """

    build: Callable[..., Scorer]
    summary: str

    @property
    def options(self) -> Mapping[str, Option]:
        """Its settings by name."""
        return parameter_options(self.build)


SOURCES: Mapping[str, Source] = {
    "hf": Source(RewardModelScorer, "a reward model: folder or hub name of a sequence classification model"),
    "judge": Source(
        Judge, "a model's name at OPENAI_BASE_URL, which rates from 1 to 10; key in OPENAI_API_KEY"
    ),
    "policy": Source(
        ImplicitReward,
        "implicit reward of a tuned model: log-probability of the response less the reference's",
    ),
}
"""Scorers by prefix."""

NAME = Option(None, COLUMN, "the column's name (what follows the last slash or colon)")


@dataclass(frozen=True)
class Scoring:
    """One source of scores, resolved.

    Attributes:
        name: the column's name.
        scorer: gives the numbers.
        content: everything besides the data that decides them: source, options and identity.
    """

    name: str
    scorer: Scorer
    content: tuple[Any, ...]


Specification = str | Callable[..., Any]
"""A source of scores: a specification as on the command line, or a function."""


def resolve_source(
    flag: str,
    specification: Specification,
    *,
    name: str | None = None,
    tokenizer: "transformers.PreTrainedTokenizerBase | None" = None,
    locate: Where = "row {}".format,
    trust_remote_code: bool = False,
) -> Scoring:
    """Resolve a specification: `SOURCE` or `SOURCE:option=value,option=value`, values in YAML.

    Args:
        flag: the option that holds it, for messages.
        specification: the source is a prefix in `SOURCES` with a name, a name in `MEASURES`,
            `column:NAME` or `module:function`; or a function itself.
        name: the column's name; by default the specification's.
        tokenizer: for measures that count tokens.
        locate: names a row of the data for messages.
        trust_remote_code: run the code of models that have their own.

    Raises:
        InputError: the source does not exist, an option does not fit, or a model or function cannot be
            loaded.
    """
    if callable(specification):
        return _of_function(flag, specification, name, locate)
    text, options = _parse(flag, specification)
    if name is not None:
        options["name"] = name
    path = f"{flag} {text}"
    prefix, _, rest = text.partition(":")
    if prefix in SOURCES and rest:
        source = SOURCES[prefix]
        check_reward_options(path, prefix, options, {"name": NAME, **source.options})
        name = options.pop("name", rest.rstrip("/").rpartition("/")[2])
        own_code = "trust_remote_code" in signature(source.build).parameters
        code = {"trust_remote_code": trust_remote_code} if own_code else {}
        scorer = source.build(rest, **options, **code)
    else:
        if text not in MEASURES and ":" not in text:
            raise InputError(
                f"{path} is unknown{suggest(text, [*MEASURES, *SOURCES])}: use one of "
                f"{', '.join(MEASURES)}, {', '.join(f'{prefix}:NAME' for prefix in SOURCES)}, column:NAME or "
                "module:function"
            )
        name = options.pop("name", text.rpartition(":")[2])
        # Only measurements are written, so the goal does not matter.
        settings = {"measure": text, "goal": "maximise", **options}
        scorer = Measurement(
            resolve_reward(path, name, settings, tokenizer), text, options, tokenizer, locate
        )
    decisive = {option: value for option, value in options.items() if option not in ("price", "max_cost")}
    return Scoring(name, scorer, (text, sorted(decisive.items()), scorer.identity))


def _of_function(flag: str, function: Callable[..., Any], name: str | None, locate: Where) -> Scoring:
    """Resolve the caller's own function."""
    title = name or function_name(function).rpartition(":")[2]
    settings = {"measure": function, "goal": "maximise"}
    reward = resolve_reward(f"{flag} {title}", title, settings, None)
    scorer = Measurement(reward, function_name(function), {}, None, locate, function_content(function))
    return Scoring(title, scorer, (function_name(function), [], scorer.identity))


def _parse(flag: str, specification: str) -> tuple[str, dict[str, Any]]:
    match = SPECIFICATION.fullmatch(specification)
    if match is None:
        raise InputError(f"{flag} {specification!r} has no source: use one of {', '.join(MEASURES)}")
    options: dict[str, Any] = {}
    for part in re.split(r",(?=\w+=)", match["options"] or ""):
        key, _, value = part.partition("=")
        if key in OF_EVERY_REWARD:
            raise InputError(
                f"{flag} {specification}: {key} belongs in a run's configuration; remove it here"
            )
        try:
            options.update({key: yaml.safe_load(value)} if key else {})
        except yaml.YAMLError:
            raise InputError(f"{flag} {specification}: {value!r} is not YAML; quote it") from None
    return match["source"], options


class Measurement:
    """A measure, a column or a function as a `Scorer`: a few hundred rows at a time, in the data's order."""

    def __init__(
        self,
        reward: AuxiliaryReward,
        source: str,
        options: Mapping[str, Any],
        tokenizer: "transformers.PreTrainedTokenizerBase | None",
        locate: Where,
        identity: str | None = None,
    ) -> None:
        self._reward = reward
        self._locate = locate
        self.identity = _measured_by(source, options, tokenizer) if identity is None else identity

    def plan(self, answers: Sequence[Answer]) -> list[ScoringUnit]:
        """Units of whole groups, as many as a measure gets at once in training."""
        firsts = [place for place, answer in enumerate(answers) if answer.place == 0]
        starts = firsts[::GROUPS_PER_CALL]
        return [
            ScoringUnit(
                tuple(range(start, stop)),
                [answer.group for answer in answers[start:stop] if answer.place == 0],
            )
            for start, stop in zip(starts, [*starts[1:], len(answers)], strict=True)
        ]

    @contextmanager
    def ready(self) -> Iterator[ScoreUnits]:
        """The measure, which loads what it needs by itself."""

        def score(unit: ScoringUnit) -> list[float]:
            measured = measure_groups(unit.inputs, [self._reward], self._locate)
            return [float(number) for number in measured.measurements[self._reward.name].tolist()]

        yield one_by_one(score)


def rewards_content(
    section: Mapping[str, Any], tokenizer: "transformers.PreTrainedTokenizerBase | None" = None
) -> dict[str, str]:
    """By reward, everything besides options and data that decides the measurements of a section `rewards`.

    Use it as a part of the key of kept measurements: a function's code or a model's files may change while
    their name stays the same.
    """
    settings = {name: dict(options or {}) for name, options in section.items()}
    return {
        name: function_content(measure)
        if callable(measure := options.get("measure", name))
        else _measured_by(str(measure), options, tokenizer)
        for name, options in settings.items()
    }


def _measured_by(
    source: str, options: Mapping[str, Any], tokenizer: "transformers.PreTrainedTokenizerBase | None"
) -> str:
    """Everything besides options and data that decides the measurements."""
    is_function = source not in MEASURES and not source.startswith(COLUMN_PREFIX)
    parts = [_code(source) if is_function else b""]
    if source in MEASURES and "model" in options:
        parts.append(model_content(str(options["model"])).encode())
    if source in MEASURES and MEASURES[source].needs_tokenizer and tokenizer is not None:
        parts.append(hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).digest())
    return repr(parts)


def _code(reference: str) -> bytes:
    """The source file of the module in `module:function`; empty if it has none."""
    spec = importlib.util.find_spec(reference.partition(":")[0])
    file = Path(spec.origin) if spec and spec.origin else None
    return file.read_bytes() if file and file.is_file() else b""
