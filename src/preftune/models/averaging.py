"""Several trained models, or adapters, averaged into one."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from preftune.errors import InputError
from preftune.models.config_files import ADAPTER_FILE, ADAPTER_WEIGHTS, BASE_FOLDER
from preftune.models.loading import load_model_config, load_tokenizer
from preftune.models.quantization import QUANTIZATION_FILE, read_quantization
from preftune.models.saving import save_model_files

SUM_TOLERANCE = 1e-6
"""How far a sum of weights may be from 1."""
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
"""How the names of an adapter's matrices end, of which the update of a layer is scale x B A."""
UNSAFE = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "lora_bias",
    "trainable_token_indices",
)
"""Fields of an adapter whose update is not that product alone."""


def shares_of(count: int, weights: Sequence[float] | None) -> list[float]:
    """The weight of each model: equal ones unless given.

    Raises:
        InputError: there are fewer than two models, or the weights are not those of a mean.
    """
    if count < 2:
        raise InputError(f"an average needs two runs or more, and {count} is given: name another")
    if weights is None:
        return [1 / count] * count
    if len(weights) != count:
        raise InputError(f"weights={list(weights)} are {len(weights)}, of {count} runs: give one for each")
    if not all(0 <= weight < math.inf for weight in weights) or abs(sum(weights) - 1) > SUM_TOLERANCE:
        raise InputError(f"weights={list(weights)} must be 0 or more and add up to 1: scale them")
    return list(weights)


def average_models(folders: Sequence[Path], weights: Sequence[float], output: Path) -> None:
    """Average models of one architecture, or adapters of one base model, and save the result.

    Args:
        folders: of saved models, all whole or all adapters.
        weights: of each, see `shares_of`.
        output: an empty folder for model and tokenizer.

    Raises:
        InputError: they cannot be averaged.
    """
    are_adapters = [(folder / ADAPTER_FILE).is_file() for folder in folders]
    if len(set(are_adapters)) > 1:
        adapter, whole = folders[are_adapters.index(True)], folders[are_adapters.index(False)]
        raise InputError(f"{adapter} is an adapter, and {whole} is a whole model: merge the adapter first")
    (_average_adapters if all(are_adapters) else _average_whole)(folders, weights, output)
    load_tokenizer(str(folders[0])).save_pretrained(output)


# --- whole models ---


class _Files:
    """The weights of a saved model, read one at a time."""

    def __init__(self, folder: Path, pattern: str) -> None:
        self.folder, self._file = folder, {}
        self.shapes: dict[str, list[int]] = {}
        for file in sorted(folder.glob(pattern)):
            with safe_open(file, "pt") as stored:
                for name in stored.keys():  # noqa: SIM118
                    self._file[name] = file
                    self.shapes[name] = stored.get_slice(name).get_shape()
        if not self.shapes:
            raise InputError(f"{folder} has no {pattern}: give a folder that save_pretrained wrote")

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._file[name], "pt") as stored:
            weight: Tensor = stored.get_tensor(name)
        return weight


def _check_same(files: Sequence[_Files], *, ignores_rank: bool = False) -> None:
    """The same weights of the same shapes.

    Raises:
        InputError: one differs.
    """

    def shape(own: _Files, name: str) -> list[int]:
        sizes = own.shapes[name]
        if not ignores_rank:
            return sizes
        return sizes[1:] if name.endswith(DOWN) else sizes[:1] if name.endswith(UP) else sizes

    first = files[0]
    for other in files[1:]:
        if alone := sorted(first.shapes.keys() ^ other.shapes.keys()):
            raise InputError(
                f"{first.folder} and {other.folder} have different weights: only one has {alone[0]} (and "
                f"{len(alone) - 1} more); average runs of one model"
            )
        for name in first.shapes:
            if shape(first, name) != shape(other, name):
                raise InputError(
                    f"{first.folder} and {other.folder} have different shapes of {name}: "
                    f"{first.shapes[name]} and {other.shapes[name]}; average runs of one model"
                )


def _mean(files: Sequence[_Files], weights: Sequence[float], name: str) -> Tensor:
    """A weight's average, computed in float64, in the data type of the first."""
    first = files[0][name]
    total = torch.zeros(first.shape, dtype=torch.float64)
    for own, weight in zip(files, weights, strict=True):
        total += weight * own[name].double()
    return total.to(first.dtype)


