"""Steps and rows: every group once, nobody waits, the same for every run with the same seed."""

import json
import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.data_loader import SeedableRandomSampler
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler
from transformers import TrainingArguments

from preftune.data import TokenizedGroup
from preftune.models import Policy
from preftune.training.batches import StepSampler, StepSize, deal, fill, plan_steps

TOKENS = st.lists(st.integers(1, 60), min_size=7, max_size=40)
SIZES = st.builds(
    StepSize,
    step=st.integers(1, 9) | st.integers(10, 150),
    row=st.none() | st.integers(1, 9) | st.integers(10, 90),
    in_tokens=st.booleans(),
)


def epoch(tokens: list[int], size: StepSize, processes: int = 1, at: int = 0, **named: Any) -> Any:
    """Every step of an epoch: for each process its rows."""
    samplers = [
        StepSampler(tokens, size, seed=3, rank=rank, processes=processes, **named)
        for rank in range(processes)
    ]
    for sampler in samplers:
        sampler.set_epoch(at)
    steps = list(zip(*samplers, strict=True))
    assert {len(sampler) for sampler in samplers} == {len(steps)}
    return steps


def groups_of(step: Any) -> list[int]:
    """All groups of a step."""
    return [group for rows in step for row in rows for group in row]


@given(tokens=TOKENS, size=SIZES, processes=st.integers(1, 7), at=st.integers(0, 3))
@example(tokens=[5] * 7, size=StepSize(6, None, in_tokens=False), processes=2, at=0)
def test_an_epoch_has_every_group_once_and_a_row_for_everybody(
    tokens: list[int], size: StepSize, processes: int, at: int
) -> None:
    """Whatever the lengths and limits: nothing is repeated or lost, and no process is left without a row."""
    steps = epoch(tokens, size, processes, at)
    assert sorted(chain.from_iterable(map(groups_of, steps))) == list(range(len(tokens)))
    assert all(rows and all(rows) for step in steps for rows in step)
    assert len(steps) == len(epoch(tokens, size, processes))


@given(tokens=TOKENS, size=SIZES, processes=st.integers(1, 7))
def test_no_row_is_longer_than_its_limit(tokens: list[int], size: StepSize, processes: int) -> None:
    """Only a single group may exceed it; without a limit a process has one row in a step."""
    for step in epoch(tokens, size, processes):
        for rows in step:
            if size.row is None:
                assert len(rows) == 1
                continue
            costs = [sum(tokens[group] if size.in_tokens else 1 for group in row) for row in rows]
            assert all(cost <= size.row or len(row) == 1 for cost, row in zip(costs, rows, strict=True))


@given(tokens=TOKENS, budget=st.integers(60, 400))
def test_a_step_ends_where_its_tokens_do(tokens: list[int], budget: int) -> None:
    """After k steps k budgets are used up, short of the group that the cut fell into."""
    steps = epoch(tokens, StepSize(budget, None, in_tokens=True))
    assert len(steps) == math.ceil(sum(tokens) / budget)
    used = 0
    for number, step in enumerate(steps[:-1], start=1):
        used += sum(tokens[group] for group in groups_of(step))
        assert number * budget - max(tokens) < used <= number * budget


@given(tokens=TOKENS, size=SIZES)
def test_processes_share_the_steps_of_one(tokens: list[int], size: StepSize) -> None:
    """A step's groups are the same on one process and on two, where no step is too small for two."""
    one, two = epoch(tokens, size), epoch(tokens, size, 2)
    if all(len(groups_of(step)) >= 2 for step in one):
        assert [sorted(groups_of(step)) for step in two] == [sorted(groups_of(step)) for step in one]


def test_batches_of_groups_are_those_of_the_trainer() -> None:
    """On one process, counting groups, the order is accelerate's for the same seed and epoch."""
    theirs = SeedableRandomSampler(range(13), data_seed=3)
    theirs.set_epoch(2)
    expected = list(BatchSampler(theirs, batch_size=4, drop_last=False))
    ours = epoch([5] * 13, StepSize(4, 4, in_tokens=False), at=2)
    assert [rows[0] for (rows,) in ours] == expected
    assert expected != [rows[0] for (rows,) in epoch([5] * 13, StepSize(4, 4, in_tokens=False), at=1)]


