"""Optimizers that people use, learning rates by name, and weights in bfloat16."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

import preftune as package
from preftune.training.configuration import check_config
from preftune.training.given import NOTHING_GIVEN
from preftune.training.optimizers import (
    REFUSED,
    SHARDED,
    UNSAVED,
    bfloat16_spacing,
    check_optimizer,
    matched,
    split_groups,
)
from preftune.training.stochastic_rounding import StochasticAdamW, round_stochastically

from ..forks import Forks
from .test_equivalences import Killed, Train, metrics, on_two_processes, weights

CommandLine = Callable[..., tuple[int, str]]
DOCS = Path(__file__).parents[2] / "docs" / "optimizers.md"
OFTEN = ("rmsprop", "adamw_8bit")
"""Those of papers and recipes that every test run trains with."""
OTHERS = (
    *(
        "adafactor",
        "paged_adamw_8bit",
        "adagrad",
        "sgd",
        "ademamix",
        "ademamix_8bit",
        "adamw_bnb_8bit",
        "lion_8bit",
        "lion_32bit",
    ),
    *("paged_adamw_32bit", "paged_lion_32bit"),
    *("paged_lion_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
)
"""More that run on a CPU with what the tests have."""


def resumed(config: dict[str, Any], train: Train, killed_behind: Killed, *options: str) -> tuple[Path, Path]:
    """A run, and the same killed behind its second step and resumed."""
    whole = train(config, *options)
    killed = killed_behind(whole, 2)
    return whole, train(config, *options, f"output={killed}", "--resume")


@pytest.mark.parametrize("name", [*OFTEN, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_an_optimizer_trains_and_resumes_to_the_same_weights(
    name: str, config: dict[str, Any], train: Train, killed_behind: Killed
) -> None:
    """The policy moves, and a killed run comes to the same bits."""
    whole, again = resumed(config, train, killed_behind, f"training.optim={name}")
    start = load_file(Path(config["model"]) / "model.safetensors")
    assert any(not torch.equal(weight, start[key]) for key, weight in weights(whole).items())
    assert all(torch.equal(weight, weights(whole)[key]) for key, weight in weights(again).items())


@pytest.mark.parametrize("name", REFUSED)
def test_an_optimizer_that_cannot_train_packed_rows_is_refused(name: str, tmp_path: Path) -> None:
    """One message with the reason and what to set."""
    arguments = TrainingArguments(str(tmp_path), optim=name, use_cpu=True, report_to="none")
    said = f"training.optim={name} is refused: {REFUSED[name]}. Set training.optim="
    with pytest.raises(package.InputError, match=re.escape(said)):
        check_optimizer(arguments, check_config({"model": "any", "data": {"train": "any"}}), NOTHING_GIVEN)


def test_the_table_has_every_optimizer_of_transformers() -> None:
    """A new version of transformers that adds one fails here, and what is refused is said to be."""
    rows = re.findall(r"^\| (`.*)$", DOCS.read_text(encoding="utf-8").partition("\n## ")[0], re.MULTILINE)
    told = {name: row for row in rows for name in re.findall(r"`([a-z0-9_]+)`", row.split("|")[0])}
    assert told.keys() == {each.value for each in OptimizerNames}
    assert {name for name, row in told.items() if "refused" in row.split("|")[1]} == REFUSED.keys()
    assert {name for name, row in told.items() if "cannot be resumed" in row} == UNSAVED
    assert {name for name, row in told.items() if row.split("|")[2].strip() == "yes"} == SHARDED
    tested = {name for name, row in told.items() if row.split("|")[1].strip() == "runs, tested"}
    assert tested == {*OFTEN, *OTHERS, "adamw_torch", "adamw_torch_fused"}


# --- learning rates by name ---


class Two(nn.Module):
    """Two layers of 3 weights and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 1), nn.Linear(3, 1)


