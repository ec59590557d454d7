"""The processor benchmark in a tiny form: a random model, few tokens, one round."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from preftune.data import Pair, TokenizedGroup

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MARKERS = "Before.\n\n<!-- cpu table -->\n<!-- end -->\n\nAfter.\n"
SPREAD = 0.5
"""Standard deviation of the random weights."""
CONTESTANTS = {"preftune", "preftune_padded", "trl_default", "trl_best_4", "trl_best_2", "trl_best_1"}


@pytest.fixture(scope="module")
def unequal_model(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """The tiny model with weights so wide apart that noise on them moves the loss off log 2."""
    folder = tmp_path_factory.mktemp("unequal-model")
    for file in tiny_model_dir.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=SPREAD)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, unequal_model: Path) -> tuple[dict[str, Any], str]:
    """The results and the page of one run."""
    folder = tmp_path_factory.mktemp("benchmark")
    results, page = folder / "cpu.json", folder / "performance.md"
    page.write_text(MARKERS, encoding="utf-8")
    options = ["--workload", "chat", "--rounds", "1", "--shrink", "20", "--model", str(unequal_model)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "cpu.py"), *options, "--results", results, "--page", page],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(results.read_text(encoding="utf-8")), page.read_text(encoding="utf-8")


def test_all_contestants_compute_the_same_loss(run: tuple[dict[str, Any], str]) -> None:
    """In float32 packed, padded and TRL's losses agree to 1e-3, and are not log 2, as without noise."""
    (row,) = run[0]["workloads"]
    losses = {name: entry["exact_loss"] for name, entry in row["contestants"].items()}
    assert losses.keys() == CONTESTANTS
    assert max(losses.values()) - min(losses.values()) < 1e-3
    assert abs(losses["preftune"] - np.log(2)) > 1e-3
    assert row["losses_agree"] is True


def test_the_results_carry_every_figure(run: tuple[dict[str, Any], str]) -> None:
    """Ratios are positive, whatever the clock made of them, and shares of time add up to one."""
    content = run[0]
    (row,) = content["workloads"]
    assert row["speedup_vs_trl_default"] > 0
    assert row["speedup_vs_trl_best"] > 0
    assert row["trl_best"].startswith("trl_")
    assert row["fraction_of_floor"] > 0
    if sys.platform == "linux":
        assert row["peak_memory_ratio"] > 0
    for entry in row["contestants"].values():
        assert 0 < entry["forward_backward_seconds"] < entry["seconds"]
    assert sum(entry["share"] for entry in content["profile"]) == pytest.approx(1, abs=1e-3)
    assert {entry["workload"] for entry in content["profile"]} == {"chat"}
    assert content["environment"]["rounds"] == 1


def test_the_page_gets_its_tables_between_the_markers(run: tuple[dict[str, Any], str]) -> None:
    """What stands before and behind the markers stays."""
    page = run[1]
    assert page.startswith("Before.\n\n<!-- cpu table -->\n")
    assert page.endswith("<!-- end -->\n\nAfter.\n")
    assert "| chat | preftune_padded |" in page


def test_the_floor_counts_each_token_once_and_visible_keys_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: a prompt of 3 with responses of 2 and 4, a 2x3 body, a head of 5x3, one layer of width 7."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from floor import Shapes, multiply_adds

    def tokens(count: int) -> np.ndarray:
        return np.arange(count, dtype=np.int32)

    groups = [TokenizedGroup(tokens(3), (tokens(2), tokens(4)), (Pair(0, 1),))]
    shapes = Shapes(body=((2, 3),), head=(5, 3), layers=1, attention_width=7)
    # 9 tokens of 6 each and 6 response tokens of 15 each; 5 * 6 / 2 + 4 * 5 / 2 + 4 * 3 = 37 visible keys.
    matrices, attention = 9 * 6 + 6 * 15, 37 * 7
    assert multiply_adds(shapes, groups, lora=False, trains=True) == 3 * matrices + 6 * attention
    assert multiply_adds(shapes, groups, lora=False, trains=False) == matrices + 2 * attention
    # Rank 16: 16 * (2 + 3) more per token, trained; the rest is frozen.
    adapters = 9 * 16 * 5
    assert (
        multiply_adds(shapes, groups, lora=True, trains=True) == 2 * matrices + 3 * adapters + 6 * attention
    )


def test_a_power_law_gives_back_its_exponent(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exact one without error; one with a point off it with the error of the textbook formula."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from growth import fit_exponent

    values = [1, 2, 4, 8]
    exact = fit_exponent(values, [3 * value**1.5 for value in values])
    assert exact == {"exponent": 1.5, "standard_error": 0.0}
    # Logs (base 2) 0, 1, 2, 4 over 0, 1, 2, 3: slope 1.3, squared residuals 0.3, over 2 * 5.
    assert fit_exponent(values, [1, 2, 4, 16]) == {"exponent": 1.3, "standard_error": round(0.03**0.5, 4)}


def test_a_worker_that_dies_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the contestant and carries the worker's own last words."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from processes import Worker, WorkerError

    with (
        Worker({"contestant": "nobody"}, tmp_path) as worker,
        pytest.raises(WorkerError, match="nobody ended with code 1") as death,
    ):
        worker.ready()
    assert "KeyError: 'model'" in str(death.value)
