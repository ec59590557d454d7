"""Every figure again from recorded verdicts, without asking a judge."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from preftune.errors import InputError
from preftune.evaluation.benchmark import RescoreOptions, Rescorer
from preftune.evaluation.files import write_lines
from preftune.evaluation.resampling import difference
from preftune.evaluation.table import find_rescorer
from preftune.evaluation.verdicts import Recording, Results

logger = logging.getLogger(__name__)


def read_recordings(protocol: str, files: Sequence[Path], options: RescoreOptions) -> list[Recording]:
    """Verdicts of every model in every file.

    Raises:
        InputError: the protocol or an option does not fit, or a file has another shape.
    """
    rescorer = find_rescorer(protocol, options)
    return [recording for file in files for recording in _read(rescorer, protocol, file)]


def _read(rescorer: Rescorer, protocol: str, file: Path) -> list[Recording]:
    try:
        recordings = rescorer.read(file)
    except InputError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        # The files are other tools', and any value in them may be of another type.
        raise InputError(
            f"{file}: a value is not valid in {protocol} ({type(error).__name__}: {error}): give the "
            "file as the benchmark's tool wrote it"
        ) from error
    for recording in recordings:
        names = [recording.model, *(verdict.question for verdict in recording.verdicts)]
        if odd := [name for name in names if not isinstance(name, str)]:
            raise InputError(f"{file}: {odd[0]!r} names a model or a question: it must be text")
        if repeated := _repeated(recording):
            logger.warning(
                "%s: %d verdicts on %s are there before, alike to the length of both responses, and count "
                "again; where parts that overlap were joined, leave them out",
                *(file, repeated, recording.model),
            )
    return recordings


def _repeated(recording: Recording) -> int:
    """How many verdicts stand before; without lengths, two judgments may be alike by chance."""
    told_apart = [found for found in recording.comparisons if found.model_length is not None]
    return len(told_apart) - len(set(told_apart))


def rescore_recordings(
    protocol: str, recordings: Sequence[Recording], options: RescoreOptions
) -> list[Results]:
    """Figures of every model.

    Args:
        protocol: a benchmark with recorded verdicts.
        recordings: of models, as read for it.
        options: for all of them.

    Raises:
        InputError: nothing could be read, or a file that an option names does not fit.
    """
    rescorer = find_rescorer(protocol, options)
    results = []
    for recording in recordings:
        try:
            figures = rescorer.figures(recording)
        except InputError as error:
            raise InputError(f"{recording.model} in {recording.source}: {error}") from error
        results.append({**figures, "file": recording.source})
    rescorer.add_joint_figures(recordings, results)
    if options.against is not None:
        _add_differences(rescorer, recordings, results, options)
    return results


def write_items(path: Path, recordings: Sequence[Recording]) -> None:
    """Write every verdict as a line of JSON."""
    rows = (
        {
            "file": recording.source,
            "model": recording.model,
            "baseline": recording.baseline,
            **asdict(verdict),
        }
        for recording in recordings
        for verdict in recording.verdicts
    )
    write_lines(path, rows)


def _add_differences(
    rescorer: Rescorer,
    recordings: Sequence[Recording],
    results: Sequence[Results],
    options: RescoreOptions,
) -> None:
    """Each model less the one that is named, on the prompts that both have."""
    others: dict[str, list[int]] = {recording.notes.get("category", ""): [] for recording in recordings}
    for place, recording in enumerate(recordings):
        if recording.model == options.against:
            others[recording.notes.get("category", "")].append(place)
    if wrong := [places for places in others.values() if len(places) != 1]:
        names = ", ".join(dict.fromkeys(recording.model for recording in recordings))
        raise InputError(
            f"--against {options.against}: must be once in these files (in each category), and is "
            f"{len(wrong[0])} times; they have {names}"
        )
    for place, recording in enumerate(recordings):
        [other] = others[recording.notes.get("category", "")]
        if place == other:
            continue
        _check_comparable(recording, recordings[other])
        found = difference(rescorer.count(recording), rescorer.count(recordings[other]), options.seed)
        figure, scale = ("win_rate", 100.0) if recording.comparisons else ("average", 1.0)
        figures = {"to": options.against, "prompts": found.prompts, **found.results(figure, scale)}
        rescorer.add_to_difference(figures, results[place], results[other])
        results[place]["difference"] = figures


def _check_comparable(ours: Recording, theirs: Recording) -> None:
    if ours.baseline != theirs.baseline:
        raise InputError(
            f"{ours.model} was compared with {ours.baseline}, and {theirs.model} with {theirs.baseline}: a "
            "difference needs the same baseline"
        )
    if not (ours.named and theirs.named):
        lengths = [[verdict.baseline_length for verdict in one.comparisons] for one in (ours, theirs)]
        if lengths[0] != lengths[1]:
            raise InputError(
                f"{ours.source} and {theirs.source} have other rows, and do not name their prompts: give "
                "files with instructions, or whole ones"
            )