def test_the_order_follows_the_seed_of_the_data(tmp_path: Path, token_groups: list[TokenizedGroup]) -> None:
    """`training.data_seed` where it is set, else `training.seed`."""
    groups = 4 * token_groups

    def order(**seeds: int) -> list[Any]:
        arguments = TrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=12, **seeds)
        return list(plan_steps(groups, arguments, None))

    tokens = [group.packed_tokens for group in groups]
    assert order(seed=3) == list(StepSampler(tokens, StepSize(12, 12, in_tokens=False), seed=3))
    assert order(seed=5) != order(seed=3) == order(seed=5, data_seed=3)


@pytest.mark.parametrize("in_tokens", [False, True], ids=["groups", "tokens"])
def test_drop_last_leaves_out_only_what_does_not_fill_a_step(in_tokens: bool) -> None:
    """13 groups in steps of four: three steps and not four; 12 groups: three either way."""
    size = StepSize(4 * (5 if in_tokens else 1), None, in_tokens)
    for count, steps in ((13, 4), (12, 3)):
        assert len(epoch([5] * count, size)) == steps
        dropped = epoch([5] * count, size, drop_last=True)
        assert [len(groups_of(step)) for step in dropped] == [4, 4, 4]


def test_a_step_that_is_dropped_takes_nothing_from_the_one_before() -> None:
    """7 groups in steps of six on two processes: one full step, not one of five with two groups left over."""
    size = StepSize(6, 3, in_tokens=False)
    assert [len(groups_of(step)) for step in epoch([5] * 7, size, 2)] == [5, 2]
    assert [len(groups_of(step)) for step in epoch([5] * 7, size, 2, drop_last=True)] == [6]


@given(tokens=TOKENS, processes=st.integers(1, 7))
def test_no_process_has_much_more_than_its_share(tokens: list[int], processes: int) -> None:
    """The bound of longest-first scheduling: the mean, and less than the shortest group one has itself."""
    shares = deal(np.array(tokens), processes, most=len(tokens))
    busiest = max(shares, key=lambda share: sum(tokens[group] for group in share))
    most = sum(tokens[group] for group in busiest)
    shortest = min(tokens[group] for group in busiest)
    assert most <= sum(tokens) / processes + (1 - 1 / processes) * shortest + 1e-9


def test_ordinary_steps_are_even_to_a_percent() -> None:
    """Eight processes, groups of 30 to 2000 tokens, about 32 for each process in a step.

    With m groups on the busiest process the bound above is 7/8 of its shortest group, so at most
    1 / (8m/7 - 1) of the mean: 3% for 32. Steps cut out of the stream in order would differ by 30%.
    """
    random = np.random.default_rng(0)
    tokens = np.clip(random.lognormal(5.5, 0.8, size=4000), 30, 2000).astype(int).tolist()
    over = []
    for step in epoch(tokens, StepSize(32 * 8 * 330, None, in_tokens=True), 8)[:-1]:
        loads = [sum(tokens[group] for row in rows for group in row) for rows in step]
        over.append(max(loads) * 8 / sum(loads) - 1)
    assert len(over) > 10
    assert max(over) < 0.01


def test_processes_get_equally_many_groups_where_groups_are_counted() -> None:
    """One long group does not leave its process without the others: memory is bounded by their number."""
    assert [len(share) for share in deal(np.array([90, 1, 1, 1, 1, 1, 1]), 2, most=4)] == [3, 4]
    assert [len(share) for share in deal(np.array([90, 1, 1, 1, 1, 1, 1]), 2, most=7)] == [1, 6]


def test_rows_are_filled_first_fit_largest_first() -> None:
    """9 + 1, 6 + 4, and 12 alone: what exceeds the limit shares its row with nobody."""
    assert fill(np.array([1, 6, 12, 9, 4]), 10) == [[2], [0, 3], [1, 4]]


CommandLine = Callable[..., tuple[int, str]]


