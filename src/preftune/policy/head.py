"""Log-probabilities of response tokens without ever holding the logits of all of them."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

CHUNK = 256
"""Response tokens whose logits are held at a time: with a vocabulary of 50k, 50 MB in float32."""

Transform = Callable[[Float[Tensor, "tokens vocabulary"], float], Float[Tensor, "tokens vocabulary"]]

LOGIT_TRANSFORMS: dict[str, Transform] = {
    "final_logit_softcapping": lambda logits, cap: cap * torch.tanh(logits / cap),
    "logits_scaling": lambda logits, divisor: logits / divisor,
    "logit_scale": lambda logits, factor: logits * factor,
}
"""What models do to logits behind the head, by the configuration key that asks for it."""


def response_token_logps(
    head: nn.Module,
    config: PretrainedConfig,
    hidden: Float[Tensor, "response_tokens width"],
    targets: Int64[Tensor, "response_tokens"],
) -> Float32[Tensor, "response_tokens"]:
    """Log p(target) in nats from final hidden states, a chunk of tokens at a time.

    Each chunk's logits are recomputed in the backward pass.

    Args:
        head: the language model's output embedding; tied, biased or LoRA-wrapped, it is called as it is.
        config: the model's configuration, for `LOGIT_TRANSFORMS`.
        hidden: hidden states that predict the targets.
        targets: token ids.
    """
    transforms = [
        (transform, float(getattr(config, key)))
        for key, transform in LOGIT_TRANSFORMS.items()
        if getattr(config, key, None) is not None
    ]

    def chunk_logps(rows: Tensor, ids: Tensor) -> Tensor:
        logits = head(rows)
        for transform, value in transforms:
            logits = transform(logits, value)
        logits = logits.float()
        logps: Tensor = logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(dim=1)
        return logps

    return torch.cat(
        [
            # Nothing in a chunk is random, so there is no generator state to keep.
            checkpoint(chunk_logps, rows, ids, use_reentrant=False, preserve_rng_state=False)
            for rows, ids in zip(torch.split(hidden, CHUNK), torch.split(targets, CHUNK), strict=True)
        ]
    )
