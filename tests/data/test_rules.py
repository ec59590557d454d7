import json
from pathlib import Path
from typing import Any

import pytest

from preftune.data import RULES, Asked, LoadedGroups, RowReport, RowRules, load_groups
from preftune.data.rules import BadRow
from preftune.errors import InputError

GOOD = {"prompt": "p", "chosen": "good", "rejected": "bad", "score_chosen": 2, "score_rejected": 1}
GROUP = {"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]}
LABELLED = {"prompt": "p", "completion": "a", "label": True}


def load(tmp_path: Path, rows: list[dict[str, Any]], **rules: str) -> LoadedGroups:
    """Load rows from a JSONL file, for a run with a prior where they can have scores."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    is_labelled = any("label" in row for row in rows)
    return load_groups(
        path, asked=Asked(needs_prior=not is_labelled, needs_pairs=not is_labelled), rules=RowRules(rules)
    )


BAD_ROWS = [
    ("missing_field", {**GOOD, "prompt": None}, "prompt", "None"),
    ("missing_field", {**GOOD, "chosen": None}, "chosen", "None"),
    ("missing_field", {**GOOD, "rejected": 7}, "rejected", "7"),
    ("missing_field", {**GOOD, "chosen": [{"from": "gpt"}]}, "chosen", "{'from': 'gpt'}"),
    ("missing_field", {**GOOD, "chosen": ["x"]}, "chosen", "'x'"),
    ("missing_field", {**GOOD, "chosen": [{"role": "assistant", "content": None}]}, "chosen", "None"),
    ("missing_field", {**GOOD, "rejected": [{"role": "assistant", "content": "x"}]}, "rejected", "({'role'"),
    (
        "prompt_mismatch",
        {
            **GOOD,
            "prompt": "q",
            "chosen": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "x"}],
            "rejected": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "y"}],
        },
        "chosen",
        "({'role': 'user', 'content': 'p'}",
    ),
    ("empty_prompt", {**GOOD, "prompt": " \n"}, "prompt", r"' \n'"),
    ("empty_response", {**GOOD, "chosen": ""}, "chosen", "''"),
    (
        "empty_response",
        {**GOOD, "rejected": [{"role": "assistant", "content": "\t"}]},
        "rejected",
        "({'role'",
    ),
    ("equal_responses", {**GOOD, "rejected": "good"}, "rejected", "'good'"),
    ("missing_score", {**GOOD, "score_rejected": None}, "score_rejected", "None"),
    ("nan_score", {**GOOD, "score_chosen": float("nan")}, "score_chosen", "nan"),
    ("nan_score", {**GOOD, "score_chosen": float("-inf")}, "score_chosen", "-inf"),
    ("nan_score", {**GOOD, "score_chosen": "8"}, "score_chosen", "'8'"),
    ("nan_score", {**GOOD, "score_chosen": True}, "score_chosen", "True"),
]
BAD_GROUPS = [
    ("missing_field", {**GROUP, "responses": "a"}, "responses", "'a'"),
    ("missing_field", {**GROUP, "responses": []}, "responses", "[]"),
    ("missing_field", {**GROUP, "responses": ["a", None]}, "responses", "None"),
    ("missing_score", {**GROUP, "scores": None}, "scores", "None"),
    ("missing_score", {**GROUP, "scores": [1]}, "scores", "[1.0]"),
    ("missing_score", {**GROUP, "scores": [1, None]}, "scores", "None"),
    ("nan_score", {**GROUP, "scores": [1, float("inf")]}, "scores", "inf"),
    ("empty_prompt", {**GROUP, "prompt": ""}, "prompt", "''"),
    ("empty_response", {**GROUP, "responses": ["a", " "]}, "responses", "' '"),
    ("equal_responses", {**GROUP, "responses": ["a", "a"]}, "responses", "'a'"),
]
BAD_LABELLED = [
    ("missing_field", {**LABELLED, "prompt": None}, "prompt", "None"),
    ("missing_field", {**LABELLED, "completion": 4}, "completion", "4"),
    ("empty_prompt", {**LABELLED, "prompt": ""}, "prompt", "''"),
    ("empty_response", {**LABELLED, "completion": " "}, "completion", "' '"),
    (
        "empty_response",
        {
            **LABELLED,
            "prompt": [{"role": "user", "content": "p"}],
            "completion": [{"role": "user", "content": "p"}],
        },
        "completion",
        "()",
    ),
    (
        "prompt_mismatch",
        {
            **LABELLED,
            "completion": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        },
        "completion",
        "({'role': 'user', 'content': 'q'}",
    ),
    *(
        ("bad_label", {**LABELLED, "label": label}, "label", repr(label))
        for label in (None, 2, 0.5, float("nan"), "", "yes", "2", [True], {"value": True})
    ),
]


@pytest.mark.parametrize(
    ("good", "rule", "bad", "column", "value"),
    [(GOOD, *case) for case in BAD_ROWS]
    + [(GROUP, *case) for case in BAD_GROUPS]
    + [(LABELLED, *case) for case in BAD_LABELLED],
)
def test_error_and_drop(
    tmp_path: Path, good: dict[str, Any], rule: str, bad: dict[str, Any], column: str, value: str
) -> None:
    """`error` stops the run, naming all there is to know; `drop` leaves the row out and counts it."""
    with pytest.raises(InputError) as caught:
        load(tmp_path, [good, bad], **{rule: "error"})
    first, second, *others = str(caught.value).splitlines()
    assert first == f"1 of 2 rows breaks the rule {rule} ({RULES[rule].what}):"
    assert second.startswith(f"  {tmp_path / 'pairs.jsonl'} row 1, column `{column}`: {value}")
    assert others[-1] == f"Fix the data, or set data.rules.{rule}=drop (drops 1)."

    loaded = load(tmp_path, [good, bad], **{rule: "drop"})
    assert [group.row for group in loaded.groups] == [0]
    assert loaded.report.counts == {(rule, "drop"): 1}
    assert (loaded.report.rows, loaded.report.dropped) == (2, 1)


@pytest.mark.parametrize(("action", "rows"), [("keep", [0, 1, 2]), ("drop", [0, 2])])
def test_duplicate_rows(tmp_path: Path, action: str, rows: list[int]) -> None:
    """A repeated row is kept by default, or dropped; both are counted. Another score is another row."""
    data = [GOOD, GOOD, {**GOOD, "score_chosen": 3}]
    assert RowRules()["duplicate_row"] == "keep"
    loaded = load(tmp_path, data, duplicate_row=action)
    assert [group.row for group in loaded.groups] == rows
    assert loaded.report.counts == {("duplicate_row", action): 1}
    assert loaded.report.dropped == 3 - len(rows)


def test_another_label_is_another_row(tmp_path: Path) -> None:
    """The same response with the other label contradicts its row, and does not repeat it."""
    loaded = load(tmp_path, [LABELLED, {**LABELLED, "label": False}, {**LABELLED, "label": 1}])
    assert loaded.report.counts == {("duplicate_row", "keep"): 1}


def test_duplicate_row_error(tmp_path: Path) -> None:
    """A repeated row can stop the run, and the message offers both other actions."""
    with pytest.raises(
        InputError,
        match=r"row 1(.|\n)*duplicate_row=keep \(keeps all 1\) or \S+duplicate_row=drop \(drops 1\)",
    ):
        load(tmp_path, [GOOD, GOOD], duplicate_row="error")


def test_tied_scores(tmp_path: Path) -> None:
    """A group whose scores are all equal has no pair: dropped and counted by default, or an error."""
    rows = [GROUP, {**GROUP, "scores": [3, 3]}]
    loaded = load(tmp_path, rows)
    assert [group.row for group in loaded.groups] == [0]
    assert loaded.report.counts == {("tied_scores", "drop"): 1}
    with pytest.raises(
        InputError, match=r"the rule tied_scores(.|\n)*row 1, column `scores`: \[3\.0, 3\.0\]: all scores"
    ):
        load(tmp_path, rows, tied_scores="error")


UNREADABLE = {
    "cut in half": b'{"prompt": "p", "chosen": "go',
    "not UTF-8": b'{"prompt": "p", "chosen": "\xff"}',
    "no object": b'"good"',
    "half an emoji": b'{"prompt": "p", "chosen": "\\ud83d"}',
}


@pytest.mark.parametrize("line", UNREADABLE.values(), ids=list(UNREADABLE))
def test_unreadable_lines(tmp_path: Path, line: bytes) -> None:
    """A line that is no JSON object stops the run, or is dropped, counted, and keeps its number."""
    path = tmp_path / "pairs.jsonl"
    good = [json.dumps({**GOOD, "chosen": str(number)}).encode() for number in range(2)]
    path.write_bytes(b"\n".join([line, good[0], line, good[1], line]))
    with pytest.raises(
        InputError, match=r"pairs\.jsonl line 1: .*Or set data\.rules\.unreadable_line=drop\."
    ):
        load_groups(path)
    loaded = load_groups(path, rules=RowRules({"unreadable_line": "drop"}))
    assert [(group.row, group.responses[0].content) for group in loaded.groups] == [(1, "0"), (3, "1")]
    assert loaded.report.counts == {("unreadable_line", "drop"): 3}
    assert (loaded.report.rows, loaded.report.dropped) == (5, 3)


def test_unreadable_lines_of_several_files(tmp_path: Path) -> None:
    """In a folder each file's lines are counted, and rows keep the numbers of their own file."""
    good = json.dumps(GOOD).encode()
    (tmp_path / "a.jsonl").write_bytes(good + b"\n{cut\n")
    (tmp_path / "b.jsonl").write_bytes(b"{cut\n" + good + b"\n")
    loaded = load_groups(tmp_path, rules=RowRules({"unreadable_line": "drop"}))
    assert [group.row for group in loaded.groups] == [0, 3]
    assert loaded.report.locate(3) == f"{tmp_path / 'b.jsonl'} row 1"
    assert loaded.report.counts["unreadable_line", "drop"] == 2


def test_nothing_but_unreadable_lines(tmp_path: Path) -> None:
    """Where no line can be read the run stops and says so, and does not ask for columns."""
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"{cut\n")
    with pytest.raises(InputError, match=r"No row is left.*\n  unreadable_line: 1 row dropped"):
        load_groups(path, rules=RowRules({"unreadable_line": "drop"}))


