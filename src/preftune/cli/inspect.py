"""`preftune inspect`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from preftune.data.examples import Example, TokenRun
    from preftune.report.inspection import InspectionTable

STYLES = {"prompt": "", "trained": "green", "context": "", "cut": "red dim"}
"""How tokens look on a terminal, by what becomes of them."""
SPECIAL = "magenta"


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

    - `preftune inspect run.yaml` three examples, figures of the data, memory of the model
    - `preftune inspect run.yaml --row 7 --tokens` one row, token by token
    - `preftune inspect run.yaml data.max_length=2048 --page look.html` the same as a page
    - `preftune inspect run.yaml --rows 0 --measure` memory and time of one real step
    """
    from rich.console import Console

    import preftune
    from preftune.report.inspection import inspection_tables

    found = preftune.inspect(
        config, overrides or (), rows=rows, only=row or (), measure=measure, page=page, progress=True
    )
    console = Console(highlight=False)
    for example in found.examples:
        _print_example(console, example, tokens)
    for table in inspection_tables(found):
        _print_table(console, table)
    if page is not None:
        console.print(f"Page: {page}", markup=False, soft_wrap=True)


def _print_example(console: "Console", example: "Example", tokens: bool) -> None:
    from rich.text import Text

    from preftune.report.inspection import visible

    console.print(Text(visible(example.place), style="bold underline"), overflow="fold")
    _print_runs(console, example.prompt, tokens)
    for response in example.responses:
        trained, context, cut = (response.count(kind) for kind in ("trained", "context", "cut"))
        figures = [f"{trained} tokens trained", *([f"{context} context"] * (context > 0))]
        figures += [f"{cut} cut"] * (cut > 0)
        console.print(Text(f"{response.title}: {', '.join(figures)}", style="bold"))
        _print_runs(console, response.runs, tokens)
    if example.left_out:
        console.print(f"{example.left_out} more responses of this row are not trained on")
    console.print()


def _print_runs(console: "Console", runs: "Sequence[TokenRun]", tokens: bool) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from preftune.data.examples import MEANINGS
    from preftune.report.inspection import visible

    for run in runs:
        console.print(Text(f"  {MEANINGS[run.kind]}, {len(run.tokens)} tokens", style="italic dim"))
        if tokens:
            _print_tokens(console, run)
            continue
        text = Text(overflow="fold")
        for piece, is_special in run.pieces:
            text.append(visible(piece), f"{STYLES[run.kind]} {SPECIAL if is_special else ''}".strip())
        console.print(Padding(text, (0, 0, 0, 4), expand=False))


def _print_tokens(console: "Console", run: "TokenRun") -> None:
    """A line for each token: its id, its text, and whether it is trained."""
    from rich.text import Text

    for token in run.tokens:
        style = SPECIAL if token.is_special else STYLES[run.kind]
        line = Text(f"    {token.id:>7}  ").append(f"{token.text!r}".ljust(24), style)
        console.print(line.append(f"  {'trained' if run.kind == 'trained' else run.kind}"), overflow="fold")


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
