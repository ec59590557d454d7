"""The multipliers of bounds: what a step adds up for them, and how they move at its end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from preftune.objectives import DualDescent, Losses
from preftune.storage.files import write_json

MULTIPLIERS_FILE = "multipliers.json"


class Multipliers:
    """One for each bound of an objective, the same in all processes and for all rows of a step.

    Attributes:
        values: the multipliers, on the device.
    """

    def __init__(self, dual: DualDescent, device: torch.device) -> None:
        self._dual = dual
        self.values = dual.start().to(device)
        self._sums = torch.zeros(len(dual.bounds), 2, dtype=torch.float64, device=device)

    def add(self, losses: Losses) -> None:
        """Count a micro-batch of the step."""
        self._sums += torch.stack(list(losses.weighted_means.values())).detach()

    def end_step(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Move by the means of the step that has ended; `reduce` sums over processes."""
        totals, weights = reduce(self._sums).unbind(dim=1)
        moved = self._dual.step(self.values, totals / weights)
        # Where every factor is too small for a number, nothing is known of the means.
        self.values = torch.where(weights > 0, moved, self.values)
        self._sums = torch.zeros_like(self._sums)

    def by_name(self) -> dict[str, float]:
        """The multipliers by the names of their rewards."""
        return dict(zip((bound.name for bound in self._dual.bounds), self.values.tolist(), strict=True))

    def save(self, folder: Path) -> None:
        """Write them into a checkpoint."""
        write_json(folder / MULTIPLIERS_FILE, self.by_name())

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, to the last digit."""
        stored = json.loads((folder / MULTIPLIERS_FILE).read_text(encoding="utf-8"))
        self.values = self.values.new_tensor([stored[bound.name] for bound in self._dual.bounds])


class EndOfStep(TrainerCallback):
    """Moves the multipliers once for each optimizer step, before a checkpoint of it is written."""

    def __init__(self, multipliers: Multipliers, reduce: Callable[[Tensor], Tensor]) -> None:
        self._multipliers = multipliers
        self._reduce = reduce

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Move them."""
        self._multipliers.end_step(self._reduce)
