"""Arena-Hard: hard prompts, both orders against a strong baseline, five shades of verdict."""

import ast
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from preftune.errors import InputError
from preftune.evaluation.arena_hard.figures import (
    NAME,
    RULES,
    ArenaHardRescorer,
    aggregate_arena_hard,
    pair,
    read_label,
    version_of,
)
from preftune.evaluation.arena_hard.published import REPOSITORY
from preftune.evaluation.benchmark import Benchmark, BenchmarkOptions
from preftune.evaluation.files import read_text, write_lines
from preftune.evaluation.judging import Item, Judgment, Submission
from preftune.evaluation.model_outputs import ModelOutputs, answer_id
from preftune.evaluation.prompts import check_places, fill_template
from preftune.evaluation.questions import Question
from preftune.evaluation.verdicts import Comparison, Recording, Results, as_shown
from preftune.serving.asking import Request
from preftune.serving.replies import Reply

MAX_TOKENS = 4096
OLD_PLACES = {"question_1": "QUESTION", "answer_1": "ANSWER_A", "answer_2": "ANSWER_B"}
"""What the first version's prompt calls its places."""


@dataclass(frozen=True)
class ArenaHard(Benchmark):
    """Upstream's protocol. See `Benchmark`.

    Attributes:
        template: of what the judge is shown, with places for QUESTION, ANSWER_A and ANSWER_B.
        system: the judge's instructions by category; under "" for all others.
        max_tokens: longest verdict.
    """

    template: str
    system: Mapping[str, str]
    max_tokens: int = MAX_TOKENS

    name = NAME
    version = "arena_hard 1"
    most_prompts = 2
    answer_tokens = 4096
    reply_tokens = 700
    repository = REPOSITORY
    rescorer = ArenaHardRescorer

    @classmethod
    def build(cls, options: BenchmarkOptions) -> "ArenaHard":
        """With `prompt_template` and `system_prompt` in YAML, or the first there and the other in Python.

        Upstream's `judge_config.yaml` (v0.1) is of the first kind. Since v2 the instructions differ by
        category and stand in `utils/judge_utils.py`, which is read as text and not run, and the template in
        `config/arena-hard-v2.0.yaml`.
        """
        settings: dict[str, Any] = {}
        system: dict[str, str] = {}
        for path in options.prompts:
            if path.suffix == ".py":
                system |= _python_prompts(read_text(path, "--judge-prompt"), path)
            else:
                settings |= _yaml(read_text(path, "--judge-prompt"), path)
        template, names = settings.get("prompt_template"), " ".join(map(str, options.prompts))
        if isinstance(template, list):
            template = template[0] if len(template) == 1 else None
        if isinstance(settings.get("system_prompt"), str):
            system[""] = settings["system_prompt"]
        if not isinstance(template, str) or not system:
            raise InputError(
                f"--judge-prompt {names}: Arena-Hard needs `prompt_template` and `system_prompt` in YAML, "
                "or the template in YAML and upstream's judge_utils.py beside it (--judge-prompt twice)"
            )
        for old, new in OLD_PLACES.items():
            template = template.replace(f"{{{old}}}", f"{{{new}}}")
        check_places(template, set(OLD_PLACES.values()), names)
        return cls(template, system, int(settings.get("max_tokens", MAX_TOKENS)))

    def baseline_of(self, question: Question) -> str | None:
        """The one of the question's category."""
        return RULES[version_of(question.category)].baselines.get(question.category)

    def write_answers(self, path: Path, questions: Sequence[Question], answers: ModelOutputs) -> None:
        """Upstream's answer file."""
        rows = (
            {
                "uid": question.key,
                "ans_id": answer_id(question, answers),
                "model": answers.model,
                "messages": [
                    *question.opening,
                    {"role": "assistant", "content": {"answer": answers[question][0]}},
                ],
                "tstamp": time.time(),
            }
            for question in questions
        )
        write_lines(path, rows)

    def items(self, submission: Submission) -> list[Item]:
        """Both orders of every question, the baseline first as upstream has it."""
        return [
            Item(question, self._request(submission, question, model_first), model_first)
            for question in submission.questions
            for model_first in (False, True)
        ]

    def _request(self, submission: Submission, question: Question, model_first: bool) -> Request:
        instructions = self.system.get(question.category) or self.system.get("")
        if instructions is None:
            raise InputError(
                f"--judge-prompt has instructions for {', '.join(self.system)}, and question {question.key} "
                f"is {question.category or 'of no category'}: add `system_prompt` for all others"
            )
        first, second = as_shown(*submission.pair(question), model_first)
        shown = {"QUESTION": question.turns[0], "ANSWER_A": first, "ANSWER_B": second}
        return Request(
            f"question {question.key}",
            (
                {"role": "system", "content": instructions},
                {"role": "user", "content": fill_template(self.template, shown)},
            ),
            self.max_tokens,
            0.0,
        )

    def verdict(self, submission: Submission, item: Item, reply: Reply | None) -> Comparison:
        """The shade, as a preference and the number of games it counts for."""
        rules = RULES[version_of(item.question.category)]
        label = read_label(reply.text, rules) if reply else None
        return submission.comparison(item, *rules.meaning(label))

    def figures(self, submission: Submission, judgments: Sequence[Judgment]) -> list[Results]:
        """One for each category and baseline; see `aggregate_arena_hard`."""
        found: dict[tuple[str, str], list[Comparison]] = {}
        for games in zip(judgments[::2], judgments[1::2], strict=True):
            question = games[0].item.question
            verdicts = [game.verdict for game in games if isinstance(game.verdict, Comparison)]
            key = submission.baselines[question.key].model, question.category
            found.setdefault(key, []).extend(pair(verdicts, RULES[version_of(question.category)]))
        return [
            aggregate_arena_hard(
                Recording(submission.answers.model, baseline, verdicts, notes=_notes(baseline, category))
            )
            for (baseline, category), verdicts in found.items()
        ]

    def rows(self, submission: Submission, judgments: Sequence[Judgment]) -> list[Mapping[str, Any]]:
        """Upstream's judgment file: the two games of each question."""
        return [
            {
                "uid": first.item.question.key,
                "category": first.item.question.category,
                "judge": submission.judge,
                "model": submission.answers.model,
                "baseline": submission.baselines[first.item.question.key].model,
                "games": [_game(first), _game(second)],
            }
            for first, second in zip(judgments[::2], judgments[1::2], strict=True)
        ]


