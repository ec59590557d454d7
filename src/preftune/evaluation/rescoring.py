"""Every figure again from recorded verdicts, without asking a judge."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from preftune.errors import InputError
from preftune.evaluation import alpaca_eval, arena_hard, mt_bench
from preftune.evaluation.difficulty import Difficulty, read_difficulty
from preftune.evaluation.length_control import MODES, OFFICIAL, predict_win_rate
from preftune.evaluation.resampling import Difference, Tally, difference, tally
from preftune.evaluation.style_control import FEATURES, control_style, read_answers
from preftune.evaluation.verdicts import Recording, Results
from preftune.storage.files import write_whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What `preftune evaluate rescore` can be told.

    Attributes:
        difficulty: CSV file of AlpacaEval's difficulties.
        instructions: the evaluation set in the difficulties' order.
        by_position: match difficulties by position, as upstream does.
        mode: of the length control.
        baseline: its name, where files do not say it.
        against: a model of these files that the others are compared with.
        upstream_intervals: state upstream's intervals too (Arena-Hard).
        answers: answer files for style control (Arena-Hard).
        style: features to control.
        seed: of the resamples.
    """

    difficulty: Path | None = None
    instructions: Path | None = None
    by_position: bool = False
    mode: str = OFFICIAL
    baseline: str | None = None
    against: str | None = None
    upstream_intervals: bool = False
    answers: Sequence[Path] = ()
    style: Sequence[str] = FEATURES
    seed: int = 0


@dataclass(frozen=True)
class Protocol:
    """What is particular to one.

    Attributes:
        read: verdicts of every model in a file.
        aggregate: figures of a model.
        count: verdicts by prompt, as its figure counts them.
        options: of the command line that are its own.
    """

    read: Callable[[Path, Settings], list[Recording]]
    aggregate: Callable[[Recording, Difficulty | None, Settings], Results]
    count: Callable[[Recording], Tally]
    options: tuple[str, ...] = ()


PROTOCOLS: Mapping[str, Protocol] = {
    alpaca_eval.PROTOCOL: Protocol(
        read=lambda path, _: alpaca_eval.read_annotations(path),
        aggregate=lambda recording, difficulty, settings: alpaca_eval.aggregate(
            recording, difficulty, mode=settings.mode, by_position=settings.by_position, seed=settings.seed
        ),
        count=lambda recording: tally(recording.verdicts),
        options=("difficulty",),
    ),
    arena_hard.PROTOCOL: Protocol(
        read=lambda path, settings: arena_hard.read_verdicts(path, settings.baseline),
        aggregate=lambda recording, _, settings: arena_hard.aggregate(recording, settings.seed),
        count=lambda recording: tally(recording.verdicts),
        options=("upstream_intervals", "answers"),
    ),
    mt_bench.PROTOCOL: Protocol(
        read=lambda path, settings: mt_bench.read_judgments(path, settings.baseline),
        aggregate=lambda recording, _, settings: mt_bench.aggregate(recording, settings.seed),
        count=lambda recording: tally(mt_bench.settle(recording.comparisons) or recording.ratings),
    ),
}


