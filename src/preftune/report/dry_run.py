"""What `preftune train --dry-run` says: what would happen, in a few lines."""

from collections.abc import Iterator, Mapping
from typing import Any

from preftune.data import counted
from preftune.report.inspection import format_size, rules_applied
from preftune.training.inspection import Inspection, SplitFigures
from preftune.training.preparation import PreparedRun
from preftune.training.splits import PreparedData

SHOWN_COLUMNS = 6
"""Unused columns that are named."""


def dry_run_lines(found: Inspection) -> Iterator[tuple[str, str]]:
    """What a run would do, as words and what there is to say about them.

    Args:
        found: a look at the run.
    """
    prepared = found.prepared
    config, train = prepared.config, prepared.train
    yield "model", f"{config.model}, {_trained_weights(found)}"
    own = prepared.given.objective
    yield "objective", _objective(config.objective) if own is None else type(own).__name__
    for name, split in found.splits.items():
        yield name, split.read_as + _unused(split.unused_columns)
        yield "", _rows(split)
        yield "", _trained_on(split, config.data.max_length)
    if train.prior:
        negative = f", {train.prior.negative:,} negative ({train.prior.negative_gap})"
        gap = f"mean {train.prior.mean_gap:.3f} by prior.calibration={config.prior.calibration}"
        yield "gap", gap + negative * bool(train.prior.negative)
    if weights := train.weights:
        yield "weights", "of pairs: mean {mean:.3g}, from {low:.3g} to {high:.3g}".format_map(weights)
    if train.rewards:
        spreads = (
            f"{name} {each.mean:.4g} ± {each.sd:.2g}" for name, each in train.rewards.measurements.items()
        )
        yield "rewards", f"{', '.join(spreads)} (mean ± standard deviation)"
    if factors := prepared.predicted_factors:
        capped = "" if factors.cap is None else f", {factors.share_at_cap:.0%} capped at {factors.cap:g}"
        yield "factors", f"of likelihood: mean {factors.mean:.3g}, largest {factors.largest:.3g}{capped}"
    yield "steps", _steps(prepared)
    yield "memory", _memory(found)
    yield "output", config.output


def _trained_weights(found: Inspection) -> str:
    footprint = found.footprint
    if footprint.trained == footprint.parameters:
        return f"all {footprint.parameters:,} weights trained"
    return f"{footprint.trained:,} of {footprint.parameters:,} weights trained"


def _objective(options: Mapping[str, Any]) -> str:
    """The options that are set; those of a method in a mix in brackets after its name."""
    said = []
    for key, value in options.items():
        if isinstance(value, Mapping) and value:
            renamed = {name: each for name, each in value.items() if (name, each) != ("method", key)}
            said.append(f"{key} ({_objective(renamed)})")
        elif value not in (None, False, {}, []):
            said.append(f"{value}" if key == "method" else f"{key} {value}")
    return ", ".join(said)


def _unused(columns: tuple[str, ...]) -> str:
    more = f" and {len(columns) - SHOWN_COLUMNS} more" * (len(columns) > SHOWN_COLUMNS)
    return f"; not used: {', '.join(columns[:SHOWN_COLUMNS])}{more}" if columns else ""


def _rows(split: SplitFigures) -> str:
    report = split.data.rows
    notes = [f"{note}: {count:,}" for note, count in report.notes.items()]
    kept = f"{counted(report.rows, 'row')} read, {report.rows - report.dropped:,} kept"
    return "; ".join([kept, *rules_applied(report), *notes])


def _trained_on(split: SplitFigures, max_length: int) -> str:
    data = split.data
    what = f"{_pairs_or_responses(data)}, {data.tokens:,} tokens, the longest {data.longest:,}"
    both = counted(len(split.in_training), "prompt")
    shared = f"; trained on too: {both}" * bool(split.in_training)
    return f"{what} (data.max_length={max_length}){shared}"


def _pairs_or_responses(data: PreparedData) -> str:
    if data.labels:
        return ", ".join(f"{count:,} {label}" for label, count in data.labels.items()) + " responses"
    pairs = sum(len(group.pairs) for group in data.groups)
    return counted(pairs, "pair") if pairs else counted(sum(len(g.packed) for g in data.groups), "response")


def _steps(prepared: PreparedRun) -> str:
    tokens = round(prepared.train.tokens / prepared.steps_per_epoch)
    epochs = prepared.steps / prepared.steps_per_epoch
    return f"{prepared.steps:,} of about {tokens:,} tokens each; epochs: {epochs:.3g}"


def _memory(found: Inspection) -> str:
    footprint = found.footprint
    unknown = "activations" if footprint.optimizer is not None else "optimizer state and activations"
    device = footprint.device
    if footprint.available is not None:
        device += f", which has {format_size(footprint.available)}"
    return f"{format_size(footprint.total)} and {unknown}, on {device} (preftune inspect --measure says more)"
