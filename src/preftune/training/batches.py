"""Which groups make a step: so many groups or tokens, spread over processes, in rows that fit in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import islice, pairwise
from math import ceil

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import Sampler
from transformers import TrainingArguments

from preftune.data import TokenizedGroup
from preftune.training.configuration import BatchesSection

RowIndices = list[int]
"""Groups that go through the model together, as indices or positions."""


@dataclass(frozen=True)
class StepSize:
    """How much a step takes over all processes, and a row of one process at most.

    Attributes:
        step: tokens, or groups.
        row: the same for a row; None if a process's share of a step is one row.
        in_tokens: what both are counted in.
    """

    step: int
    row: int | None
    in_tokens: bool


class StepSampler(Sampler[list[RowIndices]]):
    """This process's rows of every step of an epoch, as indices of groups.

    The shuffled groups of an epoch are one stream that is cut every `size.step`; a group that a cut falls
    into goes to the next step. The number of steps is therefore the same in every epoch, however
    the groups are shuffled, and scheduler and resumption can rely on it.

    Each group is in one row of one process. Every process has a group in every step, and so a last row in
    whose backward pass gradients are exchanged: the cuts leave each step at least one group for each
    process. Nothing else needs processes to agree, so one may have more rows than another, and no empty
    row is ever needed; what they wait for is tokens, and those are spread evenly.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        size: StepSize,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        drop_last: bool = False,
    ) -> None:
        """Plan steps.

        Args:
            tokens: packed tokens of every group; there are at least as many groups as processes.
            size: of a step and a row.
            seed: the order is a function of it and the epoch.
            rank: of this process.
            processes: how many there are.
            drop_last: leave out a last step that is not full.
        """
        self._tokens = np.asarray(tokens, dtype=np.int64)
        self._costs = self._tokens if size.in_tokens else np.ones_like(self._tokens)
        self._size, self._seed, self._epoch = size, seed, 0
        self._rank, self._processes = rank, processes
        total = int(self._costs.sum())
        self._steps = min(ceil(total / size.step), len(self._tokens) // processes)
        self._dropped = int(drop_last and self._steps > 1 and total % size.step > 0)

    def __len__(self) -> int:
        return self._steps - self._dropped

    def set_epoch(self, epoch: int) -> None:
        """Shuffle differently from now on."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[RowIndices]]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(len(self._tokens), generator=generator).numpy()
        for start, stop in islice(pairwise(self._cuts(order)), len(self)):
            yield self._rows(order[start:stop])

    def _cuts(self, order: Int64[np.ndarray, "groups"]) -> list[int]:
        """Where steps begin and end in the stream."""
        budgets = self._size.step * np.arange(1, self._steps)
        ends = np.searchsorted(np.cumsum(self._costs[order]), budgets, side="right").tolist()
        cuts = [0]
        for left, end in zip(range(len(self) - 1, -self._dropped, -1), ends, strict=True):
            # A group for each process, in this step and in those that follow and are kept.
            end = min(end, len(order) - left * self._processes)
            cuts.append(max(end, cuts[-1] + self._processes))
        return [*cuts, len(order)]

    def _rows(self, step: Int64[np.ndarray, "step_groups"]) -> list[RowIndices]:
        """This process's share of a step."""
        # Where groups are counted, processes get the same number of them, as nearly as possible.
        most = len(step) if self._size.in_tokens else ceil(len(step) / self._processes)
        share = step[deal(self._tokens[step], self._processes, most)[self._rank]]
        return [share[row].tolist() for row in fill(self._costs[share], self._size.row)]


def deal(tokens: Int64[np.ndarray, "groups"], processes: int, most: int) -> list[RowIndices]:
    """Spread groups over processes: the longest first, each to the process with the fewest tokens so far.

    No process then has more than the mean plus (1 - 1/processes) times its own shortest group (Graham,
    SIAM J. Appl. Math. 17, 1969), unless `most` groups filled another.

    Args:
        tokens: of every group.
        processes: how many.
        most: groups that one process may get.

    Returns:
        Positions for each process, in their own order.
    """
    shares: list[RowIndices] = [[] for _ in range(processes)]
    loads = [(0, process) for process in range(processes)]
    for position in _longest_first(tokens):
        load, process = heappop(loads)
        shares[process].append(position)
        if len(shares[process]) < most:
            heappush(loads, (load + int(tokens[position]), process))
    return [sorted(share) for share in shares]


def fill(costs: Int64[np.ndarray, "groups"], most: int | None) -> list[RowIndices]:
    """Fill rows with at most `most`: the largest first, each into the first row with room for it.

    What is larger than `most` gets a row of its own.
    """
    if most is None:
        return [list(range(len(costs)))]
    rows: list[RowIndices] = []
    room: list[int] = []
    for position in _longest_first(costs):
        cost = int(costs[position])
        row = next((index for index, free in enumerate(room) if cost <= free), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(most)
        rows[row].append(position)
        room[row] -= cost
    return [sorted(row) for row in rows]


def _longest_first(costs: Int64[np.ndarray, "groups"]) -> RowIndices:
    """Positions; equals stay in order, so that every process plans the same."""
    order: RowIndices = np.argsort(-costs, kind="stable").tolist()
    return order


def plan_steps(
    groups: Sequence[TokenizedGroup],
    arguments: TrainingArguments,
    batches: BatchesSection | None,
    process: int | None = None,
) -> StepSampler:
    """A process's steps: by tokens where `batches` is given, else by `per_device_train_batch_size`.

    Counted in groups, a step here is one micro-batch of every process, and the Trainer accumulates
    `gradient_accumulation_steps` of them. The process is this one unless `process` is given.
    """
    if batches:
        size = StepSize(batches.tokens_per_step, batches.tokens_per_row, in_tokens=True)
    else:
        own = arguments.per_device_train_batch_size
        size = StepSize(own * arguments.world_size, own, in_tokens=False)
    return StepSampler(
        [group.row_tokens for group in groups],
        size,
        seed=arguments.seed if arguments.data_seed is None else arguments.data_seed,
        rank=arguments.process_index if process is None else process,
        processes=arguments.world_size,
        drop_last=arguments.dataloader_drop_last,
    )
