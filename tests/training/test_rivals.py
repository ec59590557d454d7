"""Score-aware rivals of the prior, each through the real command line once."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from preftune.objectives import METHODS, build

from ..conftest import WORDS, write_rows

Train = Callable[..., Path]
CommandLine = Callable[..., tuple[int, str]]

SCORES = [(0.9, 0.1, 0.4, 0.6), (0.2, 0.2, 0.7, 1.0), (0.5, 0.3, 0.8, 0.0), (0.25, 0.75, 0.5, 1.0)]
"""Of four prompts' responses."""


def quantiles(scores: tuple[float, ...]) -> list[float]:
    """Share of the scores that are no higher, for each."""
    return [sum(other <= score for other in scores) / len(scores) for score in scores]


GAPS = [max(scores) - min(scores) for scores in SCORES]
# The loss where policy and reference agree, so that h = 0: over pairs of best and worst, or over groups of 4.
FIRST_LOSS: dict[str, float] = {
    "odpo": sum(math.log1p(gap) for gap in GAPS) / 4,
    "rpo": sum(
        p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
        for p in (1 / (1 + math.exp(-gap)) for gap in GAPS)
    )
    / 4,
    "distilled_dpo": sum(gap**2 for gap in GAPS) / 4,
    "mmpo": math.log(2),
    "scaled_dpo": sum(GAPS) / 4 * math.log(2),
    "infonca": math.log(4),
    "reward_nca": 2 * math.log(2),
    # Two equal scores have each other in their sums: log 2 + log 2 in place of log 2 + log 1.
    "plackett_luce": math.log(24) + math.log(2) / 4,
    "qrpo": sum((q - 1 - math.log(math.e - 1) + 1) ** 2 for scores in SCORES for q in quantiles(scores)) / 16,
}
OPTIONS: dict[str, dict[str, Any]] = {"qrpo": {"beta": 1.0}}
RIVALS = [
    name for name in METHODS if not build({"method": name}).needs.isdisjoint({"prior_gap", "prior_reward"})
]


def groups() -> list[dict[str, Any]]:
    """Four prompts with four responses of unequal lengths each."""
    generator = random.Random(3)

    def words() -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(2, 12)))

    return [
        {"prompt": f"{place} {words()}", "responses": [words() for _ in scores], "scores": list(scores)}
        for place, scores in enumerate(SCORES)
    ]


