"""`preftune.sweep`: a run at several values of some keys, and what each gains and pays."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preftune.report import PAGES
from preftune.sampling.settings import SamplingSettings
from preftune.sweep.points import Shard
from preftune.sweep.run import run_sweep


def sweep(
    config: str | Path,
    overrides: Sequence[str],
    *,
    n: int = 4,
    max_new_tokens: int = 128,
    seed: int = 0,
    shard: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    front: Sequence[str] = (),
) -> dict[str, Any] | None:
    """Train a run at every combination of the swept values, and weigh what each gains and pays.

    It says on the terminal how far it is. What an earlier call has finished is kept.

    Args:
        config: YAML file of the run.
        overrides: `key=value,value` sweeps a key, `key=value` sets one for every run.
        n: responses sampled to each held-out prompt.
        max_new_tokens: longest response, in tokens.
        seed: of the samples.
        shard: "I/K": only every K-th run from the I-th, for several processes at once.
        overwrite: replace runs that were trained with another configuration.
        dry_run: check every run and print the plan, train nothing.
        front: two or three rewards that are weighed against one another; unless given, those of
            `reward_sum.weights` where that is swept.

    Returns:
        What the sweep's `summary.json` holds; None for a dry run or a shard.

    Raises:
        InputError: a run cannot be made; what was finished is kept.
    """
    part = None if shard is None else Shard.parse(shard)
    settings = SamplingSettings(n=n, max_new_tokens=max_new_tokens, seed=seed)
    output = run_sweep(
        Path(config),
        overrides,
        settings,
        shard=part,
        overwrite=overwrite,
        dry_run=dry_run,
        front=front,
        pages=PAGES,
    )
    if output is None:
        return None
    summary: dict[str, Any] = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    return summary
