"""What the trainer's loaders give: groups packed into rows, and rows into steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from preftune.data.groups import TokenizedGroup
from preftune.data.packing import PackedBatch, pack
from preftune.objectives import Unit
from preftune.training.batches import RowIndices, StepSampler


class Batch(dict[str, PackedBatch]):
    """The one input of what is trained, a policy or a reward model."""


class IdleBatch(Batch):
    """A row whose outputs count for nothing: a process takes it while others are still at work.

    Where the model is sharded over processes, each pass of one is a pass of all.
    """


Step = list[Batch]
"""Rows that a process takes in a step, or in a micro-batch of one; among several processes each has one."""
Counts = dict[Unit, Tensor]

LOADER_OPTIONS = (
    "num_workers",
    "pin_memory",
    "persistent_workers",
    "prefetch_factor",
    "multiprocessing_context",
    "in_order",
)
"""What `training.dataloader_*` passes on to torch."""


@dataclass(frozen=True)
class IdleRow:
    """The groups of an `IdleBatch`."""

    groups: RowIndices


class RowDataset(Dataset[Step]):
    """A list of groups, of which any row can be taken."""

    def __init__(self, groups: Sequence[TokenizedGroup]) -> None:
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, row: RowIndices | IdleRow) -> Step:
        if isinstance(row, IdleRow):
            return [IdleBatch(batch) for batch in self[row.groups]]
        return collate([self.groups[index] for index in row])


class StepLoader(DataLoader[list[Any]]):
    """Loads whole steps, of whatever the data set gives for a row; the Trainer tells it the epoch."""

    def __init__(self, dataset: Dataset[list[Any]], steps: StepSampler, **options: Any) -> None:
        super().__init__(dataset, batch_sampler=steps, collate_fn=join, **options)
        self._steps = steps

    def set_epoch(self, epoch: int) -> None:
        """Take the steps of this epoch."""
        self._steps.set_epoch(epoch)


def collate(groups: list[TokenizedGroup]) -> Step:
    """Pack groups into a step of one row."""
    return [Batch(batch=pack(groups))]


def join(steps: list[list[Any]]) -> list[Any]:
    """The rows of several steps in one list."""
    return list(chain.from_iterable(steps))
