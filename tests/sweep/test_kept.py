"""What decides whether a sweep's evaluation is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from preftune.data import Group, Response
from preftune.sweep import run as sweep
from preftune.sweep.evaluation import Evaluation, HeldOut, Sampling
from preftune.sweep.points import Point
from preftune.training.configuration import check_config

Measure = Callable[[Any], int]


@pytest.fixture
def measured(
    config: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    smollm2_tokenizer: PreTrainedTokenizerBase,
) -> Measure:
    """Evaluates the start on a prompt whose row has the given column; how often it was measured so far."""
    calls: list[HeldOut] = []

    def evaluate(run: Any, trained: Any, held_out: HeldOut, *_: Any, **__: Any) -> Evaluation:
        calls.append(held_out)
        return Evaluation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), None, {}, [])

    monkeypatch.setattr(sweep, "evaluate", evaluate)
    monkeypatch.syspath_prepend(tmp_path)
    rewards = {"own": {"measure": "kept_reward:own", "goal": "maximise"}}
    run = check_config({**config, "rewards": rewards, "output": str(tmp_path / "run")})
    planned = sweep.PlannedRun(Point({}, ()), run, "finished", 1, torch.device("cpu"))

    def measure(column: Any) -> int:
        group = Group("ask", (Response("a"),), (), 0, {"tone": column})
        held_out = HeldOut((group,), ((1, 2),), (), smollm2_tokenizer)
        (tmp_path / "start").mkdir(exist_ok=True)
        sweep._evaluate(tmp_path / "start", planned, None, held_out, Sampling(), "content")
        return len(calls)

    return measure


def test_another_column_or_other_code_is_measured_again(measured: Measure, tmp_path: Path) -> None:
    """A reward reads the row's columns and is its own code: with the same of both it is kept."""
    code = tmp_path / "kept_reward.py"
    code.write_text("def own(completions, **_): return [1.0 for _ in completions]", encoding="utf-8")
    assert [measured("kind"), measured("kind")] == [1, 1]
    assert [measured("rude"), measured("rude")] == [2, 2]
    code.write_text("def own(completions, **_): return [2.0 for _ in completions]", encoding="utf-8")
    assert [measured("rude"), measured("rude")] == [3, 3]
