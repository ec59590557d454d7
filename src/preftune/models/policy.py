"""The language model as a policy: packed batches in, log-probabilities of responses out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from preftune.data import TokenizedGroup
from preftune.data.packing import PackedBatch, Span, pack, pad
from preftune.errors import InputError
from preftune.models.head import collisions, response_token_collisions, response_token_logps
from preftune.models.reader import PackedReader, Reading, probe_batch
from preftune.models.value_head import ValueHead
from preftune.objectives.responses import ScoredResponses


class Policy(PackedReader):
    """A causal language model, with or without LoRA, that scores the responses of a PackedBatch.

    It reads the log-probability of every response token.
    """

    reads = "log-probabilities"

    def __init__(
        self,
        language_model: nn.Module,
        share_prompts: bool | None = None,
        router_loss: bool = False,
        value_head: ValueHead | None = None,
        collisions: bool = False,
    ) -> None:
        """Wrap a language model.

        Args:
            language_model: the causal language model, or a `PeftModel` around one.
            share_prompts: whether to share prompts; None lets the probe decide.
            router_loss: also compute the load-balancing loss of a mixture's routers.
            value_head: also compute V(x); on the language model's device.
            collisions: also compute log sum_v p(v)^2, by another product with the head.

        Raises:
            ValueError: `share_prompts` is True and the model cannot, or it is in another policy.
            InputError: `router_loss` is True and the model's forward pass gives none.
        """
        super().__init__(language_model, value_head)
        self._router_outputs = {"output_router_logits": True} if router_loss else {}
        self._wants_collisions = collisions
        if router_loss:
            self._check_router_loss()
        self._choose_rows(share_prompts)

    def forward(self, batch: PackedBatch) -> ScoredResponses:
        """Log-probabilities, in nats, of every response of the batch, with the batch's own numbers."""
        read = self._read(batch)
        return ScoredResponses(
            logps=_sums(read.numbers, batch),
            lengths=batch.lengths,
            chosen=batch.chosen,
            rejected=batch.rejected,
            router_loss=read.router_loss,
            values=read.values,
            token_logps=read.numbers,
            collision_logps=None if read.collisions is None else _sums(read.collisions, batch),
            **batch.numbers,
        )

    def response_token_logps(self, batch: PackedBatch) -> Float32[Tensor, "response_tokens"]:
        """Log-probability, in nats, of every response token, response after response."""
        return self._read(batch).numbers

    def _read(self, batch: PackedBatch) -> Reading:
        read = super()._read(batch)
        loss = read.router_loss
        if loss is not None and read.numbers.requires_grad and not loss.requires_grad:
            raise InputError(
                "objective.router_loss_weight: the routers' loss has no gradient; with gradient "
                "checkpointing, set training.gradient_checkpointing_kwargs.use_reentrant=false; if no layer "
                "with a router is trained, set objective.router_loss_weight=0"
            )
        return read

    def _numbers_of_first(self, batch: PackedBatch) -> int:
        return int(batch.lengths[0])

    def _packed(self, batch: PackedBatch, **attention: Any) -> Reading:
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
        head, predicting = model.get_output_embeddings(), hidden[batch.predictors]
        token_logps = response_token_logps(head, model.config, predicting, batch.targets)
        squared = None
        if self._wants_collisions:
            squared = response_token_collisions(head, model.config, predicting)
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
        return Reading(token_logps, router_loss, values, squared)

    def _padded(self, batch: PackedBatch) -> Reading:
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
        squared = collisions(predictions.detach()) if self._wants_collisions else None
        return Reading(logps, outputs.aux_loss if self._router_outputs else None, values, squared)

    @torch.no_grad()
    def _check_router_loss(self) -> None:
        """Ask for the loss before training does: a configuration may name routers that no forward reports."""
        model = self.causal_lm()
        try:
            found = isinstance(self._padded(probe_batch(model)).router_loss, Tensor)
        except (AttributeError, TypeError):
            found = False
        if not found:
            raise InputError(
                f"objective.router_loss_weight: the forward pass of {type(model).__name__} gives no "
                "load-balancing loss; set objective.router_loss_weight=0"
            )


def _sums(numbers: Float32[Tensor, "response_tokens"], batch: PackedBatch) -> Float32[Tensor, "responses"]:
    """Sums over each response's tokens."""
    # Its checks would read the lengths back from the device.
    sums: Tensor = torch.segment_reduce(numbers, "sum", lengths=batch.lengths, unsafe=True)
    return sums


def _copies(spans: Sequence[Span], tokens: int, device: torch.device) -> Float32[Tensor, "tokens"]:
    """How often each token stands in the padded rows: a prompt's once for each of its responses."""
    copies = torch.ones(tokens, device=device)
    for span in spans:
        copies[span.prefix_start : span.prefix_stop] += 1
    return copies


def own_router_loss_weight(config: PretrainedConfig) -> float | None:
    """The model's own weight of its routers' loss, and None if it has no routers that it would report."""
    text_config = config.get_text_config()
    if not hasattr(text_config, "output_router_logits"):
        return None
    return getattr(text_config, "router_aux_loss_coef", None) or 0.0


@torch.no_grad()
def logps_of_tokens(policy: Policy, prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> list[float]:
    """Log-probability of each response to one prompt, summed over its tokens, in nats.

    Args:
        policy: on the device where it reads.
        prompt: token ids.
        responses: their token ids, each with the end-of-sequence token where it has one.
    """
    tokens = tuple(np.array(response, dtype=np.int32) for response in responses)
    group = TokenizedGroup(np.array(prompt, dtype=np.int32), tokens, pairs=())
    logps: list[float] = policy(pack([group]).to(next(policy.parameters()).device)).logps.tolist()
    return logps
