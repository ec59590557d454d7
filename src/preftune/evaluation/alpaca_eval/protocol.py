"""AlpacaEval 2: one order a question, by upstream's seeded rule; log-probabilities weigh the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preftune.data.groups import Message
from preftune.data.rules import shorten
from preftune.evaluation.alpaca_eval.figures import (
    FIRST,
    NAME,
    SECOND,
    AlpacaEvalRescorer,
    aggregate_alpaca_eval,
    is_switched,
    preference_from_log_probs,
)
from preftune.evaluation.alpaca_eval.published import REPOSITORY
from preftune.evaluation.benchmark import Benchmark, BenchmarkOptions
from preftune.evaluation.files import read_text
from preftune.evaluation.judging import Item, Judgment, Submission
from preftune.evaluation.model_outputs import ModelOutputs
from preftune.evaluation.prompts import chat_messages, check_places, fill_template
from preftune.evaluation.questions import Question
from preftune.evaluation.verdicts import Comparison, Results, as_shown
from preftune.serving.asking import Request
from preftune.serving.replies import Reply
from preftune.storage.files import write_json

TOP_LOG_PROBS = 5
WITHOUT_LOG_PROBS = (
    "the judge gave no log-probabilities, so each verdict counts as certain, where AlpacaEval 2 weighs it"
)
PLACES = {"instruction", "output_1", "output_2"}


@dataclass(frozen=True)
class AlpacaEval(Benchmark):
    """The protocol of `weighted_alpaca_eval_gpt4_turbo`. See `Benchmark`.

    Attributes:
        prompt: the judge's, with places for instruction, output_1 and output_2.
        log_probs: whether verdicts are weighed; else the judge's word counts.
    """

    prompt: tuple[Message, ...]
    log_probs: bool = True

    name = NAME
    version = "alpaca_eval 2"
    most_prompts = 1
    weighs_verdicts = True
    answers_file = "model_outputs.json"
    judgments_file = "annotations.json"
    answer_tokens = 2048
    repository = REPOSITORY
    rescorer = AlpacaEvalRescorer

    @classmethod
    def build(cls, options: BenchmarkOptions) -> "AlpacaEval":
        """With upstream's `alpaca_eval_clf.txt`, or a prompt of that shape."""
        (path,) = options.prompts
        text = read_text(path, "--judge-prompt")
        check_places(text, PLACES, str(path))
        return cls(chat_messages(text, str(path)), options.log_probs)

    @property
    def caveats(self) -> tuple[str, ...]:
        """That plain verdicts are another measure."""
        return () if self.log_probs else (WITHOUT_LOG_PROBS,)

    def write_answers(self, path: Path, questions: Sequence[Question], answers: ModelOutputs) -> None:
        """Upstream's `model_outputs.json`."""
        rows = [
            {
                "dataset": question.category,
                "instruction": question.turns[0],
                "output": answers[question][0],
                "generator": answers.model,
            }
            for question in questions
        ]
        write_json(path, rows)

    def items(self, submission: Submission) -> list[Item]:
        """One for each question; equal outputs need no judge."""
        return [self._item(question, *submission.pair(question)) for question in submission.questions]

    def _item(self, question: Question, answer: str, baseline: str) -> Item:
        model_first = is_switched(question.key)
        if baseline == answer:
            return Item(question, None, model_first)
        first, second = as_shown(answer, baseline, model_first)
        shown = {"instruction": question.turns[0], "output_1": first, "output_2": second}
        messages = tuple(
            {**message, "content": fill_template(message["content"], shown)} for message in self.prompt
        )
        name = f"question {shorten(question.key, 40)}"
        request = Request(name, messages, 1, 1.0, TOP_LOG_PROBS, (FIRST, SECOND))
        if not self.log_probs:
            request = replace(request, max_tokens=4, temperature=0.0, top_log_probs=0)
        return Item(question, request, model_first)

    def verdict(self, submission: Submission, item: Item, reply: Reply | None) -> Comparison:
        """How likely the judge finds the model's output the better one."""
        return submission.comparison(item, self._preference_of_first(reply))

    def _preference_of_first(self, reply: Reply | None) -> float | None:
        if reply is None:
            return 0.5
        if self.log_probs:
            top = reply.log_probs[0]["top_logprobs"] if reply.log_probs else []
            return preference_from_log_probs({token["token"]: float(token["logprob"]) for token in top})
        return {FIRST: 1.0, SECOND: 0.0}.get(reply.text.strip(" \n\"'.`"))

    def figures(self, submission: Submission, judgments: Sequence[Judgment]) -> list[Results]:
        """See `aggregate_alpaca_eval`; `rescore` adds difficulties."""
        return [aggregate_alpaca_eval(submission.recording(judgments))]

    def rows(self, submission: Submission, judgments: Sequence[Judgment]) -> list[Mapping[str, Any]]:
        """Upstream's `annotations.json`."""
        return [self._row(submission, judgment) for judgment in judgments]

    def _row(self, submission: Submission, judgment: Judgment) -> Mapping[str, Any]:
        question, preference = judgment.item.question, judgment.preference
        answer, baseline = submission.pair(question)
        return {
            "instruction": question.turns[0],
            "output_1": baseline,
            "generator_1": submission.baseline,
            "dataset": question.category,
            "output_2": answer,
            "generator_2": submission.answers.model,
            "annotator": submission.judge,
            "preference": None if preference is None else 1 + preference,
            "time_per_example": judgment.reply.seconds if judgment.reply else None,
            "raw_completion": raw_completion(judgment.reply) if judgment.reply else None,
        }


def raw_completion(reply: Reply) -> Mapping[str, Any]:
    """A reply as upstream records it."""
    return {
        "finish_reason": reply.finish_reason,
        "index": 0,
        "logprobs": {"content": reply.log_probs} if reply.log_probs else None,
        "message": {"content": reply.text, "role": "assistant"},
        "text": reply.text,
        "total_tokens": (reply.prompt_tokens or 0) + (reply.completion_tokens or 0),
    }