def test_groups_without_a_pair_where_none_is_needed(tmp_path: Path) -> None:
    """Tied, equal and single responses make a group without a pair; labels need one, and drop it."""
    path = tmp_path / "groups.jsonl"
    rows = [{**GROUP, "scores": [3, 3]}, {**GROUP, "responses": ["a", "a"]}, GROUP]
    rows.append({"prompt": "p", "responses": ["a"], "scores": [1]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_groups(path, asked=Asked(needs_pairs=False))
    assert [len(group.pairs) for group in loaded.groups] == [0, 0, 1, 0]
    assert loaded.report.counts == {}
    rules = RowRules({"equal_responses": "drop"})
    labelled = load_groups(path, asked=Asked(needs_pairs=False, needs_labels=True), rules=rules)
    assert [group.row for group in labelled.groups] == [2]
    assert labelled.report.counts == {("tied_scores", "drop"): 2, ("equal_responses", "drop"): 1}


def test_no_row_left(tmp_path: Path) -> None:
    """When every row was dropped the run stops, and says which rules took them."""
    with pytest.raises(
        InputError, match=r"No row is left.*1 row read, 0 kept\n  empty_prompt: 1 row dropped"
    ):
        load(tmp_path, [{**GOOD, "prompt": ""}], empty_prompt="drop")


def test_no_rows_at_all(tmp_path: Path) -> None:
    """An empty file is refused as such, not for its missing columns."""
    with pytest.raises(InputError, match="The data has no rows"):
        load(tmp_path, [])


def test_long_values_are_shortened(tmp_path: Path) -> None:
    """A message quotes the beginning of a long value, not all of it."""
    with pytest.raises(InputError) as caught:
        load(tmp_path, [{**GOOD, "score_chosen": "x" * 10_000}])
    assert "'" + "x" * 76 + "...: " in str(caught.value)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"equal_response": "drop"}, r"data\.rules\.equal_response=drop: .*did you mean 'equal_responses'\?"),
        ({"zzz": "drop"}, r"data\.rules\.zzz=drop: there is no such rule\. Rules: unreadable_line, "),
        (
            {"nan_score": "dorp"},
            r"data\.rules\.nan_score=dorp: .*mean 'drop'\?\)\. nan_score takes error, drop\.",
        ),
        (
            {"nan_score": "truncate"},
            r"nan_score=truncate: there is no such action\. nan_score takes error, drop",
        ),
    ],
)
def test_misspelt_rules(rules: dict[str, str], message: str) -> None:
    """A rule or action that does not exist is refused with the nearest one that does."""
    with pytest.raises(InputError, match=message):
        RowRules(rules)


