"""`preftune score`: scores as columns that a run's prior and rewards read back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preftune.data import Asked, load_groups
from preftune.rewards import MEASURES, auxiliary_rewards, measure_groups
from preftune.rewards.measures.reading import reading_grade
from preftune.rewards.sources import SOURCES

CommandLine = Callable[..., tuple[int, str]]

PAIR = {"prompt": "Say", "chosen": "The cat sat on the mat.", "rejected": "thanks, immeasurably", "id": 7}
GROUP = {"prompt": "Say", "responses": ["rain", "rain rain", "rain rain rain"], "scores": [0.1, 0.9, 0.2]}
SINGLE = {"prompt": "Say", "completion": "thank you", "label": True}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """Read JSON Lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("row", [PAIR, GROUP, SINGLE])
def test_columns_are_read_back_as_rewards(row: dict[str, Any], preftune: CommandLine, tmp_path: Path) -> None:
    """In every shape, `column:NAME` gives what the measure itself gives, and the row keeps its columns."""
    data, scored = write(tmp_path / "data.jsonl", row), tmp_path / "scored.jsonl"
    code, errors = preftune("score", str(data), "--reward", "reading_grade", "--output", str(scored))
    assert code == 0, errors
    (written,) = read(scored)
    assert {key: written[key] for key in row} == row
    loaded = load_groups(scored, asked=Asked(needs_pairs=False), keep_columns=True)
    measured = measure_groups(loaded.groups, auxiliary_rewards({"column:reading_grade": {}}))
    contents = [str(response.content) for response in loaded.groups[0].responses]
    assert measured.measurements["column:reading_grade"].tolist() == [
        reading_grade(text) for text in contents
    ]


