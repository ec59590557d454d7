"""`preftune sweep` as a user runs it: what it leaves, keeps, continues and refuses."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from preftune.data import Group
from preftune.measuring.held_out import HeldOut
from preftune.sampling.settings import SamplingSettings
from preftune.sweep import run as sweep
from preftune.sweep.evaluation import RewardedPrompts
from preftune.sweep.points import Point
from preftune.sweep.run import PlannedRun, run_sweep
from preftune.training.configuration import check_config

from ..forks import Forks

CommandLine = Callable[..., tuple[int, str]]

OPTIONS = ("--n", "2", "--max-new-tokens", "6")
SWEPT = ("run.yaml", "objective.beta=0.1,0.3", *OPTIONS)
LOW, HIGH = "objective.beta=0.1", "objective.beta=0.3"


def pairs(count: int, about: str) -> list[dict[str, Any]]:
    """Chats with a longer and a shorter answer."""
    return [
        {
            "prompt": [{"role": "user", "content": f"Tell me {number} of {about}."}],
            "chosen": [{"role": "assistant", "content": f"{about} " * (number + 2)}],
            "rejected": [{"role": "assistant", "content": f"no {about}"}],
        }
        for number in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """One object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """A JSON file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, forks: Forks) -> Path:
    """A working folder in which a sweep of two points has come to its end."""
    folder = tmp_path_factory.mktemp("sweep")
    held_out = pairs(3, "rain")
    write_jsonl(folder / "train.jsonl", pairs(8, "bread"))
    # A prompt that comes twice is one prompt.
    write_jsonl(folder / "held_out.jsonl", [*held_out, {**held_out[0], "chosen": held_out[1]["chosen"]}])
    configuration = {
        "model": str(tiny_model_dir),
        "data": {"train": "train.jsonl", "evaluation": "held_out.jsonl"},
        "rewards": {"length": {"target": 3, "weight": 2.0}},
        "training": {
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 4,
            "num_train_epochs": 2,
            "use_cpu": True,
        },
        "output": "out",
        "cache": "cache",
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    done = forks.run(["preftune", "sweep", *SWEPT], folder=folder)
    assert done.status == 0, done.errors
    (folder / "printed.txt").write_text(done.output, encoding="utf-8")
    return folder


@pytest.fixture
def output(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The finished sweep's output, in a copy of its working folder that a test may change."""
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    monkeypatch.chdir(work)
    return work / "out"


def runs_of(output: Path) -> dict[str, bytes]:
    """Each run's metrics, whose seconds no second training repeats."""
    return {name: (output / name / "metrics.jsonl").read_bytes() for name in (LOW, HIGH)}


def test_it_leaves_runs_evaluations_and_a_page(finished: Path) -> None:
    """Each point is a run folder with the value it was given; summary and page agree on the figures."""
    output = finished / "out"
    summary = read(output / "summary.json")
    assert summary["swept"] == ["objective.beta"]
    assert list(summary["points"]) == [LOW, HIGH]
    page = (output / "report.html").read_text(encoding="utf-8")
    printed = (finished / "printed.txt").read_text(encoding="utf-8")
    for name, beta in ((LOW, 0.1), (HIGH, 0.3)):
        resolved = yaml.safe_load((output / name / "config.yaml").read_text(encoding="utf-8"))
        assert resolved["objective"]["beta"] == beta
        point = summary["points"][name]
        assert point["values"] == {"objective.beta": str(beta)}
        assert point["accuracy"] == read(output / name / "summary.json")["accuracy"]
        assert point["drift"] == read(output / name / "evaluation.json")["drift"]
        assert f"{point['reward']['mean']:.2f}".replace("-", "\N{MINUS SIGN}") in page
        assert f"of 2: {name}" in printed
    assert "Sweep of objective.beta" in page
    assert "Reward against drift" in page


