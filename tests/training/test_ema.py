"""An average of the trained weights, beside them."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import preftune as package
from preftune.training.configuration import EmaSection
from preftune.training.ema import EMA_FILE, Ema

from ..forks import Forks
from .test_equivalences import Killed, Train, metrics, on_two_processes, weights


class One(nn.Module):
    """One weight that is trained, and one that is not."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.trained = nn.Parameter(torch.ones(1, dtype=dtype))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)


def test_the_average_moves_by_a_share_of_the_distance() -> None:
    """With decay 0.75 from 1: at 2 it is 0.75 + 0.5 = 1.25, at 4 then 0.9375 + 1 = 1.9375."""
    model = One()
    ema = Ema(model, EmaSection(decay=0.75))
    ema.start()
    for value, expected in ((2.0, 1.25), (4.0, 1.9375)):
        model.trained.data.fill_(value)
        ema.step()
        with ema.in_use(average=True):
            assert float(model.trained) == expected
        assert float(model.trained) == value
    assert float(model.frozen) == 1


def test_weights_in_bfloat16_have_an_average_in_float32(tmp_path: Path) -> None:
    """A step of 1e-3 of the distance is lost in bfloat16: 1 + 1e-3 x 2^-7 stays; reading changes neither."""
    model = One(torch.bfloat16)
    ema = Ema(model, EmaSection(decay=0.999))
    ema.start()
    model.trained.data.fill_(1 + 2.0**-7)
    ema.step()
    for _ in range(2):
        ema.use_average()
        ema.use_last()
    assert float(model.trained) == 1 + 2.0**-7
    ema.save(tmp_path, writes=True)
    assert load_file(tmp_path / EMA_FILE)["trained"].item() == pytest.approx(1 + 1e-3 * 2.0**-7, abs=1e-7)
    assert load_file(tmp_path / EMA_FILE)["trained"].item() > 1


def test_a_checkpoint_without_an_average_is_refused(tmp_path: Path) -> None:
    """A run that is resumed with ema, where the checkpoint was written without it."""
    with pytest.raises(package.InputError, match=r"has no average of the weights"):
        Ema(One(), EmaSection()).load(tmp_path)


def averaged(run: Path, start: dict[str, torch.Tensor], decay: float) -> dict[str, torch.Tensor]:
    """The average of the run's checkpoints, one for each step, computed in float64."""
    mean = {name: weight.double() for name, weight in start.items()}
    for step in range(1, 5):
        step_weights = load_file(run / "checkpoints" / f"checkpoint-{step}" / "model.safetensors")
        mean = {name: decay * own + (1 - decay) * step_weights[name].double() for name, own in mean.items()}
    return mean


def test_a_run_saves_and_evaluates_its_average(
    config: dict[str, Any], train: Train, killed_behind: Killed
) -> None:
    """model/ is the average of the steps' weights, model_last/ the last ones; resumed, the same to the bit.

    The held-out loss is the average's: that of the same model, evaluated as the start of another run.
    """
    config["ema"] = {"decay": 0.5}
    config["training"] |= {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 9}
    run = train(config)
    expected = averaged(run, load_file(Path(config["model"]) / "model.safetensors"), 0.5)
    for name, weight in weights(run).items():
        torch.testing.assert_close(weight.double(), expected[name], rtol=1e-6, atol=1e-8)
    last = load_file(run / "checkpoints" / "checkpoint-4" / "model.safetensors")
    beside = load_file(run / "model_last" / "model.safetensors")
    assert all(torch.equal(beside[name], weight) for name, weight in last.items())
    summary = json.loads((run / "summary.json").read_text())
    assert summary["ema"] == {"decay": 0.5, "model": "average", "other": "model_last"}

    again = train(config, f"output={killed_behind(run, 2)}", "--resume")
    for folder in ("model", "model_last"):
        found, first = (load_file(each / folder / "model.safetensors") for each in (again, run))
        assert all(torch.equal(found[name], weight) for name, weight in first.items())
    # An epoch's evaluation comes after the checkpoint of its last step; the last line is of a call.
    later, expected_later = (
        [line for line in metrics(each)[:-1] if line["step"] > 2] for each in (again, run)
    )
    assert later == expected_later

    del config["ema"]
    evaluated = train(
        config,
        *(f"model={run / 'model'}", f"reference={config['model']}", f"output={run.parent / 'after'}"),
        *("training.max_steps=1", "training.learning_rate=0", "training.save_strategy=no"),
    )
    loss = json.loads((evaluated / "summary.json").read_text())["evaluation_start"]["eval_loss"]
    assert summary["evaluation_end"]["eval_loss"] == pytest.approx(loss, rel=1e-5)


def test_the_last_weights_are_kept_where_that_is_asked(
    config: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    """`keep: last` is the run without an average, figures too; the average of the adapter is beside it."""
    config["lora"] = {"rank": 2}
    plain = train(config)
    run = train(config, "ema={decay: 0.5, keep: last}", f"output={tmp_path / 'ema'}")
    first, found = (load_file(each / "model" / "adapter_model.safetensors") for each in (plain, run))
    assert all(torch.equal(found[name], weight) for name, weight in first.items())
    assert metrics(run) == metrics(plain)
    beside = load_file(run / "model_average" / "adapter_model.safetensors")
    assert any(not torch.equal(beside[name], weight) for name, weight in first.items())
    stored = load_file(run / "checkpoints" / "checkpoint-4" / EMA_FILE)
    assert stored
    assert all(".lora_" in name for name in stored)


@pytest.mark.slow
@pytest.mark.parametrize("is_sharded", [False, True])
def test_two_processes_have_the_average_of_one(
    is_sharded: bool, config: dict[str, Any], train: Train, forks: Forks, tmp_path: Path
) -> None:
    """With whole and with sharded weights, after two epochs."""
    config["ema"] = {"decay": 0.5}
    one = train(config)
    config["training"]["per_device_train_batch_size"] = 4
    config["fully_sharded"] = is_sharded
    two = on_two_processes(config, tmp_path / "two", partial(forks.run, processes=2))
    for folder in ("model", "model_last"):
        expected, found = (load_file(each / folder / "model.safetensors") for each in (one, two))
        assert found.keys() == expected.keys()
        for name, weight in found.items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=2e-6)


def test_the_trainer_has_the_kept_weights_and_lends_the_others(config: dict[str, Any]) -> None:
    """In Python: after training the model is the average, and the last weights for a while."""
    trainer = package.PreferenceTrainer(
        config["model"],
        "dpo",
        {**config["training"], "output_dir": config["output"], "max_steps": 2, "save_strategy": "no"},
        train_dataset=config["data"]["train"],
        cache=config["cache"],
        ema={"decay": 0.5},
    )
    trainer.train()
    assert trainer.ema is not None
    weight = next(iter(trainer.model.language_model.parameters()))
    kept = weight.detach().clone()
    with trainer.ema.in_use(average=False):
        assert not torch.equal(weight, kept)
    assert torch.equal(weight, kept)


def test_the_footprint_counts_the_average(config: dict[str, Any]) -> None:
    """4 bytes for a float32 weight, and as many while it is evaluated."""
    plain, with_ema = (package.inspect(config | more).footprint for more in ({}, {"ema": {"decay": 0.9}}))
    assert plain.average == 0
    assert with_ema.average == 8 * with_ema.trained
    assert with_ema.total == plain.total + 8 * with_ema.trained
