"""The demo's figures, and the whole demo behind `make test-all`."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from preftune.demo import run
from preftune.demo.run import RUNS, mean_interval


def test_interval_of_three_prompts() -> None:
    """Means 0, 0.5 and 1: standard error 0.5 / sqrt(3), times Student's t of 4.3027 (two degrees)."""
    mean, low, high = mean_interval([0.0, 0.5, 1.0])
    assert mean == 0.5
    assert high - mean == pytest.approx(4.302653 * 0.5 / math.sqrt(3), rel=1e-6)
    assert mean - low == pytest.approx(high - mean)


def test_interval_counts_a_prompt_once() -> None:
    """Four equal responses to each of two prompts are two observations, not eight."""
    rows = [run.SampledRow("a", ["x"] * 4, [0.25] * 4), run.SampledRow("b", ["y"] * 4, [0.75] * 4)]
    figures = run._interval(rows)
    assert figures["mean"] == 0.5
    assert figures["high"] - figures["mean"] == pytest.approx(12.7062 * 0.25, rel=1e-4)


def test_only_the_prior_differs_between_the_runs() -> None:
    """What the demo compares is the prior and nothing else."""
    plain, prior = (RUNS[name]["objective"] for name in ("dpo", "dpo+prior"))
    assert plain | {"prior": "reward_gap"} == prior


@pytest.mark.slow
def test_the_demo_runs_and_leaves_its_figures(tmp_path: Path) -> None:
    """`preftune demo` ends with exit code 0, every figure of both runs, and a report that shows them."""
    output = tmp_path / "demo"
    command = [sys.executable, "-m", "preftune", "demo", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert list(summary) == ["dpo", "dpo+prior"]
    for figures in summary.values():
        assert figures["rejected_logp_change"] < figures["chosen_logp_change"]
        assert figures["accuracy"] > 0.5
        assert figures["seconds"] > 0
        assert figures["tokens_per_second"] > 0
        assert figures["peak_rss_mb"] > 500
        for sampled in (figures["sample_reward_before"], figures["sample_reward_after"]):
            assert 0 <= sampled["low"] < sampled["mean"] < sampled["high"] <= 1
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "dpo+prior" in page
    assert f"{summary['dpo+prior']['sample_reward_after']['mean']:.2f}" in page
    assert "http" not in page.replace("http://www.w3.org/", "")
