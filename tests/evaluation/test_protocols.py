"""What each benchmark shows its judge, and what it makes of the reply: upstream's own records decide."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import InputError
from preftune.evaluation.alpaca_eval.protocol import AlpacaEval
from preftune.evaluation.arena_hard.protocol import ArenaHard
from preftune.evaluation.benchmark import BenchmarkOptions
from preftune.evaluation.judging import Judgment, Submission
from preftune.evaluation.model_outputs import ModelOutputs
from preftune.evaluation.mt_bench.protocol import MTBench
from preftune.evaluation.questions import Question, read_question
from preftune.evaluation.table import find_benchmark
from preftune.serving.replies import Reply

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures" / "evaluation"
real_data = pytest.mark.skipif(not FIXTURES.exists(), reason="the published files are not beside the project")


def lines(path: Path) -> list[dict[str, Any]]:
    """JSON Lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def submission(
    questions: list[Question],
    answers: dict[str, tuple[str, ...]],
    baseline: dict[str, tuple[str, ...]] | None = None,
) -> Submission:
    """Of `ours` against `theirs`."""
    baselines = {one.key: ModelOutputs("theirs", baseline) for one in questions} if baseline else {}
    return Submission(questions, ModelOutputs("ours", answers), "m", baselines)


# --- AlpacaEval ---

CHATML = (
    "<|im_start|>system\nPick.\n<|im_end|>\n<|im_start|>user\n{instruction}|{output_1}|{output_2}\n<|im_end|>"
)


def alpaca(tmp_path: Path, log_probs: bool = True) -> AlpacaEval:
    """With a prompt of upstream's shape."""
    path = tmp_path / "prompt.txt"
    path.write_text(CHATML, encoding="utf-8")
    return AlpacaEval.build(BenchmarkOptions([path], log_probs=log_probs))


def instruction(text: str) -> Question:
    """An AlpacaEval question."""
    return read_question({"instruction": text, "dataset": "koala"}, "test")


def weighed(first: float, second: float) -> Reply:
    """A verdict with probabilities of m and M."""
    top = [{"token": "M", "logprob": math.log(second)}, {"token": "m", "logprob": math.log(first)}]
    return Reply("M", "length", [{"token": "M", "logprob": math.log(second), "top_logprobs": top}])


def test_alpaca_eval_weighs_in_the_seeded_order(tmp_path: Path) -> None:
    """Who is m follows from the instruction alone: random.Random("is_switched_outputs" + instruction + "0").

    Switched, the model's output is m; else the baseline's is. With P(m) = 0.6 and P(M) = 0.2 the first is the
    better one with 0.6 / 0.8 = 0.75.
    """
    import random

    texts = ["Name a colour.", "Say hello.", "Why?"]
    switched = [random.Random(f"is_switched_outputs{text}0").choices([False, True])[0] for text in texts]
    assert set(switched) == {False, True}
    benchmark = alpaca(tmp_path)
    questions = [instruction(text) for text in texts]
    shown = submission(questions, dict.fromkeys(texts, ("our",)), dict.fromkeys(texts, ("their",)))
    for item, is_switched, text in zip(benchmark.items(shown), switched, texts, strict=True):
        assert item.request is not None
        outputs = "our|their" if is_switched else "their|our"
        assert item.request.messages == (
            {"role": "system", "content": "Pick."},
            {"role": "user", "content": f"{text}|{outputs}"},
        )
        verdict = benchmark.verdict(shown, item, weighed(0.6, 0.2))
        assert verdict.preference == pytest.approx(0.75 if is_switched else 0.25)
        assert (verdict.model_length, verdict.baseline_length) == (3, 5)


def test_alpaca_eval_asks_nobody_about_equal_outputs(tmp_path: Path) -> None:
    """They are a draw, recorded without completion as 1.5."""
    benchmark, question = alpaca(tmp_path), instruction("Say hello.")
    shown = submission([question], {question.key: ("Hello.",)}, {question.key: ("Hello.",)})
    (item,) = benchmark.items(shown)
    assert item.request is None
    (row,) = benchmark.rows(shown, [Judgment(item, benchmark.verdict(shown, item, None))])
    assert (row["preference"], row["raw_completion"]) == (1.5, None)


