"""The demo's figures, and the whole demo behind `make test-all`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from preftune.demo.run import RUNS, SampledRow, sample_figures


def test_interval_counts_a_prompt_once() -> None:
    """Four equal responses to each of two prompts are two observations, not eight."""
    rows = [
        SampledRow("a", ["x"] * 4, [0.25] * 4, [3.0] * 4),
        SampledRow("b", ["y"] * 4, [0.75] * 4, [9.0] * 4),
    ]
    figures = sample_figures(rows, rows)
    for name, mean, error in (("sample_reward_before", 0.5, 0.25), ("sample_grade_after", 6.0, 3.0)):
        assert figures[name]["mean"] == mean
        assert figures[name]["high"] - mean == pytest.approx(12.7062 * error, rel=1e-4)


def test_each_run_adds_one_thing_to_the_one_before() -> None:
    """First the prior, then the wish for simpler language; nothing else differs."""
    plain, prior, reading = RUNS.values()
    assert plain["objective"] | {"prior": "reward_gap"} == prior["objective"]
    added = {key: value for key, value in reading["objective"].items() if key != "auxiliary"}
    assert added == prior["objective"]
    assert {key: value for key, value in reading.items() if key not in ("objective", "rewards")} == {
        "prior": prior["prior"]
    }


@pytest.mark.slow
def test_the_demo_runs_and_leaves_its_figures(tmp_path: Path) -> None:
    """`preftune demo` ends with exit code 0, every figure of every run, and a report that shows them."""
    output = tmp_path / "demo"
    command = [sys.executable, "-m", "preftune", "demo", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert list(summary) == ["dpo", "dpo+prior", "dpo+prior+reading"]
    for figures in summary.values():
        assert figures["rejected_logp_change"] < figures["chosen_logp_change"]
        assert figures["accuracy"] > 0.5
        assert figures["seconds"] > 0
        assert figures["tokens_per_second"] > 0
        assert figures["peak_rss_mb"] > 500
        for sampled in (figures["sample_reward_before"], figures["sample_reward_after"]):
            assert 0 <= sampled["low"] < sampled["mean"] < sampled["high"] <= 1
        assert figures["sample_grade_after"]["low"] < figures["sample_grade_after"]["high"]
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "dpo+prior" in page
    assert f"{summary['dpo+prior']['sample_reward_after']['mean']:.2f}" in page
    for known in ("http://www.w3.org/", "<meta http-equiv="):
        page = page.replace(known, "")
    assert "http" not in page