def test_options_functions_and_tokens(
    preftune: CommandLine, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options follow a colon, commas inside a pattern stay, and a function's column has its name."""
    source = "def loud(prompts, completions, id, **columns):\n    return id\n"
    (tmp_path / "score_rewards.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    data, scored = write(tmp_path / "data.jsonl", PAIR), tmp_path / "scored.jsonl"
    specifications = ["regex:pattern=^thanks,", "repetition:n=1", "length", "score_rewards:loud"]
    rewards = [part for specification in specifications for part in ("--reward", specification)]
    options = ["--tokenizer", str(tiny_model_dir), "--output", str(scored)]
    code, errors = preftune("score", str(data), *rewards, *options)
    assert code == 0, errors
    (written,) = read(scored)
    assert (written["regex_chosen"], written["regex_rejected"]) == (0.0, 1.0)
    # "the" is one of six words, and comes twice.
    assert (written["repetition_chosen"], written["repetition_rejected"]) == (pytest.approx(1 / 6), 0.0)
    assert written["length_chosen"] == 7.0
    assert (written["loud_chosen"], written["loud_rejected"]) == (7.0, 7.0)


def test_rows_without_a_pair_are_scored(preftune: CommandLine, tmp_path: Path) -> None:
    """Responses with equal scores are measured as others are."""
    tied = {**GROUP, "responses": ["a", "b", "c d"], "scores": [1, 1, 1]}
    data = write(tmp_path / "data.jsonl", GROUP, tied)
    scored = tmp_path / "scored.jsonl"
    code, _ = preftune("score", str(data), "--reward", "lexical_diversity", "--output", str(scored))
    assert code == 0
    rows = read(scored)
    assert [row["lexical_diversity"] for row in rows] == [[1.0, 0.5, pytest.approx(1 / 3)], [1.0, 1.0, 1.0]]


def test_sampled_responses_are_scored(preftune: CommandLine, tmp_path: Path) -> None:
    """Responses without any score, as `preftune sample` writes them, are measured, be it a single one."""
    sampled = {"prompt": "Say", "responses": ["rain rain"]}
    data, scored = write(tmp_path / "data.jsonl", sampled), tmp_path / "scored.jsonl"
    code, errors = preftune("score", str(data), "--reward", "lexical_diversity", "--output", str(scored))
    assert code == 0, errors
    assert read(scored) == [{**sampled, "lexical_diversity": [0.5]}]


UNSCORED = {"prompt": "Say", "responses": ["rain", "rain rain"], "grade": [3.5, 1]}
LAYOUT = {
    "instruction": "Say",
    "completions": [{"response": "a", "overall_score": 1.0}] * 2,
    "grade": [3.5, 1],
}
GRADED = {**PAIR, "grade_chosen": 3.5, "grade_rejected": 1}


@pytest.mark.parametrize("row", [GRADED, UNSCORED, LAYOUT], ids=["pair", "group", "layout"])
def test_prior_is_read_back_as_scores(row: dict[str, Any], preftune: CommandLine, tmp_path: Path) -> None:
    """In every shape with pairs a run that needs scores reads those that `--prior` wrote."""
    data, scored = write(tmp_path / "data.jsonl", row), tmp_path / "scored.jsonl"
    code, errors = preftune("score", str(data), "--prior", "column:grade", "--output", str(scored))
    assert code == 0, errors
    (group,) = load_groups(scored, asked=Asked(needs_prior=True, needs_pairs=False)).groups
    assert [response.score for response in group.responses] == [3.5, 1.0]


def test_columns_take_other_names(preftune: CommandLine, tmp_path: Path) -> None:
    """`name=` tells two measurements by one measure apart, and prior and rewards go together."""
    data, scored = write(tmp_path / "data.jsonl", PAIR), tmp_path / "scored.jsonl"
    rewards = ["--reward", "regex:pattern=^thanks,name=polite", "--reward", "regex:pattern=cat,name=cats"]
    options = ["--prior", "lexical_diversity", "--output", str(scored)]
    code, errors = preftune("score", str(data), *rewards, *options)
    assert code == 0, errors
    (written,) = read(scored)
    assert {key: value for key, value in written.items() if key not in PAIR} == {
        "polite_chosen": 0.0,
        "polite_rejected": 1.0,
        "cats_chosen": 1.0,
        "cats_rejected": 0.0,
        "score_chosen": pytest.approx(5 / 6),
        "score_rejected": 1.0,
    }


def test_list_shows_every_source(preftune: CommandLine, capfd: pytest.CaptureFixture[str]) -> None:
    """Names, ranges, goals and options of all that scores can come from."""
    from preftune.cli.score import score

    score(list_measures=True)
    shown = capfd.readouterr().out
    for name, source in {**MEASURES, **SOURCES}.items():
        assert name[:10] in shown
        assert all(option[:10] in shown for option in source.options)


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "nothing": ([], ["DATA, --prior or --reward, --output missing", "--list"]),
    "no output": (["data.jsonl", "--reward", "reading_grade"], ["--output missing"]),
    "unknown": (["data.jsonl", "--reward", "reading"], ["--reward reading", "did you mean"]),
    "bad option": (["data.jsonl", "--reward", "repetition:n=0"], ["--reward repetition.n = 0", ">= 1"]),
    "a run's option": (["data.jsonl", "--reward", "regex:weight=2,pattern=a"], ["weight belongs in a run's"]),
    "a column": (["data.jsonl", "--reward", "column:id"], ["a run can read this column", "--prior"]),
    "twice": (
        ["data.jsonl", "--reward", "regex:pattern=a", "--reward", "regex:pattern=b"],
        ["written twice"],
    ),
    "no tokenizer": (["data.jsonl", "--reward", "length"], ["--reward length", "--tokenizer"]),
    "taken": (["scored.jsonl", "--reward", "regex:pattern=a"], ["already has the column 'regex_chosen'"]),
    "a prior that is taken": (
        ["priced.jsonl", "--prior", "valid_json"],
        ["already has the column 'score_chosen'"],
    ),
    "a prior to minimise": (["data.jsonl", "--prior", "reading_grade"], ["reading_grade is not"]),
    "no such column": (["data.jsonl", "--prior", "column:grade"], ["no row has the column 'grade'"]),
    "no key": (["data.jsonl", "--prior", "judge:m"], ["OPENAI_API_KEY"]),
    "no reference": (["data.jsonl", "--prior", "policy:m"], ["--prior policy:m.reference is missing"]),
    "a bad truncation": (["data.jsonl", "--prior", "hf:m:truncation=left"], ["start, end or error"]),
    "an unknown option": (["data.jsonl", "--prior", "hf:m:labels=1"], ["did you mean 'label'"]),
    "no model": (["data.jsonl", "--prior", "hf:./nowhere"], ["hf:./nowhere cannot be loaded"]),
    "exists": (["data.jsonl", "--reward", "valid_json", "--output", "scored.jsonl"], ["scored.jsonl exists"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_scored_is_refused(
    name: str, preftune: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the flag, the value and the fix, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    write(tmp_path / "data.jsonl", PAIR)
    write(tmp_path / "scored.jsonl", {**PAIR, "regex_chosen": 1})
    write(tmp_path / "priced.jsonl", {**PAIR, "score_chosen": 1, "score_rejected": 0})
    arguments, fragments = REFUSED[name]
    if name not in ("nothing", "no output", "exists"):
        arguments = [*arguments, "--output", "new.jsonl"]
    code, errors = preftune("score", *arguments)
    assert code == 2
    for fragment in fragments:
        assert fragment in errors
    assert not (tmp_path / "new.jsonl").exists()
