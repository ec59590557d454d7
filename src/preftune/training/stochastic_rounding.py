"""AdamW for weights in bfloat16: computed in float32, and rounded up or down by chance.

Rounding to the nearest number loses every update below half of the distance between two numbers, always.
Rounded by chance, in proportion to what is cut off, the expected weight is the exact one (Gupta and others,
arXiv 1502.02551).
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import BFloat16, Float32
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

LOW_BITS = 16
"""What a float32 has more than a bfloat16."""


def round_stochastically(
    value: Float32[Tensor, "..."], generator: torch.Generator
) -> BFloat16[Tensor, "..."]:
    """Round to one of the two numbers of bfloat16 around each value, so that the expectation is the value.

    A number between a and a + d becomes a + d with the probability (number - a) / d. Numbers that bfloat16
    has, and numbers that are not finite, stay.

    Args:
        value: what is rounded.
        generator: on the device of the value.
    """
    noise = torch.randint(
        2**LOW_BITS, value.shape, generator=generator, device=value.device, dtype=torch.int32
    )
    # Numbers with a sign are ordered as their bits are by magnitude; a carry goes to the next one.
    bits = (value.view(torch.int32) + noise) & -(2**LOW_BITS)
    return torch.where(value.isfinite(), bits.view(torch.float32), value).to(torch.bfloat16)


class StochasticAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW`, whose state is float32 and whose weights in bfloat16 are rounded by chance.

    The draws of a step follow from the seed and the number of the step, so that a resumed run has the same.
    Processes that hold the same weights draw the same.
    """

    def __init__(self, params: Any, *, seed: int, **options: Any) -> None:
        super().__init__(params, **options)
        self._seed = seed

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        generators: dict[torch.device, torch.Generator] = {}
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, group, generators)
        return loss

    def _move(
        self, weight: Tensor, group: dict[str, Any], generators: dict[torch.device, torch.Generator]
    ) -> None:
        state = self.state[weight]
        local, gradient = _local(weight), _local(weight.grad).float()
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(weight, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(weight, dtype=torch.float32)
        if local.device not in generators:
            draws = torch.Generator(local.device)
            generators[local.device] = draws.manual_seed((self._seed << 31) + int(state["step"]))
        exact = local.float()
        beta1, beta2 = group["betas"]
        adamw(
            [exact],
            [gradient],
            [_local(state["exp_avg"])],
            [_local(state["exp_avg_sq"])],
            [],
            [state["step"]],
            foreach=False,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        is_rounded = local.dtype == torch.bfloat16
        local.copy_(round_stochastically(exact, generators[local.device]) if is_rounded else exact)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; torch would round it to the weights' data type."""
        super().load_state_dict(state_dict)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        places = [place for group in state_dict["param_groups"] for place in group["params"]]
        for place, weight in zip(places, weights, strict=True):
            for name in ("exp_avg", "exp_avg_sq"):
                if place in state_dict["state"]:
                    self.state[weight][name] = state_dict["state"][place][name].to(weight.device).clone()


def _local(tensor: Any) -> Tensor:
    """What this process holds of it; a change of one is a change of the other."""
    own: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own
