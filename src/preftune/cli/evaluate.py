"""`preftune evaluate`: the group, and `rescore`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="AlpacaEval 2, Arena-Hard, MT-Bench and more: judge, and compute figures with their intervals.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@app.command()
def rescore(
    protocol: Annotated[str, typer.Argument(help="alpaca_eval, arena_hard or mt_bench.", show_default=False)],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Recorded verdicts.", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Option(help="JSON file to write: one entry for each file and model.")
    ] = None,
    difficulty: Annotated[
        Path | None, typer.Option(metavar="CSV", help="AlpacaEval: difficulty of each instruction.")
    ] = None,
    instructions: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            help="The instructions in the order of --difficulty, best with the baseline's outputs.",
        ),
    ] = None,
    difficulty_by_position: Annotated[
        bool,
        typer.Option("--difficulty-by-position", help="Match difficulties as upstream does, by row number."),
    ] = False,
    mode: Annotated[
        str, typer.Option(help="Length control: official (upstream's fit) or maximum_likelihood.")
    ] = "official",
    answers: Annotated[
        list[Path] | None,
        typer.Option(help="Arena-Hard: answer file of a model, for style control. Repeatable."),
    ] = None,
    style: Annotated[str, typer.Option(help="Features of style control.")] = "length,headers,lists,bold",
    baseline: Annotated[
        str | None, typer.Option(help="Name of the baseline, if the files do not name it.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="A model of these files: report the differences of the others to it.")
    ] = None,
    upstream_intervals: Annotated[
        bool, typer.Option("--upstream-intervals", help="Arena-Hard: also report upstream's intervals.")
    ] = False,
    items: Annotated[Path | None, typer.Option(help="JSONL file to write: every verdict.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="CSV file to write.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Markdown file to write.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples.")] = 0,
) -> None:
    """Compute every figure from recorded verdicts; no judge is asked.

    FILE is what the benchmarks' own tools write, or `preftune evaluate` itself:

    - `alpaca_eval`: `annotations.json`, or one object with lists `preference`, `len_model`, `len_baseline`
    - `arena_hard`: judgments or battles as JSONL, v0.1 and v2
    - `mt_bench`: FastChat's `*_single.jsonl` or `*_pair.jsonl`

    Intervals are 95%, over prompts.

    - `preftune evaluate rescore alpaca_eval annotations.json --difficulty df_gamed.csv --output results.json`
    - `preftune evaluate rescore mt_bench gpt-4_single.jsonl --markdown table.md`
    """
    import preftune
    from preftune.cli.tables import print_scores

    scores = preftune.rescore(
        protocol,
        files,
        output=output,
        csv=csv,
        markdown=markdown,
        items=items,
        difficulty=difficulty,
        instructions=instructions,
        by_position=difficulty_by_position,
        mode=mode,
        baseline=baseline,
        against=against,
        upstream_intervals=upstream_intervals,
        answers=answers or (),
        style=style.split(","),
        seed=seed,
    )
    print_scores(scores)