def test_defaults() -> None:
    """What real sets contain is counted and left out or shortened; what is surely a mistake stops the run."""
    lenient = {rule: RowRules()[rule] for rule in RULES if RowRules()[rule] != "error"}
    assert lenient == {
        "empty_response": "drop",
        "equal_responses": "drop",
        "different_prompts": "drop",
        "tied_scores": "drop",
        "duplicate_row": "keep",
        "prompt_too_long": "truncate",
        "no_room": "drop",
        "response_too_long": "truncate",
    }


def test_all_bad_rows_are_counted_before_the_run_stops(tmp_path: Path) -> None:
    """The error says how many rows break each rule, shows three of them, and what each other action costs."""
    bad = [{**GOOD, "prompt": " ", "chosen": str(number)} for number in range(5)]
    with pytest.raises(InputError) as caught:
        load(tmp_path, [GOOD, *bad, {**GOOD, "score_chosen": None}])
    lines = str(caught.value).splitlines()
    assert lines[0] == "5 of 7 rows break the rule empty_prompt (the prompt is empty or only whitespace):"
    assert [line.rpartition("jsonl ")[2][:5] for line in lines[1:4]] == ["row 1", "row 2", "row 3"]
    assert lines[4:6] == ["  and 2 more", "Fix the data, or set data.rules.empty_prompt=drop (drops 5)."]
    assert lines[6] == "1 of 7 rows breaks the rule missing_score (a score is null):"


def test_documented_rules() -> None:
    """The table in docs/data.md has every rule, what it means, and its actions with the default first."""
    lines = (Path(__file__).parents[2] / "docs" / "data.md").read_text().replace("`", "").splitlines()
    for name, rule in RULES.items():
        assert f"| {name} | {rule.what} | {', '.join(rule.actions)} |" in lines


def test_summary() -> None:
    """The summary has a line for the rows and one per applied rule, with thousands marked."""
    report = RowReport(rows=12_000)
    rules = RowRules({"nan_score": "drop"})
    for row in range(1_500):
        report.settle(BadRow("nan_score", "margin", None), row, rules)
    report.settle(BadRow("response_too_long", "response", 9), 0, rules, times=3)
    assert report.summary().splitlines() == [
        "12,000 rows read, 10,500 kept",
        "  nan_score: 1,500 rows dropped (a score is NaN, infinite or not a number)",
        "  response_too_long: 3 responses truncated (prompt + response exceeds max_length)",
    ]
