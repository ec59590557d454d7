"""The language model as a policy: log-probabilities of packed responses, and the reference's cache."""

from preftune.policy.loading import (
    generation_device,
    generation_dtype,
    has_fast_bfloat16,
    load_config,
    load_language_model,
    load_tokenizer,
)
from preftune.policy.policy import Policy, own_router_loss_weight
from preftune.policy.reference import ReferenceCache, reference_identity
from preftune.policy.value_head import ValueHead

__all__ = [
    "Policy",
    "ReferenceCache",
    "ValueHead",
    "generation_device",
    "generation_dtype",
    "has_fast_bfloat16",
    "load_config",
    "load_language_model",
    "load_tokenizer",
    "own_router_loss_weight",
    "reference_identity",
]
