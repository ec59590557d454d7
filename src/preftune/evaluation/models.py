"""Models and judges by what is written on the command line, and how models are asked for outputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from preftune.errors import InputError
from preftune.evaluation.local_model import LocalModel
from preftune.evaluation.model_outputs import ModelOutputs, Temperature, ask_for_answers, read_outputs
from preftune.evaluation.questions import Question
from preftune.serving.asking import Interview, Interviewer, Respondent, hash_of
from preftune.serving.endpoint import Endpoint, Limits
from preftune.serving.prices import Budget, Price
from preftune.serving.replies import ReplyCache

ENDPOINTS = ("openai", "judge")
"""Prefixes of a model at an endpoint."""
ANSWER_VERSION = "answer 1"
"""Of how answers are asked for."""
FILES = (".json", ".jsonl", ".jsonl.gz", ".json.gz")


@dataclass(frozen=True)
class Asking:
    """How models are asked.

    Attributes:
        limits: of an endpoint.
        budget: of all that is asked.
        price: of the judge's tokens.
        answer_price: of tokens of the models under test.
        options: parameters of the judge's requests.
        seed: of samples in this process.
    """

    limits: Limits = field(default_factory=Limits)
    budget: Budget = field(default_factory=Budget)
    price: Price | None = None
    answer_price: Price | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


ModelOrOutputs = Respondent | ModelOutputs
"""Whose outputs are judged: a model that is asked, or the outputs themselves."""

NewClient = Callable[[Respondent, str], Interviewer]
"""Makes what asks a respondent, from it and the version of the requests."""


@dataclass(frozen=True)
class Generation:
    """What models are asked, and how they answer.

    Attributes:
        questions: all of them, in order.
        max_tokens: longest answer.
        temperature: of the answer to a question.
        cache: folder in which replies are kept.
        progress: show bars.
    """

    questions: Sequence[Question]
    max_tokens: int
    temperature: Temperature
    cache: Path
    progress: bool = False

    def client(self, respondent: Respondent, version: str) -> Interview:
        """What asks a respondent, with the file of replies that belongs to it."""
        file = self.cache / "replies" / f"{hash_of(respondent.identity)[:20]}.jsonl"
        return Interview(respondent, ReplyCache(file), version, self.progress)

    def outputs(self, model: ModelOrOutputs, new_client: NewClient | None = None) -> ModelOutputs:
        """The outputs of a model, asked for where they do not stand in a file.

        Args:
            model: the model, or its outputs.
            new_client: makes what asks it; `client` unless given.

        Raises:
            InputError: it cannot be asked.
        """
        if isinstance(model, ModelOutputs):
            return model
        return ask_for_answers(
            (new_client or self.client)(model, ANSWER_VERSION),
            self.questions,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
        )


def find_model(specification: str, asking: Asking) -> ModelOrOutputs:
    """A model from a folder or the hub, `openai:NAME`, or a file of answers.

    Raises:
        InputError: there is no such model or file.
    """
    prefix, _, rest = specification.partition(":")
    if specification.endswith(FILES):
        return read_outputs(Path(specification))
    if prefix in ENDPOINTS and rest:
        return Endpoint(rest, asking.limits, price=asking.answer_price, budget=asking.budget)
    model = rest if prefix == "local" and rest else specification
    return LocalModel(model, seed=asking.seed)


def find_judge(specification: str, asking: Asking) -> Respondent:
    """`judge:NAME` at the endpoint, or `local:MODEL` in this process.

    Raises:
        InputError: it is neither, or there is no such model.
    """
    prefix, _, rest = specification.partition(":")
    if prefix in ENDPOINTS and rest:
        return Endpoint(rest, asking.limits, asking.options, price=asking.price, budget=asking.budget)
    if prefix == "local" and rest:
        return LocalModel(rest, seed=asking.seed)
    raise InputError(
        f"--judge {specification} must be judge:NAME for a model at OPENAI_BASE_URL, or local:MODEL for a "
        "folder or hub name to run here"
    )


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Parameters from `KEY=VALUE`, values in YAML.

    Raises:
        InputError: one has another form, or would change what the protocol asks.
    """
    found: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals or not key.isidentifier() or key in ("model", "messages", "stream", "n"):
            raise InputError(
                f"--judge-option {option} must be KEY=VALUE, a parameter of chat completions such as "
                "max_tokens=null or reasoning_effort=low; model, messages, stream and n are not allowed"
            )
    return found
