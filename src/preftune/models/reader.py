"""What reads a packed batch: each prompt once where the model can share it, in padded rows elsewhere."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from preftune.data.groups import Pair, TokenizedGroup
from preftune.data.packing import PackedBatch, pack
from preftune.models.adapters import adapter_parts
from preftune.models.attention import IMPLEMENTATIONS, implementations
from preftune.models.value_head import ValueHead

logger = logging.getLogger(__name__)

PROBE_TOLERANCES = {"numbers": 1e-3, "gradients": 1e-2, "router loss": 1e-3}
LOW_PRECISION_PROBE_TOLERANCES = {"numbers": 2e-2, "gradients": 2e-1, "router loss": 2e-2}
"""Largest relative differences that rounding may cause; a prompt seen wrongly differs more."""

ROUTER_NOISE = ("jitter_noise", "input_jitter_noise", "moe_jitter_eps")
"""What layers call the noise that they multiply a router's input by while training."""


@dataclass(frozen=True)
class Reading:
    """What one forward pass gives.

    Attributes:
        numbers: what the model is read for, response after response.
        router_loss: see `ScoredResponses`.
        values: see `ScoredResponses`.
        collisions: of every response token, log sum_v p(v)^2 over the vocabulary, in nats.
    """

    numbers: Float32[Tensor, "numbers"]
    router_loss: Float[Tensor, ""] | None = None
    values: Float32[Tensor, "responses"] | None = None
    collisions: Float32[Tensor, "response_tokens"] | None = None


