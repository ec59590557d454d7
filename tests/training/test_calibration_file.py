"""What a run keeps of its calibration, through the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preftune.data import Asked, load_groups
from preftune.rewards import Calibration, apply_prior

Train = Callable[..., Path]


def read(file: Path) -> dict[str, Any]:
    """A JSON file."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def test_held_out_pairs_are_placed_on_the_training_scale(config: dict[str, Any], train: Train) -> None:
    """calibration.json names its data, and reading it gives the held-out gaps that the run reports.

    The ends of `minmax` are the lowest and highest of the training scores, not of the held-out ones.
    """
    run = train(config, "prior.calibration=minmax", "prior.negative_gap=clip")
    saved, summary = read(run / "calibration.json"), read(run / "summary.json")
    assert saved["data"] == read(run / "environment.json")["data"]["train"]
    rows = [json.loads(line) for line in Path(config["data"]["train"]).read_text().splitlines()]
    scores = [row[key] for row in rows for key in ("score_chosen", "score_rejected")]
    assert saved["fitted"] == {"low": [min(scores)], "high": [max(scores)]}
    held_out = load_groups(config["data"]["evaluation"], asked=Asked(needs_prior=True)).groups
    _, report = apply_prior(held_out, Calibration.from_dict(saved), "clip")
    reported = summary["evaluation"]["prior"]
    assert reported["mean_gap"] == pytest.approx(report.mean_gap, abs=1e-12)
    assert reported["reliability"]["pairs"] == 5


def test_a_run_without_prior_leaves_no_calibration(config: dict[str, Any], train: Train) -> None:
    """The file of a replaced run is not taken for the new run's."""
    run = train(config)
    assert (run / "calibration.json").exists()
    config["objective"] = {"method": "dpo"}
    del config["prior"]
    train(config, "--overwrite")
    assert not (run / "calibration.json").exists()


def test_a_fitted_temperature_is_kept_and_resumed(config: dict[str, Any], train: Train) -> None:
    """Where 4 of 16 labels contradict the scores, T is finite: the likeliest one stands in the run folder."""
    file = Path(config["data"]["train"])
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for row in rows[:4]:
        row["score_chosen"], row["score_rejected"] = row["score_rejected"], row["score_chosen"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config["prior"] = {"calibration": "bradley_terry", "temperature": "fit", "negative_gap": "drop"}
    run = train(config)
    assert read(run / "calibration.json")["temperature"] == pytest.approx(0.39663, abs=1e-5)
    assert train(config, "--resume") == run
