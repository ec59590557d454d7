"""Judging: one request a verdict, asked again where the reply holds none, up to a limit."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from preftune.data.rules import shorten
from preftune.evaluation.model_outputs import ModelOutputs
from preftune.evaluation.questions import Question
from preftune.evaluation.verdicts import Comparison, Recording, Verdict, is_invalid, preference_for_model
from preftune.serving.asking import Interviewer, Request
from preftune.serving.replies import Reply

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One verdict to be found.

    Attributes:
        question: what was answered.
        request: what the judge is asked; None if the verdict needs no judge.
        model_first: whether the judge sees the model's answer first; None if it sees only that.
        turn: of the conversation, from 1.
    """

    question: Question
    request: Request | None
    model_first: bool | None = None
    turn: int = 1


@dataclass(frozen=True)
class Judgment:
    """An item with its verdict.

    Attributes:
        item: what was asked.
        verdict: what was found.
        reply: the judge's last; None if it was not asked.
    """

    item: Item
    verdict: Verdict
    reply: Reply | None = None

    @property
    def preference(self) -> float | None:
        """Of a comparison; None if it could not be read."""
        return self.verdict.preference if isinstance(self.verdict, Comparison) else None

    @property
    def text(self) -> str:
        """Of the judge's reply; empty if it was not asked."""
        return self.reply.text if self.reply else ""


@dataclass(frozen=True)
class Submission:
    """What is judged.

    Attributes:
        questions: all of them, in order.
        answers: of the model.
        judge: its name.
        baselines: by question, the outputs that the model's are compared with; empty if nothing is.
        references: right answers, where the judge is shown them.
    """

    questions: Sequence[Question]
    answers: ModelOutputs
    judge: str
    baselines: dict[str, ModelOutputs]
    references: ModelOutputs | None = None

    @property
    def baseline(self) -> str | None:
        """The name of the baseline, or of all there are; None if there is none."""
        names = dict.fromkeys(answers.model for answers in self.baselines.values())
        return " + ".join(names) or None

    def pair(self, question: Question, turn: int = 1) -> tuple[str, str]:
        """What the model and its baseline answered to a turn."""
        baseline = self.baselines[question.key][question]
        return self.answers[question][turn - 1], baseline[turn - 1]

    def comparison(self, item: Item, preference_of_first: float | None, weight: int = 1) -> Comparison:
        """The verdict on an item.

        Args:
            item: a comparison of two answers.
            preference_of_first: from 0 to 1, for the answer that was shown first; None if it is not known.
            weight: games that it counts for.
        """
        ours, theirs = self.pair(item.question, item.turn)
        return Comparison(
            item.question.key,
            preference_for_model(preference_of_first, item.model_first),
            item.model_first,
            weight,
            item.turn,
            item.question.category,
            len(ours),
            len(theirs),
        )

    def recording(self, judgments: Sequence[Judgment]) -> Recording:
        """The verdicts on the model."""
        return Recording(self.answers.model, self.baseline, [judgment.verdict for judgment in judgments])


Read = Callable[[Item, Reply | None], Verdict]
"""The verdict in a reply, or an invalid one; without a reply, that of an item without request."""


def judge(client: Interviewer, items: Sequence[Item], read: Read, attempts: int = 3) -> list[Judgment]:
    """Find every verdict.

    Args:
        client: asks the judge.
        items: what to judge.
        read: finds the verdict in a reply.
        attempts: replies asked for until one holds a verdict; then it counts as invalid.

    Returns:
        A judgment for each item, in order.

    Raises:
        InputError: the judge fails; what it said so far is kept.
    """
    judged = {index: Judgment(item, read(item, None)) for index, item in enumerate(items) if not item.request}
    missing = [index for index in range(len(items)) if index not in judged]
    for attempt in range(attempts):
        asked = [
            (index, replace(request, attempt=attempt))
            for index in missing
            if (request := items[index].request) and (attempt == 0 or _may_differ(client, request))
        ]
        if not asked:
            break
        title = "verdicts" + (f", attempt {attempt + 1}" if attempt else "")
        replies = client.ask([request for _, request in asked], title)
        for (index, _), reply in zip(asked, replies, strict=True):
            judged[index] = Judgment(items[index], read(items[index], reply), reply)
        missing = [index for index, _ in asked if is_invalid(judged[index].verdict)]
    judgments = [judged[index] for index in range(len(items))]
    _warn_of_invalid(judgments)
    return judgments


def _may_differ(client: Interviewer, request: Request) -> bool:
    """Whether the judge may reply something else when it is asked again."""
    return not client.respondent.repeats_itself or (request.temperature > 0 and not request.labels)


def _warn_of_invalid(judgments: Iterable[Judgment]) -> None:
    invalid = [judgment for judgment in judgments if is_invalid(judgment.verdict)]
    if invalid:
        reply = invalid[0].reply
        logger.warning(
            "%d verdicts cannot be read and are ignored; the first reply is %s",
            len(invalid),
            shorten(reply.text, 200) if reply else "none",
        )
