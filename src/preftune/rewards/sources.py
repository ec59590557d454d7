"""The sources of scores for `preftune score`, by their specification on the command line."""

import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from preftune.data.rules import suggest
from preftune.errors import InputError
from preftune.models.content import model_content
from preftune.rewards.auxiliary import (
    COLUMN_PREFIX,
    OF_EVERY_REWARD,
    AuxiliaryReward,
    Where,
    check_options,
    resolve_reward,
)
from preftune.rewards.functions import function_content, function_name
from preftune.rewards.implicit import ImplicitReward
from preftune.rewards.judge import Judge
from preftune.rewards.measures import MEASURES, RewardOption, is_finite_number
from preftune.rewards.measuring import GROUPS_PER_CALL, measure_groups
from preftune.rewards.reward_model import TOKENS, RewardModelScorer
from preftune.rewards.scoring import Answer, Scorer, ScoreUnits, ScoringUnit, one_by_one

if TYPE_CHECKING:
    import transformers

SPECIFICATION = re.compile(r"(?P<source>.+?)(?::(?P<options>\w+=.*))?", re.DOTALL)


@dataclass(frozen=True)
class Source:
    """A kind of scorer, specified by a prefix and a name.

    Attributes:
        summary: one line of help.
        build: from the name after the prefix and the options to the scorer.
        options: its settings by name.
        runs_code: whether `build` takes `trust_remote_code`.
    """

    summary: str
    build: Callable[..., Scorer]
    options: Mapping[str, RewardOption] = field(default_factory=dict)
    runs_code: bool = False


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_temperature(value: object) -> bool:
    return value is None or _is_cost(value)


def _is_cost(value: object) -> bool:
    return isinstance(value, int | float) and is_finite_number(value) and value >= 0


def _is_settings(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _choice(*names: str) -> Callable[[object], bool]:
    return lambda value: value in names


NAME = RewardOption("a column's name", _is_name, "the column's name (the part after the last slash or colon)")
TEMPLATE = RewardOption(
    "a mapping, such as {enable_thinking: false}", _is_settings, "passed to its chat template"
)
PRECISION = RewardOption("fp32 or bf16", _choice("fp32", "bf16"), "of weights and products (bf16 if fast)")

SOURCES: Mapping[str, Source] = {
    "hf": Source(
        "a reward model: folder or hub name of a sequence classification model",
        RewardModelScorer,
        {
            "label": RewardOption(
                "an output's number or name",
                lambda value: _is_name(value) or value == 0 or _is_count(value),
                "the score (the only output)",
            ),
            "tokens": RewardOption(
                " or ".join(TOKENS),
                _choice(*TOKENS),
                "use the whole chat template, or tokenise as in training (the model's, else template)",
            ),
            "chat_template_kwargs": replace(
                TEMPLATE, summary=f"{TEMPLATE.summary} (as in training, or none)"
            ),
            "max_length": RewardOption(
                "an int >= 1", _is_count, "longest conversation in tokens (the model's)"
            ),
            "truncation": RewardOption(
                "start, end or error",
                _choice("start", "end", "error"),
                "where longer ones are truncated (start)",
            ),
            "precision": PRECISION,
            "batch_tokens": RewardOption("an int >= 1", _is_count, "tokens in a batch (16384)"),
        },
        runs_code=True,
    ),
    "judge": Source(
        "a model at OPENAI_BASE_URL that rates from 1 to 10; key in OPENAI_API_KEY",
        Judge,
        {
            "temperature": RewardOption(
                "a number >= 0, or null",
                _is_temperature,
                "sampling temperature; null uses the endpoint's (0)",
            ),
            "workers": RewardOption("an int >= 1", _is_count, "concurrent requests in each process (8)"),
            "max_tokens": RewardOption("an int >= 1", _is_count, "longest reply (the endpoint's)"),
            "price": RewardOption("IN,OUT", _is_name, "what a million tokens of prompts and replies cost"),
            "max_cost": RewardOption("a number >= 0", _is_cost, "a process stops before it spends more"),
        },
    ),
    "policy": Source(
        "implicit reward of a tuned model: log-probability of the response minus the reference's",
        ImplicitReward,
        {
            "reference": RewardOption(
                "a folder or hub name", _is_name, "the model it was tuned from", is_required=True
            ),
            "chat_template_kwargs": TEMPLATE,
            "max_length": RewardOption("an int >= 1", _is_count, "prompt + response in tokens (1024)"),
            "max_prompt_length": RewardOption("an int >= 1", _is_count, "the prompt's tokens"),
            "precision": PRECISION,
            "row_tokens": RewardOption("an int >= 1", _is_count, "tokens in a packed row (4096)"),
        },
    ),
}
"""Scorers by prefix."""


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
        check_options(path, prefix, options, {"name": NAME, **source.options})
        name = options.pop("name", rest.rstrip("/").rpartition("/")[2])
        code = {"trust_remote_code": trust_remote_code} if source.runs_code else {}
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
