"""A reward model in training: packed batches in, a score for every response out."""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from preftune.data.packing import PackedBatch, pad
from preftune.errors import InputError
from preftune.models.loading import (
    SCORE_HEAD,
    is_reward_model,
    load_model_config,
    load_weights,
    loading_keywords,
)
from preftune.models.quantization import Quantization, compute_alike
from preftune.models.reader import PackedReader, Reading
from preftune.objectives.responses import ScoredResponses


class RewardModel(PackedReader):
    """A decoder with a score in place of its vocabulary head, with or without LoRA.

    It reads one score for each response, at the response's last token: there transformers' own forward pass
    reads it as well, as long as that token is not the padding token (`padding_token`).
    """

    reads = "scores"

    def __init__(self, language_model: nn.Module, share_prompts: bool | None = None) -> None:
        """Wrap a sequence classification model.

        Args:
            language_model: the model, or a `PeftModel` around one; `load_reward_model` loads it.
            share_prompts: whether to share prompts; None lets the probe decide.

        Raises:
            ValueError: `share_prompts` is True and the model cannot, it is in use already, it has more labels
                than one, or no padding token.
        """
        super().__init__(language_model)
        config = self.causal_lm().config
        if config.num_labels != 1 or config.get_text_config().pad_token_id is None:
            raise ValueError("a reward model has one label and a padding token; load it by load_reward_model")
        self._choose_rows(share_prompts)

    def forward(self, batch: PackedBatch) -> ScoredResponses:
        """The score of every response of the batch, with the batch's own numbers."""
        return ScoredResponses(
            logps=None,
            lengths=batch.lengths,
            chosen=batch.chosen,
            rejected=batch.rejected,
            scores=self._read(batch).numbers,
            **batch.numbers,
        )

    def _numbers_of_first(self, batch: PackedBatch) -> int:
        return 1

    def _packed(self, batch: PackedBatch, **attention: Any) -> Reading:
        model = self.causal_lm()
        hidden = model.base_model(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            spans=batch.spans,
            **attention,
        ).last_hidden_state[0]
        # Every span ends with a response.
        ends = torch.tensor([span.stop - 1 for span in batch.spans], device=hidden.device)
        return Reading(model.score(hidden[ends])[:, 0].float())

    def _padded(self, batch: PackedBatch) -> Reading:
        model, rows = self.causal_lm(), pad(batch)
        # The model finds a row's last token by looking for padding.
        padding = model.config.get_text_config().pad_token_id
        input_ids = rows.input_ids.masked_fill(rows.attention_mask == 0, padding)
        outputs = model(input_ids=input_ids, attention_mask=rows.attention_mask, use_cache=False)
        return Reading(outputs.logits[:, 0].float())


def load_reward_model(
    model: str,
    dtype: torch.dtype,
    pad_token_id: int,
    quantization: Quantization | None = None,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """A sequence classification model with one label, on the CPU.

    From a causal language model, the score's weights are new: random, as the model's configuration has it.

    Args:
        model: folder or hub name of a causal language model, or of a reward model to go on with.
        dtype: data type of the weights.
        pad_token_id: what the model takes for padding.
        quantization: as for `load_language_model`.
        device: likewise.

    Raises:
        InputError: there are no weights, the model has other labels, or its architecture has no such form.
    """
    config = load_model_config(model, scores=True)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise InputError(
            f"model={model} is a {config.model_type}: transformers has no sequence classification model of "
            "it to train as a reward model; use another architecture"
        )
    goes_on = is_reward_model(config)
    if config.num_labels != 1 and goes_on:
        raise InputError(
            f"model={model} is a classifier with {config.num_labels} labels; give a causal language model, "
            "or a reward model with one label"
        )
    config.num_labels = 1
    config.get_text_config().pad_token_id = pad_token_id
    # For whoever scores with it: the tokens were those of training, which end with the end of turn.
    config.preftune_tokens = "training"
    fresh = () if goes_on else SCORE_HEAD
    how = loading_keywords(dtype, quantization, device)
    loaded = load_weights(AutoModelForSequenceClassification, model, config, fresh=fresh, **how)
    compute_alike(loaded)
    return loaded


def padding_token(tokenizer: PreTrainedTokenizerBase, used: Collection[int], vocabulary: int) -> str:
    """A special token to pad with that is never read: transformers takes a row's score before its padding.

    It is the tokenizer's own padding token unless that is in use (many pad with the token that ends a turn),
    then the unknown token, then the first other special token.

    Args:
        tokenizer: whose token it is.
        used: ids of the tokens that prompts and responses have.
        vocabulary: how many tokens the model has embeddings for.

    Raises:
        InputError: every special token is in use.
    """
    free = set(range(vocabulary)).difference(used)
    special = [entry.content for entry in tokenizer.added_tokens_decoder.values() if entry.special]
    for token in (tokenizer.pad_token, tokenizer.unk_token, *special):
        if token is not None and tokenizer.convert_tokens_to_ids(token) in free:
            return str(token)
    raise InputError(
        f"the tokenizer's special tokens ({', '.join(special)}) are all in use, so none is left to pad with, "
        "and a reward model reads its score before the padding; add a padding token to the tokenizer and the "
        "model's embeddings"
    )
