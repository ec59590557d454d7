"""What `make experiments` runs, in which order, and what it makes of finished cells."""

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def parts() -> Iterator[dict[str, Any]]:
    """The script's modules."""
    sys.path.insert(0, str(BENCHMARKS))
    names = ("arms", "sizes", "cells", "comparing", "variations", "judges", "rows", "gathering", "analysis")
    yield {name: importlib.import_module(f"experiments.{name}") for name in (*names, "running", "__main__")}
    sys.path.remove(str(BENCHMARKS))


# --- how sure a difference is ---


def test_an_interval_draws_seeds_and_prompts_again(parts: dict[str, Any]) -> None:
    """Two seeds of one prompt have three means, 0, 1 and 2 with 1/4, 1/2 and 1/4: the interval spans them."""
    found = parts["comparing"].effect(np.array([[0.0], [2.0]]))
    assert (found.mean, found.low, found.high) == (1.0, 0.0, 2.0)
    assert found.by_seed == (0.0, 2.0)
    # Zero is reached by a quarter of the draws, on one side alone.
    assert found.p == pytest.approx(0.5, abs=0.03)


def test_a_difference_without_spread_has_the_smallest_p_value(parts: dict[str, Any]) -> None:
    """No draw reaches zero: p is two over the draws and one."""
    found = parts["comparing"].effect(np.full((3, 4), 0.5), draws=99)
    assert (found.low, found.high, found.p, found.same_sign) == (0.5, 0.5, 0.02, True)


def test_holm_multiplies_the_smallest_by_the_number_of_comparisons(parts: dict[str, Any]) -> None:
    """3 x 0.01, then 2 x 0.02 = 0.04, then 0.03, which may be no smaller than the one before."""
    assert parts["comparing"].holm([0.02, 0.03, 0.01]) == pytest.approx([0.04, 0.04, 0.03])
    assert parts["comparing"].holm([0.6, 0.7]) == [1.0, 1.0]


def test_a_verdict_needs_size_significance_and_one_sign(parts: dict[str, Any]) -> None:
    """Each rule alone makes it `no difference shown`."""
    comparing = parts["comparing"]
    good = comparing.Effect(0.04, 0.01, 0.07, 0.01, (0.03, 0.05))
    assert comparing.verdict(good, 0.049, 0.03) == "helps"
    bad = replace(good, mean=-0.04, by_seed=(-0.03, -0.05))
    assert comparing.verdict(bad, 0.049, 0.03) == "hurts"
    for case in (
        (good, 0.05, 0.03),
        (good, 0.01, 0.041),
        (replace(good, by_seed=(-0.01, 0.09)), 0.01, 0.03),
    ):
        assert comparing.verdict(*case) == "no difference shown"


def test_width_ends_where_the_gain_falls_below_nine_tenths(parts: dict[str, Any]) -> None:
    """From 1 at 1e-3 to 0.8 at 1e-1 the level 0.9 is half of the way, at 1e-2; to the left it is open."""
    found = parts["comparing"].width({1e-4: 0.95, 1e-3: 1.0, 1e-1: 0.8})
    assert found.low == 1e-4
    assert found.high == pytest.approx(1e-2)
    assert found.factor == pytest.approx(100)
    assert found.is_open


def test_where_nothing_is_gained_there_is_no_width(parts: dict[str, Any]) -> None:
    """A share of a loss means nothing, of width and of what is left."""
    assert parts["comparing"].width({1e-4: -0.1, 1e-3: 0.0}) is None
    assert parts["comparing"].share_left(0.0, 0.1) is None
    assert parts["comparing"].share_left(0.2, -0.1) == -0.5


# --- what is varied ---


def pair(name: str, chosen: float, rejected: float) -> dict[str, Any]:
    """A scored pair."""
    scores = {"score_chosen": chosen, "score_rejected": rejected}
    return {"prompt": name, "chosen": "long answer", "rejected": "short", **scores}


def test_labels_flip_from_the_nearest_tie_on(parts: dict[str, Any]) -> None:
    """Half of four pairs are the two smallest gaps; the scores side with the wrong label."""
    gaps = {"a": 0.5, "b": 0.1, "c": 0.3, "d": 0.2}
    rows = [pair(name, gap, 0.0) for name, gap in gaps.items()]
    flipped = parts["variations"].flip(rows, 0.5)
    assert {row["prompt"] for row in flipped if row["chosen"] == "short"} == {"b", "d"}
    assert [parts["variations"].gap(row) for row in flipped] == [0.5, 0.1, 0.3, 0.2]


