"""Whole runs by `preftune evaluate run`: on a scripted server, on llama.cpp, and on `transformers serve`."""

import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from preftune.cli.evaluate_run import app
from preftune.errors import InputError

from ..forks import Forks

PROTOCOLS = ("alpaca_eval", "arena_hard", "mt_bench", "head_to_head")
JUDGMENTS = {
    "alpaca_eval": "annotations.json",
    "arena_hard": "judgments.jsonl",
    "mt_bench": "judgments.jsonl",
}
CHATML = """<|im_start|>user
{instruction}

m: {output_1}

M: {output_2}

Which is better, m or M? Reply with m or M alone.
<|im_end|>"""
ARENA = """
system_prompt: "Say which answer is better: [[A>B]], [[A=B]] or [[B>A]]."
prompt_template: "{QUESTION}\\n\\nA: {ANSWER_A}\\n\\nB: {ANSWER_B}"
max_tokens: 64
"""
MT_BENCH = [
    {"name": name, "system_prompt": "Grade it from 1 to 10, as [[5]].", "prompt_template": template}
    for name, template in {
        "single-v1": "{question}\n\n{answer}",
        "single-math-v1": "{question}\n\n{ref_answer_1}\n\n{answer}",
        "single-v1-multi-turn": "{question_1}\n\n{answer_1}\n\n{question_2}\n\n{answer_2}",
        "single-math-v1-multi-turn": "{question_1}{ref_answer_1}{answer_1}{question_2}"
        "{ref_answer_2}{answer_2}",
    }.items()
]
ASKED = [
    f"Name {number} things that are {colour}." for number, colour in enumerate(("red", "blue") * 4, start=1)
]


def call(*arguments: object) -> str:
    """`preftune evaluate ...` in this process; what it printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception:
        raise result.exception
    return result.output


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def arguments(
    protocol: str, folder: Path, n: int, model: str = "openai:m", judge: str = "judge:m"
) -> list[object]:
    """A run of n questions with prompts of upstream's shapes, against a baseline from a file."""
    asked = ASKED[:n]
    prompt: Path | None = None
    if protocol == "alpaca_eval":
        rows = [
            {"instruction": text, "output": "Cherries.", "generator": "theirs", "dataset": "d"}
            for text in asked
        ]
        prompt = folder / "prompt.txt"
        prompt.write_text(CHATML, encoding="utf-8")
    elif protocol == "arena_hard":
        rows = [{"uid": text[:6], "category": "arena-hard-v0.1", "prompt": text} for text in asked]
        prompt = folder / "prompt.yaml"
        prompt.write_text(ARENA, encoding="utf-8")
    elif protocol == "mt_bench":
        rows = [
            {"question_id": number, "category": "writing", "turns": [text, "Shorter."]}
            for number, text in enumerate(asked, start=81)
        ]
        prompt = write(folder / "prompt.jsonl", MT_BENCH)
    else:
        rows = [{"prompt": text} for text in asked]
    questions = write(folder / "questions.jsonl", rows)
    baseline = [
        {"instruction": text, "output": "Cherries.", "generator": "theirs"}
        if protocol == "alpaca_eval"
        else {"uid": text[:6], "model": "theirs", "messages": [{"role": "assistant", "content": "Cherries."}]}
        if protocol == "arena_hard"
        else {"prompt": text, "response": "Cherries.", "model": "theirs"}
        for text in asked
    ]
    return [
        *("run", protocol, "--model", model, "--judge", judge, "--questions", questions),
        *(["--judge-prompt", prompt] if prompt else []),
        *(["--baseline", write(folder / "baseline.jsonl", baseline)] if protocol != "mt_bench" else []),
        *("--output", folder / "out", "--cache", folder / "cache"),
    ]


def results_in(folder: Path) -> dict[str, Any]:
    """The only entry of a run's results."""
    (results,) = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results


def judged_by_length(body: dict[str, Any]) -> str:
    """An answer to a question; of a judge, that the first answer is better, slightly, and worth an 8."""
    text = body["messages"][-1]["content"]
    if "m or M" in text:
        return "m"
    if "Which answer is better?" in text:
        return "A"
    if body["messages"][0]["role"] == "system":
        return "My verdict: [[A>B]]" if "\nA: " in text else "Rating: [[8]]"
    return f"An answer to {text}"