def _average_whole(folders: Sequence[Path], weights: Sequence[float], output: Path) -> None:
    files = [_Files(folder, "model*.safetensors") for folder in folders]
    _check_same(files)
    configs = [load_model_config(str(folder)) for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        if config.architectures != configs[0].architectures:
            raise InputError(
                f"{folders[0]} is a {configs[0].architectures}, and {folder} a {config.architectures}: "
                "average runs of one model"
            )
    scores = any("SequenceClassification" in name for name in configs[0].architectures or ())
    form: Any = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    model = form.from_pretrained(folders[0], dtype="auto")
    averaged = {name: _mean(files, weights, name) for name in files[0].shapes}
    missing, unexpected = model.load_state_dict(averaged, strict=False)
    if unexpected or set(missing) - set(model.all_tied_weights_keys):
        raise InputError(
            f"{folders[0]} has weights by other names than {type(model).__name__}, such as "
            f"{[*unexpected, *missing][0]}: load it and save it again by save_pretrained"
        )
    save_model_files(model, output)


# --- adapters ---


def _average_adapters(folders: Sequence[Path], weights: Sequence[float], output: Path) -> None:
    """Stack the matrices: sum of w s B A = [w_1 s_1 B_1, w_2 s_2 B_2, ...] [A_1; A_2; ...]."""
    settings = [json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8")) for folder in folders]
    for folder, own in zip(folders, settings, strict=True):
        _check_adapter(folder, own, folders[0], settings[0])
    files = [_Files(folder, ADAPTER_WEIGHTS) for folder in folders]
    _check_same(files, ignores_rank=True)
    scales = [
        own["lora_alpha"] / (math.sqrt(own["r"]) if own.get("use_rslora") else own["r"]) for own in settings
    ]
    averaged = {}
    for name in files[0].shapes:
        if name.endswith(DOWN):
            stacked = torch.cat([own[name] for own in files])
        elif name.endswith(UP):
            factors = [weight * scale for weight, scale in zip(weights, scales, strict=True)]
            parts = [factor * own[name].double() for factor, own in zip(factors, files, strict=True)]
            stacked = torch.cat(parts, dim=1).to(files[0][name].dtype)
        elif ".lora_" in name:
            raise InputError(f"{folders[0]} adapts {name}, which is no linear layer: merge the runs first")
        else:
            stacked = _mean(files, weights, name)
        averaged[name] = stacked.contiguous()
    rank = sum(own["r"] for own in settings)
    quantizations = [read_quantization(folder) for folder in folders]
    if any(own != quantizations[0] for own in quantizations):
        raise InputError(f"{', '.join(map(str, folders))} were trained on bases quantised in other ways")
    if quantizations[0] is not None:
        shutil.copy2(folders[0] / QUANTIZATION_FILE, output)
    merged = settings[0] | {"r": rank, "lora_alpha": rank, "use_rslora": False}
    save_file(averaged, output / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (output / ADAPTER_FILE).write_text(json.dumps(merged, indent=2) + "\n", encoding="utf-8")


def _check_adapter(folder: Path, own: dict[str, Any], first: Path, expected: dict[str, Any]) -> None:
    if own.get("peft_type") != "LORA":
        raise InputError(
            f"{folder} is a {own.get('peft_type')} adapter, and LoRA is averaged: merge it first"
        )
    if unsafe := next((field for field in UNSAFE if own.get(field)), None):
        raise InputError(
            f"{folder} has {unsafe}={own[unsafe]!r}, with which an update is not the product of two matrices "
            "and one scale: merge the runs first, and average the whole models"
        )
    if own.get("base_model_name_or_path") == BASE_FOLDER:
        raise InputError(
            f"{folder} has a base model of its own, saved beside it: merge the runs first, and average the "
            "whole models"
        )
    if own.get("bias", "none") != "none":
        raise InputError(f"{folder} has bias={own['bias']!r}: merge the runs first")
    for field in ("base_model_name_or_path", "task_type", "fan_in_fan_out"):
        if own.get(field) != expected.get(field):
            raise InputError(
                f"{first} and {folder} have {field}={expected.get(field)!r} and {own.get(field)!r}: average "
                "adapters of one base model"
            )