@pytest.mark.parametrize(("reply", "first"), [("m", 1.0), (" M\n", 0.0), ("Model", None), ("", None)])
def test_alpaca_eval_without_log_probs(tmp_path: Path, reply: str, first: float | None) -> None:
    """The letter alone counts, none are asked for, and the benchmark says that it is another measure."""
    benchmark, question = alpaca(tmp_path, log_probs=False), instruction("Say hello.")
    shown = submission([question], {question.key: ("our",)}, {question.key: ("their",)})
    (item,) = benchmark.items(shown)
    assert item.request is not None
    assert item.request.top_log_probs == 0
    verdict = benchmark.verdict(shown, item, Reply(reply))
    assert verdict.preference == (first if first is None or item.model_first else 1 - first)
    assert "no log-probabilities" in benchmark.caveats[0]


@real_data
def test_alpaca_eval_says_what_upstream_said() -> None:
    """Every verdict that upstream recorded follows from its log-probabilities in our order of the outputs."""
    benchmark = AlpacaEval.build(BenchmarkOptions([FIXTURES / "alpaca_eval" / "alpaca_eval_clf.txt"]))
    rows = json.loads(
        (FIXTURES / "alpaca_eval" / "annotations_full_gpt-3.5-turbo-1106.json").read_text(encoding="utf-8")
    )
    questions = [instruction(row["instruction"]) for row in rows]
    shown = submission(
        questions,
        {row["instruction"]: (row["output_2"],) for row in rows},
        {row["instruction"]: (row["output_1"],) for row in rows},
    )
    for item, row in zip(benchmark.items(shown), rows, strict=True):
        completion = row["raw_completion"]
        if completion is None:
            assert item.request is None
            continue
        assert item.request is not None
        reply = Reply(completion["text"], "length", completion["logprobs"]["content"])
        verdict = benchmark.verdict(shown, item, reply)
        assert verdict.preference == pytest.approx(row["preference"] - 1, abs=1e-6)


# --- MT-Bench ---


@real_data
@pytest.mark.parametrize("name", ["argilla_orpo_gpt-4_single.jsonl", "skycamp_gpt-4_pair.jsonl"])
def test_mt_bench_shows_what_fastchat_showed(name: str) -> None:
    """From the questions and answers in FastChat's records come its prompts to the byte, and its verdicts."""
    compares = "pair" in name
    benchmark = MTBench.build(BenchmarkOptions([FIXTURES / "mt_bench" / "judge_prompts.jsonl"], compares))
    checked = 0
    for row in lines(FIXTURES / "mt_bench" / "judgments" / name):
        shown, question = _of_record(row, compares)
        items = [item for item in benchmark.items(shown) if item.turn == row["turn"]]
        keys = ("g1_", "g2_") if compares else ("",)
        for item, key in zip(items, keys, strict=True):
            assert item.request is not None
            assert item.request.messages[1]["content"] == row[f"{key}user_prompt"]
            assert benchmark.prompt(question, item.turn).name == row["judge"][1]
            verdict = benchmark.verdict(shown, item, Reply(row[f"{key}judgment"]))
            if compares:
                recorded = {"model_1": 1.0, "model_2": 0.0, "tie": 0.5, "error": None}[row[f"{key}winner"]]
                assert verdict.preference == recorded
            else:
                assert verdict.rating == (None if row["score"] == -1 else row["score"])
            checked += 1
    assert checked == (20 if compares else 480)


