"""What `preftune inspect` has found, as tables for terminal and page, and the page itself."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from math import ceil
from pathlib import Path

from transformers.training_args import OptimizerNames

from preftune.data.examples import MEANINGS
from preftune.data.inspection import LEVELS
from preftune.data.rules import PAST, RowReport, counted
from preftune.measuring.formatting import format_number
from preftune.report.rendering import render_page
from preftune.rewards.calibration import PriorReport
from preftune.storage.files import write_whole
from preftune.training.alternatives import alternatives, seconds_of
from preftune.training.footprint import MeasuredStep, seconds_of_run
from preftune.training.inspection import Inspection, SplitFigures

BAR = 30
"""Characters of the longest bar."""
SHOWN_SOURCES = 10
BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of the text around them."""


@dataclass(frozen=True)
class InspectionTable:
    """Rows of text under a title; the first cell of a row says what the others are.

    Attributes:
        title: what it is about.
        heads: of the columns.
        rows: as many cells as heads.
        notes: lines below it.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def visible(text: str) -> str:
    """The text with control characters, but for line breaks and tabs, written out."""
    return "".join(
        repr(char)[1:-1]
        if char in BIDIRECTIONAL or (unicodedata.category(char) == "Cc" and char not in "\n\t")
        else char
        for char in text
    )


def write_inspection(path: Path, found: Inspection) -> None:
    """Write one HTML page that needs no network and no other file."""
    prepared = found.prepared
    facts = {
        "Model": prepared.config.model,
        "Objective": ", ".join(f"{key} {value}" for key, value in prepared.config.objective.items()),
        "Steps": _count(prepared.steps),
        "Tokens of an epoch": _count(prepared.train.tokens),
        "Device": found.footprint.device,
    }
    page = render_page(
        "inspection.html",
        title="Before the run",
        facts=[(name, visible(value)) for name, value in facts.items() if value],
        examples=found.examples,
        tables=list(inspection_tables(found)),
        meanings=MEANINGS,
        visible=visible,
        quoted=repr,
    )
    write_whole(path, page)


def inspection_tables(found: Inspection) -> Iterator[InspectionTable]:
    """The figures of every split, then memory and time."""
    for name, split in found.splits.items():
        yield _sources(name, split)
        yield _lengths(name, split)
        yield _cuts(name, split)
        yield _pairs(name, split)
        if split.data.prior:
            yield _gaps(name, split.data.prior)
            yield _mean_gaps(name, split)
    yield _memory(found)
    yield _alternatives(found)


# --- data ---


def _sources(name: str, split: SplitFigures) -> InspectionTable:
    report = split.data.rows
    rows = [(each.name, _count(each.read), _count(each.kept)) for each in split.sources[:SHOWN_SOURCES]]
    if more := split.sources[SHOWN_SOURCES:]:
        read, kept = sum(each.read for each in more), sum(each.kept for each in more)
        rows.append((f"{len(more)} more files", _count(read), _count(kept)))
    rules = rules_applied(report)
    notes = [f"{note}: {count:,}" for note, count in report.notes.items()]
    return InspectionTable(
        f"Rows of {name}", ("source", "read", "kept"), tuple(rows), (*(rules or ["no rule applied"]), *notes)
    )


def rules_applied(report: RowReport) -> list[str]:
    """Each rule that was applied, and to how many rows or responses."""
    return [
        f"{rule}: {counted(count, _noun(rule, action))} {PAST[action]}"
        for (rule, action), count in sorted(report.counts.items())
    ]


def _noun(rule: str, action: str) -> str:
    return "response" if (rule, action) == ("response_too_long", "truncate") else "row"


def _lengths(name: str, split: SplitFigures) -> InspectionTable:
    heads = ("", "least", *(f"{level:.0%}" for level in LEVELS[1:-1]), "most")
    rows = {"prompt": split.prompt_tokens, "response": split.response_tokens}
    return InspectionTable(
        f"Lengths of {name}, in tokens",
        heads,
        tuple((label, *map(_count, lengths)) for label, lengths in rows.items()),
        ("Before any cut. Under 95%: 95 of 100 have at most that many tokens.",),
    )


def _cuts(name: str, split: SplitFigures) -> InspectionTable:
    rows = tuple(
        (
            _count(limit.max_length),
            _count(limit.responses),
            _count(limit.tokens),
            _count(limit.without_room),
        )
        for limit in split.truncations
    )
    notes = [f"max_prompt_length cuts {_count(split.prompts_cut)} prompts"]
    if split.cut_rows:
        notes.append(f"first rows with a cut: {', '.join(map(str, split.cut_rows))}")
    heads = ("max_length", "responses cut", "tokens cut", "prompts without room")
    return InspectionTable(f"Cuts of {name}", heads, rows, tuple(notes))


def _pairs(name: str, split: SplitFigures) -> InspectionTable:
    rows = {
        "exact duplicates of an earlier row": _count(split.duplicates),
        "prompts that repeat an earlier one": _count(split.repeated_prompts),
    }
    if name != "train":
        rows["prompts that are trained on too"] = _count(len(split.in_training))
    if bias := split.length_bias:
        rows |= {
            "pairs": _count(bias.pairs),
            "pairs with equal tokens": _count(split.equal_pairs),
            "chosen is longer": f"{bias.longer:.1%} of pairs (as long: {bias.equal:.1%})",
            "chosen minus rejected": f"{format_number(bias.difference, 1, signed=True)} tokens on average",
        }
    if split.tied_pairs is not None:
        rows["pairs with tied scores"] = _count(split.tied_pairs)
    if labels := split.data.labels:
        rows |= {f"{label} responses": _count(count) for label, count in labels.items()}
    return InspectionTable(f"Repetitions and labels of {name}", ("what", "number"), tuple(rows.items()))


def _gaps(name: str, prior: PriorReport) -> InspectionTable:
    most = max(prior.histogram)
    rows = tuple(
        (f"{place / 10:.1f} to {(place + 1) / 10:.1f}", _count(count), "█" * ceil(BAR * count / most))
        for place, count in enumerate(prior.histogram)
    )
    notes = [f"mean gap {prior.mean_gap:.3f} of {_count(prior.pairs)} pairs"]
    if prior.negative:
        notes.append(f"negative: {_count(prior.negative)} pairs (prior.negative_gap={prior.negative_gap})")
    return InspectionTable(f"Reward gap of {name}, as configured", ("gap", "pairs", ""), rows, tuple(notes))


def _mean_gaps(name: str, split: SplitFigures) -> InspectionTable:
    rows = tuple(
        (kind, mean if isinstance(mean, str) else format_number(mean, 3))
        for kind, mean in split.mean_gaps.items()
    )
    note = "Without options, fitted to train; negative gaps count as they are."
    return InspectionTable(
        f"Mean reward gap of {name} by calibration", ("prior.calibration", "mean gap"), rows, (note,)
    )


# --- memory and time ---


def _memory(found: Inspection) -> InspectionTable:
    prepared, footprint, measured = found.prepared, found.footprint, found.measured
    own = prepared.given.optimizers[0] is not None
    optimizer = "the given optimizer" if own else OptimizerNames(prepared.arguments.optim).value
    known = footprint.optimizer is not None
    trained = f"computed: {footprint.trained:,} of {footprint.parameters:,} weights are trained"
    rows = [
        ("weights", format_size(footprint.weights), "computed from the model's shapes"),
        ("gradients", format_size(footprint.gradients), trained),
        (
            "optimizer state",
            format_size(footprint.optimizer) if footprint.optimizer is not None else "?",
            f"computed for {optimizer}" if known else f"not computed for {optimizer}",
        ),
    ]
    if footprint.average:
        note = "computed: in float32, and the weights that are set aside while it is evaluated"
        rows.append(("average of the weights (ema)", format_size(footprint.average), note))
    if measured is None:
        rows.append(("activations", "?", "not measured"))
    else:
        rows.append(
            (
                "activations",
                format_size(measured.activations),
                f"measured: a row of {measured.row_tokens:,} tokens",
            )
        )
    total = footprint.total + (measured.activations if measured else 0)
    whole = known and measured is not None
    rows.append(("sum", f"{'' if whole else 'over '}{format_size(total)}", f"on {footprint.device}"))
    if footprint.available is not None:
        rows.append(("memory of the device", format_size(footprint.available), "all of it, not what is free"))
    if measured is not None:
        rows += _time(found, measured)
    return InspectionTable("Memory and time", ("what", "size", "how"), tuple(rows), _memory_notes(found))


def _time(found: Inspection, measured: MeasuredStep) -> list[tuple[str, str, str]]:
    steps = found.prepared.steps
    whole = timedelta(seconds=round(seconds_of_run(found.prepared, measured)))
    rate = f"{measured.tokens / measured.seconds:,.0f} a second"
    return [
        ("a step", f"{measured.seconds:.2f} s", f"measured: {measured.tokens:,} tokens, {rate}"),
        ("all steps", str(whole), f"computed: {steps:,} steps at this rate"),
    ]


def _memory_notes(found: Inspection) -> tuple[str, ...]:
    notes = []
    if found.measured is None:
        notes.append("Activations and time: --measure takes one real step (in Python: measure=True).")
    else:
        notes.append("The step was taken twice, and the second one was timed.")
        notes.append("Not counted: the reference's log-probabilities, evaluation and checkpoints.")
        if found.measured.peak is None:
            notes.append("Activations are what a row's forward pass keeps for its backward pass.")
        else:
            peak = format_size(found.measured.peak)
            notes.append(f"Peak of the allocator: {peak}, of which activations are the rest.")
    if found.prepared.config.fully_sharded:
        notes.append("fully_sharded=true: N processes share weights, gradients and optimizer state equally.")
    return tuple(notes)


def _alternatives(found: Inspection) -> InspectionTable:
    """The other ways to train, each an estimate."""
    prepared, measured = found.prepared, found.measured
    activations = measured.activations if measured else 0
    rows = []
    for way in alternatives(prepared):
        states = way.gradients + (way.optimizer or 0)
        whole = "" if measured and way.optimizer is not None else "over "
        seconds = seconds_of(prepared, measured, way) if measured else None
        time = "?" if seconds is None else f"{'over ' * way.is_least}{timedelta(seconds=round(seconds))}"
        total = whole + format_size(way.total + activations)
        rows.append((way.name, format_size(way.weights), format_size(states), total, time))
    notes = [
        "All are estimates for one device, of the model's shapes and the run's model_dtype.",
        "QLoRA: matrices in 4 bits with their constants; its time leaves out dequantization.",
        "FSDP2: a process's share, the largest layer gathered; its time leaves out communication.",
    ]
    if measured:
        notes.append("Sums count the measured activations; times are the measured one, by operations.")
    heads = ("way to train", "weights", "gradients, optimizer", "sum", "all steps")
    return InspectionTable("Other ways to train, estimated", heads, tuple(rows), tuple(notes))


def _count(number: int) -> str:
    return f"{number:,}"


def format_size(number: int) -> str:
    """Bytes in the unit that leaves one to four digits before the point."""
    size = float(number)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"