def test_length_bias_raises_the_longer_response_and_stays_in_range(parts: dict[str, Any]) -> None:
    """0.9 + 0.2 is cut to 1; the shorter one's score and the label stay."""
    row = parts["variations"].add_length_bias([pair("a", 0.9, 0.4)], 0.2)[0]
    assert (row["score_chosen"], row["score_rejected"], row["chosen"]) == (1.0, 0.4, "long answer")


def test_the_best_of_two_sees_two(parts: dict[str, Any]) -> None:
    """The third response, which is the best, counts only where three are asked for; ties have no pair."""
    best = parts["variations"].best_and_worst_of
    assert best("p", ["x", "y", "z"], [0.1, 0.3, 0.9], 2)["chosen"] == "y"
    assert best("p", ["x", "y", "z"], [0.1, 0.3, 0.9], 3)["chosen"] == "z"
    assert best("p", ["x", "y"], [0.5, 0.5], 2) is None


def test_a_judge_is_right_on_the_pairs_with_a_clear_gap(parts: dict[str, Any]) -> None:
    """Of three pairs it ranks (0.9, 0.1) and (0.9, 0.15) rightly, and the near tie (0.1, 0.15) wrongly."""
    ranked = parts["judges"].ranked_right
    assert ranked([0.9, 0.1, 0.15], [3.0, 2.0, 1.0], 0.0) == pytest.approx(2 / 3)
    assert ranked([0.9, 0.1, 0.15], [3.0, 2.0, 1.0], 0.07) == 1.0
    assert ranked([0.5, 0.5], [1.0, 2.0], 0.0) is None


def test_distinct_counts_different_n_grams(parts: dict[str, Any]) -> None:
    """`a b a b` has 2 different words of 4 and 2 different pairs of 3."""
    assert parts["running"].distinct(["a b A b"]) == {"1": 0.5, "2": pytest.approx(2 / 3)}


# --- cells ---


def test_a_cut_off_run_leaves_whole_comparisons(parts: dict[str, Any]) -> None:
    """All arms are searched before any is tested, and a seed of all arms comes before the next seed."""
    found = parts["cells"].cells_of(["a"], ["main"], parts["sizes"].TINY)
    phases = [cell.phase for cell in found]
    assert phases == sorted(phases, key=["start", "search", "test"].index)
    seeds = [cell.seed for cell in found if cell.phase == "test"]
    assert seeds == [0] * 9 + [1] * 9


def test_every_test_has_its_search_before_it(parts: dict[str, Any]) -> None:
    """In any part and table, the cells that decide a cell's point are in the list, and come first."""
    cells, sizes = parts["cells"], parts["sizes"].TINY
    everything = cells.cells_of(cells.PARTS, cells.TABLES, sizes)
    assert len(everything) == len({cell.name for cell in everything})
    place = {cell: number for number, cell in enumerate(everything)}
    needed = [(one, cell) for cell in everything for one in cells.needed_by(cell, sizes)]
    assert needed
    assert all(place[one] < place[cell] for one, cell in needed)


def test_shares_are_all_cells_once(parts: dict[str, Any]) -> None:
    """Two processes take the odd and the even places."""
    share = parts["cells"].share_of
    assert (share("abcde", 1, 2), share("abcde", 2, 2)) == (["a", "c", "e"], ["b", "d"])


def test_the_main_tables_take_three_hours_on_two_cores(parts: dict[str, Any]) -> None:
    """By the rates that the protocol states; both processes end within a tenth of one another."""
    cells, sizes = parts["cells"], parts["sizes"].sizes_of("cpu", 1)
    found = cells.cells_of(["a", "b"], ["main"], sizes)
    shares = [
        sum(cells.estimated_seconds(cell, sizes) for cell in cells.share_of(found, number, 2))
        for number in (1, 2)
    ]
    assert 120 * 60 < max(shares) < 180 * 60
    assert min(shares) > 0.9 * max(shares)


def test_of_equal_points_the_shorter_is_kept(parts: dict[str, Any]) -> None:
    """Fewer steps first, then the smaller learning rate."""
    grid = {(1e-3, 8): 0.5, (3e-3, 4): 0.5, (1e-3, 4): 0.5, (3e-4, 4): 0.4}
    assert parts["cells"].kept_point(grid) == (1e-3, 4)


# --- what finished cells come to ---


def finish(parts: dict[str, Any], sizes: Any, cell: Any, result: dict[str, Any]) -> None:
    """Leave a result as if the cell had run."""
    path = parts["cells"].result_path(cell, sizes)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"seconds": 1.0, **result}), encoding="utf-8")


