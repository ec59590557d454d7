"""A model whose weights, gradients and optimizer state are sharded over the processes (FSDP2)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from preftune.errors import InputError
from preftune.models.reader import PackedReader


def shard(reader: PackedReader) -> None:
    """Divide a model over all processes, layer by layer; each then holds its part of every weight.

    A layer's weights are gathered when it is computed and let go after. What stands in no layer, such as the
    embeddings, is gathered for the whole forward and backward pass: every pass of one process is a pass of
    all.

    Args:
        reader: whole, the same in every process, and on its device.

    Raises:
        InputError: transformers does not say which modules are its layers.
    """
    model = reader.causal_lm()
    kinds = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise InputError(
            f"fully_sharded=true: {type(model).__name__} does not name the layers that it can be sharded at; "
            "set fully_sharded=false"
        )
    mesh = init_device_mesh(model.device.type, (torch.distributed.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    if reader.value_head is not None:
        # Weights that are gathered together have one precision, and the head's is its own.
        fully_shard(reader.value_head, mesh=mesh)
    fully_shard(reader, mesh=mesh)


def is_sharded(reader: nn.Module) -> bool:
    """Whether `shard` has sharded it."""
    return isinstance(reader, FSDPModule)


def whole_state(module: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """A module's weights as they would be whole, on the CPU; all processes call it.

    Args:
        module: a sharded model, or a part of one.
        keep: False takes part in gathering and returns nothing.
    """
    state = {}
    for name, own in module.state_dict().items():
        whole = own.full_tensor() if isinstance(own, DTensor) else own
        if keep:
            state[name] = whole.cpu()
    return state


@torch.no_grad()
def load_whole_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set the weights that `state` holds whole; all processes call it with the same."""
    for name, own in module.state_dict().items():
        if name not in state:
            continue
        whole = state[name].to(own.device)
        if isinstance(own, DTensor):
            own.copy_(distribute_tensor(whole, own.device_mesh, own.placements))
        else:
            own.copy_(whole)


def saved_weights(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """Weights that `save_pretrained` has left, whole or an adapter's, by their names in the model.

    Raises:
        RuntimeError: the folder lacks some.
    """
    own = model.state_dict().keys()
    adapter = folder / "adapter_model.safetensors"
    if adapter.is_file():
        names = {_in_adapter_file(name): name for name in own}
        return {names[name]: weight for name, weight in load_file(adapter).items()}
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= load_file(file)
    if missing := own - found.keys() - set(getattr(model, "all_tied_weights_keys", ())):
        raise RuntimeError(f"{folder} lacks {missing}")
    return found


def _in_adapter_file(name: str) -> str:
    """What peft calls a weight where it saves it, without the adapter's name."""
    name = name.replace(".lora_magnitude_vector.default.weight", ".lora_magnitude_vector")
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".").removesuffix(".default")


WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def whole_optimizer_state(reader: PackedReader, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state by the names of weights, whole, in the first process; all call it."""
    return get_optimizer_state_dict(reader, optimizer, options=WHOLE)


def load_whole_optimizer_state(
    reader: PackedReader, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Divide what `whole_optimizer_state` gave; all processes call it with the same."""
    # An optimizer without state has nothing to shard.
    if state["state"]:
        set_optimizer_state_dict(reader, optimizer, state, options=WHOLE)
