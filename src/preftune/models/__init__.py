"""The trained model, as a policy or a reward model, and the reference's cache.

Here live loading, packed attention, the vocabulary and value heads, sharding and the reference cache. May
import objectives, data, serving and storage.
"""

from preftune.models.loading import (
    generation_device,
    generation_dtype,
    has_fast_bfloat16,
    load_language_model,
    load_model_config,
    load_tokenizer,
)
from preftune.models.policy import Policy, logps_of_tokens, own_router_loss_weight
from preftune.models.quantization import Quantization
from preftune.models.reader import PackedReader
from preftune.models.reference import ReferenceCache, reference_identity, with_reference
from preftune.models.reward_model import RewardModel, load_reward_model, padding_token
from preftune.models.value_head import ValueHead

__all__ = [
    "PackedReader",
    "Policy",
    "Quantization",
    "ReferenceCache",
    "RewardModel",
    "ValueHead",
    "generation_device",
    "generation_dtype",
    "has_fast_bfloat16",
    "load_language_model",
    "load_model_config",
    "load_reward_model",
    "load_tokenizer",
    "logps_of_tokens",
    "own_router_loss_weight",
    "padding_token",
    "reference_identity",
    "with_reference",
]