def test_a_pattern_gives_its_weights_a_learning_rate() -> None:
    """Four parameters of `last` have it, and keep the weight decay of their group; the others stay."""
    model = Two()
    decayed, plain = [model.first.weight, model.last.weight], [model.first.bias, model.last.bias]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    split_groups(optimizer, model, {r"^last\.": 1e-5})
    found = {
        id(weight): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    assert found == {
        id(model.first.weight): (1e-3, 0.1),
        id(model.last.weight): (1e-5, 0.1),
        id(model.first.bias): (1e-3, 0.0),
        id(model.last.bias): (1e-5, 0.0),
    }


def test_a_weight_has_one_learning_rate() -> None:
    """Two patterns that match one weight are refused, by name."""
    with pytest.raises(package.InputError, match=r"'last' and 'weight' both match last\.weight"):
        matched({"last": 1e-5, "weight": 1e-6}, ["first.weight", "last.weight"])


def test_a_rate_of_zero_leaves_weights_as_they_are(config: dict[str, Any], train: Train) -> None:
    """Of a run, the layers with a rate of 0 stay, and all others move; the value head has its own."""
    config["learning_rates"] = {r"layers\.0\.": 0.0}
    run = train(config)
    start = load_file(Path(config["model"]) / "model.safetensors")
    stays = {name for name, weight in weights(run).items() if torch.equal(weight, start[name])}
    assert stays == {name for name in start if ".layers.0." in name}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["learning_rates={decoder: 1.0e-5}"], "the pattern 'decoder' matches none of the"),
        (["learning_rates={'(': 1.0e-5}"], "is not a regular expression"),
        (["learning_rates={lm_head: -1}"], "greater than or equal to 0"),
        (["stochastic_rounding=true"], "is for trained weights in bfloat16, and there are none"),
        (
            ["stochastic_rounding=true", "model_dtype=bfloat16", "lora.rank=4"],
            "is for trained weights in bfloat16, and there are none",
        ),
        (["stochastic_rounding=true", "training.optim=sgd"], "rounds the steps of AdamW"),
        (["fully_sharded=true", "training.optim=adafactor"], "is not tested on sharded weights"),
        (["training.optim=lomo"], "training.optim=lomo is refused"),
        (["training.optim=paged_ademamix_8bit"], "needs CUDA"),
        (["training.optim=galore_adamw"], "training.optim=galore_adamw needs the layers"),
        (["ema.decay=1"], "ema.decay=1: Input should be less than 1"),
        (["ema.keep=best"], "'average' or 'last'"),
    ],
)
def test_bad_input_gets_a_message_before_weights_load(
    options: list[str], message: str, config: dict[str, Any], preftune: CommandLine, tmp_path: Path
) -> None:
    """Exit code 2, and nothing is written."""
    file = tmp_path / "run.json"
    file.write_text(json.dumps(config))
    code, errors = preftune("train", str(file), *options)
    assert code == 2
    assert message in " ".join(errors.split())
    assert not Path(config["output"]).exists()


# --- weights in bfloat16 ---


def test_the_spacing_of_bfloat16() -> None:
    """Torch's own next number: 0.02 lies in [2^-6, 2^-5), with 2^-13 between numbers."""
    assert bfloat16_spacing(0.02) == 2.0**-13
    assert bfloat16_spacing(1.0) == 2.0**-7
    one = torch.tensor(1.0, dtype=torch.bfloat16)
    assert float(torch.nextafter(one, 2 * one)) - 1 == bfloat16_spacing(1.0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_expectation_of_the_rounded_number_is_the_number(sign: float) -> None:
    """A quarter of the way from 1 to 1 + 2^-7 becomes one of the two, the upper one in a quarter of draws."""
    exact = torch.full((40_000,), sign * (1 + 2.0**-9))
    rounded = round_stochastically(exact, torch.Generator().manual_seed(0))
    assert set(rounded.abs().tolist()) == {1.0, 1 + 2.0**-7}
    # Four standard errors: 2^-7 sqrt(3/16 / 40000).
    assert float(rounded.double().mean()) == pytest.approx(float(exact[0]), abs=4 * 2.0**-7 * 0.002166)


def test_what_bfloat16_has_stays() -> None:
    """Exact numbers, zeros and numbers that are not finite."""
    exact = torch.tensor([0.0, -0.0, 1.5, -3.0, torch.inf, -torch.inf, torch.nan])
    rounded = round_stochastically(exact, torch.Generator().manual_seed(0))
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded[:-1].float(), exact[:-1])
    assert rounded[-1].isnan()


def moved(kind: type[torch.optim.Optimizer], **options: Any) -> torch.Tensor:
    """Weights of 1 in bfloat16 after 64 steps up, each an eighth of the distance to the next number."""
    weight = nn.Parameter(torch.ones(4000, dtype=torch.bfloat16))
    optimizer = kind([weight], lr=1e-3, weight_decay=0.0, **options)
    for _ in range(64):
        weight.grad = -torch.ones_like(weight)
        optimizer.step()
    return weight.detach().double()


