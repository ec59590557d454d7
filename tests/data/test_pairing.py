"""Which of N scored responses become pairs, on literal scores."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data import PAIR_RULES, Pair, load_groups
from preftune.data.pairing import Pairing
from preftune.errors import InputError
from preftune.training.configuration import check_config
from preftune.training.preparation import prepare


def pairs(scores: list[float], contents: list[Any] | None = None, **options: Any) -> list[tuple[int, int]]:
    """The pairs among responses with these scores."""
    contents = contents or [f"r{i}" for i in range(len(scores))]
    return Pairing(**options).choose("p", contents, [float(score) for score in scores])


def test_best_random_prefers_the_best_over_any_lower_one() -> None:
    """Of 1, 3, 2, 3 the second is chosen, and over the seeds the first and third are each rejected."""
    drawn = {tuple(pairs([1, 3, 2, 3], rule="best_random", seed=seed)) for seed in range(20)}
    assert drawn == {((1, 0),), ((1, 2),)}


def test_best_random_draws_all_lower_ones_as_often() -> None:
    """Over 3,000 prompts each of three lower responses is rejected 1,000 times, within 4 deviations of 26."""
    pairing = Pairing("best_random")
    drawn = [pairing.choose(f"p{i}", ["a", "b", "c", "d"], [4.0, 3.0, 2.0, 1.0])[0][1] for i in range(3000)]
    assert all(abs(drawn.count(index) - 1000) < 104 for index in (1, 2, 3))


def test_the_seed_and_the_group_decide() -> None:
    """The same group gives the same pair wherever it stands and however often it is asked."""
    responses = [f"r{i}" for i in range(50)]
    rows = [{"prompt": f"p{i}", "responses": responses, "scores": list(range(50))} for i in range(8)]

    def read(rows: list[dict[str, Any]], seed: int) -> dict[Any, Any]:
        data = datasets.Dataset.from_list(rows)
        loaded = load_groups(data, pair_rule="best_random", pair_seed=seed)
        return {group.prompt: group.pairs for group in loaded.groups}

    assert read(rows, 0) == read(rows[::-1], 0) != read(rows, 1)
    assert len(set(read(rows, 0).values())) > 1


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [(1, 0)]),
        # Differences: 3 over 1 is 2 (indices 1, 0 and 3, 0); 3 over 2 and 2 over 1 are 1.
        (2, [(1, 0), (3, 0)]),
        (4, [(1, 0), (3, 0), (1, 2), (2, 0)]),
        (9, [(1, 0), (3, 0), (1, 2), (2, 0), (3, 2)]),
    ],
)
def test_max_margin_topk(count: int, expected: list[tuple[int, int]]) -> None:
    """The largest differences come first, equal ones in the order of the responses, and no tie is a pair."""
    assert pairs([1, 3, 2, 3], rule="max_margin_topk", per_prompt=count) == expected


@pytest.mark.parametrize("rule", PAIR_RULES)
def test_ties_are_no_pairs(rule: str) -> None:
    """Of equal scores no rule makes a pair, and the group is dropped with a count."""
    assert pairs([2, 2, 2], rule=rule, per_prompt=3) == []
    rows = [{"prompt": "p", "responses": ["a", "b"], "scores": scores} for scores in ([1, 1], [1, 2])]
    loaded = load_groups(datasets.Dataset.from_list(rows), pair_rule=rule, pairs_per_prompt=3)
    assert [group.pairs for group in loaded.groups] == [(Pair(1, 0),)]
    assert loaded.report.counts == {("tied_scores", "drop"): 1}


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=6), st.sampled_from(sorted(PAIR_RULES)))
def test_every_pair_prefers_the_higher_score(scores: list[float], rule: str) -> None:
    """Under any rule the chosen response scored higher, no pair comes twice, and ties alone give none."""
    made = pairs(scores, rule=rule, per_prompt=4)
    assert all(scores[chosen] > scores[rejected] for chosen, rejected in made)
    assert len(set(made)) == len(made)
    assert bool(made) == (len(set(scores)) > 1)


def test_length_penalty() -> None:
    """Each character costs the penalty where pairs are chosen: 2 - 0.5 * 4 is less than 1 - 0.5 * 1."""
    contents = ["long", "s"]
    assert pairs([2, 1], contents) == [(0, 1)]
    assert pairs([2, 1], contents, length_penalty=0.5) == [(1, 0)]
    # 2 - 0.3 * 4 is still more than 1 - 0.3 * 1.
    assert pairs([2, 1], contents, length_penalty=0.3) == [(0, 1)]
    # 2 - 0.5 * 4 is 1 - 0.5 * 2, a tie.
    assert pairs([2, 1], ["long", "so"], length_penalty=0.5) == []
    messages = [({"role": "assistant", "content": content},) for content in contents]
    assert pairs([2, 1], messages, length_penalty=0.5) == [(1, 0)]


def test_length_penalty_leaves_the_scores() -> None:
    """The responses keep the scores of the data, so that a prior sees when the pair goes against them."""
    row = {"prompt": "p", "responses": ["long", "s"], "scores": [2, 1]}
    (group,) = load_groups(datasets.Dataset.from_list([row]), length_penalty=0.5).groups
    assert group.pairs == (Pair(1, 0),)
    assert [response.score for response in group.responses] == [2.0, 1.0]


def test_keys_of_a_run_reach_the_pairs(config: dict[str, Any], tmp_path: Path) -> None:
    """Of three responses `all_pairs` makes 3 pairs; two are wanted in training, all in evaluation.

    By score "rain on the roof" is the best; with 0.5 off for each of its 16 characters it is the worst.
    """
    responses, scores = ["rain on the roof", "rain", "bread"], [3, 2, 1]
    rows = [{"prompt": f"Say {n}", "responses": responses, "scores": scores} for n in range(4)]
    path = tmp_path / "groups.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(path), "evaluation": str(path.with_name("held_out.jsonl"))}
    path.with_name("held_out.jsonl").write_text(path.read_text())
    config |= {"objective": {"method": "dpo"}, "prior": {}}
    rules = {"pair_rule": "max_margin_topk", "pairs_per_prompt": 2, "evaluation_pair_rule": "all_pairs"}
    config["data"] = {**data, **rules, "length_penalty": 0.5}
    prepared = prepare(check_config(config))
    assert prepared.held_out["evaluation"] is not None
    # 3 - 8, 2 - 2 and 1 - 2.5: the differences are 5 (1 over 0), 3.5 (2 over 0) and 1.5 (1 over 2).
    assert [group.pairs for group in prepared.train.groups] == [(Pair(1, 0), Pair(2, 0))] * 4
    assert [len(group.pairs) for group in prepared.held_out["evaluation"].groups] == [3] * 4
    config["data"] = {**data, "pair_rule": "best_random", "pair_seed": 3}
    drawn = [group.pairs for group in prepare(check_config(config)).train.groups]
    expected = load_groups(path, pair_rule="best_random", pair_seed=3).groups
    assert drawn == [group.pairs for group in expected]


def test_a_rule_that_counts_needs_a_number() -> None:
    """The number is asked for where it is missing, and refused where no rule reads it."""
    with pytest.raises(InputError, match=r"data\.pair_rule=max_margin_topk .*set data\.pairs_per_prompt="):
        load_groups("no/such/source", pair_rule="max_margin_topk")
    config = {"model": "m", "data": {"train": "t.jsonl", "pairs_per_prompt": 2}}
    with pytest.raises(InputError, match=r"pairs_per_prompt=2 is not read by pair_rule=best_worst; set "):
        check_config(config)
    config["data"] |= {"evaluation_pair_rule": "max_margin_topk"}  # type: ignore[operator]
    assert check_config(config).data.pairs_per_prompt == 2
