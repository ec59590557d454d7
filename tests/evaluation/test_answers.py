"""Questions and answers: every benchmark's shape is read, and what is written is read back."""

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import InputError
from preftune.evaluation.alpaca_eval.protocol import AlpacaEval
from preftune.evaluation.arena_hard.protocol import ArenaHard
from preftune.evaluation.benchmark import Benchmark
from preftune.evaluation.head_to_head.protocol import HeadToHead
from preftune.evaluation.model_outputs import ModelOutputs, ask_for_answers, check_complete, read_outputs
from preftune.evaluation.mt_bench.protocol import MTBench
from preftune.evaluation.questions import read_questions
from preftune.serving.asking import Interview
from preftune.serving.endpoint import Endpoint, Limits
from preftune.serving.replies import ReplyCache


def write(path: Path, content: Any) -> Path:
    """JSON Lines of a list, for `.jsonl`; else JSON."""
    lines = "".join(json.dumps(row) + "\n" for row in content)
    path.write_text(lines if path.suffix == ".jsonl" else json.dumps(content), encoding="utf-8")
    return path


SHAPES = {
    "alpaca_eval": {"dataset": "koala", "instruction": "Hello?", "output": "unused"},
    "mt_bench": {"question_id": 81, "category": "writing", "turns": ["Hello?", "And now?"]},
    "arena_hard": {"uid": "ab12", "category": "math", "prompt": "Hello?"},
    "older arena_hard": {"question_id": "ab12", "category": "math", "turns": [{"content": "Hello?"}]},
    "text": {"prompt": "Hello?"},
    "chat": {"prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]},
}
KEYS = {
    "alpaca_eval": "Hello?",
    "mt_bench": "81",
    "arena_hard": "ab12",
    "older arena_hard": "ab12",
    "text": "Hello?",
    "chat": json.dumps(SHAPES["chat"]["prompt"]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_questions_are_read_in_every_shape(tmp_path: Path, shape: str) -> None:
    """The user's side of the conversation, the key that answers are found by, and the category."""
    (question,) = read_questions(write(tmp_path / "questions.jsonl", [SHAPES[shape]]))
    assert question.opening[-1] == {"role": "user", "content": "Hello?"}
    assert question.key == KEYS[shape]
    assert question.category == {"alpaca_eval": "koala", "mt_bench": "writing"}.get(
        shape, "math" if "arena" in shape else ""
    )
    assert question.followups == (("And now?",) if shape == "mt_bench" else ())
    if shape == "chat":
        assert question.turns == ("system: Be kind.\n\nuser: Hello?",)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "holds no questions"),
        ([{"text": "Hello?"}], "is not a question"),
        ([{"prompt": "Hello?"}, {"prompt": "Hello?"}], "twice"),
        ([{"prompt": [{"role": "user"}]}], "must be text, or messages"),
    ],
)
def test_questions_that_cannot_be_used(tmp_path: Path, rows: list[Any], says: str) -> None:
    """A file without questions, of another shape, or with one twice is refused."""
    with pytest.raises(InputError, match=says):
        read_questions(write(tmp_path / "questions.json", rows))


@pytest.mark.parametrize(
    ("shape", "benchmark"),
    [
        ("alpaca_eval", AlpacaEval(())),
        ("mt_bench", MTBench({})),
        ("arena_hard", ArenaHard("", {})),
        ("text", HeadToHead()),
        ("chat", HeadToHead()),
    ],
)
def test_written_answers_are_read_back(tmp_path: Path, shape: str, benchmark: Benchmark) -> None:
    """Upstream's file of a benchmark holds model, question and every turn."""
    questions = read_questions(write(tmp_path / "questions.jsonl", [SHAPES[shape]]))
    turns = ("one", "two") if shape == "mt_bench" else ("one",)
    answers = ModelOutputs("a model", {questions[0].key: turns})
    path = tmp_path / benchmark.answers_file
    benchmark.write_answers(path, questions, answers)
    assert read_outputs(path) == answers


def test_answers_of_upstreams_shapes(tmp_path: Path) -> None:
    """What the benchmarks' own tools write, and `preftune sample`, of whose responses the first counts."""
    shapes: list[tuple[dict[str, Any], ModelOutputs]] = [
        (
            {"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["one", "two"]}]},
            ModelOutputs("m", {"81": ("one", "two")}),
        ),
        (
            {"question_id": "ab", "model_id": "m", "choices": [{"turns": [{"content": "one"}]}]},
            ModelOutputs("m", {"ab": ("one",)}),
        ),
        (
            {
                "uid": "ab",
                "model": "m",
                "messages": [
                    {"role": "user", "content": "?"},
                    {"role": "assistant", "content": {"answer": "one"}},
                ],
            },
            ModelOutputs("m", {"ab": ("one",)}),
        ),
        ({"prompt": "?", "responses": ["one", "two"]}, ModelOutputs("file", {"?": ("one",)})),
    ]
    for row, expected in shapes:
        assert read_outputs(write(tmp_path / "file.jsonl", [row])) == expected


def test_answers_of_two_models_are_not_mixed(tmp_path: Path) -> None:
    """A file that names two models is refused with both names."""
    rows = [{"instruction": str(n), "output": "x", "generator": f"m{n}"} for n in range(2)]
    with pytest.raises(InputError, match="m0, m1"):
        read_outputs(write(tmp_path / "outputs.json", rows))


def test_a_missing_turn_is_found(tmp_path: Path) -> None:
    """Every turn of every question has to be answered; the first that is not is named."""
    questions = read_questions(write(tmp_path / "questions.jsonl", [SHAPES["mt_bench"]]))
    with pytest.raises(InputError, match="1 of 2 turns of '81'"):
        check_complete(ModelOutputs("m", {"81": ("one",)}), questions)


def test_the_second_turn_follows_the_models_own_first(server: Any, tmp_path: Path) -> None:
    """A model is asked again after its own answer to the first, at the question's temperature."""
    questions = read_questions(
        write(tmp_path / "questions.jsonl", [SHAPES["mt_bench"], {"question_id": 82, "turns": ["Bye?"]}])
    )
    server.reply = lambda body: f"reply to {body['messages'][-1]['content']}"
    interview = Interview(Endpoint("m", Limits()), ReplyCache(tmp_path / "replies.jsonl"), "test 1")
    answers = ask_for_answers(
        interview, questions, max_tokens=5, temperature=lambda question: 0.7 if question.category else 0.0
    )
    assert answers.turns == {"81": ("reply to Hello?", "reply to And now?"), "82": ("reply to Bye?",)}
    assert server.asked[-1]["messages"] == [
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "reply to Hello?"},
        {"role": "user", "content": "And now?"},
    ]
    temperatures = {body["messages"][0]["content"]: body["temperature"] for body in server.asked}
    assert temperatures == {"Hello?": 0.7, "Bye?": 0.0}
