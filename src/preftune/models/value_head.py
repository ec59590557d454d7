"""V(x): what reward a prompt lets expect, from the language model's own reading of it (HPO, IQL)."""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Float32
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

VALUE_HEAD_FILE = "value_head.safetensors"


class ValueHead(nn.Module):
    """Two hidden layers, in float32, on the detached hidden state of the last prompt token.

    It is trained beside the language model and never changes it: no gradient passes the hidden state. Its
    last layer starts at zero, so that V starts at the mean of a standardised reward.

    Attributes:
        layers: from hidden state to value.
    """

    def __init__(self, input_width: int, width: int, seed: int) -> None:
        """Initialise without touching the global random state, on which adapters and other methods depend.

        Args:
            input_width: of the hidden states.
            width: of both hidden layers.
            seed: of the initial weights.
        """
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            value = nn.Linear(width, 1)
            self.layers = nn.Sequential(
                nn.Linear(input_width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), value
            )
        nn.init.zeros_(value.weight)
        nn.init.zeros_(value.bias)

    def forward(self, hidden: Float[Tensor, "responses width"]) -> Float32[Tensor, "responses"]:
        """V of each response's prompt, in standard units of the reward."""
        with torch.autocast(hidden.device.type, enabled=False):
            # Models differ in the scale of their last hidden state by orders of magnitude.
            scaled = functional.layer_norm(hidden.detach().float(), hidden.shape[-1:])
            values: Tensor = self.layers(scaled)[:, 0]
            return values


def save_value_head(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write a value head's weights, which are on the CPU, into a folder."""
    save_file(dict(weights), folder / VALUE_HEAD_FILE)


def load_value_head(folder: Path) -> dict[str, Tensor]:
    """Read what `save_value_head` wrote."""
    weights: dict[str, Tensor] = load_file(folder / VALUE_HEAD_FILE)
    return weights