def point(reward: float) -> dict[str, Any]:
    """Two prompts of one sample each, of this reward."""
    by_prompt = {"reward": [reward] * 2, "grade": [5.0, 7.0], "kl": [1.0, 2.0], "tokens": [10.0, 20.0]}
    scalars = {"accuracy": 0.5, "chosen_logp_change": -1.0, "rejected_logp_change": -2.0}
    distinct = {"1": 0.5, "2": 0.9}
    return {"rewards": [[reward]] * 2, "by_prompt": by_prompt, "distinct": distinct, **scalars}


def test_the_page_says_what_is_there_and_what_is_missing(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two arms of nine are finished: gains, difference, verdict and what is left are theirs by hand."""
    monkeypatch.chdir(tmp_path)
    sizes, cell = parts["sizes"].TINY, parts["cells"].Cell
    finish(parts, sizes, cell("a", "start", seed=1000), {"worth": [0.1, 0.3]})
    for seed in range(2):
        finish(parts, sizes, cell("a", "start", seed=seed), {"points": {"start": point(0.2)}})
    for arm, kept, long in (("dpo", 0.5, 0.3), ("dpo+prior", 0.6, 0.7)):
        for rate, best in ((1e-3, 0.4), (3e-3, 0.6)):
            worth = {"1": [0.2, 0.2], "2": [best, best]}
            finish(parts, sizes, cell("a", "search", arm, 1000, rate), {"worth": worth})
        for seed in range(2):
            points = {"kept": point(kept), "long": point(long)}
            finish(parts, sizes, cell("a", "test", arm, seed), {"points": points})
    parts["analysis"].write_all(["a"], ["main"], sizes, tmp_path)
    found = json.loads((tmp_path / "a-tiny.json").read_text(encoding="utf-8"))
    search = found["search"]["dpo"]
    assert (search["rate"], search["steps"], search["at_edge"]) == (3e-3, 2, True)
    assert search["gains"][-1] == {"rate": 3e-3, "steps": 2, "gain": pytest.approx(0.4)}
    rows = found["comparisons"]["as it is"]
    difference = rows["kept"]["dpo+prior"]["differences"]["reward"]
    assert difference["mean"] == pytest.approx(0.1)
    assert (difference["to"], difference["verdict"]) == ("dpo", "helps")
    # Gains over the start's 0.2: dpo keeps 0.1 of 0.3, the prior 0.5 where it had 0.4.
    assert rows["long"]["dpo"]["share_left"] == pytest.approx(1 / 3)
    assert rows["long"]["dpo+prior"]["share_left"] == pytest.approx(1.25)
    assert rows["kept"]["dpo"]["win_rate"]["mean"] == 1.0
    page = (tmp_path / "results-tiny.md").read_text(encoding="utf-8")
    assert len(found["missing"]) == 28
    assert "**28 of 39 cells are missing**: `a/dpo+nll/search-0.001-seed1000`" in page
    assert "+0.100 (+0.100 to +0.100) to dpo" in page
    assert (tmp_path / "a-tiny.svg").is_file()


def test_an_auxiliary_reward_is_judged_by_its_own_figure(parts: dict[str, Any]) -> None:
    """A grade that falls by 2 everywhere helps, unless accuracy falls by more than 2 points."""
    gathering, arms = parts["gathering"], parts["arms"].ALL_OR_PAIR
    name = "dpo+grade x 1, all"
    results = {
        arm: {seed: {"points": {"kept": {"by_prompt": {"grade": [grade] * 2}}}} for seed in range(2)}
        for arm, grade in (("dpo", 8.0), (name, 6.0))
    }
    for accuracy, said in ((0.69, "helps"), (0.6, "moves it, at 10.0 points of accuracy")):
        rows: dict[str, Any] = {"dpo": {"accuracy": [0.7]}, name: {"accuracy": [accuracy]}}
        gathering.add_differences(rows, results, arms, "kept", 0.03)
        found = rows[name]["differences"]["grade"]
        assert (found["mean"], found["verdict"]) == (-2.0, said)


def test_a_cell_runs_once_and_leaves_its_result_alone(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path
) -> None:
    """A search trains, judges each number of steps on both prompts, and removes its checkpoints."""
    monkeypatch.chdir(tmp_path)
    sizes = parts["sizes"].TINY
    cell = parts["cells"].Cell("a", "search", "dpo+prior", 1000, 1e-3)
    place = parts["running"].Place(str(tiny_model_dir), None, sizes)
    parts["running"].run_cell(cell, place)
    path = sizes.folder / cell.name / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["worth"].keys() == {"1", "2"}
    assert all(len(row) == 2 and all(0 <= value <= 1 for value in row) for row in result["worth"].values())
    assert {kept.name for kept in path.parent.iterdir()} == {"result.json", ".turn"}
    path.write_text("{}", encoding="utf-8")
    parts["running"].run_cell(cell, place)
    assert path.read_text(encoding="utf-8") == "{}"
