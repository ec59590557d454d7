"""Through the real command line: what must not change a run does not."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ..forks import Done, Forks

TIMES = ("runtime", "per_second", "seconds")
Train = Callable[..., Path]
Killed = Callable[[Path, int], Path]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The trained model's weights."""
    return load_file(run / "model" / "model.safetensors")


def assert_close(run: Path, other: Path) -> None:
    """Two runs ended in the same weights, up to the rounding of another order of summation."""
    expected = weights(other) | value_head(other)
    found = weights(run) | value_head(run)
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=2e-6)


def metrics(run: Path) -> list[dict[str, float]]:
    """Every logged line, without what the clock decides."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not key.endswith(TIMES)} for line in lines
    ]


OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {"objective": {"method": "dpo"}},
    # A term per pair and a term per token: a mean of micro-batch means would show in the second.
    "cpo": {"objective": {"method": "cpo"}},
    # One estimate of the divergence for the whole step: one for each micro-batch would show.
    "kto": {"objective": {"method": "kto"}},
    "ld_dpo": {"objective": {"method": "ld_dpo", "prior": "reward_gap"}},
    "wpo": {"objective": {"method": "wpo"}},
    "token_prior": {"objective": {"method": "dpo", "prior": "token_reward_gap", "credit_temperature": 0.1}},
    # A mean over prompts, each of which is compared with itself.
    "groups": {"objective": {"method": "infonca"}},
    "auxiliary": {
        "objective": {"method": "dpo", "prior": "reward_gap", "auxiliary": {"weight": 0.5}},
        "rewards": {"lexical_diversity": {"weight": 2}, "length": {"target": [4, 8], "weight": 0.1}},
    },
}


def value_head(run: Path) -> dict[str, torch.Tensor]:
    """The trained value head's weights, nothing where the objective has none."""
    file = run / "value_head.safetensors"
    return load_file(file) if file.exists() else {}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_accumulating_eight_times_one_pair_equals_one_batch_of_eight(
    name: str, config: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    """Same weights and same logged losses, although the micro-batches have unequal token counts."""
    config |= OBJECTIVES[name]
    whole = train(config)
    split = train(
        config,
        "training.per_device_train_batch_size=1",
        "training.gradient_accumulation_steps=8",
        f"output={tmp_path / 'split'}",
    )
    assert_close(split, whole)
    for line, expected in zip(metrics(split), metrics(whole), strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-5)


BY_TOKENS = {"tokens_per_step": 400, "tokens_per_row": 150}
"""Three steps of the sixteen groups, some of them in two rows and some in three."""


def by_tokens(config: dict[str, Any], **batches: int) -> dict[str, Any]:
    """The same run with batches counted in tokens."""
    sizes = ("per_device_train_batch_size", "gradient_accumulation_steps")
    training = {key: value for key, value in config["training"].items() if key not in sizes}
    return config | {"training": training, "batches": batches}


def test_steps_of_tokens_equal_steps_of_groups_where_they_coincide(
    config: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    """Groups of one length, five to a step and one in the last: the same run, bit for bit."""
    path = Path(config["data"]["train"])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for index, row in enumerate(rows):
        words = [*"abcdefgh"]
        for column in ("prompt", "chosen", "rejected"):
            words = words[1:] + words[: index % 3 + 1]
            row[column][0]["content"] = "x " + " ".join(words[:6])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config["training"]["per_device_train_batch_size"] = 5
    groups = train(config)
    prepared = json.loads((groups / "summary.json").read_text(encoding="utf-8"))["train"]
    length, rest = divmod(prepared["tokens"], prepared["groups"])
    assert rest == 0
    tokens = train(by_tokens(config, tokens_per_step=5 * length), f"output={tmp_path / 'tokens'}")
    expected = weights(groups)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(tokens).items())
    assert metrics(tokens) == metrics(groups)
    assert [line["step"] for line in metrics(tokens) if "grad_norm" in line] == [*range(1, 9)]


def test_how_a_step_is_split_into_rows_changes_nothing(
    config: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    """Rows of one group, of two or three, and one row for the step: losses and weights agree to 1e-6.

    With plain gradient descent, since Adam divides rounding by rounding where a gradient vanishes.
    """
    config["objective"] = {"method": "cpo", "prior": "reward_gap"}
    config["training"] |= {"optim": "sgd", "learning_rate": 0.1}
    whole = train(by_tokens(config, tokens_per_step=300), f"output={tmp_path / 'whole'}")
    expected = weights(whole)
    moved = max((weight - expected[name]).abs().max() for name, weight in start(config).items())
    assert moved > 1e-3
    for most in (1, 120):
        split = train(
            by_tokens(config, tokens_per_step=300, tokens_per_row=most), f"output={tmp_path / str(most)}"
        )
        for name, weight in weights(split).items():
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)
        for line, other in zip(metrics(split), metrics(whole), strict=True):
            assert line["epoch"] == other["epoch"]
            if "loss" in line:
                assert line["loss"] == pytest.approx(other["loss"], rel=1e-6)


def start(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights before training."""
    return load_file(Path(config["model"]) / "model.safetensors")


RESUMED = [
    (2, None, "dpo"),
    (4, None, "dpo"),
    (2, BY_TOKENS, "dpo"),
    (4, BY_TOKENS, "dpo"),
    (2, None, "kto"),
    (4, None, "auxiliary"),
    (2, BY_TOKENS, "token_prior"),
    pytest.param(4, None, "wpo", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("killed_after", "batches", "name"), RESUMED)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    killed_after: int,
    batches: dict[str, int] | None,
    name: str,
    config: dict[str, Any],
    train: Train,
    killed_behind: Killed,
) -> None:
    """Killed in either epoch, after lines beyond the checkpoint were logged, then resumed."""
    config |= OBJECTIVES[name]
    config["training"] |= {"per_device_train_batch_size": 6, "save_strategy": "steps", "save_steps": 2}
    config["training"]["save_total_limit"] = 3
    if batches:
        config = by_tokens(config, **batches)
    whole = train(config)
    assert [line["step"] for line in metrics(whole) if "grad_norm" in line] == [*range(1, 7)]
    resumed = train(config, f"output={killed_behind(whole, killed_after)}", "--resume")
    expected = weights(whole) | value_head(whole)
    found = weights(resumed) | value_head(resumed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    assert metrics(resumed)[:-1] == metrics(whole)[:-1]  # the last line averages over this process's steps
    assert (resumed / "summary.json").exists()


def by_torchrun(words: list[str]) -> Done:
    """The words' end on two processes that torchrun starts."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, "-m", *words], capture_output=True, text=True, timeout=300, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def on_two_processes(
    config: dict[str, Any], output: Path, launch: Callable[[list[str]], Done] = by_torchrun
) -> Path:
    """The run on two real processes."""
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config | {"output": str(output)}), encoding="utf-8")
    done = launch(["preftune", "train", str(file)])
    assert done.status == 0, done.errors
    assert json.loads((output / "environment.json").read_text(encoding="utf-8"))["processes"] == 2
    return output


