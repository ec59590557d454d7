"""Base models in 4 or 8 bits by bitsandbytes: loading, what they compute, and their weights made whole again.

`nf4` is the 4-bit NormalFloat of QLoRA (arXiv 2305.14314), `int8` the row-wise 8 bits of LLM.int8()
(arXiv 2208.07339), of which the weights alone are taken. Embeddings, norms and heads stay as they are.
"""

import copy
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from preftune.errors import InputError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

QUANTIZATION_FILE = "quantization.json"
"""Beside an adapter's weights: how its base model was quantised while it was trained."""
LIBRARY = "bitsandbytes"
BLOCK, BLOCKS = 64, 256
"""Weights that share a constant in 4-bit NormalFloat, and constants that share one of their own."""

QuantizationType = Literal["nf4", "int8"]
ComputeType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Quantization:
    """How the matrices of a base model are stored.

    Attributes:
        type: 4-bit NormalFloat, or 8-bit integers.
        double: quantise the constants of nf4 too.
        compute_dtype: of nf4's products; None for that of the model's other weights.
    """

    type: QuantizationType
    double: bool = False
    compute_dtype: ComputeType | None = None

    def for_transformers(self, dtype: torch.dtype) -> "BitsAndBytesConfig":
        """What `from_pretrained` takes, where the model's other weights have `dtype`."""
        from transformers import BitsAndBytesConfig

        if self.type == "int8":
            # Which columns are outliers would depend on all tokens of a batch.
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.type,
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=getattr(torch, self.compute_dtype) if self.compute_dtype else dtype,
        )


def check_library(said: str) -> None:
    """Check that the library is installed; nothing is loaded.

    Args:
        said: what asks for it, such as `quantization=nf4`.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec(LIBRARY) is None:
        raise InputError(
            f"{said} needs {LIBRARY}, which is not installed: pip install 'preftune[quantization]' (in a "
            "clone: pip install '.[quantization]')"
        )


def quantized_by(config: PretrainedConfig) -> str | None:
    """The method by which a checkpoint's own weights are quantised; None where they are not."""
    found: Any = getattr(config, "quantization_config", None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
    return str(getattr(method, "value", method))


def quantization_of(model: nn.Module) -> Quantization | None:
    """How a loaded model is quantised by bitsandbytes; None where it is not."""
    found: Any = getattr(getattr(model, "config", None), "quantization_config", None)
    if found is None or not is_quantized(model):
        return None
    if found.load_in_8bit:
        return Quantization("int8")
    compute: Any = str(found.bnb_4bit_compute_dtype).removeprefix("torch.")
    return Quantization("nf4", found.bnb_4bit_use_double_quant, compute)


def is_quantized(model: nn.Module) -> bool:
    """Whether bitsandbytes holds the matrices of a loaded model, with an adapter or without."""
    return any(getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8))


# --- what it computes ---


def compute_alike(model: nn.Module) -> None:
    """Let quantised layers compute the same in training and evaluation, and of each token by itself.

    bitsandbytes repacks 4-bit weights for some CPUs at the first pass of evaluation, after which no gradient
    passes them; and its 8-bit product rounds the hidden states too, by other rules in training than in
    evaluation. Here 8-bit weights are multiplied in the hidden states' own precision.

    Args:
        model: loaded; one that is not quantised stays as it is.
    """
    from_library = list(_quantized_modules(model))
    if not from_library:
        return
    from bitsandbytes.nn import Linear4bit

    for module in from_library:
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
        else:
            module.forward = _EightBitForward(module)


class _EightBitForward:
    """What an 8-bit layer does with hidden states."""

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module

    def __call__(self, hidden: Float[Tensor, "*tokens width"]) -> Float[Tensor, "*tokens out"]:
        module = self._module
        kind = hidden.device.type
        if torch.is_autocast_enabled(kind):
            hidden = hidden.to(torch.get_autocast_dtype(kind))
        rows, scales = _eight_bits(module)
        multiply: Callable[..., Tensor] = _EightBitProduct.apply
        product = multiply(hidden, rows, scales)
        return product if module.bias is None else product + module.bias.to(product.dtype)


class _EightBitProduct(torch.autograd.Function):
    """x W^T, with W dequantised for the product, and once more for its gradient."""

    @staticmethod
    def forward(context: Any, hidden: Tensor, rows: Tensor, scales: Tensor) -> Tensor:
        context.save_for_backward(rows, scales)
        return hidden @ _whole(rows, scales, hidden.dtype).T

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (by_product,) = gradients
        rows, scales = context.saved_tensors
        return by_product @ _whole(rows, scales, by_product.dtype), None, None


