"""`preftune train --dry-run`: what would happen, in a few lines with an example, or all of it as JSON."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.cli import main

from ..conftest import write_rows

ROW = {
    "prompt": "[bold]Say[/] \x1b[31mnow:",
    "chosen": "first " + "and on " * 200 + "last",
    "rejected": "No.",
    "score_chosen": 0.9,
    "score_rejected": 0.2,
    "id": 7,
}
DryRun = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dry_run(
    config: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> DryRun:
    """The command at 80 columns on four rows: exit code, stdout, stderr."""
    same = {**ROW, "chosen": "No."}
    write_rows(tmp_path / "four.jsonl", [ROW, same, same, ROW])
    # A relative name is as long on every machine, so that lines break at the same places.
    monkeypatch.chdir(tmp_path)
    config["data"] = {"train": "four.jsonl", "max_length": 250}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    for name, value in {"COLUMNS": "80", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["preftune", "train", str(file), *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capfd.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


def test_it_says_what_would_happen_and_shows_one_example(dry_run: DryRun, config: dict[str, Any]) -> None:
    """Rows, gap, steps, memory and one row, in 80 columns, with the data's markup as text."""
    code, out, err = dry_run("--dry-run", "objective.beta=0.3")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    said = " ".join(out.split())
    for part in (
        "beta 0.3",
        "prompt: `prompt`; responses: `chosen`, `rejected`; scores: ",
        "; not used: id",
        "4 rows read, 2 kept; duplicate_row: 1 row kept; equal_responses: 2 rows dropped",
        "response_too_long: 2 responses truncated",
        "2 pairs, ",
        "the longest 250 (data.max_length=250)",
        "gap mean 0.700 by prior.calibration=identity",
        # Two groups are one batch of eight, in each of two epochs.
        "steps 2 of about ",
        "epochs: 2",
        "and activations, on cpu",
        "four.jsonl row 0",
        r"[bold]Say[/] \x1b[31mnow:",
        "3 tokens trained No.<|im_end|>",
        " cut off, ",
        "characters ...]",
    ):
        assert part in said
    # The long response is shown by its start and its end alone.
    assert "first and on" in said
    assert said.count("and on") < 100
    assert said.count("four.jsonl row") == 1
    assert said.endswith("Ready. The same command without --dry-run trains.")
    assert not Path(config["output"]).exists()


def test_a_mix_is_said_in_words(dry_run: DryRun) -> None:
    """Each method with its weight and options, and no braces or quotes."""
    code, out, err = dry_run("--dry-run", "objective={mix: {dpo: 0.8, hinge: 0.2}}")
    assert code == 0, err
    said = " ".join(out.split())
    assert "mix (dpo (weight 0.8, beta 0.1), hinge (weight 0.2, beta 0.1)), prior none" in said


def test_a_folder_that_would_refuse_the_run_is_said(dry_run: DryRun, config: dict[str, Any]) -> None:
    """What there is to see is printed, then the error of the run itself."""
    folder = Path(config["output"])
    folder.mkdir()
    (folder / "config.yaml").write_text("{}", encoding="utf-8")
    code, out, err = dry_run("--dry-run")
    assert code == 2
    assert "4 rows read" in out
    assert "Ready" not in out
    assert "already has a run; pass --resume to resume it" in " ".join(err.split())
    assert dry_run("--dry-run", "--overwrite")[0] == 0


def test_json_holds_configuration_and_counts(dry_run: DryRun) -> None:
    """Stdout is one object; without --dry-run there is nothing that it could be."""
    code, out, err = dry_run("--dry-run", "--json", "objective.beta=0.3")
    assert code == 0, err
    found = json.loads(out)
    assert found["config"]["objective"]["beta"] == 0.3
    assert (found["steps"], found["train"]["pairs"]) == (2, 2)
    assert found["train"]["rows"]["equal_responses/drop"] == 2
    code, out, err = dry_run("--json")
    assert (code, out) == (2, "")
    assert "add --dry-run" in err