CALLS = {"alpaca_eval": (3, 3), "arena_hard": (3, 6), "mt_bench": (6, 6), "head_to_head": (3, 6)}
"""Of three questions: answers by turn, and verdicts by turn or order."""
FIGURE = {"arena_hard": 50.0, "head_to_head": 50.0}
"""Whoever is first wins, in both orders: even."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_run_stops_resumes_and_is_rescored(server: Any, tmp_path: Path, protocol: str) -> None:
    """A server that refuses midway costs nothing twice, and the files say what `rescore` says.

    ModelOutputs and verdicts are asked for once each, over all calls; a third call asks nothing.
    """
    server.reply = judged_by_length
    server.log_probs = lambda body: {"m": math.log(0.6), "M": math.log(0.4)} if body.get("logprobs") else {}
    of_answers, of_verdicts = CALLS[protocol]
    run = [*arguments(protocol, tmp_path, n=3), "--concurrency", 1]
    for known in (2, of_answers + 1):
        server.script = [""] * (known - len(server.replied)) + ["400"]
        with pytest.raises(InputError, match="not now"):
            call(*run)
        assert len(server.replied) == known
    server.script = []
    call(*run)
    assert len(server.replied) == of_answers + of_verdicts
    call(*run)
    assert len(server.asked) == len(server.replied) + 2

    results = results_in(tmp_path / "out")
    assert (results["protocol"], results["model"], results["judge"]) == (protocol, "m", "m")
    assert results["comparable"] is True
    if protocol in FIGURE:
        assert results["win_rate"] == FIGURE[protocol]
    elif protocol == "mt_bench":
        assert (results["average"], results["turn_1"], results["turn_2"]) == (8.0, 8.0, 8.0)
    if protocol in JUDGMENTS:
        again = tmp_path / "again.json"
        call("rescore", protocol, tmp_path / "out" / JUDGMENTS[protocol], "--output", again)
        (rescored,) = json.loads(again.read_text(encoding="utf-8"))
        for figure in ("n", "win_rate", "standard_error", "average", "interval", "invalid_rate"):
            assert rescored.get(figure) == pytest.approx(results.get(figure)), figure
    items = (tmp_path / "out" / "items.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(items) == of_verdicts


def test_alpaca_eval_by_hand(server: Any, tmp_path: Path) -> None:
    """P(m) = 0.6 goes to whoever is m: the model where upstream's rule switches the outputs.

    With s of 3 switched, the win rate is (60 s + 40 (3 - s)) / 3.
    """
    import random

    server.reply = judged_by_length
    server.log_probs = lambda body: {"m": math.log(0.6), "M": math.log(0.4)} if body.get("logprobs") else {}
    call(*arguments("alpaca_eval", tmp_path, n=3))
    switched = sum(
        random.Random(f"is_switched_outputs{text}0").choices([False, True])[0] for text in ASKED[:3]
    )
    expected = (60 * switched + 40 * (3 - switched)) / 3
    assert results_in(tmp_path / "out")["win_rate"] == pytest.approx(expected)


def test_silently_missing_log_probs(server: Any, tmp_path: Path) -> None:
    """They stop alpaca_eval after the answers; plain verdicts are asked for by a flag, and stamped."""
    server.reply = judged_by_length
    run = arguments("alpaca_eval", tmp_path, n=2)
    with pytest.raises(InputError, match="--without-log-probs"):
        call(*run)
    call(*run, "--without-log-probs")
    results = results_in(tmp_path / "out")
    assert results["comparable"] is False
    assert "no log-probabilities" in results["not_comparable_because"]
    assert "logprobs" not in server.asked[-1]


def test_a_judge_without_a_verdict_is_a_result(server: Any, tmp_path: Path) -> None:
    """Where no reply can be read the verdicts are on record as invalid, and there is no figure."""
    server.reply = lambda body: "I cannot say."
    call(*arguments("head_to_head", tmp_path, n=2), "--attempts", 1)
    results = results_in(tmp_path / "out")
    assert (results["n"], results["win_rate"], results["invalid_rate"]) == (0, None, 1.0)


def test_dry_run_by_hand(server: Any, tmp_path: Path) -> None:
    """Calls, tokens, cost and rate follow from the prompts' characters, and nobody is asked.

    Four characters are a token, rounded up. Unknown answers are a character longer than the baseline's
    `Cherries.`, so 3 tokens, and questions of 27 or 28 are 7. The judge's prompt has 61 characters beside a
    question and 9 + 10 of answers: 107, 108 and 107, which makes 27 tokens each, and a verdict is one.
    """
    run = [*arguments("alpaca_eval", tmp_path, n=3), "--price", "2000,8000", "--requests-per-minute", "30"]
    assert [len(text) for text in ASKED[:3]] == [27, 28, 27]
    printed = call(*run, "--answer-price", "1000,0", "--dry-run")
    rows = [[cell.strip() for cell in line.split("│")] for line in printed.splitlines() if "│ m" in line]
    answers, verdicts = rows
    assert answers[2:7] == ["3", "0", "21", "9", "0.02"]
    # (2000 * 81 + 8000 * 3) / 10^6 = 0.186.
    assert verdicts[2:9] == ["3", "0", "81", "3", "0.19", "30", "0"]
    assert "4 characters" in printed
    assert server.asked == []


def test_dry_run_counts_verdicts_on_two_models_that_have_not_answered(server: Any, tmp_path: Path) -> None:
    """Unknown answers are not taken for equal: three questions in both orders are six verdicts."""
    run = arguments("head_to_head", tmp_path, n=3)
    run[run.index("--baseline") + 1] = "openai:n"
    printed = call(*run, "--dry-run")
    rows = [[cell.strip() for cell in line.split("│")] for line in printed.splitlines() if "│" in line]
    assert [row[2] for row in rows] == ["3", "3", "6"]
    assert server.asked == []


def test_a_killed_run_goes_on(server: Any, forks: Forks, tmp_path: Path) -> None:
    """SIGKILL in the middle loses at most what was under way; the next call asks for the rest."""
    server.reply = judged_by_length
    server.delay = 0.3
    run = [str(one) for one in [*arguments("mt_bench", tmp_path, n=8), "--concurrency", 2]]
    started = forks.start(["preftune", "evaluate", *run])
    while len(server.replied) < 9:
        assert started.running()
        time.sleep(0.02)
    started.kill()
    assert started.wait().status == -signal.SIGKILL
    server.delay = 0.0
    call(*run)
    assert 32 <= len(server.replied) <= 32 + 2
    assert results_in(tmp_path / "out")["n"] == 16


def test_a_model_and_a_judge_in_this_process(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A folder answers and judges without any server, and every label has its weight on record."""
    run = arguments("head_to_head", tmp_path, 2, str(tiny_model_dir), f"local:{tiny_model_dir}")
    call(*run, "--max-new-tokens", 8)
    rows = (tmp_path / "out" / "judgments.jsonl").read_text(encoding="utf-8").splitlines()
    verdicts = [json.loads(row) for row in rows]
    assert [verdict["model_first"] for verdict in verdicts] == [True, False] * 2
    for verdict in verdicts:
        weights = {one["token"]: one["logprob"] for one in verdict["log_probs"][0]["top_logprobs"]}
        assert weights.keys() == {"A", "B", "C"}
        assert verdict["verdict"] == max(weights, key=lambda label: weights[label])
    assert results_in(tmp_path / "out")["invalid_rate"] == 0.0