def _eight_bits(module: Any) -> tuple[Tensor, Tensor]:
    """Integers of each row, and the row's scale; the library moves the scales at a layer's first pass."""
    scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
    return module.weight.data, scales.float() / 127


def _whole(rows: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return rows.to(dtype) * scales.to(dtype)[:, None]


# --- made whole again ---


def dequantize(model: PreTrainedModel) -> PreTrainedModel:
    """Turn quantised matrices into plain ones of the same values in float32, in place.

    A merged model must have these values and not those of the checkpoint: an adapter was trained over the
    rounded ones, and makes up for some of their rounding.
    """
    for name, module in [(name, module) for name, module in model.named_modules() if _is_quantized(module)]:
        plain = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
        plain.weight = nn.Parameter(_values(module), requires_grad=False)
        if module.bias is not None:
            plain.bias = nn.Parameter(module.bias.detach().float(), requires_grad=False)
        model.set_submodule(name, plain)
    _forget_quantization(model)
    return model.float()


def _values(module: Any) -> Float[Tensor, "out width"]:
    from bitsandbytes import functional

    if _is_four_bit(module):
        state = copy.copy(module.weight.quant_state)
        state.dtype = torch.float32
        values: Tensor = functional.dequantize_4bit(module.weight.data, state)
        return values
    return _whole(*_eight_bits(module), torch.float32)


def _forget_quantization(model: Any) -> None:
    """Let transformers save and move it as any other model."""
    for name in ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if name in vars(model):
            delattr(model, name)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


# --- beside an adapter ---


def write_quantization(model: nn.Module, folder: Path) -> None:
    """Write beside an adapter how its base model is quantised, unless the base's own files say it.

    Args:
        model: the base model.
        folder: the adapter's.
    """
    found = quantization_of(model)
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if found is not None and not getattr(quantizer, "pre_quantized", False):
        text = json.dumps(asdict(found), indent=2) + "\n"
        (folder / QUANTIZATION_FILE).write_text(text, encoding="utf-8")


def read_quantization(folder: str | Path) -> Quantization | None:
    """What `write_quantization` has left; None where there is nothing.

    Raises:
        InputError: it cannot be read, or the library is not installed.
    """
    file = Path(folder) / QUANTIZATION_FILE
    if not file.is_file():
        return None
    try:
        found = Quantization(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} cannot be read: {error}; copy the adapter's folder again") from None
    check_library(f"the adapter {folder}, trained on a base model in {found.type},")
    return found


# --- memory ---


def quantized_matrices(model: nn.Module) -> Sequence[Tensor]:
    """The matrices that are quantised: those of linear layers but for the head, which stays as it is."""
    heads = [model.get_output_embeddings(), getattr(model, "score", None)]  # type: ignore[operator]
    return [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Linear | Conv1D) and not any(module is head for head in heads)
    ]


def four_bit_bytes(weights: int, double: bool = True) -> int:
    """What a matrix of so many weights takes in 4 bits, with its constants."""
    blocks = ceil(weights / BLOCK)
    constants = blocks + 4 * ceil(blocks / BLOCKS) if double else 4 * blocks
    return ceil(weights / 2) + constants


def quantized_bytes(matrix: Tensor, quantization: Quantization) -> int:
    """What a matrix takes once it is quantised, with its constants."""
    if quantization.type == "int8":
        return matrix.numel() + 4 * matrix.shape[0]
    return four_bit_bytes(matrix.numel(), quantization.double)


def constants_bytes(model: nn.Module) -> int:
    """What the constants of a loaded model's quantised matrices take, which are not among its parameters."""
    return sum(map(_constants, _quantized_modules(model)))


def count_weights(weight: Tensor) -> int:
    """How many weights a parameter holds; a byte of a 4-bit one holds two."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else prod(state.shape)


def _constants(module: Any) -> int:
    if not _is_four_bit(module):
        return 4 * int(module.out_features)
    state = module.weight.quant_state
    sizes = [state.absmax, *([state.state2.absmax] if state.nested else [])]
    total: int = sum(part.nbytes for part in sizes)
    return total


def _quantized_modules(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if _is_quantized(module))


def _is_quantized(module: nn.Module) -> bool:
    # By name: the library is not loaded for models that are not quantised. A layer of peft passes on the
    # weight of the one in it.
    return type(module._parameters.get("weight")).__name__ in ("Params4bit", "Int8Params")


def _is_four_bit(module: Any) -> bool:
    return type(module.weight).__name__ == "Params4bit"
