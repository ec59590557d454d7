"""Arena-Hard: hard prompts, both orders against a strong baseline, five shades of verdict."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import yaml

from preftune.errors import InputError
from preftune.evaluation.answers import write_arena_hard
from preftune.evaluation.arena_hard import RULES, V01_CATEGORY, aggregate, compare, pair, read_label
from preftune.evaluation.judging import Case, Contest, Judgment
from preftune.evaluation.protocols.prompts import check_places, fill, read_text
from preftune.evaluation.questions import Question
from preftune.evaluation.verdicts import Comparison, Recording, Results
from preftune.serving.asking import Request
from preftune.serving.replies import Reply

MAX_TOKENS = 4096
OLD_PLACES = {"question_1": "QUESTION", "answer_1": "ANSWER_A", "answer_2": "ANSWER_B"}
"""What the first version's prompt calls its places."""


@dataclass(frozen=True)
class ArenaHard:
    """Upstream's protocol. See `Benchmark`.

    Attributes:
        template: of what the judge is shown, with places for QUESTION, ANSWER_A and ANSWER_B.
        system: the judge's instructions by category; under "" for all others.
        max_tokens: longest verdict.
    """

    template: str
    system: Mapping[str, str]
    max_tokens: int = MAX_TOKENS

    name = "arena_hard"
    version = "arena_hard 1"
    compares = True
    turns = 1
    caveats: ClassVar[tuple[str, ...]] = ()
    answers_file = "answers.jsonl"
    judgments_file = "judgments.jsonl"
    answer_tokens = 4096
    reply_tokens = 700
    write_answers = staticmethod(write_arena_hard)

    @classmethod
    def read(cls, prompts: Sequence[Path]) -> "ArenaHard":
        """With `prompt_template` and `system_prompt` in YAML, or the first there and the other in Python.

        Upstream's `judge_config.yaml` (v0.1) is of the first kind. Since v2 the instructions differ by
        category and stand in `utils/judge_utils.py`, which is read as text and not run, and the template in
        `config/arena-hard-v2.0.yaml`.
        """
        settings: dict[str, Any] = {}
        system: dict[str, str] = {}
        for path in prompts:
            if path.suffix == ".py":
                system |= _python_prompts(read_text(path), path)
            else:
                settings |= _yaml(read_text(path), path)
        template, names = settings.get("prompt_template"), " ".join(map(str, prompts))
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

    def temperature(self, question: Question) -> float:
        """Greedy."""
        return 0.0

    def cases(self, contest: Contest) -> list[Case]:
        """Both orders of every question, the baseline first as upstream has it."""
        return [
            Case(question, self._request(contest, question, model_first), model_first)
            for question in contest.questions
            for model_first in (False, True)
        ]

    def _request(self, contest: Contest, question: Question, model_first: bool) -> Request:
        instructions = self.system.get(question.category) or self.system.get("")
        if instructions is None:
            raise InputError(
                f"--judge-prompt has instructions for {', '.join(self.system)}, and question {question.key} "
                f"is {question.category or 'of no category'}: add `system_prompt` for all others"
            )
        answer, baseline = contest.answers[question][0], contest.baselines[question.key][question][0]
        first, second = (answer, baseline) if model_first else (baseline, answer)
        shown = {"QUESTION": question.turns[0], "ANSWER_A": first, "ANSWER_B": second}
        return Request(
            f"question {question.key}",
            (
                {"role": "system", "content": instructions},
                {"role": "user", "content": fill(self.template, shown)},
            ),
            self.max_tokens,
            0.0,
        )

    def verdict(self, contest: Contest, case: Case, reply: Reply | None) -> Comparison:
        """The shade, as a preference and the number of games it counts for."""
        question = case.question
        rules = RULES[version_of(question)]
        label = read_label(reply.text, rules) if reply else None
        return replace(
            compare(question.key, label, bool(case.model_first), rules, question.category),
            model_length=len(contest.answers[question][0]),
            baseline_length=len(contest.baselines[question.key][question][0]),
        )

    def figures(self, contest: Contest, judgments: Sequence[Judgment]) -> list[Results]:
        """One for each category and baseline; see `preftune.evaluation.arena_hard`."""
        found: dict[tuple[str, str], list[Comparison]] = {}
        for games in zip(judgments[::2], judgments[1::2], strict=True):
            question = games[0].case.question
            verdicts = [game.verdict for game in games if isinstance(game.verdict, Comparison)]
            key = contest.baselines[question.key].model, question.category
            found.setdefault(key, []).extend(pair(verdicts, RULES[version_of(question)]))
        return [
            aggregate(Recording(contest.answers.model, baseline, verdicts, notes=_notes(baseline, category)))
            for (baseline, category), verdicts in found.items()
        ]

    def rows(self, contest: Contest, judgments: Sequence[Judgment]) -> list[Mapping[str, Any]]:
        """Upstream's judgment file: the two games of each question."""
        return [
            {
                "uid": first.case.question.key,
                "category": first.case.question.category,
                "judge": contest.judge,
                "model": contest.answers.model,
                "baseline": contest.baselines[first.case.question.key].model,
                "games": [_game(first), _game(second)],
            }
            for first, second in zip(judgments[::2], judgments[1::2], strict=True)
        ]


def _notes(baseline: str, category: str) -> Results:
    upstream = {**RULES["v0.1"].baselines, **RULES["v2"].baselines}
    if upstream.get(category, baseline) == baseline:
        return {"category": category}
    warning = f"upstream compares {category} with {upstream[category]}, and here it is {baseline}"
    return {"category": category, "warnings": [warning]}


def version_of(question: Question) -> str:
    """Which of upstream's rules a question is judged by; since v2 they have categories."""
    return "v0.1" if question.category in ("", V01_CATEGORY) else "v2"


def _game(judgment: Judgment) -> Mapping[str, Any]:
    text = judgment.reply.text if judgment.reply else ""
    messages = judgment.case.request.messages if judgment.case.request else ()
    label = read_label(text, RULES[version_of(judgment.case.question)])
    return {"score": label, "judgment": {"answer": text}, "prompt": list(messages)}


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
