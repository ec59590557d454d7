"""`preftune train`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from preftune.training.inspection import Inspection


def _print_methods(wanted: bool) -> bool:
    if not wanted:
        return False
    from preftune.cli.methods import details, options_lines, wrapped
    from preftune.objectives import PRIORS, OfPairs, options_of, overview

    for method in overview():
        typer.echo(f"{details(method)}\n")
    typer.echo("\n".join(["with any method of pairs:", *options_lines(options_of(OfPairs))]))
    typer.echo("  mix: a mapping of several methods to weights, in place of method\n")
    for name, prior in PRIORS.items():
        lines = [*wrapped(f"prior {name}: {prior.summary}"), *options_lines(options_of(*prior.options))]
        typer.echo("\n".join(lines))
    raise typer.Exit


def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Override any key of the file.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in the output folder.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in the output folder.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check everything, say what would happen and show an example, train nothing."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --dry-run: print configuration and counts as JSON.")
    ] = False,
    list_methods: Annotated[
        bool,
        typer.Option(
            "--list",
            help="Show the methods with their options, and the priors, and exit.",
            callback=_print_methods,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Tune a model on preference pairs, labelled responses or rewards.

    What people change most:

    - `model=PATH_OR_HUB_NAME`: the model to tune
    - `data.train=FILE_OR_HUB_NAME`: pairs to train on
    - `data.evaluation=FILE_OR_HUB_NAME`: held-out pairs
    - `objective.method=dpo` or another of `preftune methods`, or your own as `module:Class`
    - `objective.beta=0.1`: how far the policy may move
    - `objective.prior=reward_gap`: weight the rejected response by how much worse it is (MaPPO)
    - `objective.auxiliary.weight=0.1`: also make likelier what `rewards` want (UPO)
    - `rewards.reading_grade.goal=minimise`: what that is; `preftune score --list` lists more
    - `prior.calibration=sigmoid`: how raw scores become rewards in [0, 1]
    - `training.learning_rate=1e-6` and any other field of transformers' TrainingArguments; unless given,
      the rate is 1e-6 (TRL's of DPO, KTO and CPO), 1e-5 for a reward model (InstructGPT's is 9e-6), and ten
      times as high for adapters (LoRA Without Regret, Schulman and others 2025)
    - `training.per_device_train_batch_size=8`: groups in a batch
    - `batches.tokens_per_step=65536` or so many tokens; `batches.tokens_per_row=16384` bounds memory
    - `lora.rank=16`: train low-rank adapters instead of all weights
    - `output=runs/NAME`: folder for all results
    """
    import os

    import preftune
    from preftune.errors import InputError
    from preftune.training.run import check_folder

    is_main = os.environ.get("RANK", "0") == "0"
    if as_json:
        if not dry_run:
            raise InputError("--json is what --dry-run prints: add --dry-run, or read OUTPUT/summary.json")
        prepared = preftune.check(config, overrides or (), progress=is_main)
        if is_main:
            resolved = {"config": prepared.config.model_dump(mode="json"), **prepared.summary()}
            typer.echo(json.dumps(resolved, indent=2))
        return
    if dry_run:
        found = preftune.inspect(config, overrides or (), rows=1, progress=is_main)
        if is_main:
            _print_dry_run(found)
        check_folder(found.prepared.config, resume=resume, overwrite=overwrite)
        if is_main:
            typer.echo("Ready. The same command without --dry-run trains.")
        return
    run = preftune.train(config, overrides or (), resume=resume, overwrite=overwrite, progress=is_main)
    if is_main:
        ended = "Stopped early" if run.stopped else "Done"
        typer.echo(f"{ended}: {run.folder}/summary.json, {run.folder}/model")


def _print_dry_run(found: "Inspection") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from preftune.cli.examples import print_example
    from preftune.report.dry_run import dry_run_lines
    from preftune.report.inspection import visible

    console = Console(highlight=False)
    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    for name, said in dry_run_lines(found):
        lines.add_row(Text(visible(name), style="bold"), Text(visible(said)))
    console.print(lines)
    console.print()
    for example in found.examples:
        print_example(console, example, responses=2)
