"""The settings of sampling: number and length of responses, and how tokens are drawn."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.errors import InputError

Conversation = Sequence[Mapping[str, Any]]
"""Messages with a role and content each."""


SMALLEST_TEMPERATURE = 1e-6
"""At lower temperatures, logits divided by the temperature overflow float32."""


@dataclass(frozen=True)
class SamplingSettings:
    """Number and length of responses, and how their tokens are drawn.

    Attributes:
        n: responses per prompt.
        max_new_tokens: longest response, in tokens.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: draws among the likeliest tokens that together have this probability; 1 draws among all.
        seed: any integer.
    """

    n: int = 8
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n", "max_new_tokens"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"{name}={value} must be >= 1: set a number from 1 on")
        if not (self.temperature == 0 or SMALLEST_TEMPERATURE <= self.temperature < math.inf):
            raise InputError(
                f"temperature={self.temperature} must be 0 (greedy) or >= {SMALLEST_TEMPERATURE}: "
                "set such a value"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p} must be > 0 and <= 1: set 1 to draw from every token")
