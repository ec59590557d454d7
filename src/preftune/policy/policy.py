"""The language model as a policy: packed batches in, log-probabilities of responses out."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from preftune.data.groups import Pair, TokenizedGroup
from preftune.data.packing import PackedBatch, Span, pack, pad
from preftune.errors import InputError
from preftune.objectives.responses import ScoredResponses
from preftune.policy.attention import IMPLEMENTATIONS, implementations
from preftune.policy.head import response_token_logps
from preftune.policy.value_head import ValueHead

logger = logging.getLogger(__name__)

PROBE_TOLERANCES = {"log-probabilities": 1e-3, "gradients": 1e-2, "router loss": 1e-3}
LOW_PRECISION_PROBE_TOLERANCES = {"log-probabilities": 2e-2, "gradients": 2e-1, "router loss": 2e-2}
"""Largest relative differences that rounding may cause; a prompt seen wrongly differs more."""

ROUTER_NOISE = ("jitter_noise", "input_jitter_noise", "moe_jitter_eps")
"""What layers call the noise that they multiply a router's input by while training."""


@dataclass(frozen=True)
class _Scores:
    """What one forward pass gives: see `Policy.response_token_logps` and `ScoredResponses`."""

    token_logps: Float32[Tensor, "response_tokens"]
    router_loss: Float[Tensor, ""] | None
    values: Float32[Tensor, "responses"] | None