def _of_record(row: dict[str, Any], compares: bool) -> tuple[Submission, Question]:
    """The submission that a record of FastChat's is about, read from its prompt."""
    text, turn = row["g1_user_prompt" if compares else "user_prompt"], row["turn"]
    is_math = "math" in row["judge"][1]

    def between(start: str, end: str, where: str = text) -> str:
        return re.search(f"{re.escape(start)}\n(.*?)\n\n?{re.escape(end)}", where, re.DOTALL)[1]  # type: ignore[index]

    sides = ("A", "B") if compares else ("A",)
    if turn == 1:
        question = (
            between("[User Question]", "[The Start") if compares else between("[Question]", "[The Start"),
        )
        marks = [f"Assistant {side}'s" for side in sides] if compares else ["Assistant's"]
        answers = [
            (between(f"[The Start of {mark} Answer]", f"[The End of {mark} Answer]"),) for mark in marks
        ]
        reference = (between("[The Start of Reference Answer]", "[The End"),) if is_math else ()
    else:
        talks = [
            between(
                f"<|The Start of Assistant {side}'s Conversation with User|>\n",
                f"<|The End of Assistant {side}'s Conversation with User|>",
            )
            for side in sides
        ]
        parts = [re.split(r"(?:^|\n\n)### (?:User|Assistant [AB]):\n", talk)[1:] for talk in talks]
        question = (parts[0][0], parts[0][2])
        answers = [(part[1], part[3]) for part in parts]
        reference = ()
        if is_math:
            talk = between("<|The Start of Reference Answer|>\n", "<|The End of Reference Answer|>")
            split = re.split(r"(?:^|\n\n)### (?:User|Reference answer):\n", talk)[1:]
            reference = (split[1], split[3])
    category = "math" if is_math else "writing"
    asked = read_question(
        {"question_id": row["question_id"], "category": category, "turns": list(question)}, "test"
    )
    # A second turn is needed to be complete, and not shown in the first.
    filled = [answer if turn == 2 else (*answer, "") for answer in answers]
    key = asked.key
    baseline = {key: ModelOutputs("theirs", {key: filled[1]})} if compares else {}
    references = ModelOutputs("reference", {key: (*reference, "")[:2]})
    return Submission([asked], ModelOutputs("ours", {key: filled[0]}), "gpt-4", baseline, references), asked


