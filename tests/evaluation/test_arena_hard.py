"""Arena-Hard's verdicts and figures, by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import InputError
from preftune.evaluation.arena_hard.figures import (
    RULES,
    aggregate_arena_hard,
    read_label,
    read_verdicts,
    resample_games,
)
from preftune.evaluation.verdicts import Comparison, Recording


def judgment(question: str, first: str | None, second: str | None, **fields: Any) -> dict[str, Any]:
    """A row of v0.1: in the first game the baseline is A, in the second the model."""
    games = [{"score": first}, {"score": second}]
    return {"question_id": question, "model": "ours", "judge": "judge", "games": games, **fields}


def read(path: Path, rows: list[dict[str, Any]], baseline: str | None = None) -> list[Recording]:
    """The recordings of a file with these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_verdicts(path, baseline)


def test_strong_verdicts_count_three_games(tmp_path: Path) -> None:
    """Baseline strongly (3 losses), then the model (1 win); a draw and a strong win (3): 4.5 of 8 games."""
    [recording] = read(tmp_path / "a.jsonl", [judgment("a", "A>>B", "A>B"), judgment("b", "A=B", "A>>B")])
    found = aggregate_arena_hard(recording)
    assert (found["model"], found["baseline"]) == ("ours", "gpt-4-0314")
    assert (found["n"], found["prompts"], found["win_rate"]) == (8, 2, 100 * 4.5 / 8)
    assert (found["wins"], found["losses"], found["ties"]) == (4, 3, 1)
    # On a the baseline wins as A and loses as B, on b a draw becomes a win: both change.
    assert found["flipped_rate"] == 1


def test_both_orders_agree_when_the_letters_swap(tmp_path: Path) -> None:
    """B wins the first game and A the second: the model, twice."""
    [recording] = read(tmp_path / "a.jsonl", [judgment("a", "B>>A", "A>B")])
    found = aggregate_arena_hard(recording)
    assert (found["win_rate"], found["n"], found["flipped_rate"]) == (100, 4, 0)


def test_a_verdict_that_cannot_be_read(tmp_path: Path) -> None:
    """v0.1 drops that game only, v2 the other order too, and both say how many are invalid."""
    rows = [judgment("a", None, "B>A"), judgment("b", "B>A", "A>B")]
    [old] = read(tmp_path / "old.jsonl", rows)
    assert (aggregate_arena_hard(old)["n"], aggregate_arena_hard(old)["win_rate"]) == (
        3,
        pytest.approx(200 / 3),
    )
    assert aggregate_arena_hard(old)["invalid_rate"] == 1 / 4
    newer = [{**row, "uid": row["question_id"], "category": "hard_prompt", "baseline": "o3"} for row in rows]
    [new] = read(tmp_path / "new.jsonl", newer)
    assert (
        aggregate_arena_hard(new)["n"],
        aggregate_arena_hard(new)["win_rate"],
        aggregate_arena_hard(new)["baseline"],
    ) == (2, 100, "o3")
    assert aggregate_arena_hard(new)["invalid_rate"] == 1 / 2


def test_a_game_that_was_never_played_is_invalid(tmp_path: Path) -> None:
    """v2 writes null where the judge gave no answer at all."""
    row = {**judgment("a", "A>B", "A>B"), "uid": "a", "category": "hard_prompt"}
    rows = [{**row, "games": [None, {"score": "A>B"}]}, {**row, "uid": "b"}]
    [recording] = read(tmp_path / "a.jsonl", rows)
    assert (aggregate_arena_hard(recording)["n"], aggregate_arena_hard(recording)["win_rate"]) == (2, 50)


def test_other_spellings_are_taken_by_v2_only(tmp_path: Path) -> None:
    """A<<B is a strong win for B, three games; v0.1 does not know it."""
    rows = [judgment("a", "A<<B", "B<A")]
    [old] = read(tmp_path / "old.jsonl", [*rows, judgment("b", "A>B", "A>B")])
    assert aggregate_arena_hard(old)["n"] == 2
    [new] = read(tmp_path / "new.jsonl", [{**rows[0], "uid": "a", "category": "math"}])
    assert (aggregate_arena_hard(new)["n"], aggregate_arena_hard(new)["win_rate"]) == (4, 100)


