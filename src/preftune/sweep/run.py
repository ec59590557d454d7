"""One sweep: every point is checked, then trained in a process of its own, then measured and compared."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from preftune.errors import InputError
from preftune.measuring.comparison import NO_PAGES, ModelComparison, Pages, side_by_side
from preftune.measuring.samples import SampleRewards
from preftune.measuring.statistics import Interval, ends_of, named_interval
from preftune.measuring.tradeoff import START, SweepPoint, reward_front, tradeoff_table, weighings
from preftune.models.content import model_content
from preftune.rewards.sources import rewards_content
from preftune.sampling.settings import SamplingSettings
from preftune.storage.files import MODEL_FOLDER, REPORT_FILE, as_lines, read_lines, write_json, write_whole
from preftune.storage.manifest import Figures, Stage, finish
from preftune.sweep.evaluation import RewardedPrompts, mean_rewards, measure_run, read_held_out
from preftune.sweep.front import front_names
from preftune.sweep.points import Point, Shard, sweep_points
from preftune.training.configuration import RunConfig, dump_yaml, read_run_config
from preftune.training.preparation import CHECKPOINT_FOLDER, PreparedRun, prepare
from preftune.training.replacing import OWN_NAMES
from preftune.training.run import failure_of, last_checkpoint

START_FOLDER = "start"
EVALUATION_FILE = "evaluation.json"
SAMPLES_FILE = "samples.jsonl"
POINTS_ACROSS = 4
"""Of a table, in a terminal of 80 columns."""

Status = Literal["finished", "unfinished", "failed", "new"]
WHAT_HAPPENS: dict[Status, str] = {
    "finished": "kept",
    "unfinished": "resumed",
    "failed": "kept as failed",
    "new": "trained",
}


@dataclass(frozen=True)
class PlannedRun:
    """A point whose configuration and data are known to be good.

    Attributes:
        point: what is set of the swept keys.
        config: the resolved run.
        status: of its folder; `new` also where the run in it is replaced.
        steps: optimizer steps in all.
        device: where it trains.
    """

    point: Point
    config: RunConfig
    status: Status
    steps: int
    device: torch.device

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.output)


def run_sweep(
    file: Path,
    overrides: Sequence[str],
    settings: SamplingSettings,
    *,
    shard: Shard | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    front: Sequence[str] = (),
    pages: Pages = NO_PAGES,
) -> Path | None:
    """Train the run at every combination of the swept values, and weigh what each gains and pays.

    What an earlier call has finished, runs and evaluations, is kept.

    Args:
        file: configuration of the run.
        overrides: `key=value` for every point, `key=value,value` to sweep the key.
        settings: how held-out prompts are answered, at temperature 1.
        shard: train and measure these points alone, the last shard the starting model too, and compare none;
            several shards may run at once.
        overwrite: replace runs in the output folder that were trained with another configuration.
        dry_run: check every point and print the plan, write nothing.
        front: two or three rewards that are weighed against one another; unless given, those of
            `reward_sum.weights` where that is swept.
        pages: writes the sweep's page.

    Returns:
        The sweep's folder, once its runs are compared.

    Raises:
        InputError: a point, its data or its folder is wrong, before the first is trained; or training failed.
    """
    planned = _plan_all(file, overrides, shard, overwrite)
    output = planned[0].folder.parent
    asked = read_held_out(planned[0].config, settings, planned[0].device, progress=True)
    names = front_names(front, [run.config for run in planned], [run.point for run in planned], asked.rewards)
    console = Console()
    if dry_run:
        console.print(_plan_table(planned))
        console.print(f"{len(asked.groups)} held-out prompts, {settings.n} responses each")
        return None
    for place, run in enumerate(planned, 1):
        console.rule(f"{place} of {len(planned)}: {run.point.name} is {WHAT_HAPPENS[run.status]}")
        if run.status in ("unfinished", "new"):
            _train(run)
    planned, failed = _without_failed(planned, console)
    console.rule(f"Measuring on {len(asked.groups)} held-out prompts")
    # Hashed once: weights are large, and every point started from the same.
    started = model_content(planned[0].config.model)
    records = {}
    for place, run in enumerate(planned, 1):
        console.print(f"{place} of {len(planned)}: {run.point.name}")
        records[run.point.label] = _evaluate_trained(run, asked, settings, started)
    if shard is None or shard.is_last:
        console.print(START)
        start = _evaluate(output / START_FOLDER, planned[0], None, asked, started)
    if shard:
        console.print("when all shards have ended, the same call without --shard compares their runs")
        return None
    folders = {START: output / START_FOLDER, **{run.point.label: run.folder for run in planned}}
    samples = {name: read_lines(folder / SAMPLES_FILE) for name, folder in folders.items()}
    measured = [
        _sweep_point(name, record, mean_rewards(samples[name], asked.rewards, names))
        for name, record in {START: start, **records}.items()
    ]
    _write(output, planned, failed, measured, start, records, settings, samples, pages)
    for table in _tables(measured):
        console.print(table)
    console.print(f"{output / REPORT_FILE} shows it", soft_wrap=True)
    return output


# --- before training ---


def _plan_all(file: Path, overrides: Sequence[str], shard: Shard | None, overwrite: bool) -> list[PlannedRun]:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("preftune sweep is one process, which starts the others; leave torchrun out")
    points = sweep_points(overrides)
    configs = [(point, read_run_config(file, list(point.overrides))) for point in points]
    if any(config.training.get("push_to_hub") for _, config in configs):
        raise InputError(
            "training.push_to_hub=true: every point would be pushed to one repository; remove it, and push "
            "the point that you choose by `preftune push OUTPUT/POINT REPOSITORY`"
        )
    _check_distinct(configs)
    # Other shards' folders are not looked at: they may be writing them.
    share = shard.of(configs) if shard else configs
    planned = [_plan(point, config, overwrite) for point, config in share]
    # Once more, with what preparing has resolved.
    _check_distinct([(run.point, run.config) for run in planned])
    return planned


def _plan(point: Point, config: RunConfig, overwrite: bool) -> PlannedRun:
    output = Path(config.output)
    if (output / "config.yaml").exists() or output.is_file():
        what = "a file" if output.is_file() else "a single run"
        raise InputError(
            f"output={output} is {what}, and a sweep needs a folder for its runs: give another one"
        )
    try:
        prepared = prepare(config.model_copy(update={"output": str(output / point.name)}))
    except InputError as error:
        raise InputError(f"{point.label}: {error}") from None
    status = _status(prepared, overwrite)
    return PlannedRun(point, prepared.config, status, prepared.summary()["steps"], prepared.arguments.device)


def _status(prepared: PreparedRun, overwrite: bool) -> Status:
    """What the folder of a point holds already."""
    folder = Path(prepared.config.output)
    if not (folder / "config.yaml").exists():
        found = {path.name for path in folder.iterdir()} - OWN_NAMES if folder.is_dir() else set()
        if folder.is_file() or found:
            raise InputError(
                f"{folder} is not empty and has no run, and the sweep needs it for one: move it away"
            )
        return "new"
    changed = _changes(folder, prepared)
    if changed and not overwrite:
        raise InputError(
            f"{folder} was trained with another configuration ({', '.join(changed)}); give another "
            "output=FOLDER, or pass --overwrite to replace it"
        )
    if changed:
        return "new"
    if failure_of(folder):
        return "failed"
    if (folder / "summary.json").exists():
        if not (folder / MODEL_FOLDER).is_dir():
            raise InputError(
                f"{folder} is a finished run without its {MODEL_FOLDER}/, which a sweep measures: restore "
                "it, or move the folder away to train again"
            )
        return "finished"
    return "unfinished" if last_checkpoint(folder / CHECKPOINT_FOLDER) else "new"


def _changes(folder: Path, prepared: PreparedRun) -> list[str]:
    """Keys in which the run in a folder differs, and its data if they changed under the same names."""
    before = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {}
    now = prepared.config.model_dump(mode="json")
    changed = [key for key in {**now, **before} if now.get(key) != before.get(key)]
    environment = folder / "environment.json"
    if environment.exists():
        data = json.loads(environment.read_text(encoding="utf-8"))["data"]
        changed += ["the rows of data"] if data != prepared.fingerprints else []
    return changed


def _check_distinct(configs: Sequence[tuple[Point, RunConfig]]) -> None:
    """Values that are written differently may mean the same."""
    seen: dict[str, str] = {}
    for point, config in configs:
        resolved = json.dumps(config.model_dump(mode="json", exclude={"output"}), sort_keys=True)
        if resolved in seen:
            raise InputError(f"{seen[resolved]} and {point.name} are the same run; give each value once")
        seen[resolved] = point.name


def _plan_table(planned: Sequence[PlannedRun]) -> Table:
    table = Table("Run", "Folder", "Steps", "Is")
    for run in planned:
        table.add_row(escape(run.point.label), str(run.folder), str(run.steps), WHAT_HAPPENS[run.status])
    return table


# --- training and measuring ---


def _train(run: PlannedRun) -> None:
    """Run `preftune train` in a process of its own, so that its memory is its own too.

    It reads a file beside the run folder: whoever edits the sweep's configuration changes no point of it.
    """
    file = run.folder.with_name(f"{run.folder.name}.yaml")
    write_whole(file, dump_yaml(run.config.model_dump(mode="json")))
    for name in (EVALUATION_FILE, SAMPLES_FILE):
        (run.folder / name).unlink(missing_ok=True)
    flag = "--resume" if run.status == "unfinished" else "--overwrite"
    command = [sys.executable, "-m", "preftune", "train", str(file), flag]
    if subprocess.run(command, check=False).returncode and not failure_of(run.folder):
        raise InputError(
            f"training of {run.point.name} failed, see its message above; run the same sweep again to resume"
        )


def _without_failed(
    planned: Sequence[PlannedRun], console: Console
) -> tuple[list[PlannedRun], list[PlannedRun]]:
    """Runs that have a model to measure, and those whose training met numbers that are not finite.

    Raises:
        InputError: there is none of the former.
    """
    trained, failed = [], []
    for run in planned:
        if failure := failure_of(run.folder):
            console.print(f"{run.point.label} is left out: {failure['message']}", markup=False)
            failed.append(run)
        else:
            trained.append(run)
    if not trained:
        raise InputError("every run of the sweep has failed, see its message above; change what they share")
    return trained, failed


def _evaluate_trained(
    run: PlannedRun, asked: RewardedPrompts, settings: SamplingSettings, started: str
) -> Figures:
    """The evaluation of a point; a model that was conditioned on a text is asked with it."""
    if control := run.config.data.control:
        asked = read_held_out(run.config, settings, run.device, control.good, progress=True)
    return _evaluate(run.folder, run, run.folder / MODEL_FOLDER, asked, started)


def _evaluate(
    folder: Path, run: PlannedRun, trained: Path | None, asked: RewardedPrompts, started: str
) -> Figures:
    """The evaluation in a folder, made now where there is none of this model, these prompts and settings.

    `started` is the hash of the starting model's content.
    """
    # Its seconds tell a run that was trained again from the one that was measured.
    summary = (folder / "summary.json").read_text(encoding="utf-8") if trained else "{}"
    held_out = asked.held_out
    prompts = [(group.prompt, dict(group.columns)) for group in asked.groups]
    settings = {name: getattr(held_out.settings, name) for name in ("n", "max_new_tokens", "seed")}
    about = (
        summary,
        started,
        run.config.model_dtype,
        run.config.rewards,
        settings,
        prompts,
        held_out.tokens(),
        rewards_content(run.config.rewards, held_out.tokenizer),
    )
    identity = hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()
    stage = Stage(
        folder=folder,
        name="evaluate",
        inputs={"identity": identity},
        settings=settings,
        outputs=(SAMPLES_FILE, EVALUATION_FILE),
    )

    def work() -> Figures:
        rows, figures = measure_run(run.config, trained, asked)
        write_whole(folder / SAMPLES_FILE, as_lines(rows))
        record = {"identity": identity, "prompts": len(asked.groups), **settings}
        record |= {"accuracy": json.loads(summary).get("accuracy"), **figures}
        write_json(folder / EVALUATION_FILE, record)
        return record

    return finish(stage, work).figures


# --- the end ---


def _sweep_point(name: str, record: dict[str, Any], rewards: dict[str, Interval]) -> SweepPoint:
    measurements = {"tokens": record["tokens"], "finished": record["finished"], **record["measurements"]}
    return SweepPoint(
        name=name,
        accuracy=record["accuracy"],
        drift=ends_of(record["drift"]),
        reward=record["reward"] and ends_of(record["reward"]),
        measurements={name: ends_of(interval) for name, interval in measurements.items()},
        rewards=rewards,
    )


def _write(
    output: Path,
    planned: Sequence[PlannedRun],
    failed: Sequence[PlannedRun],
    points: Sequence[SweepPoint],
    start: dict[str, Any],
    records: dict[str, dict[str, Any]],
    settings: SamplingSettings,
    samples: dict[str, list[dict[str, Any]]],
    pages: Pages,
) -> None:
    keys = list(planned[0].point.values)
    names = {START: START, **{run.point.label: run.point.name for run in planned}}
    dominated: dict[str, dict[str, str | None]] = {name: {} for name in names}
    for weighed in weighings(points):
        for point in weighed.points:
            dominator = weighed.dominator(point)
            dominated[point.name][weighed.title] = names[dominator.name] if dominator else None
    summary = {
        "swept": keys,
        "start": start | {"dominated_by": dominated[START]},
        "points": {
            run.point.name: {
                "values": run.point.values,
                **records[run.point.label],
                "dominated_by": dominated[run.point.label],
            }
            for run in planned
        },
    }
    if failed:
        summary["failed"] = {
            run.point.name: {"values": run.point.values, "stopped": failure_of(run.folder)} for run in failed
        }
    if front := reward_front(points):
        summary["front"] = {
            "rewards": list(front.names),
            "points": {names[point.name]: _named(point) for point in front.points},
            "on_the_front": [names[point.name] for point in front.front()],
        }
    write_json(output / "summary.json", summary)
    rewards = {
        name: SampleRewards(before=ends_of(start["reward"]), after=ends_of(record["reward"]))
        for name, record in records.items()
        if record["reward"]
    }
    comparison = ModelComparison(
        title=f"Sweep of {', '.join(keys)}",
        runs={run.point.label: run.folder for run in planned},
        rewards=rewards,
        samples=side_by_side(samples, "rewards"),
        notes=(
            f"Runs are named by {', '.join(keys)}.",
            f"{settings.n} responses of at most {settings.max_new_tokens} tokens were sampled to each of "
            f"{start['prompts']} held-out prompts, at temperature 1.",
            *(f"{run.point.label} has failed and is left out." for run in failed),
        ),
        points=points,
    )
    pages.comparison(output / REPORT_FILE, comparison)


def _named(point: SweepPoint) -> dict[str, dict[str, float]]:
    return {name: named_interval(interval) for name, interval in point.rewards.items()}


def _tables(points: Sequence[SweepPoint]) -> Iterator[Table]:
    """A column for each point: there are more figures than a terminal has room beside one another."""
    heads, rows = tradeoff_table(points)
    for start in range(0, len(rows), POINTS_ACROSS):
        names, *figures = zip(heads, *rows[start : start + POINTS_ACROSS], strict=True)
        table = Table(title="Held-out prompts, 95% intervals", show_lines=True)
        for name in names:
            table.add_column(escape(name), overflow="fold")
        for row in figures:
            table.add_row(*map(escape, row))
        yield table