def test_mt_bench_needs_references(tmp_path: Path) -> None:
    """A question of mathematics without a right answer is refused by name."""
    prompts = tmp_path / "judge_prompts.jsonl"
    places = {"single-v1": "", "single-math-v1": "{ref_answer_1}"}
    rows = [
        {"name": name, "system_prompt": "s", "prompt_template": "{question}{answer}" + more}
        for name, more in places.items()
    ] + [
        {
            "name": f"{name}-multi-turn",
            "system_prompt": "s",
            "prompt_template": "{question_1}{question_2}{answer_1}{answer_2}"
            + (more and "{ref_answer_1}{ref_answer_2}"),
        }
        for name, more in places.items()
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    benchmark = MTBench.build(BenchmarkOptions([prompts]))
    question = read_question({"question_id": 111, "category": "math", "turns": ["1+1?"]}, "test")
    with pytest.raises(InputError, match="--references"):
        benchmark.items(submission([question], {"111": ("2",)}))


# --- Arena-Hard ---

OLD_CONFIG = """
system_prompt: Judge.
prompt_template: ["{question_1}|{answer_1}|{answer_2}"]
max_tokens: 77
"""
NEW_CONFIG = 'prompt_template: "{QUESTION}|{ANSWER_A}|{ANSWER_B}"\n'
JUDGE_UTILS = """
print("this is read, and never run")
COMMON = "Judge."
JUDGE_SETTINGS = {
    "math": {"baseline": "b", "system_prompt": COMMON},
    "creative_writing": {"baseline": "b", "system_prompt": "Enjoy."},
}
"""


def arena_question(category: str = "") -> Question:
    """One of Arena-Hard's."""
    return read_question({"uid": "u", "category": category, "prompt": "Why?"}, "test")


def arena(folder: Path, files: dict[str, str]) -> ArenaHard:
    """With judge prompts in these files."""
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return ArenaHard.build(BenchmarkOptions([folder / name for name in files]))


def test_arena_hard_shows_the_baseline_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first game has the baseline as A, the second the model, by the prompts of either version."""
    old = arena(tmp_path, {"config.yaml": OLD_CONFIG})
    new = arena(tmp_path, {"new.yaml": NEW_CONFIG, "judge_utils.py": JUDGE_UTILS})
    for benchmark, category, instructions, longest in (
        (old, "", "Judge.", 77),
        (new, "math", "Judge.", 4096),
        (new, "creative_writing", "Enjoy.", 4096),
    ):
        question = arena_question(category)
        items = benchmark.items(submission([question], {"u": ("our",)}, {"u": ("their",)}))
        shown = [item.request for item in items if item.request]
        assert [one.messages[1]["content"] for one in shown] == ["Why?|their|our", "Why?|our|their"]
        assert {one.messages[0]["content"] for one in shown} == {instructions}
        assert {one.max_tokens for one in shown} == {longest}
    assert capsys.readouterr().out == ""


def test_arena_hard_counts_strong_verdicts_three_times(tmp_path: Path) -> None:
    """The baseline is slightly better in one order and the model much better in the other: 3 of 4 games."""
    benchmark, question = arena(tmp_path, {"config.yaml": OLD_CONFIG}), arena_question()
    shown = submission([question], {"u": ("our",)}, {"u": ("their",)})
    replies = [Reply("So: [[A>B]]"), Reply("My verdict is [[A>>B]]")]
    judgments = [
        Judgment(item, benchmark.verdict(shown, item, reply), reply)
        for item, reply in zip(benchmark.items(shown), replies, strict=True)
    ]
    (results,) = benchmark.figures(shown, judgments)
    assert (results["n"], results["win_rate"]) == (4, 75.0)
    (row,) = benchmark.rows(shown, judgments)
    assert [game["score"] for game in row["games"]] == ["A>B", "A>>B"]
    assert (row["model"], row["baseline"]) == ("ours", "theirs")


def test_arena_hard_reports_categories_by_themselves(tmp_path: Path) -> None:
    """Since v2 each category has figures of its own, and an unreadable verdict takes its pair along."""
    benchmark = arena(tmp_path, {"new.yaml": NEW_CONFIG, "judge_utils.py": JUDGE_UTILS})
    questions = [
        read_question({"uid": name, "category": category, "prompt": "Why?"}, "test")
        for name, category in (("a", "math"), ("b", "math"), ("c", "creative_writing"))
    ]
    keys = ("a", "b", "c")
    shown = submission(questions, dict.fromkeys(keys, ("our",)), dict.fromkeys(keys, ("their",)))
    texts = ["[[B>A]]", "[[A>B]]", "[[B>A]]", "none", "[[A=B]]", "[[A=B]]"]
    judgments = [
        Judgment(item, benchmark.verdict(shown, item, Reply(text)), Reply(text))
        for item, text in zip(benchmark.items(shown), texts, strict=True)
    ]
    figures = {one["category"]: (one["n"], one["win_rate"]) for one in benchmark.figures(shown, judgments)}
    assert figures == {"math": (2, 100.0), "creative_writing": (2, 50.0)}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a.yaml": NEW_CONFIG}, "system_prompt"),
        ({"a.yaml": "prompt_template: '{QUESTION}'\nsystem_prompt: s"}, "ANSWER_A"),
        ({"a.yaml": "- x"}, "YAML mapping"),
        ({"a.yaml": NEW_CONFIG, "b.py": "x = 1"}, "JUDGE_SETTINGS"),
        ({"a.yaml": NEW_CONFIG, "b.py": "JUDGE_SETTINGS = {'math': run()}"}, "JUDGE_SETTINGS"),
    ],
)
def test_arena_hard_prompts_that_cannot_be_used(tmp_path: Path, files: dict[str, str], says: str) -> None:
    """What is missing is named."""
    with pytest.raises(InputError, match=says):
        arena(tmp_path, files)


# --- all ---


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("alpaca", BenchmarkOptions(), "did you mean 'alpaca_eval'"),
        ("alpaca_eval", BenchmarkOptions(), "--baseline"),
        ("alpaca_eval", BenchmarkOptions(compares=True), "--judge-prompt"),
        ("head_to_head", BenchmarkOptions([Path("x")], compares=True), "takes no file"),
    ],
)
def test_options_that_do_not_fit(name: str, options: BenchmarkOptions, says: str) -> None:
    """A protocol that does not exist, or lacks what it needs, is refused with what to do."""
    with pytest.raises(InputError, match=says):
        find_benchmark(name, options)
