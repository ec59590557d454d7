"""The recipes of single runs are configurations that preftune accepts."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

RECIPES = Path(__file__).parents[2] / "recipes"
RUNS = sorted(
    path.name for path in RECIPES.glob("*.yaml") if "data" in yaml.safe_load(path.read_text(encoding="utf-8"))
)
CommandLine = Callable[..., tuple[int, str]]


@pytest.fixture
def on_tiny_data(config: dict[str, Any], tmp_path: Path) -> tuple[str, ...]:
    """Overrides in place of models and data sets that only the hub has."""
    kept = ("train", "evaluation")
    return (
        f"model={config['model']}",
        *(f"data.{split}={config['data'][split]}" for split in kept),
        *("data.evaluation_fraction=null", "data.max_length=256", "data.max_prompt_length=128"),
        f"output={tmp_path / 'run'}",
    )


@pytest.mark.parametrize("recipe", RUNS)
def test_a_dry_run_accepts_it(recipe: str, preftune: CommandLine, on_tiny_data: tuple[str, ...]) -> None:
    """Every key and value of the recipe is good; only model and data are others."""
    code, errors = preftune("train", str(RECIPES / recipe), *on_tiny_data, "--dry-run")
    assert code == 0, errors


def variants() -> list[str]:
    """The objectives that MaPPO's recipe names beside its own."""
    text = (RECIPES / "mappo.yaml").read_text(encoding="utf-8")
    return re.findall(r'^#   objective="(.*)"$', text, flags=re.MULTILINE)


def test_the_recipe_of_mappo_names_the_papers_other_methods() -> None:
    """SimPO, IPO and CPO, with the values of the paper's Tables 4 and 5 and the sums of its Eq. 14 and 16."""
    assert [yaml.safe_load(text) for text in variants()] == [
        {"method": "simpo", "beta": 0.1, "gamma": 1.0, "prior": "reward_gap"},
        {"method": "ipo", "beta": 0.1, "length_normalized": False, "prior": "reward_gap"},
        {
            "method": "cpo",
            "beta": 0.1,
            "likelihood_weight": 0.2,
            "likelihood_reduction": "sum",
            "prior": "reward_gap",
        },
    ]


@pytest.mark.parametrize("objective", variants())
def test_a_dry_run_accepts_its_variants(
    objective: str, preftune: CommandLine, on_tiny_data: tuple[str, ...]
) -> None:
    """Each override is written as the command line takes it."""
    overrides = (*on_tiny_data, f"objective={objective}")
    code, errors = preftune("train", str(RECIPES / "mappo.yaml"), *overrides, "--dry-run")
    assert code == 0, errors


def test_the_recipe_of_upo_trains(config: dict[str, Any], train: Callable[..., Path], tmp_path: Path) -> None:
    """KTO, the auxiliary terms, RMSprop and the head of HALOs train together, and the run says so."""
    recipe = yaml.safe_load((RECIPES / "upo-kto.yaml").read_text(encoding="utf-8"))
    recipe |= {"model": config["model"], "data": config["data"], "output": str(tmp_path / "run")}
    recipe["training"] |= {
        "per_device_train_batch_size": 8,
        "warmup_steps": 0,
        "bf16": False,
        "use_cpu": True,
    }
    run = train(recipe)
    stored = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert stored["value_head"]["architecture"] == "halos"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    terms = {"loss/preference", "loss/auxiliary", "loss/value", "kl"}
    assert terms <= next(line for line in lines if "loss" in line).keys()
