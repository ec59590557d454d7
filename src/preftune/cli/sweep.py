"""`preftune sweep`."""

from pathlib import Path
from typing import Annotated

import typer


def sweep(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.", show_default=False)],
    overrides: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE,VALUE... [KEY=VALUE]...",
            help="Keys with several values are swept; others apply to every run.",
            show_default=False,
        ),
    ],
    n: Annotated[int, typer.Option(help="Responses sampled to each held-out prompt.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(help="Longest response, in tokens.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of the samples; training has training.seed.")] = 0,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/K",
            help="Only every K-th run from the I-th: for several processes, GPUs or machines at once.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace runs that were trained with another configuration.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every run and print the plan, train nothing.")
    ] = False,
    front: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME[,NAME]",
            help="Rewards to weigh against one another; those of swept reward_sum.weights unless given.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a run at several values of a key, and weigh what each gains and pays.

    Every combination of the swept values is a run folder inside `output`. A sweep that was stopped continues
    when it is called again, and values added later are trained beside those that are there.

    - `preftune sweep run.yaml objective.auxiliary.weight=0,0.03,0.1,0.3`: one key
    - `preftune sweep run.yaml objective.beta=0.1,0.3 training.seed=1,2,3`: all combinations
    - `preftune sweep run.yaml objective.beta=0.1,0.3 output=runs/beta training.max_steps=100`
    - `preftune sweep run.yaml reward_sum.weights='{a: 1, b: 0},{a: 0.5, b: 0.5}'`: weights of several rewards

    Each run is then measured on the prompts of `data.evaluation`: accuracy of the implicit reward, auxiliary
    reward of sampled responses, drift from the starting model. It ends with a table, `summary.json`, and
    `report.html` with the Pareto front.
    """
    # Not preftune.sweep, which is the package.
    from preftune.api.sweep import sweep as compare_runs

    compare_runs(
        config,
        overrides,
        n=n,
        max_new_tokens=max_new_tokens,
        seed=seed,
        shard=shard,
        overwrite=overwrite,
        dry_run=dry_run,
        front=front.split(",") if front else (),
    )
