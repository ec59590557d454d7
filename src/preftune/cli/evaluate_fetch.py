"""`preftune evaluate fetch`."""

from pathlib import Path
from typing import Annotated

import typer

from preftune.cli.evaluate import app


@app.command()
def fetch(
    benchmark: Annotated[
        str, typer.Argument(help="alpaca_eval, arena_hard, mt_bench or all.", show_default=False)
    ],
    output: Annotated[Path, typer.Option(help="Folder to write to; each benchmark gets a subfolder.")],
    mirror: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Server of REPOSITORY/COMMIT/PATH; GitHub by default."),
    ] = None,
) -> None:
    """Download a benchmark's questions, baselines, references and judge prompts, each checked by sha256.

    Files that are there already are checked and not asked for again; what was interrupted goes on.

    - `preftune evaluate fetch all --output runs/benchmarks`
    """
    from rich.console import Console

    from preftune.evaluation.fetching import HOME, licences
    from preftune.evaluation.fetching import fetch as fetch_files
    from preftune.evaluation.published import PublishedFile

    console = Console()

    def announce(path: Path, file: PublishedFile) -> None:
        console.print(f"{path} ({file.bytes / 1e3:,.0f} kB)", markup=False, soft_wrap=True)

    fetched = fetch_files(benchmark, output, HOME if mirror is None else mirror, announce)
    new = sum(one.downloaded for one in fetched)
    console.print(f"{len(fetched)} files are there and checked; {new} were downloaded.")
    for licence, paths in licences(fetched).items():
        names = ", ".join(path.relative_to(output).as_posix() for path in paths)
        console.print(f"{licence}: {names}", markup=False, soft_wrap=True)
