"""`preftune iterate`."""

from pathlib import Path
from typing import Annotated

import typer


def iterate(
    config: Annotated[Path, typer.Argument(help="YAML file of the rounds.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Override any key of the file.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Resume in a folder of another configuration; keep what stays the same.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the resolved rounds, sample nothing.")
    ] = False,
) -> None:
    """Sample, score, pair, train and measure, round after round.

    The same command resumes after a stop or kill. What people change most:

    - `model=PATH_OR_HUB_NAME`: the policy to start from
    - `prompts=FILE_OR_HUB_NAME`: what it is trained on; `held_out=FILE_OR_HUB_NAME`: what it is measured on
    - `reward=hf:NAME`: what scores its answers: anything that `preftune score --prior` takes, or a measure
    - `rounds=3` and as many equal parts of the prompts
    - `sampling.n=8`, `sampling.max_new_tokens=256`, `sampling.temperature=1.0`
    - `train.objective.method=dpo` and any other key of a `preftune train` configuration under `train`
    - `update_every=round` or `batch`: when the policy that answers learns from it
    - `reference=initial` or `previous`, `start_from=previous` or `initial`, `replay=0`
    - `guards.max_drift=20`, `guards.min_entropy=0.5`: when to stop
    - `'launch=[torchrun, --nproc_per_node, "8"]'`: what starts the processes that sample, score and train
    - `output=runs/NAME`: folder for all results

    It ends with `summary.json`, `report.html` and `model`, the policy of the last good round. Where a
    guard stopped it the exit code is 1.
    """
    import preftune
    from preftune.training.configuration import dump_yaml

    if dry_run:
        plan = preftune.plan_rounds(config, overrides or (), overwrite=overwrite)
        typer.echo(dump_yaml(plan.config.model_dump(mode="json")))
        typer.echo(plan.described())
        return
    rounds = preftune.iterate(config, overrides or (), overwrite=overwrite, progress=True)
    folder = rounds.folder
    good = f"{folder}/model is round {rounds.last_good}'s" if rounds.last_good else "no round was good"
    if rounds.stopped:
        typer.echo(f"Stopped in round {rounds.stopped['round']} by {rounds.stopped['reason']}; {good}")
        raise typer.Exit(1)
    typer.echo(f"Done: {folder}/summary.json, {folder}/report.html; {good}")


def score_samples(samples: Path, output: Path, reward: str, model: str) -> None:
    """Score a share of a round's samples; `launch` starts this in every process."""
    from preftune.models import load_tokenizer
    from preftune.rewards.policy_reward import PolicyReward
    from preftune.storage.files import read_lines
    from preftune.storage.processes import launched_processes

    PolicyReward(reward, load_tokenizer(model)).score_share(read_lines(samples), output, launched_processes())
