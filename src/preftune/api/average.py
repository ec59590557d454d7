"""`preftune.average`: several runs' models as one."""

from collections.abc import Sequence
from pathlib import Path

from preftune.api.run import Run
from preftune.errors import InputError
from preftune.models.averaging import average_models, shares_of
from preftune.storage.files import MODEL_FOLDER, replaced_folder


def average(
    runs: Sequence[str | Path | Run], weights: Sequence[float] | None = None, *, output: str | Path
) -> Path:
    """Average the models of several runs, weight by weight, and save the result as a model.

    Weights are averaged in float64. Of LoRA adapters the updates are averaged, exactly: the new adapter's
    rank is the sum of theirs. Value heads are not averaged. See docs/optimizers.md.

    Args:
        runs: runs, their folders, or folders of models; all whole models, or all adapters of one base model.
        weights: of each run, 0 or more, with the sum 1; equal ones unless given.
        output: folder to write, new or empty.

    Returns:
        The folder.

    Raises:
        InputError: they differ in base model, weights or shapes, or cannot be averaged; nothing is written.
    """
    shares, target = shares_of(len(runs), weights), Path(output)
    folders = [_model_folder(run.folder if isinstance(run, Run) else Path(run)) for run in runs]
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"output={target} must be a new or an empty folder: give another")
    with replaced_folder(target) as aside:
        average_models(folders, shares, aside)
    return target


def _model_folder(given: Path) -> Path:
    for folder in (given, given / MODEL_FOLDER):
        if any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
            return folder
    raise InputError(f"{given} has no model: give a finished run's folder, or that of a model")
