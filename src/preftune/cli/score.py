"""`preftune score`."""

from pathlib import Path
from typing import Annotated

import typer

from preftune.errors import InputError


def score(
    data: Annotated[
        str | None, typer.Argument(help="File, folder or hub name of the data.", show_default=False)
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(help="What to measure: NAME[:option=value,...], or module:function. Repeatable."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="JSONL file to write: each row with the measurements added.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split to read.")] = "train",
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name of the model whose tokens `length` counts.")
    ] = None,
    list_measures: Annotated[
        bool, typer.Option("--list", help="Show what can be measured and exit.")
    ] = False,
) -> None:
    """Measure every response of a data set: reading level, length, toxicity, a function of your own."""
    if list_measures:
        _print_measures()
        return
    given = {"DATA": data, "--reward": reward, "--output": output}
    missing = [name for name, value in given.items() if not value]
    if data is None or output is None or not reward:
        raise InputError(
            f"{', '.join(missing)} missing: give DATA --reward NAME --output FILE.jsonl, or --list for "
            "the names"
        )

    from preftune.rewards.score_file import score_file

    written = score_file(data, output, reward, split=split, tokenizer=tokenizer, progress=True)
    typer.echo(f"Done: {written} rows in {output}")


def _print_measures() -> None:
    from rich.console import Console
    from rich.table import Table

    from preftune.rewards.measures import MEASURES

    table = Table("name", "what", "range", "goal", "options")
    for name, measure in MEASURES.items():
        low, high = measure.range
        options = [f"{key}: {option.summary}; {option.rule}" for key, option in measure.options.items()]
        table.add_row(
            name,
            measure.summary,
            f"{'' if low is None else f'{low:g}'} .. {'' if high is None else f'{high:g}'}".strip(),
            measure.goal or "give a target",
            "\n".join(options),
        )
    Console().print(table)
