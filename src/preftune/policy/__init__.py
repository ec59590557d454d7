"""The language model as a policy: log-probabilities of packed responses, and the reference's cache."""

from preftune.policy.policy import Policy
from preftune.policy.reference import ReferenceCache, reference_identity

__all__ = ["Policy", "ReferenceCache", "reference_identity"]