def test_categories_of_v2_are_apart(tmp_path: Path) -> None:
    """Each has its own baseline, so a file of both gives two figures."""
    rows = [
        {**judgment("a", "A>B", "B>A"), "uid": "a", "category": "hard_prompt"},
        {**judgment("b", "B>A", "A>B"), "uid": "b", "category": "creative_writing"},
    ]
    found = [aggregate_arena_hard(recording) for recording in read(tmp_path / "a.jsonl", rows)]
    assert [(one["category"], one["baseline"], one["win_rate"]) for one in found] == [
        ("hard_prompt", "o3-mini-2025-01-31", 0),
        ("creative_writing", "gemini-2.0-flash-001", 100),
    ]


def test_battles_are_games_against_the_common_model(tmp_path: Path) -> None:
    """Model_a is in all of them; two of three games and a draw are 62.5%."""
    rows = [
        {"question_id": index, "model_a": "base", "model_b": "ours", "winner": winner}
        for index, winner in enumerate(("model_b", "model_b", "model_a", "tie"))
    ]
    [recording] = read(tmp_path / "battles.jsonl", rows)
    found = aggregate_arena_hard(recording)
    assert (found["model"], found["baseline"], found["win_rate"]) == ("ours", "base", 62.5)
    [turned] = read(tmp_path / "battles.jsonl", rows, baseline="ours")
    assert (turned.model, aggregate_arena_hard(turned)["win_rate"]) == ("base", 37.5)
    rows.append({"question_id": 9, "model_a": "third", "model_b": "fourth", "winner": "tie"})
    with pytest.raises(InputError, match=r"no model is in every battle.*name it with --baseline"):
        read(tmp_path / "battles.jsonl", rows)


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("So [[A>>B]].", "A>>B", "A>>B"),
        ("First [[A>B]], then again [[A>B]].", "A>B", "A>B"),
        ("First [[A>B]], but in the end [[B>A]].", None, "B>A"),
        ("In short: [A=B]", None, "A=B"),
        ("[[a>b]]", None, "A>B"),
        ("A is better.", None, None),
    ],
)
def test_what_a_judgment_says(text: str, old: str | None, new: str | None) -> None:
    """v0.1 takes one verdict in double brackets; v2 the last, in any item, and single brackets too."""
    assert read_label(text, RULES["v0.1"]) == old
    assert read_label(text, RULES["v2"]) == new


def test_games_on_a_prompt_are_not_independent() -> None:
    """On 40 prompts of six equal games, upstream's interval is narrower by about sqrt(6)."""
    verdicts = [
        Comparison(str(index), float(index % 2), first, weight=3)
        for index in range(40)
        for first in (True, False)
    ]
    recording = Recording("ours", "base", verdicts)
    [(low, high)] = resample_games([recording], RULES["v0.1"])
    ours = aggregate_arena_hard(recording)["interval"]
    assert (ours[1] - ours[0]) / (high - low) == pytest.approx(6**0.5, rel=0.2)


def test_upstream_interval_of_v2_is_one_of_90_percent() -> None:
    """Of 400 games, half of them won: 50 +- 1.645 x 2.5 points."""
    verdicts = [Comparison(str(index), float(index % 2)) for index in range(400)]
    [interval] = resample_games([Recording("ours", "base", verdicts)], RULES["v2"])
    assert interval == pytest.approx((50 - 1.645 * 2.5, 50 + 1.645 * 2.5), abs=0.4)


def test_a_version_without_a_known_baseline_asks_for_it(tmp_path: Path) -> None:
    """A category of somebody's own needs --baseline."""
    row = {**judgment("a", "A>B", "A>B"), "uid": "a", "category": "poems"}
    with pytest.raises(InputError, match=r"category 'poems': name it with --baseline"):
        read(tmp_path / "a.jsonl", [row])
    assert read(tmp_path / "a.jsonl", [row], baseline="theirs")[0].baseline == "theirs"