@pytest.fixture
def grouped(config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run on groups, all of them in one step."""
    config["data"] = {"train": str(write_rows(tmp_path / "groups.jsonl", groups()))}
    config["training"] |= {"max_steps": 2, "logging_steps": 1, "max_grad_norm": 0, "save_strategy": "no"}
    return config


def logged(run: Path) -> list[dict[str, float]]:
    """Lines of metrics with a loss."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in found if "loss" in line]


@pytest.mark.parametrize("method", RIVALS)
def test_each_rival_trains_on_scored_groups(
    grouped: dict[str, Any], train: Train, method: str, tiny_model_dir: Path
) -> None:
    """The first loss is that of equal policies, on all responses of a prompt or on its pair; weights move."""
    grouped["objective"] = {"method": method, **OPTIONS.get(method, {})}
    run = train(grouped)
    first, second = logged(run)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    of_groups = "groups" in summary["needs"]
    assert summary["train"]["responses"] == (16 if of_groups else 8)
    assert summary["calibration"]["kind"] == "identity"
    if method in FIRST_LOSS:
        assert first["loss"] == pytest.approx(FIRST_LOSS[method], abs=1e-4)
    assert math.isfinite(second["loss"])
    if of_groups:
        assert first["prior/reward"] == pytest.approx(sum(map(sum, SCORES)) / 16, rel=1e-6)
    else:
        assert first["prior/gap"] == pytest.approx(sum(GAPS) / 4, rel=1e-6)
    trained, start = (load_file(folder / "model.safetensors") for folder in (run / "model", tiny_model_dir))
    assert any(not torch.equal(weight, start[name]) for name, weight in trained.items())


def test_pairs_and_groups_are_learned_from_together(grouped: dict[str, Any], train: Train) -> None:
    """In a mix, dpo learns from each prompt's pair and infonca from all of its responses.

    Both first losses are those of equal policies: log 2, and the one of infonca alone.
    """
    grouped["objective"] = {"mix": {"dpo": 0.5, "infonca": 2.0}, "prior": "reward_gap"}
    run = train(grouped)
    first, second = logged(run)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert (summary["train"]["pairs"], summary["train"]["responses"]) == (4, 16)
    assert first["loss/preference/dpo"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["loss/preference/infonca"] == pytest.approx(FIRST_LOSS["infonca"], abs=1e-4)
    assert first["loss"] == pytest.approx(0.5 * math.log(2) + 2 * FIRST_LOSS["infonca"], abs=1e-3)
    assert second["grad_norm"] > 0


@pytest.mark.parametrize("objective", [{"method": "rloo"}, {"mix": {"grpo": 1.0, "dpo": 1.0}}])
def test_a_file_is_no_sample_of_the_policy(
    grouped: dict[str, Any], train: Train, objective: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A method for the policy's own samples trains on a file, and the run says once what that is."""
    grouped["objective"] = {**objective, "prior": "reward_gap"}
    first, _ = logged(train(grouped))
    assert first["grad_norm"] > 0
    name = next(iter(objective.get("mix", {"rloo": 1})))
    assert caplog.text.count(f"objective: {name} learns from samples of the policy as it is") == 1


def test_groups_stay_whole_in_any_row(grouped: dict[str, Any], train: Train, tmp_path: Path) -> None:
    """A step in one row and one of a row for each prompt have the same losses: means over prompts are exact.

    An adapter is trained as well as the whole model is.
    """
    grouped["objective"] = {"method": "infonca"}
    grouped["lora"] = {"rank": 4}
    whole = logged(train(grouped))
    accumulated = ["training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=4"]
    split = logged(train(grouped, *accumulated, f"output={tmp_path / 'split'}"))
    for one, other in zip(whole, split, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_a_hypo_run_needs_no_scores(config: dict[str, Any], train: Train) -> None:
    """Its first loss is over the reference's margins, each at most 0, and so at least dpo's log 2."""
    del config["prior"]
    config["objective"] = {"method": "hypo"}
    config["training"] |= {"max_steps": 1, "logging_steps": 1, "save_strategy": "no"}
    (first,) = logged(train(config))
    assert first["loss"] > math.log(2)
    assert 0 < first["reference/clipped"] < 1


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["objective.prior=reward_gap"], ["prior = 'reward_gap' is not defined for method 'infonca'"]),
        (
            ["prior.calibration=bradley_terry"],
            ["'bradley_terry' gives a value only to pairs", "use 'sigmoid'"],
        ),
    ],
)
def test_what_groups_cannot_use_is_refused(
    grouped: dict[str, Any],
    preftune: CommandLine,
    tmp_path: Path,
    overrides: list[str],
    fragments: list[str],
) -> None:
    """A prior beside rewards, and a calibration that knows pairs alone, are errors with their fix."""
    grouped["objective"] = {"method": "infonca"}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(grouped), encoding="utf-8")
    code, stderr = preftune("train", str(file), *overrides)
    assert code == 2
    for fragment in fragments:
        assert fragment in stderr


def test_margins_alone_are_no_rewards(config: dict[str, Any], preftune: CommandLine, tmp_path: Path) -> None:
    """Pairs with a margin and no scores are refused where every response needs its reward."""
    pair = {"prompt": "one", "chosen": "a", "rejected": "b", "margin": 0.5}
    config["data"] = {"train": str(write_rows(tmp_path / "margins.jsonl", [pair]))}
    config["objective"] = {"method": "qrpo"}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    code, stderr = preftune("train", str(file))
    assert code == 2
    assert "a response has no score" in stderr
    assert "for all where a method learns from groups: add the scores" in stderr
