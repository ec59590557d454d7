"""Several sources as one, and a part that is held out by prompt."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from preftune.data import Asked, Group, MixtureSource, Pairing, Response, hold_out, load_mixture
from preftune.errors import InputError


def rows(name: str, count: int) -> list[dict[str, Any]]:
    """Pairs whose prompts say where they come from."""
    return [{"prompt": f"{name}{number}", "chosen": "good", "rejected": "bad"} for number in range(count)]


def load(*sources: MixtureSource, seed: int = 0) -> Any:
    """Load a mixture of pairs."""
    return load_mixture(sources, asked=Asked(), pairing=Pairing(), seed=seed)


def prompts(groups: list[Group]) -> list[Any]:
    """The groups' prompts."""
    return [group.prompt for group in groups]


def test_weights_and_limits_say_how_often_a_row_is_used() -> None:
    """Weight 2 uses each twice, 1.5 each once and half again, 0.5 half; a limit comes before the weight."""
    loaded = load(
        MixtureSource("a", rows("a", 2), weight=2),
        MixtureSource("b", rows("b", 4), weight=1.5),
        MixtureSource("c", rows("c", 6), limit=4, weight=0.5),
    )
    found = prompts(loaded.groups)
    assert found[:4] == ["a0", "a1", "a0", "a1"]
    assert found[4:8] == ["b0", "b1", "b2", "b3"]
    assert len(set(found[8:10])) == 2
    assert len(set(found[10:])) == len(found[10:]) == 2
    assert loaded.report.sources == {
        "a": {"rows": 2, "groups": 4},
        "b": {"rows": 4, "groups": 6},
        "c": {"rows": 6, "groups": 2},
    }


def test_a_mixture_depends_on_its_seed_alone() -> None:
    """The same draw every time, another by another seed, and a message names the source's own row."""
    source = MixtureSource("a", rows("a", 40), limit=5)
    once, again, other = load(source), load(source), load(source, seed=1)
    assert prompts(once.groups) == prompts(again.groups) != prompts(other.groups)
    loaded = load(MixtureSource("a", rows("a", 3)), MixtureSource("b", rows("b", 3)))
    assert loaded.groups[4].prompt == "b1"
    assert loaded.report.locate(loaded.groups[4].row).endswith("row 1")


def test_a_source_that_is_joined_by_prompt_moves_no_other_sources_rows() -> None:
    """Four rows become two groups under the numbers 0 and 2; the next source's rows begin at 4."""
    helpful = [
        {"prompt": prompt, "response": response, "helpfulness": helpfulness}
        for prompt in ("one", "two")
        for response, helpfulness in (("good", 4), ("bad", 1))
    ]
    loaded = load(MixtureSource("h", helpful), MixtureSource("a", rows("a", 2)))
    assert [group.row for group in loaded.groups] == [0, 2, 4, 5]
    places = [loaded.report.locate(group.row) for group in loaded.groups]
    assert places == [
        f"{name}: the given rows row {row}" for name, row in zip("hhaa", (0, 2, 0, 1), strict=True)
    ]
    assert loaded.report.rows == 4
    assert loaded.report.sources["h"] == {"rows": 2, "groups": 2}


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"weight": -1}, r"source a: weight=-1: it must be a finite number above 0"),
        ({"weight": float("nan")}, r"source a: weight=nan: it must be"),
        ({"limit": -1}, r"source a: limit=-1: it must be a whole number from 1"),
        ({"weight": 0.1}, r"source a: weight=0\.1, limit=None: of 2 groups none would be used"),
    ],
)
def test_a_source_that_adds_nothing_is_refused(settings: dict[str, Any], error: str) -> None:
    """A weight or a limit that is no such number, or leaves no row, is an error and no empty source."""
    with pytest.raises(InputError, match=error):
        load(MixtureSource("a", rows("a", 2), **settings), MixtureSource("b", rows("b", 2)))


def test_errors_name_the_source() -> None:
    """Of two sources in memory, an error says whose row, columns or emptiness it is about."""
    good = MixtureSource("a", rows("a", 2))
    for bad, error in (
        ([{"prompt": "?", "chosen": None, "rejected": "no"}], r"^source b: .*\n  the given rows row 0"),
        ([{"x": 1}], r"^source b: The columns `x`"),
        ([], r"^source b: the given rows, split=train: The data has no rows"),
    ):
        with pytest.raises(InputError, match=error):
            load(good, MixtureSource("b", bad))


def test_prompts_with_dates_in_a_call_can_be_held_out() -> None:
    """A tool call with a date, as Parquet has them, is a prompt like others."""
    call = {"name": "remind", "arguments": {"on": date(2026, 1, 2)}}
    groups = [
        Group(({"role": "assistant", "content": str(number), "tool_calls": [call]},), (Response("4"),), ())
        for number in range(20)
    ]
    kept, held = hold_out(groups, 0.5, 0)
    assert sorted(int(group.prompt[0]["content"]) for part in (kept, held) for group in part) == [*range(20)]


def test_each_source_has_columns_of_its_own() -> None:
    """A mapping holds for its source; two sources of one name are refused."""
    other = [{"frage": "was nun?", "chosen": "gut", "rejected": "böse"}]
    loaded = load(MixtureSource("a", rows("a", 1)), MixtureSource("b", other, mapping={"prompt": "frage"}))
    assert prompts(loaded.groups) == ["a0", "was nun?"]
    with pytest.raises(InputError, match=r"two sources have the name 'a'"):
        load(MixtureSource("a", other), MixtureSource("a", other))


def test_a_prompt_is_on_one_side_whatever_else_there_is() -> None:
    """The prompt decides, by the seed: equal prompts stay together, and more rows move none."""
    groups = [Group(f"p{number % 50}", (), ()) for number in range(100)]
    kept, held = hold_out(groups, 0.3, seed=0)
    assert not set(prompts(kept)) & set(prompts(held))
    assert len(kept) + len(held) == 100
    assert 5 <= len(set(prompts(held))) <= 25
    _, fewer = hold_out(groups[:40], 0.3, seed=0)
    assert set(prompts(fewer)) <= set(prompts(held))
    assert prompts(hold_out(groups, 0.3, seed=1)[1]) != prompts(held)
    with pytest.raises(InputError, match=r"of 1 groups"):
        hold_out(groups[:1], 0.5, seed=0)


def test_a_run_trains_on_a_mixture_and_holds_prompts_out(
    config: dict[str, Any], train: Callable[..., Path], tmp_path: Path
) -> None:
    """Through the command line: counts by source in the summary, and figures of what was held out."""
    for name, count in (("a", 12), ("b", 12)):
        text = "".join(json.dumps(row) + "\n" for row in rows(name, count))
        (tmp_path / f"{name}.jsonl").write_text(text)
    config["data"] = {
        "train": [
            {"source": str(tmp_path / "a.jsonl"), "name": "first"},
            {"source": str(tmp_path / "b.jsonl"), "name": "second", "limit": 6, "weight": 2},
        ],
        "evaluation_fraction": 0.3,
    }
    config["objective"] = {"method": "dpo"}
    config.pop("prior", None)
    config["training"] |= {"max_steps": 1, "save_strategy": "no"}
    folder = train(config, f"output={tmp_path / 'run'}")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["train"]["sources"]["first"] == {"rows": 12, "groups": 12}
    assert summary["train"]["sources"]["second"] == {"rows": 12, "groups": 12}
    assert summary["train"]["groups"] + summary["evaluation"]["groups"] == 24
    assert summary["evaluation"]["groups"] > 0