@pytest.fixture
def check(preftune: CommandLine, config: dict[str, Any], tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """`preftune train --dry-run`: exit code, and what it said in one line."""

    def run(*arguments: str) -> tuple[int, str]:
        config["training"].pop("per_device_train_batch_size", None)
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        code, errors = preftune("train", str(file), "--dry-run", *arguments)
        return code, " ".join(errors.split())

    return run


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["batches.tokens_per_step=0"], ["batches.tokens_per_step=0", "greater than 0"]),
        (["batches.tokens_per_step=many"], ["batches.tokens_per_step='many'", "integer"]),
        (
            ["batches.tokens_per_step=500", "batches.tokens_per_row=-1"],
            ["batches.tokens_per_row=-1", "greater than 0"],
        ),
        (["batches.tokens_per_row=100"], ["has no 'batches.tokens_per_step'", "add it"]),
        (["batches.token_per_step=500"], ["did you mean 'tokens_per_step'"]),
        (["training.tokens_per_step=500"], ["training.tokens_per_step", "set batches.tokens_per_step"]),
        (["training.auto_find_batch_size=true"], ["training.auto_find_batch_size", "batches.tokens_per_row"]),
        *(
            (
                ["batches.tokens_per_step=500", "batches.tokens_per_row=100", f"training.{field}=4"],
                [f"training.{field}=4", f"batches.{key}", "not in both", "remove one"],
            )
            for field, key in {
                "per_device_train_batch_size": "tokens_per_step=500",
                "gradient_accumulation_steps": "tokens_per_step=500",
                "per_device_eval_batch_size": "tokens_per_row=100",
            }.items()
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and "=" in value[-1] else "",
)
def test_a_wrong_setting_names_its_key_and_the_way_out(
    check: Callable[..., tuple[int, str]], arguments: list[str], parts: list[str]
) -> None:
    """The key, its value, the rule and what to do, before any data is read."""
    code, errors = check(*arguments)
    assert code == 2, errors
    assert [part for part in parts if part not in errors] == []


def test_groups_longer_than_a_row_are_announced_once(
    check: Callable[..., tuple[int, str]], caplog: pytest.LogCaptureFixture
) -> None:
    """They are trained on all the same; a limit that all keep to is not mentioned."""
    for most, times in ((40, 1), (400, 0)):
        code, errors = check("batches.tokens_per_step=500", f"batches.tokens_per_row={most}")
        assert code == 0, errors
        assert caplog.text.count(f"more than batches.tokens_per_row={most} tokens") == times


@pytest.mark.parametrize("batches", [{"tokens_per_step": 300}, None], ids=["tokens", "groups"])
def test_the_announced_steps_are_the_steps_taken(
    batches: dict[str, int] | None, config: dict[str, Any], train: Callable[..., Path]
) -> None:
    """The summary's number of steps and tokens of a step, before and after training."""
    config["training"].pop("per_device_train_batch_size")
    run = train(config | {"batches": batches})
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert summary["steps"] == max(line["step"] for line in lines)
    tokens = max(line.get("tokens", 0) for line in lines)
    assert tokens == 2 * summary["train"]["tokens"]
    assert summary["tokens_per_step"] == round(tokens / summary["steps"])


def test_samples_per_second_count_the_groups_of_a_step(
    config: dict[str, Any], train: Callable[..., Path]
) -> None:
    """With max_steps the Trainer estimates what was seen: sixteen groups in three steps are five a step."""
    config["objective"] = {"method": "cpo"}
    config["training"] = {"max_steps": 2, "use_cpu": True, "save_strategy": "no", "eval_strategy": "no"}
    run = train(config | {"batches": {"tokens_per_step": 400}})
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    (last,) = (line for line in lines if "train_runtime" in line)
    assert last["train_samples_per_second"] * last["train_runtime"] == pytest.approx(2 * 5, rel=0.05)


def test_held_out_rows_keep_to_the_limit_too(
    config: dict[str, Any], train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pass through the model is longer than tokens_per_row, in evaluation neither."""
    rows: dict[bool, list[int]] = {True: [], False: []}
    forward = Policy.forward

    def recorded(self: Policy, batch: Any) -> Any:
        rows[torch.is_grad_enabled()].append(len(batch.input_ids))
        return forward(self, batch)

    monkeypatch.setattr(Policy, "forward", recorded)
    config["objective"] = {"method": "cpo"}
    config["training"] = {"max_steps": 1, "use_cpu": True}
    train(config | {"batches": {"tokens_per_step": 400, "tokens_per_row": 150}})
    assert max(rows[True]) <= 150
    assert max(rows[False]) <= 150
    assert len(rows[False]) == 2 * 3  # before and after; the five pairs have 306 tokens
