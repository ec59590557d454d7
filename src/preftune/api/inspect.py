"""`preftune.inspect`: a look at a run's data and cost before it is paid for."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from preftune.api.keywords import errors_name_keywords
from preftune.api.train import Configuration, prepare_run
from preftune.report.inspection import write_inspection
from preftune.training.inspection import Inspection, inspect_run


def inspect(
    config: Configuration | None = None,
    overrides: Sequence[str] = (),
    *,
    rows: int = 3,
    only: Sequence[int] = (),
    measure: bool = False,
    page: str | Path | None = None,
    progress: bool = False,
    **keywords: Any,
) -> Inspection:
    """Look at a run before it starts: examples as they are trained, figures of the data, memory.

    Args:
        config: a YAML file, or what one holds as a mapping; without it, the keywords say everything.
        overrides: `key=value` for any key of the file.
        rows: how many examples to show: the first rows that are trained on.
        only: numbers of the rows to show instead, from 0.
        measure: load the model and take one real step, for the memory of activations and the time.
        page: an HTML file to write, where all of it is to be read.
        progress: show bars.
        **keywords: those of `PreferenceTrainer`, and `output`.

    Raises:
        InputError: something is wrong with the configuration or the data, no such row is trained on, or
            `measure` is set and the model is given as an object.
    """
    prepared = prepare_run(config, overrides, keywords, progress=progress, keeps_whole=True)
    with errors_name_keywords() if keywords else nullcontext():
        found = inspect_run(prepared, rows, only, measure=measure)
    if page is not None:
        write_inspection(Path(page), found)
    return found
