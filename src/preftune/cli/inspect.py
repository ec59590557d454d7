"""`preftune inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from preftune.report.inspection import InspectionTable


def inspect(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Override any key of the file.", show_default=False),
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Examples: the first rows that are trained on.")] = 3,
    row: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Show this row instead, from 0. Repeatable.", show_default=False),
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="List the examples token by token.")] = False,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="HTML page to write.", show_default=False)
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Load the model and take one real step, for memory and time.")
    ] = False,
) -> None:
    """Look before you pay: what is trained, what the data are like, what a run takes. Trains nothing.

    - `preftune inspect run.yaml`: three examples, figures of the data, memory of the model
    - `preftune inspect run.yaml --row 7 --tokens`: one row, token by token
    - `preftune inspect run.yaml data.max_length=2048 --page look.html`: the same as a page
    - `preftune inspect run.yaml --rows 0 --measure`: memory and time of one real step
    """
    from rich.console import Console

    import preftune
    from preftune.cli.examples import print_example
    from preftune.report.inspection import inspection_tables

    found = preftune.inspect(
        config, overrides or (), rows=rows, only=row or (), measure=measure, page=page, progress=True
    )
    console = Console(highlight=False)
    for example in found.examples:
        print_example(console, example, tokens=tokens)
    for table in inspection_tables(found):
        _print_table(console, table)
    if page is not None:
        console.print(f"Page: {page}", markup=False, soft_wrap=True)


def _print_table(console: "Console", table: "InspectionTable") -> None:
    from rich.table import Table
    from rich.text import Text

    from preftune.report.inspection import visible

    # A table's own title would wrap to the width of its columns.
    console.print(Text(table.title, style="bold"), overflow="fold")
    shown = Table(box=None, pad_edge=False)
    for place, head in enumerate(table.heads):
        is_number = place > 0 and all(row[place][:1] in "0123456789+−" for row in table.rows)  # noqa: RUF001 a minus sign
        shown.add_column(Text(head), justify="right" if is_number else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(visible(cell)) for cell in row))
    console.print(shown)
    for note in table.notes:
        console.print(Text(note, style="dim"))
    console.print()
