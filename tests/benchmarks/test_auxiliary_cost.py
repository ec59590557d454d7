"""The cost of the auxiliary term, in a tiny form: a random model, few tokens, three rounds."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_both_objectives_are_measured_on_the_same_batch(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The results hold both medians and the ratio of steps taken side by side."""
    results = tmp_path / "auxiliary.json"
    command = [sys.executable, str(BENCHMARKS / "auxiliary.py"), "--model", str(tiny_model_dir)]
    command += ["--rounds", "3", "--shrink", "20", "--results", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(results.read_text(encoding="utf-8"))
    assert set(figures["seconds"]) == {"dpo", "dpo+auxiliary"}
    assert all(seconds > 0 for seconds in figures["seconds"].values())
    low, high = figures["ratio_quartiles"]
    assert 0 < low <= figures["ratio"] <= high
