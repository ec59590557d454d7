"""Random draws: two uniform numbers for each prompt, repeat, sample and step, and the token they select."""

import hashlib

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn.functional import pad

from preftune.errors import InputError
from preftune.sampling.settings import SamplingSettings

SHELF = 256
"""Tokens with neighbouring ids that form one shelf; about the square root of a vocabulary's size."""


def sample_seed(settings: SamplingSettings, prompt: object, repeat: int, sample: int) -> int:
    """128 bits that seed one response. Of the settings, they depend on the seed alone.

    Args:
        settings: only its seed is used.
        prompt: token ids, text or messages.
        repeat: how many earlier prompts are the same.
        sample: the response's number among the prompt's.
    """
    content = repr((settings.seed, prompt, repeat, sample))
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:16], "little")


def uniforms(seed: int, steps: int) -> Float32[Tensor, "steps 2"]:
    """Uniform numbers of a response. A call for more steps begins with the numbers of a call for fewer."""
    # Drawn in 64 bits: 32-bit draws come in steps of 2^-24, too coarse for the rarest tokens.
    drawn = np.random.Generator(np.random.Philox(key=seed)).random((steps, 2))
    return torch.from_numpy(drawn).float()


def draw(
    logits: Float[Tensor, "rows vocabulary"],
    uniform: Float32[Tensor, "rows 2"],
    temperature: float,
    top_p: float = 1.0,
) -> tuple[Int64[Tensor, "rows"], Float32[Tensor, "rows"]]:
    """Draw a token for each row: the first uniform number picks a shelf, the second a token on it.

    What else is decoded moves the limits between tokens by the model's rounding. With errors of 1e-5 in
    SmolLM2's logits a number on the whole vocabulary changes its token once in 255 draws, since rare tokens
    stand close together; with shelves once in 13500. They are also faster.

    Args:
        logits: overwritten if they are float32.
        uniform: in [0, 1].
        temperature: 0 takes the likeliest token.
        top_p: see `SamplingSettings`.

    Returns:
        The tokens, and the logarithm of the probability with which each was drawn, in nats: the model's own
        at temperature 1 and top_p 1.

    Raises:
        InputError: the logits are NaN or infinite.
    """
    if temperature == 0:
        token = logits.argmax(-1)
        return token, torch.zeros_like(token, dtype=torch.float32)
    # In place, since a vocabulary-wide tensor per operation costs more than the operation.
    weights = logits.float()
    weights.sub_(weights.amax(-1, keepdim=True)).div_(temperature).exp_()
    if top_p < 1:
        keep_nucleus(weights, top_p)
    missing = -weights.shape[1] % SHELF
    shelves = (pad(weights, (0, missing)) if missing else weights).reshape(len(weights), -1, SHELF)
    sums = shelves.sum(-1)
    if not bool(sums.isfinite().all()):
        raise InputError(
            "the model's logits are NaN or infinite: training has diverged, or this precision is too low for "
            "the model. Lower the learning rate, or use float32"
        )
    shelf = _pick(sums, uniform[:, 0])
    own = shelves[torch.arange(len(shelves), device=shelves.device), shelf]
    place = _pick(own, uniform[:, 1])
    share = own.gather(1, place[:, None]).squeeze(1) / sums.sum(-1)
    return shelf * SHELF + place, share.log()


def _pick(
    weights: Float32[Tensor, "rows choices"], uniform: Float32[Tensor, "rows"]
) -> Int64[Tensor, "rows"]:
    """The choice at each row's uniform number on the cumulative distribution."""
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:]
    # A draw that is rounded up to the total would point past the last choice.
    target = (uniform[:, None] * total).minimum(total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)


def keep_nucleus(weights: Float32[Tensor, "rows vocabulary"], top_p: float) -> None:
    """Set the weights outside each row's nucleus to 0 (arXiv 1904.09751, Section 3.1).

    The nucleus is the smallest set of the likeliest tokens whose total probability reaches `top_p`.
    """
    ordered, tokens = weights.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    outside = before >= top_p * ordered.sum(-1, keepdim=True)
    weights.scatter_(-1, tokens, ordered.masked_fill_(outside, 0.0))
