"""Rendered examples on a terminal: what is given, what is trained, what is cut."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from preftune.data.examples import Example, TokenRun

STYLES = {"prompt": "", "trained": "green", "context": "", "cut": "red dim"}
"""How tokens look on a terminal, by what becomes of them."""
SPECIAL = "magenta"
SHORT_START, SHORT_END = (240, 4), (80, 2)
"""Characters and lines of a shortened text that are shown at most: of its start, and of its end."""
SHORT_RUNS = 5
"""Parts of a prompt or a response that are shown where it is shortened."""


def print_example(
    console: "Console", example: "Example", *, tokens: bool = False, responses: int | None = None
) -> None:
    """Print a row as it is trained, with the data's control characters and markup as plain text.

    Args:
        console: where.
        example: the row.
        tokens: list it token by token.
        responses: print so many at most, and shorten long texts; None prints all of everything.
    """
    from rich.text import Text

    from preftune.report.inspection import visible

    console.print(Text(visible(example.place), style="bold underline"), overflow="fold")
    is_short = responses is not None
    _print_runs(console, example.prompt, tokens, is_short)
    for response in example.responses[:responses]:
        trained, context, cut = (response.count(kind) for kind in ("trained", "context", "cut"))
        figures = [f"{trained} tokens trained", *([f"{context} context"] * (context > 0))]
        figures += [f"{cut} cut"] * (cut > 0)
        console.print(Text(f"{response.title}: {', '.join(figures)}", style="bold"))
        # The line above says it all of a response that is trained whole.
        _print_runs(console, response.runs, tokens, is_short, is_named=len(response.runs) > 1)
    if more := len(example.responses[responses or len(example.responses) :]):
        console.print(f"{more} more responses of this row are trained on")
    if example.left_out:
        console.print(f"{example.left_out} more responses of this row are not trained on")
    console.print()


def _print_runs(
    console: "Console", runs: "Sequence[TokenRun]", tokens: bool, is_short: bool, is_named: bool = True
) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from preftune.data.examples import MEANINGS
    from preftune.report.inspection import visible

    for run in runs[: SHORT_RUNS if is_short else len(runs)]:
        if is_named:
            console.print(Text(f"  {MEANINGS[run.kind]}, {len(run.tokens)} tokens", style="italic dim"))
        if tokens:
            _print_tokens(console, run)
            continue
        text = Text(overflow="fold")
        for piece, is_special in run.pieces:
            text.append(visible(piece), f"{STYLES[run.kind]} {SPECIAL if is_special else ''}".strip())
        if is_short:
            text = _shortened(text)
        console.print(Padding(text, (0, 0, 0, 4), expand=False))
    if is_short and len(runs) > SHORT_RUNS:
        console.print(f"  and {len(runs) - SHORT_RUNS} more parts")


def _print_tokens(console: "Console", run: "TokenRun") -> None:
    """A line for each token: its id, its text, and whether it is trained."""
    from rich.text import Text

    for token in run.tokens:
        style = SPECIAL if token.is_special else STYLES[run.kind]
        line = Text(f"    {token.id:>7}  ").append(f"{token.text!r}".ljust(24), style)
        console.print(line.append(f"  {'trained' if run.kind == 'trained' else run.kind}"), overflow="fold")


def _shortened(text: "Text") -> "Text":
    """The start and the end of a long text, and how many characters are left out between them."""
    from rich.text import Text

    plain = text.plain
    lines = plain.split("\n")
    (most, first), (most_last, last) = SHORT_START, SHORT_END
    stop = len("\n".join(lines[:first])[:most])
    start = len(plain) - len("\n".join(lines[-last:])[-most_last:])
    between = plain[stop:start]
    if len(between) < most_last and between.count("\n") < first:
        return text
    left_out = Text(f" [... {len(between):,} characters ...] ", style="italic dim")
    return Text.assemble(text[:stop], left_out, text[start:], overflow="fold")
