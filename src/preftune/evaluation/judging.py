"""Judging: one request a verdict, asked again where the reply holds none, up to a limit."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from preftune.data.rules import shorten
from preftune.evaluation.answers import Answers
from preftune.evaluation.questions import Question
from preftune.evaluation.verdicts import Recording, Verdict, is_invalid
from preftune.serving.asking import Interviewer, Request
from preftune.serving.replies import Reply

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contest:
    """What is judged.

    Attributes:
        questions: all of them, in order.
        answers: of the model.
        judge: its name.
        baselines: by question, the answers that the model's are compared with; empty where nothing is.
        references: right answers, where the judge is shown them.
    """

    questions: Sequence[Question]
    answers: Answers
    judge: str
    baselines: dict[str, Answers]
    references: Answers | None = None

    @property
    def baseline(self) -> str | None:
        """The name of the baseline, or of all there are; None where there is none."""
        names = dict.fromkeys(answers.model for answers in self.baselines.values())
        return " + ".join(names) or None


@dataclass(frozen=True)
class Case:
    """One verdict to be found.

    Attributes:
        question: what was answered.
        request: what the judge is asked; None where the verdict needs no judge.
        model_first: whether the judge sees the model's answer first; None where it sees only that.
        turn: of the conversation, from 1.
    """

    question: Question
    request: Request | None
    model_first: bool | None = None
    turn: int = 1


@dataclass(frozen=True)
class Judgment:
    """A case, closed.

    Attributes:
        case: what was asked.
        verdict: what was found.
        reply: the judge's last; None where it was not asked.
    """

    case: Case
    verdict: Verdict
    reply: Reply | None = None


def recording(contest: Contest, judgments: Sequence[Judgment]) -> Recording:
    """The verdicts on the model."""
    verdicts = [judgment.verdict for judgment in judgments]
    return Recording(contest.answers.model, contest.baseline, verdicts)


Read = Callable[[Case, Reply | None], Verdict]
"""The verdict in a reply, or an invalid one; without a reply, that of a case without request."""


@dataclass(frozen=True)
class Judge:
    """A respondent whose replies hold verdicts.

    Attributes:
        interviewer: who is asked, through which cache.
        attempts: replies asked for until one holds a verdict; then it counts as invalid.
    """

    interviewer: Interviewer
    attempts: int = 3

    def judge(self, cases: Sequence[Case], read: Read) -> list[Judgment]:
        """Close every case, in order.

        Raises:
            InputError: the judge fails; what it said so far is kept.
        """
        closed = {
            index: Judgment(case, read(case, None)) for index, case in enumerate(cases) if not case.request
        }
        open_cases = [index for index in range(len(cases)) if index not in closed]
        for attempt in range(self.attempts):
            asked = [index for index in open_cases if attempt == 0 or self._may_differ(cases[index])]
            requests = [
                replace(request, attempt=attempt) for index in asked if (request := cases[index].request)
            ]
            title = "verdicts" + (f", attempt {attempt + 1}" if attempt else "")
            if not requests:
                break
            for index, reply in zip(asked, self.interviewer.ask(requests, title), strict=True):
                closed[index] = Judgment(cases[index], read(cases[index], reply), reply)
            open_cases = [index for index in asked if is_invalid(closed[index].verdict)]
        judgments = [closed[index] for index in range(len(cases))]
        _warn_of_invalid(judgments)
        return judgments

    def _may_differ(self, case: Case) -> bool:
        """Whether the judge may reply something else when it is asked again."""
        request = case.request
        if request is None:
            return False
        return not self.interviewer.respondent.repeats_itself or (
            request.temperature > 0 and not request.labels
        )


def _warn_of_invalid(judgments: Iterable[Judgment]) -> None:
    invalid = [judgment for judgment in judgments if is_invalid(judgment.verdict)]
    if invalid:
        reply = invalid[0].reply
        logger.warning(
            "%d verdicts cannot be read and count for nobody; the first reply is %s",
            len(invalid),
            shorten(reply.text, 200) if reply else "none",
        )
