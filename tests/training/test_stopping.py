"""Training that goes wrong ends, and what was good before is kept."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainingArguments

from preftune import PreferenceTrainer
from preftune.errors import NotFiniteError
from preftune.training.configuration import StopSection
from preftune.training.stopping import Stops

from .test_best_checkpoint import summary
from .test_equivalences import Train

CommandLine = Callable[..., tuple[int, str]]


def write(config: dict[str, Any], tmp_path: Path) -> str:
    """The configuration as a file."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(file)


def no_constant(word: str) -> None:
    """What JSON lacks."""
    pytest.fail(f"{word} is not JSON")


def test_a_run_that_diverges_is_no_success(
    config: dict[str, Any], preftune: CommandLine, tmp_path: Path
) -> None:
    """Exit code 1, one message, no model, and files that are JSON."""
    config["training"] |= {"learning_rate": 1e20, "save_strategy": "no", "num_train_epochs": 9}
    file, run = write(config, tmp_path), Path(config["output"])
    code, errors = preftune("train", file)
    said = " ".join(errors.split())
    assert code == 1
    assert "Traceback" not in errors
    assert "stop.not_finite=3" in said
    assert "no model is written" in said
    # What is so already is no advice.
    assert "set a lower training.learning_rate than 1e+20; if" in said
    assert not (run / "model").exists()
    for name in ("summary.json", "metrics.jsonl"):
        for line in [(run / name).read_text()] if name == "summary.json" else (run / name).open():
            json.loads(line, parse_constant=no_constant)
    stopped = summary(run)["stopped"]
    assert (stopped["by"], stopped["step"], stopped["limit"]) == ("stop.not_finite", 5, 3)
    # Asked again, it says so again.
    assert preftune("train", file, "--resume")[0] == 1


def test_the_newest_checkpoint_from_before_is_kept(config: dict[str, Any]) -> None:
    """From step 3 on gradients are NaN: the model is that of step 1, whose weights gave a finite step."""
    arguments = TrainingArguments(
        config["output"],
        num_train_epochs=8,
        max_steps=9,
        learning_rate=1e-3,
        use_cpu=True,
        save_steps=1,
        save_strategy="steps",
        save_total_limit=2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = PreferenceTrainer(
        config["model"], "dpo", arguments, train_dataset=config["data"]["train"], cache=config["cache"]
    )
    clip = trainer._clip_grad_norm

    def broken(model: Any) -> torch.Tensor:
        if trainer.state.global_step >= 2:
            for weight in trainer.model.parameters():
                weight.grad = torch.full_like(weight, torch.nan)
        return clip(model)

    trainer._clip_grad_norm = broken  # type: ignore[method-assign]
    with pytest.raises(NotFiniteError, match=r"last 3 steps.*the weights of step 1"):
        trainer.train()
    assert trainer.state.global_step == 5
    kept = load_file(Path(config["output"]) / "checkpoint-1" / "model.safetensors")
    found = trainer.model.language_model.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in kept.items())
    # Checkpoints of NaN would have pushed it out.
    assert sorted(path.name for path in Path(config["output"]).iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_a_short_run_without_numbers_writes_no_model(
    config: dict[str, Any], preftune: CommandLine, tmp_path: Path
) -> None:
    """Too few steps to stop, and the stop switched off: NaN is saved in neither case."""
    config["training"] |= {"learning_rate": 1e20, "max_steps": 3, "max_grad_norm": 9.0}
    for change in ("stop.not_finite=3", "stop.not_finite=null"):
        code, errors = preftune("train", write(config, tmp_path), change, "--overwrite")
        assert code == 1
        assert "than 1e+20, or training.max_grad_norm=1.0; if" in " ".join(errors.split())
        assert not (Path(config["output"]) / "model").exists()


def test_a_bound_ends_the_run_and_keeps_what_was_within_it(config: dict[str, Any], train: Train) -> None:
    """Chosen responses that lose more than the bound: the checkpoint before is the model, exit code 0."""
    config["objective"] = {"method": "dpo"}
    config["stop"] = {"chosen_logp_change_below": -5.0}
    config["training"] |= {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps"}
    config["training"] |= {"save_steps": 1, "learning_rate": 3e-2, "num_train_epochs": 20}
    run = train(config)
    content = summary(run)
    stopped = content["stopped"]
    assert stopped["by"] == "stop.chosen_logp_change_below"
    assert stopped["value"] < -5.0
    assert stopped["step"] == content["steps"] < 40
    assert content["kept"]["step"] == stopped["step"] - 1
    model = load_file(run / "model" / "model.safetensors")
    kept = load_file(run / "checkpoints" / f"checkpoint-{stopped['step'] - 1}" / "model.safetensors")
    assert all(torch.equal(weight, kept[name]) for name, weight in model.items())
    assert content["chosen_logp_change"] >= -5.0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"stop.chosen_logp_change_below at step {stopped['step']}" in page


def watch(section: dict[str, Any]) -> Stops:
    """Stops of a small model in one process."""
    return Stops(StopSection(**section), torch.nn.Linear(1, 1), torch.device("cpu"), lambda sums: sums)


def test_steps_on_end_are_counted() -> None:
    """A finite step between two that are not begins the count again."""
    stops = watch({})
    for norm in (
        torch.tensor(torch.inf),
        torch.tensor(torch.nan),
        torch.tensor(1.0),
        torch.tensor(torch.nan),
    ):
        stops.see(norm)
    assert int(stops._not_finite) == 1
