"""Those whom `gpu.py` measures: preftune's trainer and TRL's, on the same random weights and pairs.

The policy is not the reference, so losses differ from log 2, and contestants that compute the same agree.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer
from trl_examples import trl_examples

from preftune import objectives
from preftune.data import Pair, TokenizedGroup
from preftune.data.packing import PackedBatch, pack
from preftune.models import Policy
from preftune.training.trainer import PackedTrainer

POLICY_SEED, REFERENCE_SEED = 0, 1

Groups = list[TokenizedGroup]
Range = tuple[int, int]


@dataclass(frozen=True)
class Size:
    """A model's shape, how many pairs a batch of it has, and whether adapters alone are trained."""

    name: str
    config: Qwen2Config
    pairs: int
    lora: bool = False


@dataclass(frozen=True)
class Setting:
    """What all contestants share; lengths are uniform between two bounds."""

    device: str
    dtype: torch.dtype
    prompt: Range = (256, 768)
    response: Range = (128, 384)
    batches: int = 5
    head_tokens: int = 8192


@dataclass(frozen=True)
class Contestant:
    """A trainer, what turns groups into the input of its `training_step`, and the attention it settled on."""

    trainer: Any
    model: nn.Module
    collate: Callable[[Groups, bool], Any]
    attention: str

    def step(self, inputs: Any) -> float:
        """One forward and backward pass; returns the loss."""
        self.model.zero_grad()
        return float(self.trainer.training_step(self.model, inputs))


def qwen(
    layers: int, width: int, inner: int, heads: int, kv_heads: int, vocabulary: int, tied: bool
) -> Qwen2Config:
    """A configuration of the Qwen2.5 family."""
    return Qwen2Config(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )


def language_model(size: Size, setting: Setting, seed: int, attention: str = "sdpa") -> PreTrainedModel:
    """Random weights, made on the device."""
    torch.manual_seed(seed)
    config = copy.deepcopy(size.config)  # trainers write into their model's
    with torch.device(setting.device):
        return AutoModelForCausalLM.from_config(config, dtype=setting.dtype, attn_implementation=attention)


def adapters() -> LoraConfig:
    """Rank 16 on all linear layers but the head; not zero, so that the policy is not the reference."""
    return LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )


def arguments(setting: Setting) -> dict[str, Any]:
    """What both trainers are given."""
    return {
        "output_dir": tempfile.gettempdir(),  # nothing is saved
        "use_cpu": setting.device == "cpu",
        "bf16": setting.dtype is torch.bfloat16,
        "report_to": "none",
        "seed": POLICY_SEED,
    }


def tokenizer() -> PreTrainedTokenizerFast:
    """Enough for the trainers' constructors; steps are given token ids."""
    words = Tokenizer(WordLevel({"<eos>": 0, "a": 1, "b": 2, "c": 3}, unk_token="<eos>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>")


def pack_unshared(groups: Groups) -> PackedBatch:
    """Every response in a group of its own, behind its own copy of the prompt; pairs reach across groups."""
    singles = [
        TokenizedGroup(
            group.prompt, (response,), (Pair(0, 0),), {"reference_logps": logps[index : index + 1]}
        )
        for group in groups
        if (logps := group.per_response.get("reference_logps")) is not None
        for index, response in enumerate(group.responses)
    ]
    shared = pack(groups)
    return replace(pack(singles), chosen=shared.chosen, rejected=shared.rejected)


@torch.no_grad()
def with_references(size: Size, setting: Setting, batches: list[Groups]) -> list[Groups]:
    """The batches with log pi_ref: of a model of other weights, or of the policy without its adapters."""
    policy = Policy(language_model(size, setting, POLICY_SEED if size.lora else REFERENCE_SEED))

    def referenced(group: TokenizedGroup) -> TokenizedGroup:
        logps = policy(pack([group]).to(setting.device)).logps
        return replace(group, per_response={"reference_logps": logps.float().cpu().numpy()})

    return [[referenced(group) for group in groups] for groups in batches]


def preftune(size: Size, setting: Setting, checkpointing: bool) -> Contestant:
    """One packed row in preftune's trainer, the reference precomputed."""
    model = language_model(size, setting, POLICY_SEED)
    if size.lora:
        torch.manual_seed(POLICY_SEED)
        model = get_peft_model(model, adapters())
    policy = Policy(model, share_prompts=True)
    if checkpointing:
        policy.activation_checkpointing_enable()
    trainer = PackedTrainer(
        policy,
        objectives.build({"method": "dpo"}),
        TrainingArguments(**arguments(setting), remove_unused_columns=False),
        [],
        None,
        tokenizer(),
        callbacks=[],
    )

    def collate(groups: Groups, shared: bool) -> Any:
        return [{"batch": pack(groups) if shared else pack_unshared(groups)}]

    return prepared(trainer, collate, policy.causal_lm().config._attn_implementation)


def trl(size: Size, setting: Setting, attention: str, defaults: bool) -> Contestant:
    """TRL's trainer: as it comes, or without recomputation and with the reference precomputed."""
    disable_progress_bars()
    # Without adapters the constructor wants a reference in any case; a tiny one is dropped again.
    other = size if defaults else replace(size, config=qwen(1, 64, 64, 1, 1, 256, True))
    trainer = DPOTrainer(
        model=language_model(size, setting, POLICY_SEED, attention),
        ref_model=None if size.lora else language_model(other, setting, REFERENCE_SEED, attention),
        args=DPOConfig(**arguments(setting), max_length=None, gradient_checkpointing=defaults),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}]),
        processing_class=tokenizer(),
        peft_config=adapters() if size.lora else None,
    )
    if defaults:
        trainer.model.activation_checkpointing_enable()  # as Trainer.train would
    else:
        trainer.precompute_ref_logps, trainer.ref_model = True, None

    def collate(groups: Groups, _: bool) -> Any:
        return trainer.data_collator(trl_examples(groups))

    return prepared(trainer, collate, attention)


def prepared(trainer: Any, collate: Callable[[Groups, bool], Any], attention: str) -> Contestant:
    """The trainer as it is once training has begun."""
    model = trainer.accelerator.prepare(trainer.model)
    trainer.current_gradient_accumulation_steps = 1
    return Contestant(trainer, model.train(), collate, attention)


CONTESTANTS: dict[str, Callable[[Size, Setting], Contestant]] = {
    "preftune": partial(preftune, checkpointing=False),
    "preftune, gradient checkpointing": partial(preftune, checkpointing=True),
    "TRL defaults, sdpa": partial(trl, attention="sdpa", defaults=True),
    "TRL fastest, sdpa": partial(trl, attention="sdpa", defaults=False),
    "TRL defaults, flash_attention_2": partial(trl, attention="flash_attention_2", defaults=True),
    "TRL fastest, flash_attention_2": partial(trl, attention="flash_attention_2", defaults=False),
}
