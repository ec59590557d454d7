"""AlpacaEval 2: one order a question, by upstream's seeded rule; log-probabilities weigh the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preftune.data.groups import Message
from preftune.data.rules import shorten
from preftune.evaluation.alpaca_eval import FIRST, SECOND, aggregate, is_switched, preference_from_log_probs
from preftune.evaluation.answers import write_model_outputs
from preftune.evaluation.judging import Case, Contest, Judgment, recording
from preftune.evaluation.protocols.prompts import chat_messages, check_places, fill, read_text
from preftune.evaluation.questions import Question
from preftune.evaluation.verdicts import Comparison, Results
from preftune.serving.asking import Request
from preftune.serving.replies import Reply

TOP_LOG_PROBS = 5
WITHOUT_LOG_PROBS = (
    "the judge gave no log-probabilities, so each verdict counts as certain, where AlpacaEval 2 weighs it"
)
PLACES = {"instruction", "output_1", "output_2"}


@dataclass(frozen=True)
class AlpacaEval:
    """The protocol of `weighted_alpaca_eval_gpt4_turbo`. See `Benchmark`.

    Attributes:
        prompt: the judge's, with places for instruction, output_1 and output_2.
        log_probs: whether verdicts are weighed; else the judge's word counts.
    """

    prompt: tuple[Message, ...]
    log_probs: bool = True

    name = "alpaca_eval"
    version = "alpaca_eval 2"
    compares = True
    turns = 1
    answers_file = "model_outputs.json"
    judgments_file = "annotations.json"
    answer_tokens = 2048
    reply_tokens = 1
    write_answers = staticmethod(write_model_outputs)

    @classmethod
    def read(cls, prompts: Sequence[Path], log_probs: bool = True) -> "AlpacaEval":
        """With upstream's `alpaca_eval_clf.txt`, or a prompt of that shape."""
        (path,) = prompts
        text = read_text(path)
        check_places(text, PLACES, str(path))
        return cls(chat_messages(text, str(path)), log_probs)

    @property
    def caveats(self) -> tuple[str, ...]:
        """That plain verdicts are another measure."""
        return () if self.log_probs else (WITHOUT_LOG_PROBS,)

    def temperature(self, question: Question) -> float:
        """Greedy."""
        return 0.0

    def cases(self, contest: Contest) -> list[Case]:
        """One for each question; equal outputs need no judge."""
        return [self._case(question, *self._outputs(contest, question)) for question in contest.questions]

    def _outputs(self, contest: Contest, question: Question) -> tuple[str, str]:
        """The baseline's and the model's."""
        return contest.baselines[question.key][question][0], contest.answers[question][0]

    def _case(self, question: Question, baseline: str, answer: str) -> Case:
        model_first = is_switched(question.key)
        if baseline == answer:
            return Case(question, None, model_first)
        first, second = (answer, baseline) if model_first else (baseline, answer)
        shown = {"instruction": question.turns[0], "output_1": first, "output_2": second}
        messages = tuple({**message, "content": fill(message["content"], shown)} for message in self.prompt)
        name = f"question {shorten(question.key, 40)}"
        request = Request(name, messages, 1, 1.0, TOP_LOG_PROBS, (FIRST, SECOND))
        if not self.log_probs:
            request = replace(request, max_tokens=4, temperature=0.0, top_log_probs=0)
        return Case(question, request, model_first)

    def verdict(self, contest: Contest, case: Case, reply: Reply | None) -> Comparison:
        """How likely the judge finds the model's output the better one."""
        baseline, answer = self._outputs(contest, case.question)
        return Comparison(
            case.question.key,
            self._preference(case, reply),
            case.model_first,
            category=case.question.category,
            model_length=len(answer),
            baseline_length=len(baseline),
        )

    def _preference(self, case: Case, reply: Reply | None) -> float | None:
        if reply is None:
            return 0.5
        if self.log_probs:
            top = reply.log_probs[0]["top_logprobs"] if reply.log_probs else []
            weights = {token["token"]: float(token["logprob"]) for token in top}
            return preference_from_log_probs(weights, bool(case.model_first))
        first = {FIRST: 1.0, SECOND: 0.0}.get(reply.text.strip(" \n\"'.`"))
        return first if first is None or case.model_first else 1 - first

    def figures(self, contest: Contest, judgments: Sequence[Judgment]) -> list[Results]:
        """See `preftune.evaluation.alpaca_eval`; `rescore` adds difficulties."""
        return [aggregate(recording(contest, judgments))]

    def rows(self, contest: Contest, judgments: Sequence[Judgment]) -> list[Mapping[str, Any]]:
        """Upstream's `annotations.json`."""
        return [self._row(contest, judgment) for judgment in judgments]

    def _row(self, contest: Contest, judgment: Judgment) -> Mapping[str, Any]:
        question, verdict = judgment.case.question, judgment.verdict
        baseline, answer = self._outputs(contest, question)
        preference = verdict.preference if isinstance(verdict, Comparison) else None
        return {
            "instruction": question.turns[0],
            "output_1": baseline,
            "generator_1": contest.baseline,
            "dataset": question.category,
            "output_2": answer,
            "generator_2": contest.answers.model,
            "annotator": contest.judge,
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
