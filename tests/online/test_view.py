"""What a terminal shows of the rounds."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from preftune.online import progress
from preftune.online.view import STAGES, View

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
    view.begin(2, stages[0], progress.of_lines(tmp_path, "samples.jsonl.*part", 4))
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
    """Lines of samples, scores of shards, files of held-out answers, epochs or steps of training."""
    (tmp_path / "s.1.part").write_text("[[0, 1.5], [1, -2.0]]\n[[2, 0.5]]\n")
    assert progress.of_scores(tmp_path, "s.*.part", 6)() == 0.5
    assert progress.of_shards(tmp_path, 33)() == 0
    (tmp_path / "held_out.shards").mkdir()
    (tmp_path / "held_out.shards" / "0.json").touch()
    assert progress.of_shards(tmp_path, 33)() == 0.5
    assert progress.of_training(tmp_path, {"max_steps": 8})() == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.25}\n{"step": 2, "epoch": 0.5}\n{"st')
    assert progress.of_training(tmp_path, {"max_steps": 8})() == 0.25
    assert progress.of_training(tmp_path, {"num_train_epochs": 2})() == 0.25
