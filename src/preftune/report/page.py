"""The page: what of the run folders goes where."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.errors import InputError
from preftune.measuring.comparison import ModelComparison, Pages
from preftune.measuring.formatting import NOT_MEASURED, format_number
from preftune.measuring.samples import SampleRewards, SideBySide
from preftune.measuring.tradeoff import START, SweepPoint
from preftune.report.evaluation import Evaluated, read_evaluations
from preftune.report.folders import RunRecord, read_run
from preftune.report.rendering import render_page
from preftune.storage.files import REPORT_FILE, write_whole


def write_report(
    path: Path,
    title: str,
    runs: dict[str, Path],
    *,
    rewards: dict[str, SampleRewards] | None = None,
    samples: Sequence[SideBySide] = (),
    notes: Sequence[str] = (),
    tradeoff: Sequence[SweepPoint] = (),
    evaluations: Sequence[Path] = (),
) -> None:
    """Write one HTML page that needs no network and no other file.

    The same folders give the same page, byte for byte: its date is the day of the latest summary.json.

    Args:
        path: the page; replaced as a whole, never half written.
        title: heading of the page.
        runs: run folder by the name to show.
        rewards: rewards of sampled responses, by a name of `runs`.
        samples: prompts with the answers of several models.
        notes: short paragraphs on how to read the page.
        tradeoff: the runs of a sweep as its points, by the names of `runs`, and the starting model as START.
        evaluations: files of results, as `preftune evaluate` writes them.

    Raises:
        InputError: there are no runs, a run folder lacks a file, rewards or points are of no run, or a file
            holds no results.
    """
    rewards = rewards or {}
    if not runs:
        raise InputError("runs is empty: give the folder of at least one finished run")
    if strangers := sorted(set(rewards) - set(runs)):
        raise InputError(f"rewards of {', '.join(strangers)}: no such run; runs are {', '.join(runs)}")
    if strangers := sorted({point.name for point in tradeoff} - {START, *runs}):
        raise InputError(f"points {', '.join(strangers)}: no such run; runs are {', '.join(runs)}")
    records = [read_run(name, index, Path(folder)) for index, (name, folder) in enumerate(runs.items())]
    evaluated = read_evaluations(evaluations, list(runs))
    write_whole(path, _render(title, records, rewards, samples, notes, tradeoff, evaluated))


def write_run_page(folder: Path) -> None:
    """The page of one run, in its folder, and the card of its model.

    Raises:
        InputError: the folder lacks a file.
    """
    write_report(folder / REPORT_FILE, f"Run {folder.name}", {folder.name: folder})
    from preftune.report.card import write_run_card  # loads torch

    write_run_card(folder)


def write_comparison(path: Path, comparison: ModelComparison) -> None:
    """The page of several models.

    Raises:
        InputError: as `write_report`.
    """
    write_report(
        path,
        comparison.title,
        dict(comparison.runs),
        rewards=dict(comparison.rewards),
        samples=comparison.samples,
        notes=comparison.notes,
        tradeoff=comparison.points,
    )


PAGES = Pages(write_run_page, write_comparison)
"""What online rounds and sweeps are given."""


def _render(
    title: str,
    records: Sequence[RunRecord],
    rewards: Mapping[str, SampleRewards],
    samples: Sequence[SideBySide],
    notes: Sequence[str],
    tradeoff: Sequence[SweepPoint],
    evaluated: Sequence[Evaluated],
) -> str:
    # Drawing takes a second to load, and only a report draws.
    from preftune.report.blocks import evaluation_block, figure_blocks, tradeoff_block
    from preftune.report.drawing import run_variable

    return render_page(
        "page.html",
        title=title,
        facts=_facts(records),
        notes=notes,
        runs=records,
        variables={record.name: run_variable(record.index) for record in records}
        | {one.name: run_variable(one.index) for one in evaluated},
        rows=_table_rows(records, rewards),
        first=[tradeoff_block(records, tradeoff)] if tradeoff else [],
        figures=[
            *figure_blocks(records, rewards),
            *([evaluation_block(evaluated)] if evaluated else []),
        ],
        samples=samples,
    )


def _facts(records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """What the runs share, or every variant where they differ."""
    environments = [record.environment for record in records]
    versions = [found.get("versions") or {} for found in environments]
    names = list(dict.fromkeys(name for found in versions for name in found))
    facts = {
        "Date": max(record.date for record in records),
        "Model": _variants(_model_name(str(record.config.get("model"))) for record in records),
        "Device": _variants(_device(found) for found in environments),
        "Seed": _variants(found.get("seed") for found in environments),
        "Commit": _variants((found.get("commit") or "")[:10] for found in environments),
        "Versions": ", ".join(f"{name} {_variants(found.get(name) for found in versions)}" for name in names),
    }
    return [(name, value) for name, value in facts.items() if value]


def _variants(values: Iterable[object]) -> str:
    return " / ".join(dict.fromkeys(str(value) for value in values if value not in (None, "")))


def _model_name(model: str) -> str:
    """A hub name as it is, a folder by its last part."""
    return Path(model).name if model.startswith(("/", ".", "~")) else model


def _device(environment: Mapping[str, Any]) -> str:
    device, threads = environment.get("device"), environment.get("threads")
    if device != "cpu":
        return str(device or "")
    return f"cpu ({environment.get('processor')}, {threads} threads)"


def _objective(record: RunRecord) -> str:
    options = dict(record.config.get("objective") or {})
    mix = options.pop("mix", None) or {}
    mixed = " + ".join(f"{entry['weight']:g} {name}" for name, entry in mix.items())
    method = str(options.pop("method", mixed or NOT_MEASURED))
    return ", ".join([method, *(f"{name} {value}" for name, value in options.items() if value is not None)])


def _table_rows(
    records: Sequence[RunRecord], rewards: Mapping[str, SampleRewards]
) -> list[tuple[str, list[str]]]:
    """Label and one cell per run."""

    def measured(key: str, digits: int, signed: bool = False) -> list[str]:
        return [format_number(record.summary.get(key), digits, signed=signed) for record in records]

    rows = [
        ("Objective", [_objective(record) for record in records]),
        ("Training pairs", [format_number(record.training_pairs, 0) for record in records]),
        ("Steps", measured("steps", 0)),
        ("Chosen log-prob, change", measured("chosen_logp_change", 1, signed=True)),
        ("Rejected log-prob, change", measured("rejected_logp_change", 1, signed=True)),
        ("Held-out accuracy", measured("accuracy", 2)),
    ]
    if any(record.summary.get("kept") for record in records):
        rows.append(("Weights of step", [_kept(record) for record in records]))
    if any(record.summary.get("stopped") for record in records):
        rows.append(("Ended by", [_ended(record) for record in records]))
    if any(record.prior for record in records):
        rows.append(("Mean prior gap", [_mean_gap(record) for record in records]))
    if any(record.summary.get("value_explained_variance") is not None for record in records):
        rows.append(("Auxiliary reward, share explained by V", measured("value_explained_variance", 2)))
    if rewards:
        pairs = [rewards.get(record.name) for record in records]
        rows.append(("Sample reward, before", [_interval(pair.before if pair else None) for pair in pairs]))
        rows.append(("Sample reward, after", [_interval(pair.after if pair else None) for pair in pairs]))
    return [
        *rows,
        ("Training time", [_seconds(record.summary.get("seconds")) for record in records]),
        ("Tokens per second", measured("tokens_per_second", 1)),
        ("Peak memory", [_memory(record.summary.get("peak_rss_mb")) for record in records]),
    ]


def _kept(record: RunRecord) -> str:
    """The step whose weights are the model, and the figure that it was kept for."""
    kept = record.summary.get("kept")
    if not kept:
        return "last"
    if kept["step"] is None:
        return "none"
    value = kept["value"]
    return (
        f"{kept['step']}" if value is None else f"{kept['step']} ({kept['metric']} {format_number(value, 3)})"
    )


def _ended(record: RunRecord) -> str:
    stopped = record.summary.get("stopped")
    return f"{stopped['by']} at step {stopped['step']}" if stopped else "its last step"


def _mean_gap(record: RunRecord) -> str:
    return format_number(record.prior["mean_gap"], 2) if record.prior else "no prior"


def _interval(estimate: tuple[float, float, float] | None) -> str:
    if estimate is None:
        return NOT_MEASURED
    mean, low, high = estimate
    return format_number(mean, 2, interval=(low, high))


def _seconds(seconds: int | float | None) -> str:
    return NOT_MEASURED if seconds is None else f"{format_number(seconds, 0)} s"


def _memory(mebibytes: int | float | None) -> str:
    return NOT_MEASURED if mebibytes is None else f"{format_number(mebibytes / 1024, 1)} GiB"
