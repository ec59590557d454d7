"""The mean reward of answers, measured by what `preftune score` takes."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from preftune.cli.evaluate_run import app
from preftune.errors import InputError


def call(*arguments: object) -> None:
    """`preftune evaluate run`."""
    result = CliRunner().invoke(app, ["run", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_mean_reward_and_difference(tmp_path: Path) -> None:
    """Answers that name a fruit earn 1: two of three against none of three, so better twice, worse never.

    Two of two decided prompts in one direction have probability 2 / 4 under a fair coin.
    """
    prompts = [f"Fruit {number}?" for number in range(3)]
    ours = ["An apple.", "Bread.", "A pear and an apple."]
    theirs = ["Bread.", "Soup.", "Rice."]
    questions = write(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    files = {
        name: write(
            tmp_path / f"{name}.jsonl",
            [
                {"prompt": prompt, "response": response}
                for prompt, response in zip(prompts, responses, strict=True)
            ],
        )
        for name, responses in {"ours": ours, "theirs": theirs}.items()
    }
    arguments = ["reward", "--model", files["ours"], "--baseline", files["theirs"], "--questions", questions]
    call(*arguments, "--reward", "regex:pattern=apple|pear", "--output", tmp_path / "out")
    (results,) = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert (results["protocol"], results["model"], results["baseline"]) == ("reward", "ours", "theirs")
    assert results["n"] == 3
    assert results["mean_reward"] == pytest.approx(2 / 3)
    compared = results["difference"]
    assert (results["baseline_mean_reward"], compared["mean_reward"]) == (0.0, pytest.approx(2 / 3))
    assert (compared["better"], compared["worse"], compared["p_value"]) == (2, 0, 0.5)
    items = (tmp_path / "out" / "items.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(item)["regex"] for item in items] == [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    with pytest.raises(InputError, match="--reward SPEC"):
        call(*arguments, "--output", tmp_path / "other")
    with pytest.raises(InputError, match="does not use a judge"):
        call(*arguments, "--reward", "regex:pattern=a", "--judge", "judge:m", "--output", tmp_path / "other")


def test_scores_that_are_kept_belong_to_the_columns_they_were_read_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other values in a column that the reward reads, equal answers to equal questions score anew.

    The reward is 1 where an answer is the row's `solution`: all of two at first, then one of two.
    """
    monkeypatch.syspath_prepend(tmp_path)
    code = "lambda completions, solution: [a[-1]['content'] == b for a, b in zip(completions, solution)]"
    (tmp_path / "reward_of_columns.py").write_text(f"solved = {code}", encoding="utf-8")
    answers = write(
        tmp_path / "ours.jsonl", [{"prompt": "1+1?", "response": "2"}, {"prompt": "1+2?", "response": "3"}]
    )
    means = []
    for one, two in (("2", "3"), ("2", "4"), ("2", "3")):
        rows = [{"prompt": "1+1?", "solution": one}, {"prompt": "1+2?", "solution": two}]
        questions = write(tmp_path / "questions.jsonl", rows)
        reward = ("--reward", "reward_of_columns:solved")
        call("reward", "--model", answers, "--questions", questions, *reward, "--output", tmp_path / "out")
        means.append(json.loads((tmp_path / "out" / "results.json").read_text())[0]["mean_reward"])
    assert means == [1.0, 0.5, 1.0]
