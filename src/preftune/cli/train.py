"""`preftune train`."""

import json
from pathlib import Path
from typing import Annotated

import typer


def _print_methods(wanted: bool) -> bool:
    if not wanted:
        return False
    from rich.console import Console
    from rich.table import Column, Table

    from preftune.cli.tables import list_options
    from preftune.objectives import METHODS, PRIORS, OfPairs, options_of

    methods = Table(
        "method", Column("what", overflow="fold"), Column("options", overflow="fold"), "priors", "source"
    )
    for name, method in METHODS.items():
        options = list_options(options_of(method))
        methods.add_row(name, method.summary, options, ", ".join(method.priors), method.source)
    beside = Table("with", Column("options", overflow="fold"))
    beside.add_row("any method of pairs", list_options(options_of(OfPairs)))
    beside.add_row("several methods", "mix: a mapping of methods to weights, in place of method")
    priors = Table(Column("prior", no_wrap=True), "what", Column("options", overflow="fold"))
    for name, prior in PRIORS.items():
        priors.add_row(name, prior.summary, list_options(options_of(*prior.options)))
    Console().print(methods, beside, priors)
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
            "--dry-run", help="Check everything, print the resolved run and its cost, train nothing."
        ),
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

    - `model=PATH_OR_HUB_NAME` the model to tune
    - `data.train=FILE_OR_HUB_NAME` pairs to train on
    - `data.evaluation=FILE_OR_HUB_NAME` held-out pairs
    - `objective.method=dpo` or another of `preftune methods`, or your own as `module:Class`
    - `objective.beta=0.1` how far the policy may move
    - `objective.prior=reward_gap` weight the rejected response by how much worse it is (MaPPO)
    - `objective.auxiliary.weight=0.1` also make likelier what `rewards` want (UPO)
    - `rewards.reading_grade.goal=minimise` what that is; `preftune score --list` lists more
    - `prior.calibration=sigmoid` how raw scores become rewards in [0, 1]
    - `training.learning_rate=1e-6` and any other field of transformers' TrainingArguments; unless given,
      the rate is 1e-6 (TRL's of DPO, KTO and CPO), 1e-5 for a reward model (InstructGPT's is 9e-6), and ten
      times as high for adapters (LoRA Without Regret, Schulman and others 2025)
    - `training.per_device_train_batch_size=8` groups in a batch
    - `batches.tokens_per_step=65536` or so many tokens; `batches.tokens_per_row=16384` bounds memory
    - `lora.rank=16` train low-rank adapters instead of all weights
    - `output=runs/NAME` folder for all results
    """
    import os

    import preftune
    from preftune.training.configuration import dump_yaml

    is_main = os.environ.get("RANK", "0") == "0"
    if dry_run:
        prepared = preftune.check(config, overrides or (), progress=is_main)
        if is_main:
            typer.echo(dump_yaml(prepared.config.model_dump(mode="json")))
            typer.echo(json.dumps(prepared.summary(), indent=2))
        return
    run = preftune.train(config, overrides or (), resume=resume, overwrite=overwrite, progress=is_main)
    if is_main:
        typer.echo(f"Done: {run.folder}/summary.json, {run.folder}/model")
