"""A look at a run before it is paid for: its examples, figures of its data, and what it would take."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from preftune.data import Group, LengthLimits, TokenizedGroup
from preftune.data.examples import Example, show_group
from preftune.data.inspection import (
    LengthBias,
    LengthCut,
    count_equal_pairs,
    count_repeated_prompts,
    count_tied_pairs,
    length_bias,
    length_quantiles,
    measure_cut,
    rows_shared,
)
from preftune.data.rules import RULES
from preftune.errors import InputError
from preftune.rewards.calibration import CALIBRATIONS, fit_calibration
from preftune.training.footprint import Footprint, MeasuredStep, compute_footprint, measure_step
from preftune.training.preparation import PreparedRun, load_splits
from preftune.training.splits import PreparedData, WholeSplit

FIRST_CUT = 5
"""Rows with a cut that are named."""


@dataclass(frozen=True)
class SourceRows:
    """Rows of a file: those read, and those that something is learned from."""

    name: str
    read: int
    kept: int


@dataclass(frozen=True)
class SplitFigures:
    """Figures of a split.

    Attributes:
        data: the split as it is trained or evaluated on, with the report of its rows and its prior.
        read_as: what was read as what, and from which files; a line for each source.
        unused_columns: columns that the run does not use.
        sources: rows by file.
        prompt_tokens, response_tokens: quantiles of lengths before any cut, at `LEVELS`.
        prompts_cut: groups whose prompt exceeds `data.max_prompt_length`.
        truncations: what `data.max_length` cuts, and what twice as much would.
        cut_rows: the first rows of which something is cut.
        duplicates: rows that repeat an earlier one exactly, dropped or not.
        repeated_prompts: groups whose prompt an earlier group has too.
        equal_pairs: pairs of two responses with the same tokens.
        tied_pairs: pairs with equal scores; None where no scores are read.
        length_bias: of the labels; None without pairs.
        mean_gaps: mean reward gap under each calibration without options, or why there is none; empty where
            the objective has no prior.
        in_training: rows whose prompt is trained on too, of a held-out split.
    """

    data: PreparedData
    read_as: str
    unused_columns: tuple[str, ...]
    sources: tuple[SourceRows, ...]
    prompt_tokens: tuple[int, ...]
    response_tokens: tuple[int, ...]
    prompts_cut: int
    truncations: tuple[LengthCut, ...]
    cut_rows: tuple[int, ...]
    duplicates: int
    repeated_prompts: int
    equal_pairs: int
    tied_pairs: int | None
    length_bias: LengthBias | None
    mean_gaps: Mapping[str, float | str]
    in_training: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class Inspection:
    """What there is to see before a run.

    Attributes:
        prepared: the run.
        examples: rows of the training split.
        splits: figures by the split's name.
        footprint: memory that follows from the configuration.
        measured: a step that was taken to measure the rest, if one was.
    """

    prepared: PreparedRun
    examples: tuple[Example, ...]
    splits: Mapping[str, SplitFigures]
    footprint: Footprint
    measured: MeasuredStep | None

    def __repr__(self) -> str:
        """Short: a notebook shows what a cell ends with, and all tokens of all rows are within."""
        kept = ", ".join(f"{name} {len(split.groups)}" for name, split in self.prepared.splits.items())
        return f"<Inspection of groups: {kept}; see examples, splits, footprint, measured>"


@dataclass(frozen=True)
class _Split:
    """A split before its limits, beside what is left of it."""

    whole: WholeSplit
    data: PreparedData

    @cached_property
    def whole_of_row(self) -> dict[int, list[TokenizedGroup]]:
        """The groups of each row, whole."""
        return {parts[0].row: parts for parts in self.whole.rows if parts}

    @cached_property
    def kept_of_row(self) -> dict[int, list[TokenizedGroup]]:
        """The groups of each row that is kept, as they are trained."""
        kept: dict[int, list[TokenizedGroup]] = {}
        for group in self.data.groups:
            kept.setdefault(group.row, []).append(group)
        return kept


def inspect_run(
    prepared: PreparedRun, rows: int = 3, only: Sequence[int] = (), *, measure: bool = False
) -> Inspection:
    """Look at a run.

    Args:
        prepared: the run.
        rows: how many examples to show: the first ones that are trained on.
        only: numbers of the rows to show instead, from 0.
        measure: load the model and take one real step.

    Raises:
        InputError: there is no such row among those that are trained on, or the model cannot be loaded.
    """
    if rows < 0:
        raise InputError(f"rows={rows} must be 0 or more: set such a number")
    splits = {name: _Split(whole, prepared.splits[name]) for name, whole in _whole_splits(prepared).items()}
    train = splits["train"]
    return Inspection(
        prepared=prepared,
        examples=_examples(prepared, train, rows, only),
        splits={name: _figures(prepared, name, split, train) for name, split in splits.items()},
        footprint=compute_footprint(prepared),
        measured=measure_step(prepared) if measure else None,
    )


def _whole_splits(prepared: PreparedRun) -> dict[str, WholeSplit]:
    """The splits before their limits, read again where they were not kept."""
    kept = {name: data.whole for name, data in prepared.splits.items() if data.whole}
    if len(kept) == len(prepared.splits):
        return kept
    reader = prepared.reader
    return {
        name: reader.whole(loaded, prepared.calibration)
        for name, (_, loaded) in load_splits(reader, prepared.given).items()
    }


def _examples(prepared: PreparedRun, split: _Split, rows: int, only: Sequence[int]) -> tuple[Example, ...]:
    locate = split.data.rows.locate
    shown = list(only) or list(split.kept_of_row)[:rows]
    examples = []
    for row in shown:
        if row not in split.kept_of_row:
            raise InputError(
                f"row {row} of data.train is not trained on: it does not exist, a rule dropped it, or it was "
                f"joined to an earlier row with its prompt. Choose another one.\n{split.data.rows.summary()}"
            )
        # A mixture may use a row several times; once is enough to see it.
        parts = zip(split.whole_of_row[row], split.kept_of_row[row], strict=False)
        examples += [show_group(whole, kept, prepared.tokenizer, locate(row)) for whole, kept in parts]
    return tuple(examples)


def _figures(prepared: PreparedRun, name: str, split: _Split, train: _Split) -> SplitFigures:
    data, loaded, groups = prepared.config.data, split.whole.loaded, split.whole.loaded.groups
    trained = train.whole.loaded.groups
    whole = [part for parts in split.whole.rows for part in parts]
    limits = [LengthLimits(times * data.max_length, data.max_prompt_length) for times in (1, 2)]
    counts = split.data.rows.counts
    most = data.max_prompt_length
    cut = (row for row, kept in split.kept_of_row.items() if _is_cut(split.whole_of_row[row], kept))
    return SplitFigures(
        data=split.data,
        read_as=loaded.read_as,
        unused_columns=loaded.unused_columns,
        sources=_source_rows(split),
        prompt_tokens=length_quantiles([len(group.prompt) for group in whole]),
        response_tokens=length_quantiles([len(ids) for group in whole for ids in group.responses]),
        prompts_cut=sum(most is not None and len(group.prompt) > most for group in whole),
        truncations=tuple(measure_cut(whole, limit) for limit in limits),
        cut_rows=tuple(row for row, _ in zip(cut, range(FIRST_CUT), strict=False)),
        duplicates=sum(counts["duplicate_row", action] for action in RULES["duplicate_row"].actions),
        repeated_prompts=count_repeated_prompts(groups),
        equal_pairs=count_equal_pairs(whole),
        tied_pairs=count_tied_pairs(groups),
        length_bias=length_bias(whole),
        mean_gaps=mean_gaps(groups, trained) if split.data.prior else {},
        in_training=() if name == "train" else tuple(rows_shared(groups, trained)),
    )


def _is_cut(whole: Sequence[TokenizedGroup], kept: Sequence[TokenizedGroup]) -> bool:
    return any(
        [*map(len, (before.prompt, *before.responses))] != [*map(len, (after.prompt, *after.responses))]
        for before, after in zip(whole, kept, strict=False)
    )


def _source_rows(split: _Split) -> tuple[SourceRows, ...]:
    kept = Counter(split.data.rows.locate(row).rpartition(" row ")[0] for row in split.kept_of_row)
    return tuple(SourceRows(name, count, kept[name]) for name, count in split.whole.loaded.sources)


def mean_gaps(groups: Sequence[Group], train: Sequence[Group]) -> dict[str, float | str]:
    """Mean reward gap of the pairs under each calibration without options, or why it gives none.

    Args:
        groups: whose pairs have scores or margins; negative gaps count as they are.
        train: what calibrations are fitted to.
    """
    found: dict[str, float | str] = {}
    for kind in CALIBRATIONS:
        try:
            calibration = fit_calibration(kind, 1.0, train)
            gaps = [calibration.gap(pair, group) for group in groups for pair in group.pairs]
        except InputError as error:
            found[kind] = str(error).partition(": ")[2] or str(error)
            continue
        found[kind] = sum(gaps) / len(gaps) if gaps else "there is no pair"
    return found
