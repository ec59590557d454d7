"""The trainer adds nothing to the hot path and reports what was trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.objectives import Losses, Term
from preftune.training.tally import Tally


def test_tally_weighs_every_item_once() -> None:
    """Batches of 1 and 3 pairs: the mean of 4 and 0, 0, 0 is 1, not 2, and terms follow their own units."""
    tally = Tally()
    for values, tokens in (([4.0], 2), ([0.0, 0.0, 0.0], 6)):
        pairs = torch.tensor(values)
        terms = {"a": Term(pairs, "pairs"), "b": Term(pairs, "chosen_tokens", weight=10.0)}
        counts = {"pairs": torch.tensor(len(values)), "chosen_tokens": torch.tensor(tokens)}
        tally.add(Losses(terms, {"rewards/margins": pairs}), counts)
    means = tally.means(lambda sums: sums)
    # a: 4 / 4 pairs = 1; b: 10 * 4 / 8 tokens = 5.
    assert means == {"loss": 6.0, "rewards/margins": 1.0}
    assert tally.means(lambda sums: sums) == {}


def test_tally_reduces_over_processes_with_one_call() -> None:
    """All names travel in one tensor; two equal processes leave the means as they are."""
    calls = []

    def both(sums: torch.Tensor) -> torch.Tensor:
        calls.append(sums.shape)
        return 2 * sums

    tally = Tally()
    pairs = torch.tensor([1.0, 3.0])
    counts = {"pairs": torch.tensor(2), "chosen_tokens": torch.tensor(5)}
    tally.add(Losses({"a": Term(pairs, "pairs")}, {"m": pairs, "k": pairs}), counts)
    assert tally.means(both) == {"loss": 2.0, "m": 2.0, "k": 2.0}
    assert calls == [(3, 2)]


def test_host_reads_do_not_grow_with_micro_batches(
    config: dict[str, Any], train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two optimizer steps of one micro-batch each, and of eight each, read the device equally often."""
    config["data"].pop("evaluation")
    config["objective"] = {"method": "cpo"}
    config["training"] |= {"max_steps": 2, "logging_steps": 2, "save_strategy": "no", "max_grad_norm": 0}
    reads = {"count": 0}
    for name in ("item", "__bool__", "__float__"):
        original = getattr(torch.Tensor, name)

        def counted(tensor: torch.Tensor, original: Callable[..., Any] = original) -> Any:
            reads["count"] += 1
            return original(tensor)

        monkeypatch.setattr(torch.Tensor, name, counted)
    train(config)
    once, reads["count"] = reads["count"], 0
    split = ["training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=8"]
    train(config, *split, f"output={tmp_path / 'split'}")
    assert reads["count"] == once


def test_resuming_a_finished_run_changes_nothing(config: dict[str, Any], train: Callable[..., Path]) -> None:
    """A finished run is left as it is, to the byte."""
    config["training"]["max_steps"] = 1
    run = train(config)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    train(config, "--resume")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_resuming_with_another_configuration_is_refused(
    config: dict[str, Any], train: Callable[..., Path]
) -> None:
    """A resumed run must be the same run; the keys that differ are named."""
    config["training"]["max_steps"] = 1
    train(config)
    with pytest.raises(AssertionError, match="objective differ from"):
        train(config, "--resume", "objective.beta=0.7")
