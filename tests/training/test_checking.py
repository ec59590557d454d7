"""What the Trainer would find out late is refused before weights load and before an old run goes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from preftune.errors import InputError
from preftune.training import check_config
from preftune.training.checking import RULES, check_values
from preftune.training.preparation import training_arguments

CommandLine = Callable[..., tuple[int, str]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -1e-6),
        ("learning_rate", float("inf")),
        ("weight_decay", -0.1),
        ("adam_beta1", 2.0),
        ("adam_beta2", 1.0),
        ("adam_epsilon", -1e-8),
        ("max_grad_norm", -1.0),
        ("warmup_steps", -1.0),
        ("num_train_epochs", 0.0),
        ("per_device_train_batch_size", 0),
        ("per_device_eval_batch_size", 0),
        ("gradient_accumulation_steps", 0),
        ("dataloader_num_workers", -1),
        ("save_total_limit", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("data_seed", -1),
    ],
)
def test_a_number_outside_its_range_is_refused(name: str, value: float | int) -> None:
    """The message has the key, the value, and one that would do."""
    rule = RULES[name]
    with pytest.raises(InputError, match=rf"training\.{name}=.* must be .*training\.{name}={rule[2]}"):
        check_values({name: value})
    assert rule[0](float(rule[2]))


def of(training: dict[str, Any]) -> None:
    """Arguments of a run, as `preftune train` makes and tries them."""
    from preftune.training.checking import check_arguments
    from preftune.training.given import NOTHING_GIVEN

    config = check_config({"model": "any", "data": {"train": "any"}, "training": training})
    check_arguments(training_arguments(config, is_evaluated=True), NOTHING_GIVEN)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"report_to": ["ledger"]}, r"report_to=ledger is unknown"),
        ({"optim": "schedule_free_adamw"}, r"optim=schedule_free_adamw cannot be built.*schedulefree"),
        ({"optim": "galore_adamw"}, r"optim_target_modules=all-linear"),
        ({"optim": "sgd", "optim_args": "momentum"}, r"optim_args='momentum'.*name=value"),
        ({"optim": "sgd", "optim_args": "momentum=x"}, r"could not convert string to float"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, r"lr_scheduler_kwargs=None cannot be built.*min_lr"),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"powers": 1}},
            r"lr_scheduler_type=polynomial.*powers",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(training: dict[str, Any], message: str) -> None:
    """Tracker, optimizer and schedule are tried, and the message says what to change."""
    with pytest.raises(InputError, match=message):
        of(training)


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed on the machine of the test."""
    from preftune.training import checking

    monkeypatch.setattr(checking, "get_available_reporting_integrations", lambda: ["wandb"])
    with pytest.raises(InputError, match=r"report_to=tensorboard: its package is not installed"):
        of({"report_to": ["wandb", "tensorboard"]})


def test_trying_draws_no_random_number() -> None:
    """A caller's own generator is where it was."""
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    of({})
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    "change",
    ["training.learning_rate=-1", "training.report_to=ledger", "training.dataloader_num_workers=-1"],
)
def test_nothing_is_removed_by_what_is_refused(
    change: str, config: dict[str, Any], preftune: CommandLine, tmp_path: Path
) -> None:
    """With `--overwrite`, and in a dry run: one message, and the old run as it was."""
    run, file = Path(config["output"]), tmp_path / "config.yaml"
    (run / "model").mkdir(parents=True)
    (run / "model" / "weights").write_text("dear")
    (run / "config.yaml").write_text("{}")
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    for flag in ("--overwrite", "--dry-run"):
        code, errors = preftune("train", str(file), change, flag)
        assert code == 2
        assert change.partition("=")[0] in errors.replace("\n", "")
        assert "Traceback" not in errors
    found = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert found == before
