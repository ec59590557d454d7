"""Memory and time of other ways to train: the arithmetic by hand on a tiny model."""

from math import ceil
from typing import Any

import pytest

from preftune.models.quantization import four_bit_bytes
from preftune.training.alternatives import Alternative, alternatives, seconds_of
from preftune.training.footprint import MeasuredStep, compute_footprint, seconds_of_run

from .test_footprint import ADAPTER, EMBEDDINGS, LAYER, WEIGHTS, prepared

MATRICES = [32 * 32, 32 * 16, 32 * 16, 32 * 32, 32 * 48, 32 * 48, 48 * 32]
"""Of a layer: queries, keys, values, output, and three of the feed-forward."""


def named(config: dict[str, Any], *overrides: str) -> dict[str, Alternative]:
    """The alternatives of a configuration, by the first word of their names."""
    found = alternatives(prepared(config, *overrides))
    return {way.name.split()[0].strip(","): way for way in found}


def test_four_bits_and_their_constants() -> None:
    """128 weights are 64 bytes, 2 constants of a byte, and one of 4 bytes for up to 256 of those."""
    assert four_bit_bytes(128) == 64 + 2 + 4
    # The 0.127 bits a weight that the paper says double quantization leaves.
    assert 8 * four_bit_bytes(2**20) / 2**20 == pytest.approx(4.127, abs=5e-4)


def test_full_training_and_lora_are_what_their_runs_take(config: dict[str, Any]) -> None:
    """Whichever the run uses, both agree with the footprint of a run that uses it."""
    for overrides in ([], ["lora.rank=4"]):
        found = named(config | {"lora": {"rank": 4}} if overrides else config)
        run = compute_footprint(prepared(config, *overrides))
        own = found["LoRA" if overrides else "all"]
        assert (own.weights, own.gradients, own.optimizer) == (run.weights, run.gradients, run.optimizer)
    assert found["all"].weights == 4 * WEIGHTS
    assert named(config)["LoRA"].name == "LoRA, rank 16"


def test_qlora_has_the_layers_matrices_in_four_bits(config: dict[str, Any]) -> None:
    """Embeddings, which are the head too, norms and the adapter stay in their data types."""
    qlora = named(config, "lora.rank=4", "model_dtype=bfloat16")["QLoRA"]
    kept = EMBEDDINGS + 2 * 2 * 32 + 32
    # The constants of the constants are 4 bytes a matrix, each of which has at most 48 of them.
    matrices = sum(size // 2 + size // 64 + 4 for size in MATRICES)
    assert qlora.weights == 2 * kept + 2 * matrices + 4 * ADAPTER
    assert (qlora.gradients, qlora.optimizer) == (4 * ADAPTER, 8 * ADAPTER)
    assert qlora.is_least


def test_fsdp_has_its_share_and_what_is_gathered(config: dict[str, Any]) -> None:
    """An eighth of everything, and one of the two layers with the embeddings and the last norm whole."""
    sharded = named(config)["FSDP2"]
    gathered = 4 * (LAYER + EMBEDDINGS + 32)
    assert sharded.weights == sharded.gradients == ceil(4 * WEIGHTS / 8) + gathered
    assert sharded.optimizer == 8 * WEIGHTS / 8
    assert sharded.name == "FSDP2, 8 processes"


def test_time_goes_by_operations(config: dict[str, Any]) -> None:
    """A frozen weight has two operations fewer of six, and eight processes each do an eighth."""
    run = prepared(config, "lora.rank=4")
    measured = MeasuredStep(tokens=100, row_tokens=100, seconds=2.0, activations=5, peak=None)
    whole = seconds_of_run(run, measured)
    seconds = {way.name.split()[0].strip(","): seconds_of(run, measured, way) for way in alternatives(run)}
    assert seconds == pytest.approx(
        {"all": 1.5 * whole, "LoRA": whole, "QLoRA": whole, "FSDP2": 1.5 * whole / 8}
    )
