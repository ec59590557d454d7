"""V(x): what reward a prompt lets expect, from the language model's own reading of it (UPO, IQL)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Float32
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

VALUE_HEAD_FILE = "value_head.safetensors"

Architecture = Literal["preftune", "halos"]
"""Whose value head it is."""


class ValueHead(nn.Module):
    """Two hidden layers, in float32, on the detached hidden state of the last prompt token.

    It is trained beside the language model and never changes it: no gradient passes the hidden state.

    Ours normalises the hidden state and has SiLU between its layers; its last layer starts at zero, so that V
    starts at the mean of a standardised reward. That of HALOs, the code of KTO and its offline PPO
    (github.com/ContextualAI/HALOs, models.py), takes the hidden state as it is, has dropout and ReLU behind
    each hidden layer, which is as wide as the hidden state, and starts at torch's own random weights. There
    every token has a value; here it is that of the prompt's last token.

    Attributes:
        layers: from hidden state to value.
        normalizes: whether the hidden state is normalised first.
    """

    def __init__(
        self,
        input_width: int,
        width: int | None,
        seed: int,
        architecture: Architecture = "preftune",
        dropout: float = 0.0,
    ) -> None:
        """Initialise without touching the global random state, on which adapters and other methods depend.

        Args:
            input_width: of the hidden states.
            width: of both hidden layers; None for that of the hidden states.
            seed: of the initial weights.
            architecture: `preftune` or `halos`.
            dropout: share of hidden units that are dropped in training, after each hidden layer.
        """
        super().__init__()
        self.normalizes = architecture == "preftune"
        activation = nn.SiLU if self.normalizes else nn.ReLU
        dropped = [nn.Dropout(dropout)] if dropout else []
        width = width or input_width
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            value = nn.Linear(width, 1)
            first = [nn.Linear(input_width, width), *dropped, activation()]
            self.layers = nn.Sequential(*first, nn.Linear(width, width), *dropped, activation(), value)
        if self.normalizes:
            nn.init.zeros_(value.weight)
            nn.init.zeros_(value.bias)

    def forward(self, hidden: Float[Tensor, "responses width"]) -> Float32[Tensor, "responses"]:
        """V of each response's prompt, in standard units of the reward."""
        with torch.autocast(hidden.device.type, enabled=False):
            scaled = hidden.detach().float()
            if self.normalizes:
                # Models differ in the scale of their last hidden state by orders of magnitude.
                scaled = functional.layer_norm(scaled, hidden.shape[-1:])
            values: Tensor = self.layers(scaled)[:, 0]
            return values


def save_value_head(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write a value head's weights, which are on the CPU, into a folder."""
    save_file(dict(weights), folder / VALUE_HEAD_FILE)


def load_value_head(folder: Path) -> dict[str, Tensor]:
    """Read what `save_value_head` wrote."""
    weights: dict[str, Tensor] = load_file(folder / VALUE_HEAD_FILE)
    return weights
