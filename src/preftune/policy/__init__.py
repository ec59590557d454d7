"""The model that is trained, as a policy or a reward model, and the reference's cache."""

from preftune.policy.loading import (
    generation_device,
    generation_dtype,
    has_fast_bfloat16,
    load_config,
    load_language_model,
    load_tokenizer,
)
from preftune.policy.policy import Policy, logps_of_tokens, own_router_loss_weight
from preftune.policy.reader import PackedReader
from preftune.policy.reference import ReferenceCache, reference_identity, with_reference
from preftune.policy.reward_model import RewardModel, load_reward_model, padding_token
from preftune.policy.value_head import ValueHead

__all__ = [
    "PackedReader",
    "Policy",
    "ReferenceCache",
    "RewardModel",
    "ValueHead",
    "generation_device",
    "generation_dtype",
    "has_fast_bfloat16",
    "load_config",
    "load_language_model",
    "load_reward_model",
    "load_tokenizer",
    "logps_of_tokens",
    "own_router_loss_weight",
    "padding_token",
    "reference_identity",
    "with_reference",
]
