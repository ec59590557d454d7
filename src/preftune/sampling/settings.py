"""What a sampler is asked: prompts, and how many responses of what kind."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from preftune.errors import InputError

Conversation = Sequence[dict[str, str]]
"""Messages with a role and content each."""


SMALLEST_TEMPERATURE = 1e-6
"""Below it quotients of logits leave 32 bits."""


@dataclass(frozen=True)
class SamplingSettings:
    """How many responses, how long, and how their tokens are drawn.

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
                raise InputError(f"{name}={value}: {name} must be at least 1.")
        if not (self.temperature == 0 or SMALLEST_TEMPERATURE <= self.temperature < math.inf):
            raise InputError(
                f"temperature={self.temperature}: it must be 0 (greedy), or from {SMALLEST_TEMPERATURE} up."
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p}: it must lie above 0, and be 1 (every token) or less.")