class Policy(nn.Module):
    """A causal language model, with or without LoRA, that scores the responses of a PackedBatch.

    On construction a tiny random batch goes forward and backward through the shared-prompt path and through
    the model's own padded rows; where they disagree the policy uses padded rows from then on and says so in
    the log.

    Attributes:
        language_model: the wrapped model (a `PeftModel` under LoRA).
        value_head: what estimates V(x) in the same forward pass, if the objective needs it.
        shares_prompts: whether prompts are computed once for all their responses.
    """

    def __init__(
        self,
        language_model: nn.Module,
        share_prompts: bool | None = None,
        router_loss: bool = False,
        value_head: ValueHead | None = None,
    ) -> None:
        """Wrap a language model.

        Args:
            language_model: the causal language model, or a `PeftModel` around one.
            share_prompts: whether to share prompts; None lets the probe decide.
            router_loss: also compute the load-balancing loss of a mixture's routers.
            value_head: also compute V(x); on the language model's device.

        Raises:
            ValueError: `share_prompts` is True and the model cannot, or it is in another policy.
            InputError: `router_loss` is True and the model's forward pass gives none.
        """
        super().__init__()
        self.language_model = language_model
        self.value_head = value_head
        self._own_attention: str = self.causal_lm().config._attn_implementation
        if self._own_attention in IMPLEMENTATIONS:
            raise ValueError("this model is in another policy; call its restore_attention() first")
        self._router_outputs = {"output_router_logits": True} if router_loss else {}
        _disable_noise(language_model)
        if router_loss:
            self._check_router_loss()
        self.shares_prompts = share_prompts is not False and self._sharing_agrees()
        if share_prompts and not self.shares_prompts:
            raise ValueError(
                f"{type(self.causal_lm()).__name__} cannot share prompts; use share_prompts=None"
            )

    def forward(self, batch: PackedBatch) -> ScoredResponses:
        """Log-probabilities, in nats, of every response of the batch, with the batch's own scalars."""
        scores = self._scores(batch)
        return ScoredResponses(
            # Its checks would read the lengths back from the device.
            logps=torch.segment_reduce(scores.token_logps, "sum", lengths=batch.lengths, unsafe=True),
            lengths=batch.lengths,
            chosen=batch.chosen,
            rejected=batch.rejected,
            reference_logps=batch.reference_logps,
            prior_gap=batch.prior_gap,
            router_loss=scores.router_loss,
            labels=batch.labels,
            auxiliary=batch.auxiliary,
            values=scores.values,
        )

    def response_token_logps(self, batch: PackedBatch) -> Float32[Tensor, "response_tokens"]:
        """Log-probability, in nats, of every response token, response after response."""
        return self._scores(batch).token_logps

    def restore_attention(self) -> None:
        """Give the language model its own attention back, for generation after training."""
        self.causal_lm().set_attn_implementation(self._own_attention)

    def gradient_checkpointing_enable(self, *settings: Any, **named: Any) -> None:
        """Recompute the layers' activations in the backward pass; called by the Trainer with its settings."""
        self.causal_lm().gradient_checkpointing_enable(*settings, **named)

    def activation_checkpointing_enable(self, *settings: Any, **named: Any) -> None:
        """The same under the name that transformers is moving to."""
        self.causal_lm().activation_checkpointing_enable(*settings, **named)

    def causal_lm(self) -> PreTrainedModel:
        """The causal language model itself, without the `PeftModel` around it."""
        unwrap = getattr(self.language_model, "get_base_model", lambda: self.language_model)
        model: PreTrainedModel = unwrap()
        return model

    def _scores(self, batch: PackedBatch) -> _Scores:
        scores = self._packed(batch) if self.shares_prompts else self._padded(batch)
        loss = scores.router_loss
        if loss is not None and scores.token_logps.requires_grad and not loss.requires_grad:
            raise InputError(
                "objective.router_loss_weight: the routers' loss has no gradient; with gradient "
                "checkpointing, set training.gradient_checkpointing_kwargs.use_reentrant=false; where no "
                "layer with a router is trained, set objective.router_loss_weight=0"
            )
        return scores

    def _packed(self, batch: PackedBatch, **attention: Any) -> _Scores:
        model = self.causal_lm()
        outputs = model.base_model(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            spans=batch.spans,
            **self._router_outputs,
            **attention,
        )
        hidden = outputs.last_hidden_state[0]
        token_logps = response_token_logps(
            model.get_output_embeddings(), model.config, hidden[batch.predictors], batch.targets
        )
        values = self.value_head(hidden[batch.prompt_ends]) if self.value_head else None
        router_loss = None
        if self._router_outputs:
            # As the models' own forward calls it, except that there the weights are the padding mask.
            router_loss = load_balancing_loss_func(
                outputs.router_logits,
                model.num_experts,
                model.num_experts_per_tok,
                _copies(batch.spans, len(batch.input_ids), batch.input_ids.device),
            )
        return _Scores(token_logps, router_loss, values)

    def _padded(self, batch: PackedBatch) -> _Scores:
        rows = pad(batch)
        outputs = self.causal_lm()(
            input_ids=rows.input_ids,
            attention_mask=rows.attention_mask,
            use_cache=False,
            output_hidden_states=self.value_head is not None,
            **self._router_outputs,
        )
        predictions = outputs.logits[rows.predicts].float()
        logps = predictions.gather(1, batch.targets[:, None])[:, 0] - predictions.logsumexp(dim=1)
        values = None
        if self.value_head:
            each = torch.arange(len(rows.prompt_ends), device=rows.prompt_ends.device)
            values = self.value_head(outputs.hidden_states[-1][each, rows.prompt_ends])
        return _Scores(logps, outputs.aux_loss if self._router_outputs else None, values)

    @torch.no_grad()
    def _check_router_loss(self) -> None:
        """Ask for the loss before training does: a configuration may name routers that no forward reports."""
        model = self.causal_lm()
        try:
            found = isinstance(self._padded(_probe_batch(model)).router_loss, Tensor)
        except (AttributeError, TypeError):
            found = False
        if not found:
            raise InputError(
                f"objective.router_loss_weight: the forward pass of {type(model).__name__} gives no "
                "load-balancing loss; set objective.router_loss_weight=0"
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
                break
            logger.warning("%s cannot share prompts by %s (%s)", type(model).__name__, attention, reason)
        self.language_model.train(was_training)
        if not agrees:
            self.restore_attention()
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
                return self._disagreement(_probe_batch(model), attention)
        except Exception as error:  # whatever an unknown architecture raises, padded rows are right
            return f"{type(error).__name__}: {error}"

    def _disagreement(self, batch: PackedBatch, attention: str) -> str | None:
        """What is wrong with shared prompts on this model, if anything."""
        model = self.causal_lm()
        self.restore_attention()
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
                return f"its {name} differ by {difference:.2%}"
        first = int(batch.lengths[0])
        changed = replace(batch, input_ids=batch.input_ids.clone())
        own = batch.predictors[1:first]
        changed.input_ids[own] = changed.input_ids[own].flip(0)
        with torch.no_grad():
            others = self._packed(changed).token_logps[first:]
        before = packed["log-probabilities"][first:]
        if not (others - before).norm() / before.norm() < tolerances["log-probabilities"]:
            return "a response's log-probability depends on another response"
        if _wants_window(model.config.get_text_config()) and windows <= {None}:
            # Such a model builds the window into a mask, and the probe is shorter than the window.
            return "its sliding window does not reach the attention function"
        return None

    def _traced(self, scores: Callable[[PackedBatch], _Scores], batch: PackedBatch) -> dict[str, Tensor]:
        """Log-probabilities, the routers' loss, and the gradient of both by each token's embedding.

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
                found = scores(batch)
                # Unequal weights, so that swapped tokens would show.
                logps = found.token_logps
                total = (logps * torch.linspace(0.5, 1.5, len(logps), device=logps.device)).sum()
                if found.router_loss is not None:
                    total = total + found.router_loss
                (ids, embeddings), *_ = cuts
                (gradient,) = torch.autograd.grad(total, embeddings)
        finally:
            hook.remove()
        # A prompt has one place in a packed row and several in padded ones; over those its gradient adds up.
        places = batch.input_ids[:, None] == ids.flatten()
        traced = {
            "log-probabilities": found.token_logps.detach(),
            "gradients": places.float() @ gradient.flatten(0, -2).float(),
        }
        if found.router_loss is not None:
            traced["router loss"] = found.router_loss.detach()
        return traced


def _probe_batch(model: PreTrainedModel) -> PackedBatch:
    """Two prompts of random tokens with two responses each, all of different lengths."""
    random = np.random.default_rng(0)
    vocabulary = model.config.get_text_config().vocab_size

    def tokens(count: int) -> Int32[np.ndarray, "tokens"]:
        return random.integers(vocabulary, size=count, dtype=np.int32)

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


def _copies(spans: Sequence[Span], tokens: int, device: torch.device) -> Float32[Tensor, "tokens"]:
    """How often each token stands in the padded rows: a prompt's once for each of its responses."""
    copies = torch.ones(tokens, device=device)
    for span in spans:
        copies[span.prefix_start : span.prefix_stop] += 1
    return copies


def own_router_loss_weight(config: PretrainedConfig) -> float | None:
    """The model's own weight of its routers' loss, and None where it has no routers that it would report."""
    text_config = config.get_text_config()
    if not hasattr(text_config, "output_router_logits"):
        return None
    return getattr(text_config, "router_aux_loss_coef", None) or 0.0


def _disable_noise(model: nn.Module) -> None:
    """Zero all noise of training: two policies are compared, and noise in one of them is an error."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            # Functional dropout and layer dropout take their probability from an attribute.
            if ("drop" in name or name in ROUTER_NOISE) and isinstance(value, float):
                setattr(module, name, 0.0)