def test_small_steps_count_in_expectation() -> None:
    """AdamW stays at 1 where it should have come to 1.064; rounded by chance it comes there on average."""
    assert bool((moved(torch.optim.AdamW) == 1).all())
    # A draw's variance is at most 2^-16, of which 64 add up; four standard errors of the mean of 4000.
    error = 4 * 2.0**-8 * (64 / 4000) ** 0.5
    assert float(moved(StochasticAdamW, seed=0).mean()) == pytest.approx(1.064, abs=error)


def test_weights_in_float32_are_those_of_adamw() -> None:
    """Where there is nothing to round, each step is torch's own, bit for bit."""
    both = [nn.Parameter(torch.linspace(-1, 1, 9)) for _ in range(2)]
    plain = torch.optim.AdamW([both[0]], lr=1e-2, foreach=False)
    rounding = StochasticAdamW([both[1]], lr=1e-2, seed=0)
    for step in range(3):
        for weight in both:
            weight.grad = torch.linspace(2, -1, 9) * (step + 1)
        plain.step()
        rounding.step()
    assert torch.equal(*both)


def test_a_state_that_is_loaded_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Two steps, saved and loaded, and two more are four steps; the state is float32."""

    def steps(weight: nn.Parameter, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            weight.grad = torch.linspace(-1, 1, 500).to(torch.bfloat16) * (number + 1)
            optimizer.step()

    start = torch.linspace(-0.05, 0.05, 500).to(torch.bfloat16)
    whole, again = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = StochasticAdamW([whole], lr=1e-5, seed=7)
    steps(whole, optimizer, range(2))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    again.data.copy_(whole)
    steps(whole, optimizer, range(2, 4))
    resumed = StochasticAdamW([again], lr=1e-5, seed=7)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.state[again]["exp_avg_sq"].dtype == torch.float32
    steps(again, resumed, range(2, 4))
    assert torch.equal(whole, again)
    assert not torch.equal(whole, start)


@pytest.mark.slow
def test_a_run_in_bfloat16_resumes_bit_for_bit(
    config: dict[str, Any], train: Train, killed_behind: Killed
) -> None:
    """With stochastic rounding: the weights, which are bfloat16, and every figure of a step."""
    options = ("model_dtype=bfloat16", "stochastic_rounding=true")
    config["training"]["learning_rate"] = 1e-5
    whole, again = resumed(config, train, killed_behind, *options)
    assert all(torch.equal(weight, weights(whole)[key]) for key, weight in weights(again).items())
    assert {weight.dtype for weight in weights(whole).values()} == {torch.bfloat16}
    # The last line has a mean over the steps of a call.
    assert metrics(again)[:-1] == metrics(whole)[:-1]


@pytest.mark.slow
@pytest.mark.parametrize("is_sharded", [False, True])
def test_two_processes_in_bfloat16_resume_bit_for_bit(
    is_sharded: bool, config: dict[str, Any], forks: Forks, killed_behind: Killed, tmp_path: Path
) -> None:
    """With stochastic rounding, whole and sharded; the state of a sharded model stays float32 too."""
    config |= {"model_dtype": "bfloat16", "stochastic_rounding": True, "fully_sharded": is_sharded}
    config["training"] |= {"learning_rate": 1e-5, "per_device_train_batch_size": 4}
    two = on_two_processes(config, tmp_path / "two", partial(forks.run, processes=2))
    killed = killed_behind(two, 2)
    again = on_two_processes(
        config, killed, lambda arguments: forks.run([*arguments, "--resume"], processes=2)
    )
    assert all(torch.equal(weight, weights(two)[key]) for key, weight in weights(again).items())
    stored = torch.load(two / "checkpoints" / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"]
    assert {own["exp_avg_sq"].dtype for own in stored.values()} == {torch.float32}


def test_weights_in_bfloat16_are_warned_of(config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """The effect, a step of 1e-6 against 2^-13, and what to set; not with adapters, which are float32."""
    config["training"]["learning_rate"] = 1e-6
    package.check(config)
    assert "rounded away" not in caplog.text
    package.check(config | {"model_dtype": "bfloat16", "lora": {"rank": 4}})
    assert "rounded away" not in caplog.text
    package.check(config | {"model_dtype": "bfloat16"})
    # 1e-6 / 1.22e-4.
    assert "1.2e-04 apart, a step of 1e-06 is 0.0082 of that" in caplog.text
    assert "stochastic_rounding=true" in caplog.text
