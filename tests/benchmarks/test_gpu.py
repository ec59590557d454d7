"""The GPU benchmark on its tiny models: everybody computes the same thing, and nothing is left out."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"

ALWAYS_THERE = [
    "preftune",
    "preftune, gradient checkpointing",
    "TRL defaults, sdpa",
    "TRL fastest, sdpa",
]
OPTIONAL = ["TRL defaults, flash_attention_2", "TRL fastest, flash_attention_2"]
HEADS = ["preftune", "all logits at once"]
OPTIONAL_HEADS = ["Liger", "cut-cross-entropy"]

Row = dict[str, Any]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """The script as a user starts it."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `--small` writes."""
    output = tmp_path_factory.mktemp("benchmark") / "results" / "gpu.json"
    finished = run("--small", "--output", str(output))
    assert finished.returncode == 0, finished.stderr
    assert "tokens/s" in finished.stdout
    return json.loads(output.read_text(encoding="utf-8"))


def steps_of(results: dict[str, Any], trained: str, responses: int) -> dict[str, Row]:
    """Rows of one workload by contestant."""
    return {
        row["contestant"]: row
        for row in results["rows"]
        if row.get("trained") == trained and row.get("responses_per_prompt") == responses
    }


@pytest.mark.parametrize("responses", [1, 2, 8])
@pytest.mark.parametrize("trained", ["all", "adapters"])
def test_all_contestants_have_the_same_loss(results: dict[str, Any], trained: str, responses: int) -> None:
    """Same weights, pairs and reference: losses agree to 1e-5, and are not those of policy = reference."""
    rows = steps_of(results, trained, responses)
    assert list(rows) == [*ALWAYS_THERE, *OPTIONAL]
    measured = [row for row in rows.values() if row["outcome"] == "measured"]
    assert {row["contestant"] for row in measured} >= set(ALWAYS_THERE)
    assert abs(measured[0]["loss"] - math.log(2)) > 1e-3
    for row in measured:
        assert row["loss"] == pytest.approx(measured[0]["loss"], rel=1e-5), row["contestant"]
        assert 0 < row["slowest"] <= row["tokens_per_second"] <= row["fastest"]


@pytest.mark.parametrize("trained", ["all", "adapters"])
def test_unshared_prompts_are_the_same_pairs(results: dict[str, Any], trained: str) -> None:
    """With a prompt for each response the loss is that of two responses to a prompt."""
    unshared, shared = (steps_of(results, trained, responses)["preftune"] for responses in (1, 2))
    assert unshared["loss"] == pytest.approx(shared["loss"], rel=1e-5)


@pytest.mark.parametrize("trained", ["all", "adapters"])
def test_all_heads_have_the_same_loss(results: dict[str, Any], trained: str) -> None:
    """The sum of log-probabilities is the same from every head that could be measured."""
    rows = [row for row in results["rows"] if row.get("trained") == trained and "head_tokens" in row]
    assert [row["contestant"] for row in rows] == [*HEADS, *OPTIONAL_HEADS]
    measured = {row["contestant"]: row["loss"] for row in rows if row["outcome"] == "measured"}
    assert measured.keys() >= set(HEADS)
    assert list(measured.values()) == pytest.approx([measured["preftune"]] * len(measured), rel=1e-5)


def test_what_could_not_be_measured_says_why(results: dict[str, Any]) -> None:
    """A row without figures has an outcome that starts with skipped; nothing failed."""
    for row in results["rows"]:
        assert row["outcome"] == "measured" or row["outcome"].startswith("skipped: "), row
        has_figures = not row.keys().isdisjoint({"loss", "tokens_per_second", "tflops"})
        assert has_figures == (row["outcome"] == "measured")


def test_the_environment_is_written_down(results: dict[str, Any]) -> None:
    """Device and versions, those of the packages that were measured."""
    environment = results["environment"]
    assert environment["versions"]["torch"] == torch.__version__
    assert {"preftune", "transformers", "trl"} <= environment["versions"].keys()
    assert environment["device"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_names_small(tmp_path: Path) -> None:
    """The full benchmark on a machine without CUDA is an error that says what to do, and writes nothing."""
    finished = run("--output", str(tmp_path / "gpu.json"))
    assert finished.returncode == 2
    assert "--small" in finished.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())
