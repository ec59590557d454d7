"""`preftune evaluate rescore` through the command line."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CommandLine = Callable[..., tuple[int, str]]


def write_slim(path: Path, model: str, shift: float) -> Path:
    """An AlpacaEval file of 120 prompts in the slim shape; one longer answer a bit better than the other."""
    rows = range(120)
    content = {
        "model": model,
        "baseline": "theirs",
        "preference": [1 + min(1.0, index % 6 / 8 + shift) for index in rows],
        "len_model": [300 + 13 * (index % 17) for index in rows],
        "len_baseline": [400 + 7 * (index % 11) for index in rows],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def slim(tmp_path: Path) -> list[str]:
    """Two models, the second better by 0.1 on every prompt."""
    return [str(write_slim(tmp_path / f"{name}.json", name, shift)) for name, shift in (("a", 0), ("b", 0.1))]


def test_every_output_says_the_same(preftune: CommandLine, slim: list[str], tmp_path: Path) -> None:
    """JSON and CSV hold the same unrounded figures, Markdown two decimals, and JSONL each verdict."""
    names = ("results.json", "results.csv", "results.md", "items.jsonl")
    results, table, markdown, items = (tmp_path / name for name in names)
    outputs = (
        "--output",
        str(results),
        "--csv",
        str(table),
        "--markdown",
        str(markdown),
        "--items",
        str(items),
    )
    code, errors = preftune("evaluate", "rescore", "alpaca_eval", *slim, *outputs)
    assert code == 0, errors
    entries = json.loads(results.read_text(encoding="utf-8"))
    assert [entry["model"] for entry in entries] == ["a", "b"]
    # The mean of 0, 1/8, ..., 5/8 is 31.25%.
    assert entries[0]["win_rate"] == pytest.approx(31.25)
    assert entries[1]["win_rate"] == pytest.approx(41.25)
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["length_controlled_win_rate"]) for row in rows] == [
        entry["length_controlled_win_rate"] for entry in entries
    ]
    assert "| a | theirs | 120 | 31.25 (" in markdown.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in items.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 240
    assert (lines[1]["model"], lines[1]["question"], lines[1]["preference"]) == ("a", "1", 0.125)


def test_differences_to_a_model(preftune: CommandLine, slim: list[str], tmp_path: Path) -> None:
    """The second is better by 10 points on each of 120 prompts, and wins more often at equal lengths."""
    output = tmp_path / "results.json"
    code, errors = preftune(
        "evaluate", "rescore", "alpaca_eval", *slim, "--against", "a", "--output", str(output)
    )
    assert code == 0, errors
    first, second = json.loads(output.read_text(encoding="utf-8"))
    assert "difference" not in first
    found = second["difference"]
    assert (found["to"], found["prompts"], found["better"], found["worse"]) == ("a", 120, 120, 0)
    assert found["win_rate"] == pytest.approx(10)
    assert found["interval"] == pytest.approx([10, 10])
    assert found["p_value"] < 1e-30
    assert found["length_controlled_win_rate"] > 50


def test_position_and_instruction_give_other_figures(preftune: CommandLine, tmp_path: Path) -> None:
    """Difficulties alternate between 1 and -1 and verdicts between 0.9 and 0.1; the first row is missing.

    By instruction b2 is logit(0.9) = 2.197225; by position, one row off, it is the opposite.
    """
    alternating = [1 - index % 2 * 2 for index in range(120)]
    difficulty = tmp_path / "difficulty.csv"
    lines = [f"{index},{value}" for index, value in enumerate(alternating)]
    difficulty.write_text("\n".join(["index,instruction_difficulty", *lines]), encoding="utf-8")
    instructions = tmp_path / "instructions.json"
    instructions.write_text(
        json.dumps([{"instruction": f"{index}?"} for index in range(120)]), encoding="utf-8"
    )
    rows = [
        {
            "instruction": f"{index}?",
            "output_1": "b" * (50 + index % 13),
            "output_2": "m" * (50 + index % 7),
            "generator_1": "theirs",
            "generator_2": "ours",
            "preference": 1.5 + 0.4 * alternating[index],
        }
        for index in range(1, 120)
    ]
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(rows), encoding="utf-8")

    def control(*options: str) -> dict[str, Any]:
        output = tmp_path / "results.json"
        mode = ("--mode", "maximum_likelihood", "--difficulty", str(difficulty), "--output", str(output))
        code, errors = preftune("evaluate", "rescore", "alpaca_eval", str(file), *mode, *options)
        assert code == 0, errors
        found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))[0]["length_control"]
        return found

    matched = control("--instructions", str(instructions))
    assert matched["difficulty_by"] == "instruction"
    assert matched["coefficients"]["difficulty"] == pytest.approx(2.197225, abs=1e-4)
    shifted = control("--instructions", str(instructions), "--difficulty-by-position")
    assert shifted["difficulty_by"] == "position"
    assert shifted["coefficients"]["difficulty"] == pytest.approx(-2.197225, abs=1e-4)


def test_upstream_intervals_and_style_control(preftune: CommandLine, tmp_path: Path) -> None:
    """Arena-Hard's own options reach the results, next to the interval over prompts."""
    file = tmp_path / "judgments.jsonl"
    labels = ["A>B", "B>A", "A>>B", "B>>A", "A=B"]
    rows = [
        {
            "question_id": index,
            "model": "ours",
            "games": [{"score": labels[index % 5]}, {"score": labels[index % 3]}],
        }
        for index in range(30)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    answers = []
    for name, length in (("ours", 23), ("gpt-4-0314", 11)):
        answers.append(tmp_path / f"{name}.jsonl")
        lines = [
            {
                "uid": str(index),
                "model": name,
                "messages": [{"content": {"answer": "a" * (9 + index % length)}}],
            }
            for index in range(30)
        ]
        answers[-1].write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    output = tmp_path / "results.json"
    style = ("--style", "length", "--answers", str(answers[0]), "--answers", str(answers[1]))
    options = ("--upstream-intervals", *style, "--output", str(output))
    code, errors = preftune("evaluate", "rescore", "arena_hard", str(file), *options)
    assert code == 0, errors
    [found] = json.loads(output.read_text(encoding="utf-8"))
    low, high = found["upstream_interval"]
    assert low < found["win_rate"] < high
    assert low - high != found["interval"][0] - found["interval"][1]
    assert set(found["style_control"]["coefficients"]) == {"length"}
    assert found["style_controlled_interval"][0] < found["style_controlled_win_rate"]


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (("alpaca", "{a}"), "protocol = 'alpaca': must be one of alpaca_eval, arena_hard, mt_bench"),
        (("mt_bench", "{a}", "--difficulty", "{a}"), "--difficulty is for alpaca_eval, and this is mt_bench"),
        (("alpaca_eval", "{a}", "--mode", "fast"), "--mode fast: must be one of official"),
        (("alpaca_eval", "{a}", "--difficulty-by-position"), "give --difficulty too"),
        (("alpaca_eval", "nowhere.json"), "nowhere.json cannot be read"),
        (("alpaca_eval", "{a}", "{b}", "--against", "c"), "--against c: must be once in these files"),
    ],
)
def test_mistakes_are_named(
    preftune: CommandLine, slim: list[str], arguments: tuple[str, ...], rule: str
) -> None:
    """Exit code 2 and one message."""
    filled = [argument.format(a=slim[0], b=slim[1]) for argument in arguments]
    code, errors = preftune("evaluate", "rescore", *filled)
    assert code == 2
    assert rule in " ".join(errors.split())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"len_model": 5}, "a value is not valid in alpaca_eval"),
        ({"model": ["a"]}, "a.json: "),
    ],
)
def test_values_of_another_type_are_refused(
    changes: dict[str, Any], says: str, preftune: CommandLine, slim: list[str]
) -> None:
    """Files are other tools' work: the error names the file, without a traceback."""
    file = Path(slim[0])
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    code, errors = preftune("evaluate", "rescore", "alpaca_eval", str(file))
    assert code == 2
    assert "a.json" in errors
    assert says in errors


