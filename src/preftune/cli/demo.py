"""`preftune demo`."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[
        Path, typer.Option(help="Folder of the demo; an earlier demo in it is replaced.")
    ] = Path("runs/demo"),
    model: Annotated[
        str | None, typer.Option(help="Model to use instead of the packaged SmolLM2-135M-Instruct.")
    ] = None,
) -> None:
    """Tune a small real model with DPO, with a prior (MaPPO), and for simpler language too (UPO).

    Needs no GPU and no network. It ends with a table, `report.html` and `summary.json`.
    """
    from preftune.demo.run import run_demo

    run_demo(output, model)