def read_recordings(protocol: str, files: Sequence[Path], settings: Settings) -> list[Recording]:
    """Verdicts of every model in every file.

    Raises:
        InputError: the protocol or an option does not fit, or a file has another shape.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol = {protocol!r}: must be one of {', '.join(PROTOCOLS)}")
    for owner, traits in PROTOCOLS.items():
        for option in traits.options:
            if owner != protocol and getattr(settings, option):
                raise InputError(
                    f"--{option.replace('_', '-')} is for {owner}, and this is {protocol}: leave it out"
                )
    if settings.difficulty is None and (settings.instructions is not None or settings.by_position):
        raise InputError(
            "--instructions and --difficulty-by-position say which difficulty is whose: give --difficulty too"
        )
    if settings.mode not in MODES:
        raise InputError(f"--mode {settings.mode}: must be one of {', '.join(MODES)}")
    return [recording for file in files for recording in _read(PROTOCOLS[protocol], protocol, file, settings)]


def _read(traits: Protocol, protocol: str, file: Path, settings: Settings) -> list[Recording]:
    try:
        recordings = traits.read(file, settings)
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        # The files are other tools', and any value in them may be of another type.
        raise InputError(
            f"{file}: a value is not what {protocol} has there ({type(error).__name__}: {error}): give the "
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


def rescore(protocol: str, recordings: Sequence[Recording], settings: Settings) -> list[Results]:
    """Figures of every model.

    Args:
        protocol: one of PROTOCOLS.
        recordings: of models, as read for it.
        settings: for all of them.

    Raises:
        InputError: nothing could be read, or a file that an option names does not fit.
    """
    difficulty = None
    if settings.difficulty is not None:
        difficulty = read_difficulty(settings.difficulty, settings.instructions)
    traits = PROTOCOLS[protocol]
    results = []
    for recording in recordings:
        try:
            figures = traits.aggregate(recording, difficulty, settings)
        except InputError as error:
            raise InputError(f"{recording.model} in {recording.source}: {error}") from error
        results.append({**figures, "file": recording.source})
    if settings.upstream_intervals:
        _add_upstream_intervals(recordings, results)
    if settings.answers:
        _add_style_control(recordings, results, settings)
    if settings.against is not None:
        values = None if difficulty is None else difficulty.values
        _add_differences(traits, recordings, results, values, settings)
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
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _add_upstream_intervals(recordings: Sequence[Recording], results: Sequence[Results]) -> None:
    """Upstream draws the games of all models in its folder together: here, of all with the same rules."""
    for version, rules in arena_hard.RULES.items():
        places = [
            place
            for place, recording in enumerate(recordings)
            if recording.notes.get("version", "v0.1") == version
        ]
        if places:
            intervals = arena_hard.resample_games([recordings[place] for place in places], rules)
            for place, interval in zip(places, intervals, strict=True):
                results[place]["upstream_interval"] = list(interval)


def _add_style_control(
    recordings: Sequence[Recording], results: Sequence[Results], settings: Settings
) -> None:
    """One fit for all models against the same baseline on the same category."""
    answers = read_answers(settings.answers)
    groups: dict[tuple[str | None, str], list[int]] = {}
    for place, recording in enumerate(recordings):
        groups.setdefault((recording.baseline, recording.notes.get("category", "")), []).append(place)
    for places in groups.values():
        fits = control_style([recordings[place] for place in places], answers, settings.style)
        for place, fit in zip(places, fits, strict=True):
            results[place]["style_controlled_win_rate"] = fit.win_rate
            results[place]["style_controlled_interval"] = list(fit.interval)
            results[place]["style_control"] = {"coefficients": dict(fit.coefficients)}


def _add_differences(
    traits: Protocol,
    recordings: Sequence[Recording],
    results: Sequence[Results],
    difficulty: Float64[np.ndarray, "instructions"] | None,
    settings: Settings,
) -> None:
    """Each model less the one that is named, on the prompts that both have."""
    others: dict[str, list[int]] = {recording.notes.get("category", ""): [] for recording in recordings}
    for place, recording in enumerate(recordings):
        if recording.model == settings.against:
            others[recording.notes.get("category", "")].append(place)
    if wrong := [places for places in others.values() if len(places) != 1]:
        names = ", ".join(dict.fromkeys(recording.model for recording in recordings))
        raise InputError(
            f"--against {settings.against}: must be once in these files (in each category), and is "
            f"{len(wrong[0])} times; they have {names}"
        )
    for place, recording in enumerate(recordings):
        [other] = others[recording.notes.get("category", "")]
        if place == other:
            continue
        _check_comparable(recording, recordings[other])
        found = difference(traits.count(recording), traits.count(recordings[other]), settings.seed)
        figures: Results = {"to": settings.against} | _figures(found, is_percent=bool(recording.comparisons))
        ours, theirs = (results[one].get("length_control") for one in (place, other))
        if ours and theirs:
            figures["length_controlled_win_rate"] = predict_win_rate(
                ours["coefficients"], theirs["coefficients"], difficulty
            )
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


def _figures(found: Difference, *, is_percent: bool) -> Results:
    scale = 100 if is_percent else 1
    interval = found.estimate.interval
    return {
        "prompts": found.prompts,
        "win_rate" if is_percent else "average": scale * found.estimate.value,
        "interval": interval and [scale * end for end in interval],
        "better": found.better,
        "worse": found.worse,
        "p_value": found.p_value,
    }