def test_a_verdict_that_is_there_twice_is_warned_of(
    preftune: CommandLine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two rows that are alike count twice, as in the file, and a warning says so; other rows bring none."""
    row = {
        "output_1": "theirs",
        "output_2": "ours",
        "generator_1": "theirs",
        "generator_2": "ours",
        "preference": 2,
    }
    rows = [{**row, "instruction": text} for text in ("One?", "Two?", "Three?")]
    file = tmp_path / "annotations.json"
    for repeated in (0, 2):
        file.write_text(json.dumps([*rows, *rows[:repeated]]), encoding="utf-8")
        code, errors = preftune("evaluate", "rescore", "alpaca_eval", str(file))
        assert code == 0, errors
        assert ("2 verdicts on ours are there before" in caplog.text) == bool(repeated)


def test_judgments_that_are_alike_by_chance_are_no_repetition(
    preftune: CommandLine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Arena-Hard's strong verdicts are three battles, and MT-Bench's files hold several runs."""
    battle = {"model_a": "theirs", "model_b": "ours", "winner": "model_b"}
    rating = {"model": "ours", "judge": ["gpt-4", "single-v1"], "score": 8, "turn": 1}
    rows = {
        "arena_hard": [{"question_id": text, **battle} for text in ("one", "two") for _ in range(3)],
        "mt_bench": [{"question_id": number, **rating} for number in (81, 82) for _ in range(2)],
    }
    for protocol, verdicts in rows.items():
        file = tmp_path / f"{protocol}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in verdicts), encoding="utf-8")
        code, errors = preftune("evaluate", "rescore", protocol, str(file))
        assert code == 0, errors
    assert "are there before" not in caplog.text


def test_an_output_that_is_a_folder_is_named(preftune: CommandLine, slim: list[str], tmp_path: Path) -> None:
    """A path that cannot be written is one message, and leaves nothing behind."""
    before = sorted(tmp_path.iterdir())
    code, errors = preftune("evaluate", "rescore", "alpaca_eval", slim[0], "--output", str(tmp_path))
    assert code == 2
    assert "check the path" in errors
    assert sorted(tmp_path.iterdir()) == before