@pytest.mark.parametrize(
    ("name", "batches"),
    [
        ("cpo", None),
        ("cpo", {"tokens_per_step": 300, "tokens_per_row": 120}),
        # One process has more rows in a step than the other, and each estimates its share of the divergence.
        ("kto", {"tokens_per_step": 300, "tokens_per_row": 120}),
        ("auxiliary", {"tokens_per_step": 300, "tokens_per_row": 120}),
        ("token_prior", {"tokens_per_step": 300, "tokens_per_row": 120}),
        pytest.param("wpo", None, marks=pytest.mark.slow),
        ("groups", {"tokens_per_step": 300, "tokens_per_row": 120}),
    ],
    ids=["cpo-groups", "cpo-tokens", "kto", "auxiliary", "token_prior", "wpo", "groups"],
)
def test_two_processes_equal_one(
    name: str,
    batches: dict[str, int] | None,
    config: dict[str, Any],
    train: Train,
    forks: Forks,
    tmp_path: Path,
) -> None:
    """Two real processes give the weights and metrics of one, each group once in every epoch.

    With thirteen groups neither steps nor shares come out even.
    """
    config |= OBJECTIVES[name]
    if name == "cpo":
        config["objective"] = {"method": "cpo", "prior": "reward_gap"}
    path = Path(config["data"]["train"])
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(True)[:13]), encoding="utf-8")
    if batches:
        config = by_tokens(config, **batches)
    one = train(config)
    if not batches:
        config["training"]["per_device_train_batch_size"] = 4
    # One by torchrun itself; it costs three starts of Python.
    launch = partial(forks.run, processes=2) if batches else by_torchrun
    two = on_two_processes(config, tmp_path / "two", launch)
    assert_close(two, one)
    for line, expected in zip(metrics(two), metrics(one), strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-5)
    epoch = json.loads((two / "summary.json").read_text(encoding="utf-8"))["train"]["tokens"]
    seen = {line["epoch"]: line["tokens"] for line in metrics(two) if "tokens" in line}
    assert (seen[1.0], seen[2.0]) == (epoch, 2 * epoch)


@pytest.mark.parametrize("name", ["dpo", "kto", "wpo", "token_prior", "auxiliary"])
def test_shared_prompts_equal_padded_rows(
    name: str, config: dict[str, Any], train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run on padded rows ends in the weights of the same run on shared prompts."""
    config |= OBJECTIVES[name]
    shared = train(config)
    monkeypatch.setattr("preftune.models.policy.Policy._sharing_agrees", lambda self: False)
    padded = train(config, f"output={tmp_path / 'padded'}", f"cache={tmp_path / 'other-cache'}")
    assert json.loads((shared / "summary.json").read_text(encoding="utf-8"))["shares_prompts"]
    assert not json.loads((padded / "summary.json").read_text(encoding="utf-8"))["shares_prompts"]
    assert_close(padded, shared)


def test_bf16_autocast_follows_fp32(config: dict[str, Any], train: Train, tmp_path: Path) -> None:
    """Under bf16 the weights stay float32 and the held-out loss ends within one percent of fp32's."""
    full = train(config)
    half = train(config, "training.bf16=true", f"output={tmp_path / 'bf16'}")
    assert all(weight.dtype == torch.float32 for weight in weights(half).values())
    losses = [[line["eval_loss"] for line in metrics(run) if "eval_loss" in line][-1] for run in (half, full)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert losses[0] != losses[1]
