"""An exponential moving average of the trained weights (EMA), beside the weights that are trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

from preftune.errors import InputError
from preftune.training.configuration import EmaSection

EMA_FILE = "ema.safetensors"
"""The average in a checkpoint, by the names of weights, in float32."""


class Ema:
    """average <- decay * average + (1 - decay) * weights, after each optimizer step.

    It begins with the weights that training starts from, is kept in float32, and has only weights that are
    trained: an adapter's where there is one. Sharded weights have sharded averages.

    Attributes:
        keeps_average: whether the average is what is evaluated and kept, or the last weights.
    """

    def __init__(self, model: nn.Module, section: EmaSection) -> None:
        self.keeps_average = section.keep == "average"
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._update = get_ema_multi_avg_fn(section.decay)  # type: ignore[no-untyped-call]
        self._average: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}

    def start(self) -> None:
        """Begin at the weights as they are, unless a checkpoint's average was loaded."""
        if not self._average:
            self._average = {name: weight.detach().clone().float() for name, weight in self._weights.items()}

    def forget(self) -> None:
        """Drop the average: training begins anew."""
        self.use_last()
        self._average = {}

    @torch.no_grad()
    def step(self) -> None:
        """Move towards the weights as they are."""
        for name, weight in self._weights.items():
            self._update([_local(self._average[name])], [_local(weight).float()], 1)

    def use_average(self) -> None:
        """Put the average in the place of the weights; the last ones are set aside."""
        if self._average and not self._last:
            self._last = {name: weight.detach().clone() for name, weight in self._weights.items()}
            self._copy(self._average)

    def use_last(self) -> None:
        """Put the last weights back."""
        if self._last:
            self._copy(self._last)
            self._last = {}

    @contextmanager
    def in_use(self, *, average: bool) -> Iterator[None]:
        """The average, or the last weights, for a while."""
        before = bool(self._last)
        self._use(average)
        try:
            yield
        finally:
            self._use(before)

    def _use(self, average: bool) -> None:
        if average:
            self.use_average()
        else:
            self.use_last()

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            _local(weight).copy_(_local(values[name]))

    def save(self, folder: Path, *, writes: bool) -> None:
        """Write the average into a checkpoint; all processes call it, and one writes."""
        whole = {}
        for name, value in self._average.items():
            gathered = value.full_tensor() if isinstance(value, DTensor) else value
            if writes:
                whole[name] = gathered.cpu().contiguous()
        if writes:
            save_file(whole, folder / EMA_FILE)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, to the last bit.

        Raises:
            InputError: the checkpoint has no average, or that of other weights.
        """
        file = folder / EMA_FILE
        stored = load_file(file) if file.is_file() else {}
        if stored.keys() != self._weights.keys():
            raise InputError(
                f"{folder} has no average of the weights that are trained ({EMA_FILE}): it was written "
                "without ema, or by another run; remove ema, or start anew"
            )
        self._last = {}
        self._average = {name: _placed(stored[name], weight) for name, weight in self._weights.items()}


class EmaCallback(TrainerCallback):
    """Moves the average once for each optimizer step, before a checkpoint of it is written."""

    def __init__(self, ema: Ema) -> None:
        self._ema = ema

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Begin."""
        self._ema.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Move it."""
        self._ema.step()


def _local(tensor: Tensor) -> Tensor:
    """What this process holds of it; a change of one is a change of the other."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _placed(whole: Tensor, weight: Tensor) -> Tensor:
    """A whole average as the weight is placed."""
    whole = whole.to(weight.device)
    if isinstance(weight, DTensor):
        return distribute_tensor(whole, weight.device_mesh, weight.placements)
    return whole
