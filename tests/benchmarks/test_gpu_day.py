"""The day with a GPU, rehearsed on the CPU: every check runs small, and none can spoil another."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import gpu_day  # noqa: E402  # a script beside others
from gpu_day import KERNELS, LESSON, PLANS, REAL, Check  # noqa: E402


def rehearse(check: Check, folder: Path) -> dict[str, Any]:
    """A check in its small form, through the runner."""
    folder.mkdir(exist_ok=True)
    return gpu_day.run(check, folder, small=True)


def test_the_kernels_are_compared_on_every_way_to_train(tmp_path: Path) -> None:
    """Two architectures in two precisions, autocast, adapters, checkpointing and a value head all hold."""
    found = rehearse(KERNELS, tmp_path)
    assert found["outcome"] == "done", (tmp_path / gpu_day.LOG_FILE).read_text()
    assert all(row["holds"] for row in found["rows"])
    compared = [row for row in found["rows"] if "attention" in row]
    assert {row["model"] for row in compared} == {"llama", "gemma2"}
    assert {row["dtype"] for row in compared} == {"float32", "bfloat16"}
    for way in ("autocast", "adapter", "value_head", "checkpointing"):
        assert any(row[way] for row in compared), way


@pytest.mark.slow
def test_the_lesson_reports_every_run(tmp_path: Path) -> None:
    """Plain DPO, the prior, and plain DPO at half the learning rate, each with its held-out figures."""
    found = rehearse(LESSON, tmp_path)
    assert found["outcome"] == "done", (tmp_path / gpu_day.LOG_FILE).read_text()
    runs = [(row["prior"], row["learning_rate"]) for row in found["rows"]]
    assert runs == [("none", 1e-4), ("reward_gap", 1e-4), ("none", 5e-5)]
    assert all(row["chosen_logp_change"] != 0 for row in found["rows"])


@pytest.mark.slow
def test_the_real_check_runs_every_verb(tmp_path: Path) -> None:
    """Two trainings, one killed and resumed, samples, scores and both modes of rounds hold."""
    found = rehearse(Check(**{**vars(REAL), "seconds": 900}), tmp_path)
    assert found["outcome"] == "done", (tmp_path / gpu_day.LOG_FILE).read_text()
    assert len(found["rows"]) == 9
    assert all(row.get("holds", True) for row in found["rows"])


SLOW = """
import json, pathlib, sys, time
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
output.write_text(json.dumps({"rows": [{"holds": True}]}))
time.sleep(60)
"""


def test_a_check_that_hangs_is_stopped_and_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind its time limit a check ends; what it had written is in the results."""
    monkeypatch.setattr(gpu_day, "HERE", tmp_path)
    (tmp_path / "hangs.py").write_text(SLOW, encoding="utf-8")
    found = gpu_day.run(Check("hangs", "?", "hangs.py", seconds=2), tmp_path, small=True)
    assert found["outcome"] == "stopped after 2 s"
    assert found["rows"] == [{"holds": True}]


def test_a_check_that_crashes_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next check runs, the file holds both, and the exit code says that something failed."""
    monkeypatch.setattr(gpu_day, "HERE", tmp_path)
    (tmp_path / "crashes.py").write_text("import os; os.abort()", encoding="utf-8")
    (tmp_path / "works.py").write_text(SLOW.replace("time.sleep(60)", ""), encoding="utf-8")
    plan = (Check("crashes", "?", "crashes.py", 20), Check("works", "?", "works.py", 20))
    monkeypatch.setattr(gpu_day, "PLANS", {"first": plan})
    monkeypatch.setattr("sys.argv", ["gpu_day", "first", "--output", str(tmp_path / "out"), "--small"])
    with pytest.raises(SystemExit) as ended:
        gpu_day.main()
    assert ended.value.code == 1
    results = json.loads((tmp_path / "out" / gpu_day.JSON_FILE).read_text(encoding="utf-8"))
    assert results["crashes"]["outcome"].startswith("failed with exit code")
    assert results["works"]["outcome"] == "done"
    assert "works" in capsys.readouterr().out


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_fits_five_minutes(plan: str) -> None:
    """The limits of a plan's checks add up to at most 300 seconds."""
    assert sum(check.seconds for check in PLANS[plan]) <= 300


def test_every_check_is_a_script() -> None:
    """No plan names a file that is not there, and every name is given once for a script and its options."""
    checks = [check for plan in PLANS.values() for check in plan]
    assert all((BENCHMARKS / check.script).is_file() for check in checks)
    assert len({check.name for check in checks}) == len(checks)


def test_without_a_device_a_check_says_what_to_do() -> None:
    """Without CUDA the full form is an error that names `--small`."""
    command = [sys.executable, str(BENCHMARKS / "gpu_kernels.py"), "--output", "x"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert "--small" in finished.stderr.splitlines()[-1]
