"""`preftune evaluate academic`."""

from pathlib import Path
from typing import Annotated

import typer

from preftune.cli.evaluate import app


@app.command()
def academic(
    model: Annotated[str, typer.Option(metavar="MODEL", help="Folder or hub name.")],
    baseline: Annotated[str, typer.Option(metavar="MODEL", help="The model it was tuned from.")],
    output: Annotated[Path, typer.Option(help="Folder for results.json and items.jsonl.")],
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="A name below, or NAME:METRIC[:FILTER] of lm-eval. Repeatable; all six by default."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first items of each task.")] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Ask through the model's chat template.")
    ] = False,
    batch_size: Annotated[str, typer.Option(help="Sequences in a batch, or auto.")] = "1",
    device: Annotated[str | None, typer.Option(help="cpu, cuda:0, ...")] = None,
    include: Annotated[Path | None, typer.Option(help="Folder of your own tasks; code in it runs.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the examples and the resamples.")] = 0,
) -> None:
    """Run academic tasks on a model and its baseline, and state the difference with a paired interval.

    ifeval, gpqa, mmlu, hellaswag, truthfulqa and gsm8k, by lm-evaluation-harness, which downloads them; needs
    the extra `academic` (in a clone: `pip install '.[academic]'`). Figures are in percent.

    - `preftune evaluate academic --model runs/tuned/model --baseline org/base --task gsm8k --output academic`
    """
    from rich.console import Console

    from preftune.evaluation.academic.tasks import TASKS, AcademicOptions, evaluate_academic, find_task
    from preftune.evaluation.tables import as_csv, as_markdown, as_table
    from preftune.storage.files import write_whole

    tasks = [find_task(name) for name in task or TASKS]
    options = AcademicOptions(limit, batch_size, device, chat_template, include, seed)
    results = evaluate_academic(model, baseline, tasks, options, output)
    write_whole(output / "results.csv", as_csv(results))
    write_whole(output / "results.md", as_markdown(results))
    Console().print(as_table(results))
