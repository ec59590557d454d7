"""Verdicts: a reply without one is asked for again, and then counts for nobody."""

from pathlib import Path
from typing import Any

import pytest

from preftune.evaluation.head_to_head.protocol import HeadToHead
from preftune.evaluation.judging import Judgment, Submission, judge
from preftune.evaluation.model_outputs import ModelOutputs
from preftune.evaluation.questions import Question
from preftune.serving.asking import Interview
from preftune.serving.endpoint import Endpoint, Limits
from preftune.serving.replies import ReplyCache


def question(text: str) -> Question:
    """One that a user asks."""
    return Question(text, ({"role": "user", "content": text},))


def judgments_of(folder: Path, questions: list[Question], attempts: int = 3) -> list[Judgment]:
    """Ours against theirs, in both orders, at the endpoint."""
    submission = Submission(
        questions,
        ModelOutputs("ours", {one.key: ("our answer",) for one in questions}),
        "m",
        {
            one.key: ModelOutputs("theirs", {other.key: ("their answer",) for other in questions})
            for one in questions
        },
    )
    benchmark = HeadToHead()
    interview = Interview(
        Endpoint("m", Limits(concurrency=1)), ReplyCache(folder / "replies.jsonl"), "test 1"
    )
    read = lambda item, reply: benchmark.verdict(submission, item, reply)  # noqa: E731
    return judge(interview, benchmark.items(submission), read, attempts)


def test_a_reply_without_verdict_is_asked_for_again(server: Any, tmp_path: Path) -> None:
    """Empty and unclear replies are asked for anew, the others not; the letters mean who was shown first."""
    replies = iter(["", "A", "Well, both have merits.", "**B**"])
    server.reply = lambda body: next(replies)
    judgments = judgments_of(tmp_path, [question("?")])
    # First round: "" with ours first, "A" with theirs first. Then ours first: unclear, and at last B.
    assert [judgment.verdict.preference for judgment in judgments] == [0.0, 0.0]
    assert len(server.asked) == 4


def test_without_verdict_to_the_end_it_counts_for_nobody(server: Any, tmp_path: Path) -> None:
    """After the last attempt the verdict is invalid, and a rerun does not pay for it again."""
    server.reply = lambda body: "I would rather not."
    judgments = judgments_of(tmp_path, [question("?")], attempts=2)
    assert [one.verdict.preference for one in judgments] == [None, None]
    assert len(server.asked) == 4
    judgments_of(tmp_path, [question("?")], attempts=2)
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("reply", "preference"),
    [("A", 1.0), ("B", 0.0), ("C", 0.5), ("[[A]].", 1.0), ("A or B", None), ("D", None)],
)
def test_letters(server: Any, tmp_path: Path, reply: str, preference: float | None) -> None:
    """A letter alone is a verdict on the answer shown as it, whatever marks are around it."""
    server.reply = lambda body: reply
    first = judgments_of(tmp_path, [question("?")], attempts=1)[0]
    assert first.item.model_first
    assert first.verdict.preference == preference


def test_the_judge_sees_both_answers_in_both_orders(server: Any, tmp_path: Path) -> None:
    """What is in braces in an answer stays as it is, and the conversation is there."""
    server.reply = lambda body: "C"
    submission = Submission(
        [question("What is {answer_b}?")],
        ModelOutputs("ours", {"What is {answer_b}?": ("{conversation}",)}),
        "m",
        {"What is {answer_b}?": ModelOutputs("theirs", {"What is {answer_b}?": ("{answer_a}",)})},
    )
    first, second = HeadToHead().items(submission)
    assert first.request is not None
    assert second.request is not None
    shown = first.request.messages[-1]["content"]
    assert "<conversation>\nWhat is {answer_b}?\n</conversation>" in shown
    assert "<answer_a>\n{conversation}\n</answer_a>" in shown
    assert "<answer_b>\n{answer_a}\n</answer_b>" in shown
    assert "<answer_a>\n{answer_a}\n</answer_a>" in second.request.messages[-1]["content"]
