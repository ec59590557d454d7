"""What a terminal shows of the rounds."""

import io
from pathlib import Path

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
    with View(2, console) as view:
        view.begin(1, "sample", None)
        view.end(1, "sample", 4.0, tokens=200)
        view.begin(1, "score", None)
        view.end(1, "score", None)
        view.measured(1, {"evaluation": EVALUATION, "pairs": {"gap": 0.25}})
    lines = console.file.getvalue().splitlines()
    assert lines[:2] == ["round 1 of 2: sample, 4.0 s, 50 tokens/s", "round 1 of 2: score, kept"]
    assert "reward 0.500 (0.400 to 0.600), win rate 0.625 (0.525 to 0.725)" in lines[2]
    assert "gap 0.250, tokens/s 50" in lines[2]


def test_a_terminal_shows_rounds_stage_progress_and_the_time_left(tmp_path: Path) -> None:
    """After a round of five stages of 60 seconds, a second one at its start has five minutes left."""
    view = View(2, Console(file=io.StringIO()))
    for stage in STAGES:
        view.begin(1, stage, None)
        view.end(1, stage, 60.0)
    view.measured(1, {"evaluation": EVALUATION, "pairs": {"gap": 0.25}})
    (tmp_path / "samples.jsonl.x.part").write_text("{}\n{}\n")
    view.begin(2, "sample", progress.of_lines(tmp_path, "samples.jsonl.*part", 4))
    text = shown(view)
    for words in ("round 1 of 2", "0.625 (0.525 to 0.725)", "0.250", "round 2 of 2: sample", "5:00 left"):
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
