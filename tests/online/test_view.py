"""What a terminal shows of the rounds."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from preftune.online import progress
from preftune.online.view import STAGES, View
from preftune.storage.shards import Shards

EVALUATION = {
    name: {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
    for name, mean in {"reward": 0.5, "win_rate": 0.625, "drift": 3.0, "entropy": 2.0}.items()
}


def shown(view: View) -> str:
    """The view as it stands."""
    console = Console(file=io.StringIO(), width=160)
    console.print(view._rendered())
    return str(console.file.getvalue())


def test_plain_lines_where_there_is_no_terminal() -> None:
    """A line for every stage and one for every round, with its figures and speed."""
    console = Console(file=io.StringIO(), width=80)
    with View(2, console=console) as view:
        view.begin(1, "sample", None)
        view.end(1, "sample", 4.0, tokens=200)
        view.begin(1, "score", None)
        view.end(1, "score", None)
        view.measured(1, {"evaluation": EVALUATION, "pairs": {"gap": 0.25}})
    lines = console.file.getvalue().splitlines()
    assert lines[:2] == ["round 1 of 2: sample, 4.0 s, 50 tokens/s", "round 1 of 2: score, kept"]
    assert "reward 0.500 (0.400 to 0.600), win rate 0.625 (0.525 to 0.725)" in lines[2]
    assert "gap 0.250, tokens/s 50" in lines[2]


@pytest.mark.parametrize(("update_every", "left"), [("round", "5:00"), ("batch", "2:00")])
def test_a_terminal_shows_rounds_stage_progress_and_the_time_left(
    update_every: str, left: str, tmp_path: Path
) -> None:
    """After a round whose stages took a minute each, a second one has as many minutes left."""
    view = View(2, update_every, Console(file=io.StringIO()))
    stages = STAGES[update_every]
    for stage in stages:
        view.begin(1, stage, None)
        view.end(1, stage, 60.0)
    view.measured(1, {"evaluation": EVALUATION, "pairs": {"gap": 0.25}})
    (tmp_path / "samples.jsonl.x.part").write_text("{}\n{}\n")
    view.begin(2, stages[0], progress.of_rows(tmp_path / "samples.jsonl", 4))
    text = shown(view)
    for words in (
        "round 1 of 2",
        "0.625 (0.525 to 0.725)",
        "0.250",
        f"round 2 of 2: {stages[0]}",
        f"{left} left",
    ):
        assert words in text


def test_progress_is_read_from_what_is_written(tmp_path: Path) -> None:
    """Rows in the shards of an output, whoever writes them; epochs or steps of training."""
    for rank, rows in ((0, {0: "a", 2: "b"}), (1, {1: "c"})):
        Shards(tmp_path / "out.jsonl", "0123456789ab").append(rows, rank)
    assert progress.of_rows(tmp_path / "out.jsonl", 6)() == 0.5
    assert progress.of_rows(tmp_path / "other.jsonl", 6)() == 0
    assert progress.of_training(tmp_path, {"max_steps": 8})() == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.25}\n{"step": 2, "epoch": 0.5}\n{"st')
    assert progress.of_training(tmp_path, {"max_steps": 8})() == 0.25
    assert progress.of_training(tmp_path, {"num_train_epochs": 2})() == 0.25
