"""The bar of a training run on a terminal."""

import re

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from preftune.training.recording import ConsoleProgress

FIGURES = {
    "loss": 0.693,
    "rewards/margins": 0.01,
    "rewards/accuracies": 0.75,
    "logps/chosen": -182.781,
}


@pytest.mark.parametrize("columns", [80, 120])
def test_the_count_of_steps_has_room(
    columns: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On 80 columns count and time are whole, and the last figure gives way; on 120 all are there."""
    monkeypatch.setenv("COLUMNS", str(columns))
    bar = ConsoleProgress(enabled=True)
    arguments = TrainingArguments(use_cpu=True, report_to="none")
    state, control = TrainerState(max_steps=1200, global_step=600), TrainerControl()
    bar.on_train_begin(arguments, state, control)
    bar.on_log(arguments, state, control, dict(FIGURES))
    bar.close()
    said = capfd.readouterr().err
    assert re.search(r"Training ━.* 600/1200 \S+ loss 0\.693  margin 0\.010  accuracy 0\.750", said)
    assert ("log p chosen -182.781" in said) == (columns == 120)
    assert "…" not in said
