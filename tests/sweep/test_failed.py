"""A run of a sweep that has lost its numbers is left out, and named."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from preftune.errors import InputError
from preftune.sweep.points import Point
from preftune.sweep.run import PlannedRun, _without_failed
from preftune.training import check_config


def planned(folder: Path, stopped: dict[str, object] | None) -> PlannedRun:
    """A point that has been trained."""
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"stopped": stopped} if stopped else {}))
    config = check_config({"model": "any", "data": {"train": "any"}, "output": str(folder)})
    point = Point(values={"objective.beta": folder.name}, overrides=())
    return PlannedRun(point, config, "new", 1, torch.device("cpu"))


def test_a_failed_run_is_left_out_and_a_stopped_one_is_not(tmp_path: Path) -> None:
    """A bound that was asked for leaves a model to measure; NaN does not."""
    failure = {"is_failure": True, "message": "stopped at step 4: NaN"}
    bad = planned(tmp_path / "bad", failure)
    good = planned(tmp_path / "good", None)
    bounded = planned(tmp_path / "bounded", failure | {"is_failure": False})
    console = Console(record=True, width=200)
    assert _without_failed([bad, good, bounded], console) == ([good, bounded], [bad])
    assert "bad is left out: stopped at step 4: NaN" in console.export_text()
    with pytest.raises(InputError, match="every run of the sweep has failed"):
        _without_failed([bad], console)
