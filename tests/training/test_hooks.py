"""The private methods of transformers' Trainer under our overrides are as they were when we wrote those."""

import hashlib
import inspect

import pytest
import transformers
from transformers import Trainer

from preftune.api.trainer import PreferenceTrainer
from preftune.online.interleaved import InterleavedTrainer
from preftune.training.hooks import TrainerHooks
from preftune.training.trainer import PackedTrainer

ORIGINALS = {
    "_clip_grad_norm": "ebfa9dc91d3088ab",
    "_defer_fsdp_gradient_reduction": "e8b6a1ca39586c31",
    "_get_grad_norm": "913ba6f52f074d10",
    "_issue_warnings_after_load": "7ccdd73aac16aecb",
    "_load_best_model": "0e183d55a9db7414",
    "_load_from_checkpoint": "a2804e8d93a297e3",
    "_load_optimizer_and_scheduler": "741032f57d6fb802",
    "_push_from_checkpoint": "2523da925347bd9a",
    "_prepare_inputs": "8f8c4e430d2f96d6",
    "_save": "b136889e87928376",
    "_save_optimizer_and_scheduler": "c5ef974db69ab993",
}
"""The first 16 digits of the SHA-256 of each original's source in transformers 5.23."""


def overridden(trainer: type) -> set[str]:
    """Private methods of Trainer that a class defines itself."""
    return {name for name in vars(trainer) if name.startswith("_") and not name.startswith("__")} & set(
        vars(Trainer)
    )


@pytest.mark.parametrize("name", ORIGINALS)
def test_an_overridden_method_is_as_it_was(name: str) -> None:
    """A transformers that changes a method under an override is heard of here, by the method's name."""
    original = getattr(Trainer, name, None)
    assert original is not None, f"transformers {transformers.__version__} has no Trainer.{name} any more"
    found = hashlib.sha256(inspect.getsource(original).encode()).hexdigest()[:16]
    assert found == ORIGINALS[name], (
        f"transformers {transformers.__version__} changed Trainer.{name}: read it, adapt its override in "
        f"training/hooks.py, then write {found} here"
    )


def test_every_private_override_stands_in_one_file() -> None:
    """The table above is complete, and no other class of the package overrides a private method."""
    assert overridden(TrainerHooks) == set(ORIGINALS)
    assert overridden(PackedTrainer) | overridden(InterleavedTrainer) | overridden(PreferenceTrainer) == set()