def test_figures_follow_from_the_samples(finished: Path) -> None:
    """Three distinct prompts of two responses; R is -2 times the distance of the length from three tokens."""
    for folder in ("start", LOW):
        lines = (finished / "out" / folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
        samples = [json.loads(line) for line in lines]
        assert [len(sample["responses"]) for sample in samples] == [2, 2, 2]
        assert len({sample["prompt"][0]["content"] for sample in samples}) == 3
        for sample in samples:
            lengths = sample["measurements"]["length"]
            assert sample["rewards"] == [-2 * abs(length - 3) for length in lengths]
        figures = read(finished / "out" / folder / "evaluation.json")
        for name in ("reward", "drift"):
            values = [
                value for sample in samples for value in sample["rewards" if name == "reward" else name]
            ]
            assert figures[name]["mean"] == pytest.approx(sum(values) / 6)
        assert 1 <= figures["tokens"]["mean"] <= 6


def test_only_what_was_trained_drifts(finished: Path) -> None:
    """The starting model is at distance zero from itself and has no accuracy; a trained one has moved."""
    start = read(finished / "out" / "start" / "evaluation.json")
    assert start["drift"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert start["accuracy"] is None
    assert abs(read(finished / "out" / LOW / "evaluation.json")["drift"]["mean"]) > 1e-3


def test_a_finished_sweep_is_kept(output: Path, preftune: CommandLine) -> None:
    """Called again, nothing is trained or sampled anew, and the page is there again."""
    before = runs_of(output)
    stamps = {name: (output / name / "evaluation.json").stat().st_mtime_ns for name in ("start", LOW, HIGH)}
    (output / "report.html").unlink()
    assert preftune("sweep", *SWEPT)[0] == 0
    assert runs_of(output) == before
    for name, stamp in stamps.items():
        assert (output / name / "evaluation.json").stat().st_mtime_ns == stamp
    assert (output / "report.html").exists()


def test_other_samples_are_drawn_from_the_same_runs(output: Path, preftune: CommandLine) -> None:
    """With another number of responses every model is measured again, and none is trained again."""
    before = runs_of(output)
    assert preftune("sweep", *SWEPT, "--n", "3")[0] == 0
    assert runs_of(output) == before
    for name in ("start", LOW, HIGH):
        first = (output / name / "samples.jsonl").read_text(encoding="utf-8").splitlines()[0]
        assert len(json.loads(first)["responses"]) == 3


def test_a_reward_whose_code_changed_is_measured_anew(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation is kept for the columns and for the function that it was made with, and no longer."""
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    measured = []

    def measure_run(*_: object, **__: object) -> tuple[list[Any], dict[str, Any]]:
        measured.append(1)
        return [], {}

    monkeypatch.setattr(sweep, "measure_run", measure_run)

    def call(code: str, grade: int) -> int:
        Path("changing_reward.py").write_text(f"def own(completions, grade): return {code}", encoding="utf-8")
        rewards = {"own": {"measure": "changing_reward:own"}}
        config = check_config({"model": "m", "data": {"train": "t.jsonl"}, "rewards": rewards, "output": "o"})
        run = PlannedRun(Point({}, ()), config, "new", 1, torch.device("cpu"))
        settings = SamplingSettings(n=1, max_new_tokens=4)
        held_out = HeldOut([{"prompt": "Why?"}], tokenizer, settings, torch.float32, run.device)
        asked = RewardedPrompts(held_out, (Group("Why?", (), (), columns={"grade": grade}),), ())
        sweep._evaluate(Path("start"), run, None, asked, "weights")
        return len(measured)

    monkeypatch.syspath_prepend(tmp_path)
    Path("start").mkdir()
    calls = (("grade", 1), ("grade", 1), ("grade", 2), ("[2]", 2), ("[2]", 2))
    assert [call(*about) for about in calls] == [1, 1, 2, 3, 3]


def test_shards_come_to_what_one_call_does(output: Path, preftune: CommandLine) -> None:
    """Each shard has its own point, the last the start too; the call without compares what they left."""
    samples = (output / HIGH / "samples.jsonl").read_bytes()
    shutil.rmtree(output / HIGH)
    shutil.rmtree(output / "start")
    (output / "summary.json").unlink()
    assert preftune("sweep", *SWEPT, "--shard", "1/2")[0] == 0
    assert not (output / HIGH).exists()
    assert not (output / "start").exists()
    assert preftune("sweep", *SWEPT, "--shard", "2/2")[0] == 0
    assert (output / HIGH / "samples.jsonl").read_bytes() == samples
    assert (output / "start" / "evaluation.json").exists()
    assert not (output / "summary.json").exists()
    before = runs_of(output)
    assert preftune("sweep", *SWEPT)[0] == 0
    assert runs_of(output) == before
    assert list(read(output / "summary.json")["points"]) == [LOW, HIGH]


def kill(run: Path, *, after_checkpoint: bool) -> None:
    """What a run leaves that was killed behind its first checkpoint, or before it."""
    for name in ("summary.json", "evaluation.json", "report.html"):
        (run / name).unlink()
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "checkpoint-4" if after_checkpoint else run / "checkpoints")


def test_a_killed_run_is_resumed_and_the_finished_one_kept(output: Path, preftune: CommandLine) -> None:
    """A killed point goes on at its checkpoint: its first steps are the killed run's, its end is the same."""
    killed = output / HIGH
    before = runs_of(output)
    expected = read(killed / "summary.json")["evaluation_end"]
    kill(killed, after_checkpoint=True)
    assert preftune("sweep", *SWEPT)[0] == 0
    after = runs_of(output)
    assert after[LOW] == before[LOW]
    assert after[HIGH] != before[HIGH]
    first_steps = [line for line in before[HIGH].splitlines() if json.loads(line)["step"] <= 2]
    assert after[HIGH].splitlines()[: len(first_steps)] == first_steps
    end = read(killed / "summary.json")["evaluation_end"]
    assert end["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
    assert read(output / "summary.json")["points"][HIGH]["accuracy"] == end["eval_rewards/accuracies"]


def plan(capsys: pytest.CaptureFixture[str], *overrides: str, overwrite: bool = False) -> dict[str, str]:
    """What a dry run says would happen to each point, by its label."""
    capsys.readouterr()
    settings = SamplingSettings(n=2, max_new_tokens=6)
    run_sweep(Path("run.yaml"), overrides, settings, overwrite=overwrite, dry_run=True)
    printed = capsys.readouterr().out
    assert "3 held-out prompts, 2 responses each" in printed
    rows = [line.strip("│").split("│") for line in printed.splitlines() if line.startswith("│")]
    return {cells[0].strip(): cells[-1].strip() for cells in rows if cells[0].strip()}


def test_dry_run_shows_what_happens_to_each_point(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Finished is kept, killed is resumed at its checkpoint or trained again without one, new is trained."""
    before = sorted(output.rglob("*"))
    swept = "objective.beta=0.1,0.3,0.5"
    assert plan(capsys, swept) == {"0.1": "kept", "0.3": "kept", "0.5": "trained"}
    changed = ("training.learning_rate=2e-2", swept)
    assert plan(capsys, *changed, overwrite=True) == {"0.1": "trained", "0.3": "trained", "0.5": "trained"}
    # Nothing has been written meanwhile.
    assert sorted(output.rglob("*")) == before
    kill(output / LOW, after_checkpoint=True)
    kill(output / HIGH, after_checkpoint=False)
    assert plan(capsys, swept) == {"0.1": "resumed", "0.3": "trained", "0.5": "trained"}


def test_a_failed_point_stops_the_sweep(
    output: Path, preftune: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the point, and the finished one stays as it is."""
    before = runs_of(output)[LOW]
    shutil.rmtree(output / HIGH)
    monkeypatch.setattr(sweep.sys, "executable", shutil.which("false"))
    code, errors = preftune("sweep", *SWEPT)
    assert code == 2
    assert f"training of {HIGH} failed" in errors
    assert (output / LOW / "metrics.jsonl").read_bytes() == before


def test_a_changed_configuration_is_refused(output: Path, preftune: CommandLine) -> None:
    """The message names the folder, what differs and both ways out, and the runs stay as they are."""
    before = runs_of(output)
    code, errors = preftune("sweep", *SWEPT, "training.learning_rate=2e-2")
    assert code == 2
    assert f"{Path('out') / LOW} was trained with another configuration (training)" in errors
    assert "output=FOLDER" in errors
    assert "--overwrite" in errors
    assert runs_of(output) == before


@pytest.mark.slow
def test_overwrite_replaces_the_points_that_changed(output: Path, preftune: CommandLine) -> None:
    """Runs, models and evaluations are those of the new configuration, and then count as finished."""
    before = runs_of(output)
    measured = read(output / HIGH / "evaluation.json")
    changed = ("sweep", *SWEPT, "training.learning_rate=2e-2", "--overwrite")
    assert preftune(*changed)[0] == 0
    after = runs_of(output)
    assert after[LOW] != before[LOW]
    resolved = yaml.safe_load((output / HIGH / "config.yaml").read_text(encoding="utf-8"))
    assert resolved["training"]["learning_rate"] == 2e-2
    assert read(output / HIGH / "evaluation.json")["drift"] != measured["drift"]
    assert preftune(*changed)[0] == 0
    assert runs_of(output) == after


@pytest.mark.slow
def test_a_value_is_added_to_a_finished_sweep(output: Path, preftune: CommandLine) -> None:
    """Points of an earlier call are kept beside the one that is new."""
    before = runs_of(output)
    assert preftune("sweep", "run.yaml", "objective.beta=0.1,0.3,0.5", *OPTIONS)[0] == 0
    assert runs_of(output) == before
    assert list(read(output / "summary.json")["points"]) == [LOW, HIGH, "objective.beta=0.5"]


def test_changed_rows_are_a_changed_configuration(output: Path, preftune: CommandLine) -> None:
    """The same file with other rows in it is other data, and a run on the old ones is not kept for it."""
    write_jsonl(output.parent / "train.jsonl", pairs(8, "snow"))
    code, errors = preftune("sweep", *SWEPT)
    assert code == 2
    assert "another configuration (the rows of data)" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["objective.beta=0.1,-1"], "-1: objective"),
        (["objective.beta=0.1,[0.3"], "is not YAML"),
        (["objective.bata=0.1,0.3"], "did you mean 'beta'"),
        (["objective.beta=0.1,0.10"], "are the same run; give each value once"),
        (["objective.beta=0.1"], "nothing is swept"),
        (["objective.beta=0.1,0.3", "data.evaluation=null"], "set data.evaluation=FILE"),
        (["data.train=train.jsonl,../nowhere.jsonl"], "nowhere.jsonl"),
        (["objective.beta=0.1,0.3", "rewards.lenght={}"], "rewards.lenght"),
        (["objective.beta=0.1,0.3", "--n", "0"], "n=0 must be >= 1"),
        (["objective.beta=0.1,0.3", "--max-new-tokens", "250"], "the model's context is 256"),
        (["objective.beta=0.1,0.3", "output=run.yaml"], "output=run.yaml is a file"),
        (["objective.beta=0.1,0.3", "output=out/objective.beta=0.1"], "is a single run"),
    ],
)
def test_what_is_wrong_at_any_point_is_refused_before_the_first(
    output: Path, preftune: CommandLine, arguments: list[str], message: str
) -> None:
    """An impossible second value costs no training of the first: exit code 2 and nothing written."""
    given = arguments if any(each.startswith("output=") for each in arguments) else [*arguments, "output=new"]
    code, errors = preftune("sweep", "run.yaml", *given)
    assert code == 2
    assert message in errors.replace("\n", " ")
    assert not (output.parent / "new").exists()


def test_a_folder_of_something_else_is_not_taken(output: Path, preftune: CommandLine) -> None:
    """A point's folder that holds files and no run is left alone, `--overwrite` or not."""
    own = output / "objective.beta=0.5" / "notes.txt"
    own.parent.mkdir()
    own.write_text("mine", encoding="utf-8")
    swept = ("sweep", "run.yaml", "objective.beta=0.1,0.5", *OPTIONS)
    for arguments in (swept, (*swept, "--overwrite")):
        code, errors = preftune(*arguments)
        assert code == 2
        assert "has no run" in errors
    assert own.read_text(encoding="utf-8") == "mine"


def test_help_imports_nothing_heavy() -> None:
    """`preftune sweep --help` does not wait for torch or matplotlib, and shows what is swept."""
    code = (
        "import sys; from preftune.cli import main; sys.argv = ['preftune', 'sweep', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "objective.auxiliary.weight=" in done.stdout