def test_llama_cpp_answers_and_judges(llama_cpp: str, tmp_path: Path) -> None:
    """SmolLM2 answers two questions and weighs them against others by its log-probabilities."""
    _on_a_real_server("alpaca_eval", tmp_path, 2, "openai:smol", "judge:smol")
    (row, _) = json.loads((tmp_path / "out" / "annotations.json").read_text(encoding="utf-8"))
    top = row["raw_completion"]["logprobs"]["content"][0]["top_logprobs"]
    assert len(top) == 5
    assert row["output_2"]
    assert row["preference"] is None or 1 <= row["preference"] <= 2


def test_transformers_serve_answers_and_judges(transformers_serve: str, tmp_path: Path) -> None:
    """A random model answers and judges; what it says holds no verdict, and that is on record.

    The server refuses to give log-probabilities, and the error names the way on.
    """
    name = f"openai:{transformers_serve}"
    _on_a_real_server("mt_bench", tmp_path, 1, name, name)
    answers = [
        json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text("utf-8").splitlines()
    ]
    assert [len(answer["choices"][0]["turns"]) for answer in answers] == [2]
    with pytest.raises(InputError, match="--without-log-probs"):
        _on_a_real_server("alpaca_eval", tmp_path, 1, name, name)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_eight_prompts_on_llama_cpp(llama_cpp: str, tmp_path: Path, protocol: str) -> None:
    """Generation and judging of eight prompts, and a second call that asks nothing."""
    _on_a_real_server(protocol, tmp_path, 8, "openai:smol", "judge:smol")


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_eight_prompts_on_transformers_serve(transformers_serve: str, tmp_path: Path, protocol: str) -> None:
    """The same; without log-probabilities, which this server refuses."""
    name = f"openai:{transformers_serve}"
    more = ["--without-log-probs"] if protocol == "alpaca_eval" else []
    _on_a_real_server(protocol, tmp_path, 8, name, name, *more)


def _on_a_real_server(protocol: str, folder: Path, n: int, model: str, judge: str, *more: object) -> None:
    """Run twice: every question is answered and every verdict recorded, and the second call asks nothing."""
    few = ["--max-new-tokens", 12, "--judge-option", "max_tokens=12", "--attempts", 1, "--concurrency", 2]
    run = [*arguments(protocol, folder, n, model, judge), *few, *more]
    if protocol == "alpaca_eval":
        run += ["--judge-option", "max_tokens=1"]
    call(*run)
    of_answers, of_verdicts = (n * calls // 3 for calls in CALLS[protocol])
    items = (folder / "out" / "items.jsonl").read_text(encoding="utf-8").splitlines()
    # Equal answers need no judge.
    assert len(items) == of_verdicts
    replies = [file.read_bytes().count(b"\n") for file in (folder / "cache" / "replies").iterdir()]
    assert sum(replies) >= of_answers
    call(*run)
    assert [file.read_bytes().count(b"\n") for file in (folder / "cache" / "replies").iterdir()] == replies
    results = results_in(folder / "out")
    assert results["protocol"] == protocol
    assert 0 <= results["invalid_rate"] <= 1
