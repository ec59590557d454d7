"""`preftune score`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from preftune.errors import InputError


def score(
    data: Annotated[
        str | None, typer.Argument(help="File, folder or hub name of the data.", show_default=False)
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC", help="What scores the responses for the prior: score_chosen and score_rejected."
        ),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC", help="What else to measure, written as columns with its name. Repeatable."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="JSONL file to write: each row with the scores added.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split to read.")] = "train",
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name of the model whose tokens `length` counts.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code of a model named by `hf:`.")
    ] = False,
    list_measures: Annotated[
        bool, typer.Option("--list", help="Show the sources of scores and exit.")
    ] = False,
) -> None:
    """Score every response of a data set: a reward model, a judge, reading level, a function of your own.

    SPEC is SOURCE or SOURCE:option=value,option=value, where SOURCE is one of

    - `hf:MODEL`: a reward model, by folder or hub name
    - `judge:MODEL`: a model at an OpenAI-compatible endpoint (OPENAI_BASE_URL, OPENAI_API_KEY)
    - `policy:MODEL:reference=MODEL`: the implicit reward of a tuned model
    - `column:NAME`: a column of the data (for the prior)
    - `module:function`: a function of your own
    - a built-in measure: `--list` shows them, with all options

    A call that was killed continues when it is started again. `torchrun -m -- preftune score ...` shares the
    work among processes.
    """
    if list_measures:
        _print_sources()
        return
    given = {"DATA": data, "--prior or --reward": prior or reward, "--output": output}
    missing = [name for name, value in given.items() if not value]
    if data is None or output is None or missing:
        raise InputError(
            f"{', '.join(missing)} missing: give DATA --prior SPEC --reward SPEC --output FILE.jsonl, or "
            "--list for what SPEC can be"
        )

    import preftune

    is_main = os.environ.get("RANK", "0") == "0"
    count = preftune.score_file(
        data,
        output,
        reward or [],
        prior=prior,
        split=split,
        tokenizer=tokenizer,
        trust_remote_code=trust_remote_code,
        progress=is_main,
    )
    if is_main:
        typer.echo(f"Done: {count} rows in {output}")


def _print_sources() -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from preftune.cli.tables import list_options
    from preftune.rewards.measures import MEASURES
    from preftune.rewards.sources import SOURCES

    scorers = Table("source", "what", Column("options", overflow="fold"))
    for prefix, source in SOURCES.items():
        scorers.add_row(f"{prefix}:NAME", source.summary, list_options(source.options))
    scorers.add_row("column:NAME", "a column of the data, with --prior", "")
    scorers.add_row("MODULE:FUNCTION", "your function(prompts, completions, **columns) -> list[float]", "")
    measures = Table(
        Column("name", no_wrap=True),
        Column("what", overflow="fold"),
        "range",
        "goal",
        Column("options", overflow="fold"),
    )
    for name, measure in MEASURES.items():
        low, high = measure.range
        measures.add_row(
            name,
            measure.summary,
            f"{'' if low is None else f'{low:g}'} .. {'' if high is None else f'{high:g}'}".strip(),
            measure.goal or "give a target",
            list_options(measure.options),
        )
    Console().print(scorers, measures)
