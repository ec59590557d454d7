"""How large an experiment is."""

import math
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Sizes:
    """What a run of the protocol costs, and how sure its figures are.

    Attributes:
        name: of the folder of its cells.
        steps: the grid of steps; a run of the longest has the others within it.
        rates: the grid of learning rates.
        too_long: times the kept steps that a test cell goes on for.
        pairs_per_step: in a step.
        seeds: fresh ones, for test cells.
        search_seeds: for search cells.
        validation_samples, test_samples: drawn for each prompt.
        validation_prompts, test_prompts, judge_prompts: most that are taken.
        training_prompts: most that are taken; None takes all.
        evaluation_pairs: held-out pairs that log-probabilities are read of.
        max_new_tokens: longest sample.
        rounds, round_prompts: of part d.
    """

    name: str
    steps: tuple[int, ...] = (4, 8, 16)
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    too_long: int = 4
    pairs_per_step: int = 2
    seeds: int = 3
    search_seeds: int = 1
    validation_samples: int = 2
    test_samples: int = 2
    validation_prompts: int = 24
    test_prompts: int = 50
    judge_prompts: int = 200
    training_prompts: int | None = None
    evaluation_pairs: int = 16
    max_new_tokens: int = 64
    rounds: int = 3
    round_prompts: int = 16

    @property
    def folder(self) -> Path:
        """Where its cells are kept."""
        return Path("runs/experiments") / self.name


def sizes_of(device: str, times: float) -> Sizes:
    """About `times` as much work, half of it in each run and half in the number of runs."""
    root = math.sqrt(times)
    plain = Sizes(f"{device}-x{times:g}")
    return replace(
        plain,
        pairs_per_step=max(1, round(plain.pairs_per_step * root)),
        seeds=max(2, round(plain.seeds * root)),
        search_seeds=max(1, round(plain.search_seeds * root)),
        validation_samples=max(1, round(plain.validation_samples * root)),
        test_samples=max(1, round(plain.test_samples * root)),
    )


TINY = Sizes(
    "tiny",
    steps=(1, 2),
    rates=(1e-3, 3e-3),
    too_long=2,
    seeds=2,
    validation_samples=1,
    test_samples=1,
    validation_prompts=2,
    test_prompts=3,
    judge_prompts=4,
    training_prompts=8,
    evaluation_pairs=2,
    max_new_tokens=4,
    rounds=2,
    round_prompts=2,
)
"""For trying the runner out: its figures mean nothing."""
