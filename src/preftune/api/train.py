"""`preftune.train`: a whole run, from data to a folder with model, figures and page."""

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from preftune.api.keywords import Keywords, errors_name_keywords, unknown_keyword
from preftune.api.run import Run
from preftune.errors import InputError
from preftune.report.page import write_run_page
from preftune.training import RunConfig, check_config, read_run_config
from preftune.training.footprint import check_trained_weights
from preftune.training.given import NOTHING_GIVEN, Given
from preftune.training.preparation import PreparedRun, prepare
from preftune.training.run import run_training

Configuration = RunConfig | Mapping[str, Any] | str | Path


def train(
    config: Configuration | None = None,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    **keywords: Any,
) -> Run:
    """Tune a model, and leave a run folder with the model, metrics, summary and report.

    Args:
        config: a YAML file, or what one holds as a mapping; without it, the keywords say everything.
        overrides: `key=value` for any key of the file.
        resume: continue the run in the output folder.
        overwrite: replace the run in the output folder.
        progress: show bars.
        **keywords: those of `PreferenceTrainer`, and `output`: the run folder, the `output_dir` of `args`
            unless given.

    Raises:
        InputError: something is wrong with the configuration or the data, before any weights load; what
            stands in the output folder is then as it was.
    """
    resolved, given = resolve_run(config, overrides, keywords)
    with nullcontext() if keywords == {} else errors_name_keywords():
        trained = run_training(
            resolved,
            given,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            write_page=write_run_page,
        )
    run = Run(Path(resolved.output), trained.summary, trained)
    # A call that was killed after writing its summary has left none.
    if not run.report.exists() and os.environ.get("RANK", "0") == "0":
        write_run_page(run.folder)
    return run


def check(
    config: Configuration | None = None,
    overrides: Sequence[str] = (),
    *,
    progress: bool = False,
    **keywords: Any,
) -> PreparedRun:
    """Check everything about a run that can be checked without weights; see `train`.

    Returns:
        The run as it would be trained: its resolved `config` and `summary()`.
    """
    return prepare_run(config, overrides, keywords, progress=progress)


def prepare_run(
    config: Configuration | None,
    overrides: Sequence[str],
    keywords: Mapping[str, Any],
    *,
    progress: bool,
    keeps_whole: bool = False,
) -> PreparedRun:
    """`check`, which keeps the data as they were before their limits where a look at them follows."""
    resolved, given = resolve_run(config, overrides, keywords)
    with nullcontext() if keywords == {} else errors_name_keywords():
        prepared = prepare(resolved, progress, given=given, keeps_whole=keeps_whole)
        check_trained_weights(prepared)
    return prepared


def resolve_run(
    config: Configuration | None, overrides: Sequence[str], keywords: Mapping[str, Any]
) -> tuple[RunConfig, Given]:
    """The configuration of a run, from a file, a mapping or keywords.

    Raises:
        InputError: it is wrong, or there are two of them.
    """
    if config is None:
        if "args" in keywords and "output" not in keywords and hasattr(keywords["args"], "output_dir"):
            keywords = {**keywords, "output": keywords["args"].output_dir}
        with errors_name_keywords():
            return _keywords(keywords).resolve()
    if keywords:
        raise InputError(
            f"config is given, and so are {', '.join(keywords)}: give a configuration or keywords, not both "
            "(overrides=['key=value'] changes a key of a file)"
        )
    if isinstance(config, str | Path):
        return read_run_config(Path(config), list(overrides)), NOTHING_GIVEN
    return config if isinstance(config, RunConfig) else check_config(dict(config)), NOTHING_GIVEN


def _keywords(keywords: Mapping[str, Any]) -> Keywords:
    unknown = keywords.keys() - Keywords.__dataclass_fields__.keys()
    lacking = [name for name in ("model", "train_dataset") if keywords.get(name) is None]
    if unknown:
        raise unknown_keyword(min(unknown))
    if lacking:
        raise InputError(f"{lacking[0]} is missing: give it, or a configuration file")
    return Keywords(**keywords)