class PackedReader(nn.Module, ABC):
    """A decoder, with or without LoRA, that reads the responses of a PackedBatch; base of what is trained.

    On construction a tiny random batch goes forward and backward through the shared-prompt path and through
    the model's own padded rows; where they disagree padded rows are used from then on, and the log says so.

    Attributes:
        language_model: the wrapped model (a `PeftModel` under LoRA).
        value_head: what estimates V(x) in the same forward pass, if the objective needs it.
        shares_prompts: whether prompts are computed once for all their responses.
        reads: what the numbers of a reading are, for people.
    """

    reads: ClassVar[str]
    shares_prompts: bool

    def __init__(self, language_model: nn.Module, value_head: ValueHead | None = None) -> None:
        """Wrap a model; the subclass then calls `_choose_rows`, once it can read.

        Raises:
            ValueError: the model is in another policy.
        """
        super().__init__()
        self.language_model = language_model
        self.value_head = value_head
        self._own_attention: str = self.causal_lm().config._attn_implementation
        if self._own_attention in IMPLEMENTATIONS:
            raise ValueError("this model is in another policy; call its restore() first")
        self._noise = _noise(language_model)
        self._set_noise(on=False)

    @abstractmethod
    def _packed(self, batch: PackedBatch, **attention: Any) -> Reading:
        """Read a batch as it stands, prompts shared."""

    @abstractmethod
    def _padded(self, batch: PackedBatch) -> Reading:
        """Read it in padded rows, by the model's own forward pass."""

    @abstractmethod
    def _numbers_of_first(self, batch: PackedBatch) -> int:
        """How many of the numbers are the first response's."""

    def restore(self) -> None:
        """Give the language model its own attention and dropout back, as it was before it was wrapped."""
        self.causal_lm().set_attn_implementation(self._own_attention)
        self._set_noise(on=True)

    @contextmanager
    def own_attention(self) -> Iterator[nn.Module]:
        """The language model with its own attention, for generation between two steps of training."""
        model = self.causal_lm()
        before: str = model.config._attn_implementation
        model.set_attn_implementation(self._own_attention)
        try:
            yield self.language_model
        finally:
            model.set_attn_implementation(before)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The language model as it reads packed batches; afterwards it is as it was before."""
        model = self.causal_lm()
        before: tuple[str, bool] = model.config._attn_implementation, self._has_noise
        model.set_attn_implementation(self._attention)
        self._set_noise(on=False)
        try:
            yield
        finally:
            model.set_attn_implementation(before[0])
            self._set_noise(on=before[1])

    @torch.no_grad()
    def generate(self, *inputs: Any, **named: Any) -> Any:
        """What `generate` of the language model gives, with its own attention."""
        with self.own_attention() as model:
            generate: Callable[..., Any] = getattr(model, "generate")  # noqa: B009
            return generate(*inputs, **named)

    def _set_noise(self, on: bool) -> None:
        self._has_noise = on
        for module, name, value in self._noise:
            setattr(module, name, value if on else 0.0)

    def gradient_checkpointing_enable(self, *settings: Any, **named: Any) -> None:
        """Recompute the layers' activations in the backward pass; called by the Trainer with its settings."""
        self.causal_lm().gradient_checkpointing_enable(*settings, **named)

    def activation_checkpointing_enable(self, *settings: Any, **named: Any) -> None:
        """The same under the name that transformers is moving to."""
        self.causal_lm().activation_checkpointing_enable(*settings, **named)

    def causal_lm(self) -> PreTrainedModel:
        """The transformers model itself, without the `PeftModel` around it."""
        unwrap = getattr(self.language_model, "get_base_model", lambda: self.language_model)
        model: PreTrainedModel = unwrap()
        return model

    def _read(self, batch: PackedBatch) -> Reading:
        return self._packed(batch) if self.shares_prompts else self._padded(batch)

    def _choose_rows(self, share_prompts: bool | None) -> None:
        """Share prompts if asked to and possible; None lets the probe decide."""
        self._attention = self._own_attention
        self.shares_prompts = share_prompts is not False and self._sharing_agrees()
        if share_prompts and not self.shares_prompts:
            raise ValueError(
                f"{type(self.causal_lm()).__name__} cannot share prompts; use share_prompts=None"
            )

    def _sharing_agrees(self) -> bool:
        """Try shared prompts on the loaded model and keep them if the result is the padded one's."""
        model = self.causal_lm()
        was_training = self.language_model.training
        self.language_model.eval()
        agrees = False
        for attention in implementations(model.device):
            reason = self._refusal(attention)
            agrees = reason is None
            if agrees:
                self._attention = attention
                break
            logger.warning("%s cannot share prompts by %s (%s)", type(model).__name__, attention, reason)
        self.language_model.train(was_training)
        if not agrees:
            model.set_attn_implementation(self._own_attention)
            logger.warning(
                "%s cannot share prompts; every response gets its own padded row", type(model).__name__
            )
        return agrees

    def _refusal(self, attention: str) -> str | None:
        """Why prompts cannot be shared by this implementation of attention, if they cannot."""
        model = self.causal_lm()
        try:
            # Weights in float32 are held to float32's tolerances, whatever the caller's precision.
            with torch.autocast(model.device.type, enabled=False):
                return self._disagreement(probe_batch(model), attention)
        except Exception as error:  # whatever an unknown architecture raises, padded rows are right
            return f"{type(error).__name__}: {error}"

    def _disagreement(self, batch: PackedBatch, attention: str) -> str | None:
        """What is wrong with shared prompts on this model, if anything."""
        model = self.causal_lm()
        model.set_attn_implementation(self._own_attention)
        expected = self._traced(self._padded, batch)
        model.set_attn_implementation(attention)
        windows: set[int | None] = set()
        packed = self._traced(partial(self._packed, windows_seen=windows), batch)
        exact = model.dtype in (torch.float32, torch.float64)
        tolerances = PROBE_TOLERANCES if exact else LOW_PRECISION_PROBE_TOLERANCES
        for name, values in packed.items():
            difference = (values - expected[name]).norm() / expected[name].norm()
            # Written so that NaN is a disagreement too.
            if not difference < tolerances[name]:
                return f"its {self.reads if name == 'numbers' else name} differ by {difference:.2%}"
        changed = replace(batch, input_ids=batch.input_ids.clone())
        own = batch.predictors[1 : int(batch.lengths[0])]
        changed.input_ids[own] = changed.input_ids[own].flip(0)
        first = self._numbers_of_first(batch)
        with torch.no_grad():
            others = self._packed(changed).numbers[first:]
        before = packed["numbers"][first:]
        if not (others - before).norm() / before.norm() < tolerances["numbers"]:
            return f"a response's {self.reads} depend on another response"
        if _wants_window(model.config.get_text_config()) and windows <= {None}:
            # Such a model builds the window into a mask, and the probe is shorter than the window.
            return "its sliding window does not reach the attention function"
        return None

    def _traced(self, read: Callable[[PackedBatch], Reading], batch: PackedBatch) -> dict[str, Tensor]:
        """The numbers, the routers' loss, and the gradient of both by each token's embedding.

        The graph is cut at the embeddings: the backward pass goes through every layer, frozen or not, and
        leaves no gradient on any weight.
        """
        cuts: list[tuple[Tensor, Tensor]] = []

        def cut(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            cuts.append((inputs[0], output.detach().requires_grad_()))
            # Some models go on to scale their embeddings in place, which a leaf does not allow.
            return cuts[-1][1].clone()

        hook = self.causal_lm().get_input_embeddings().register_forward_hook(cut)
        try:
            with torch.enable_grad():
                found = read(batch)
                # Unequal weights, so that swapped numbers would show.
                numbers = found.numbers
                total = (numbers * torch.linspace(0.5, 1.5, len(numbers), device=numbers.device)).sum()
                if found.router_loss is not None:
                    total = total + found.router_loss
                (ids, embeddings), *_ = cuts
                (gradient,) = torch.autograd.grad(total, embeddings)
        finally:
            hook.remove()
        # A prompt has one place in a packed row and several in padded ones; over those its gradient adds up.
        places = batch.input_ids[:, None] == ids.flatten()
        traced = {
            "numbers": found.numbers.detach(),
            "gradients": places.float() @ gradient.flatten(0, -2).float(),
        }
        if found.router_loss is not None:
            traced["router loss"] = found.router_loss.detach()
        return traced


def probe_batch(model: PreTrainedModel) -> PackedBatch:
    """Two prompts of random tokens with two responses each, all of different lengths, and no padding."""
    random = np.random.default_rng(0)
    config = model.config.get_text_config()
    padding = getattr(config, "pad_token_id", None)

    def tokens(count: int) -> Int32[np.ndarray, "tokens"]:
        ids = random.integers(config.vocab_size, size=count, dtype=np.int32)
        return np.where(ids == padding, (ids + 1) % config.vocab_size, ids)

    pairs = (Pair(chosen=0, rejected=1),)
    return pack(
        [
            TokenizedGroup(tokens(7), (tokens(4), tokens(6)), pairs),
            TokenizedGroup(tokens(3), (tokens(5), tokens(2)), pairs),
        ]
    ).to(model.device)


def _wants_window(config: PretrainedConfig) -> bool:
    """Whether any layer looks back only so far."""
    if not getattr(config, "use_sliding_window", True) or not getattr(config, "sliding_window", None):
        return False
    # A configuration without a list of layers gives all of them the window.
    return any("sliding" in kind for kind in getattr(config, "layer_types", None) or ["sliding"])


def _noise(model: nn.Module) -> list[tuple[nn.Module, str, float]]:
    """Every module's attribute that makes noise in training, with its value.

    It is set to 0: two policies are compared, and noise in one of them is an error. An adapter's dropout
    stays, which was asked for; it is on in training alone.
    """
    found: list[tuple[nn.Module, str, float]] = []
    adapters = {part for module in model.modules() for part in adapter_parts(module)}
    for module in model.modules():
        if module in adapters:
            continue
        if isinstance(module, nn.Dropout):
            found.append((module, "p", module.p))
        for name, value in vars(module).items():
            # Functional dropout and layer dropout take their probability from an attribute.
            if ("drop" in name or name in ROUTER_NOISE) and isinstance(value, float):
                found.append((module, name, value))
    return found
