"""The language model as a policy: packed batches in, log-probabilities of responses out."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int32
from torch import Tensor, nn
from transformers import PreTrainedModel

from preftune.data.groups import Pair, TokenizedGroup
from preftune.data.packing import PackedBatch, pack, pad
from preftune.objectives.responses import ScoredResponses
from preftune.policy.attention import SHARED_PROMPT
from preftune.policy.head import response_token_logps

logger = logging.getLogger(__name__)

PROBE_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
LOW_PRECISION_PROBE_TOLERANCE = 2e-2
"""Largest relative differences that rounding may cause; a prompt seen wrongly differs more."""


class Policy(nn.Module):
    """A causal language model, with or without LoRA, that scores the responses of a PackedBatch.

    On construction a tiny random batch goes through the shared-prompt path and through the model's own
    padded forward; where they disagree the policy uses padded rows from then on and says so in the log.

    Attributes:
        language_model: the wrapped model (a `PeftModel` under LoRA).
        shares_prompts: whether prompts are computed once for all their responses.
    """

    def __init__(self, language_model: nn.Module, share_prompts: bool | None = None) -> None:
        """Wrap `language_model`; `share_prompts` None lets the probe decide."""
        super().__init__()
        self.language_model = language_model
        self._own_attention: str = self.causal_lm().config._attn_implementation
        _disable_dropout(language_model)
        self.shares_prompts = share_prompts is not False and self._sharing_agrees()
        if share_prompts and not self.shares_prompts:
            raise ValueError(
                f"{type(self.causal_lm()).__name__} cannot share prompts; use share_prompts=None"
            )

    def forward(self, batch: PackedBatch) -> ScoredResponses:
        """Log-probabilities, in nats, of every response of the batch, with the batch's own scalars."""
        token_logps = self.response_token_logps(batch)
        return ScoredResponses(
            logps=torch.segment_reduce(token_logps, "sum", lengths=batch.lengths),
            lengths=batch.lengths,
            chosen=batch.chosen,
            rejected=batch.rejected,
            reference_logps=batch.reference_logps,
            prior_gap=batch.prior_gap,
        )

    def response_token_logps(self, batch: PackedBatch) -> Float32[Tensor, "response_tokens"]:
        """Log-probability, in nats, of every response token, response after response."""
        return self._packed_logps(batch) if self.shares_prompts else self._padded_logps(batch)

    def restore_attention(self) -> None:
        """Give the language model its own attention back, for generation after training."""
        self.causal_lm().set_attn_implementation(self._own_attention)

    def gradient_checkpointing_enable(self, *settings: Any, **named: Any) -> None:
        """Recompute the layers' activations in the backward pass; called by the Trainer with its settings."""
        self.causal_lm().gradient_checkpointing_enable(*settings, **named)
        self._need_input_gradients()

    def activation_checkpointing_enable(self, *settings: Any, **named: Any) -> None:
        """The same under the name that transformers is moving to."""
        self.causal_lm().activation_checkpointing_enable(*settings, **named)
        self._need_input_gradients()

    def _need_input_gradients(self) -> None:
        # Under LoRA the first layers are frozen; without this nothing they see needs a gradient, and
        # recomputation would cut the adapters behind them off.
        if hasattr(self.language_model, "peft_config"):
            self.causal_lm().enable_input_require_grads()

    def causal_lm(self) -> PreTrainedModel:
        """The causal language model itself, without the `PeftModel` around it."""
        unwrap = getattr(self.language_model, "get_base_model", lambda: self.language_model)
        model: PreTrainedModel = unwrap()
        return model

    def _packed_logps(self, batch: PackedBatch, **attention: Any) -> Float32[Tensor, "response_tokens"]:
        model = self.causal_lm()
        hidden = model.base_model(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            spans=batch.spans,
            **attention,
        ).last_hidden_state[0]
        head = model.get_output_embeddings()
        return response_token_logps(head, model.config, hidden[batch.predictors], batch.targets)

    def _padded_logps(self, batch: PackedBatch) -> Float32[Tensor, "response_tokens"]:
        rows = pad(batch)
        logits = self.causal_lm()(
            input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False
        ).logits
        predictions = logits[rows.predicts].float()
        logps: Tensor = predictions.gather(1, batch.targets[:, None])[:, 0] - predictions.logsumexp(dim=1)
        return logps

    @torch.no_grad()
    def _sharing_agrees(self) -> bool:
        """Try shared prompts on the loaded model and keep them if the result is the padded one's."""
        model = self.causal_lm()
        was_training = self.training
        self.eval()
        try:
            reason = self._disagreement(_probe_batch(model.config.get_text_config().vocab_size))
        except Exception as error:  # whatever an unknown architecture raises, padded rows are right
            reason = f"{type(error).__name__}: {error}"
        self.train(was_training)
        if reason:
            self.restore_attention()
            logger.warning(
                "%s cannot share prompts (%s); every response gets its own padded row",
                type(model).__name__,
                reason,
            )
        return not reason

    def _disagreement(self, batch: PackedBatch) -> str | None:
        """What is wrong with shared prompts on this model, if anything."""
        model = self.causal_lm()
        batch = batch.to(model.device)
        expected = self._padded_logps(batch)
        model.set_attn_implementation(SHARED_PROMPT)
        windows: set[int | None] = set()
        packed = self._packed_logps(batch, windows_seen=windows)
        tolerance = PROBE_TOLERANCE.get(model.dtype, LOW_PRECISION_PROBE_TOLERANCE)
        difference = (packed - expected).norm() / expected.norm()
        # Written so that NaN is a disagreement too.
        if not difference < tolerance:
            return f"its log-probabilities differ by {difference:.2%}"
        first = int(batch.lengths[0])
        changed = replace(batch, input_ids=batch.input_ids.clone())
        own = batch.predictors[1:first]
        changed.input_ids[own] = changed.input_ids[own].flip(0)
        others = self._packed_logps(changed)[first:]
        if not (others - packed[first:]).norm() / packed[first:].norm() < tolerance:
            return "a response's log-probability depends on another response"
        config = model.config.get_text_config()
        wants_window = getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None)
        if wants_window and windows <= {None}:
            # Such a model builds the window into a mask, and the probe is shorter than the window.
            return "its sliding window does not reach the attention function"
        return None


def _probe_batch(vocabulary: int) -> PackedBatch:
    """Two prompts of random tokens with two responses each, all of different lengths."""
    random = np.random.default_rng(0)

    def tokens(count: int) -> Int32[np.ndarray, "tokens"]:
        return random.integers(vocabulary, size=count, dtype=np.int32)

    pairs = (Pair(chosen=0, rejected=1),)
    return pack(
        [
            TokenizedGroup(tokens(7), (tokens(4), tokens(6)), pairs),
            TokenizedGroup(tokens(3), (tokens(5), tokens(2)), pairs),
        ]
    )


def _disable_dropout(model: nn.Module) -> None:
    """Zero every dropout probability: two policies are compared, and noise in one of them is an error."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            # Functional dropout and layer dropout take their probability from an attribute.
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