def _notes(baseline: str, category: str) -> Results:
    upstream = {**RULES["v0.1"].baselines, **RULES["v2"].baselines}
    if upstream.get(category, baseline) == baseline:
        return {"category": category}
    warning = f"upstream compares {category} with {upstream[category]}, and this run with {baseline}"
    return {"category": category, "warnings": [warning]}


def _game(judgment: Judgment) -> Mapping[str, Any]:
    messages = judgment.item.request.messages if judgment.item.request else ()
    label = read_label(judgment.text, RULES[version_of(judgment.item.question.category)])
    return {"score": label, "judgment": {"answer": judgment.text}, "prompt": list(messages)}


def _yaml(text: str, path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--judge-prompt {path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise InputError(
            f"--judge-prompt {path} must be a YAML mapping with prompt_template and system_prompt"
        )
    return content


def _python_prompts(text: str, path: Path) -> dict[str, str]:
    """The `system_prompt` of each category in `JUDGE_SETTINGS`, from the source."""
    try:
        values = {
            target.id: node.value
            for node in ast.parse(text).body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }

        def literal(node: ast.expr) -> Any:
            if isinstance(node, ast.Name):
                return literal(values[node.id])
            if isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                return {literal(key): literal(value) for key, value in pairs if key}
            return ast.literal_eval(node)

        settings = literal(values["JUDGE_SETTINGS"])
        return {category: str(of_it["system_prompt"]) for category, of_it in settings.items()}
    except (SyntaxError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"--judge-prompt {path} has no JUDGE_SETTINGS with a system_prompt for each category "
            f"({error!r}): give upstream's utils/judge_utils.py"
        ) from None
