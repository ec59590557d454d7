"""Memory of a run: the arithmetic by hand on a tiny model, and one measured step."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM

import preftune
from preftune import InputError, PreferenceTrainer, check
from preftune.training.footprint import Footprint, compute_footprint, measure_step, seconds_of_run
from preftune.training.preparation import PreparedRun

from ..conftest import rows

LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48 + 2 * 32
"""Queries, keys and values of half the heads, output, three of the feed-forward, two norms."""
EMBEDDINGS = 49152 * 32
WEIGHTS = EMBEDDINGS + 2 * LAYER + 32
ADAPTER = 2 * 4 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 48) * 3)
"""Rank 4, two layers: queries and output, keys and values, and the feed-forward."""


def prepared(config: dict[str, Any], *overrides: str) -> PreparedRun:
    """The run of a configuration with overrides."""
    file = Path(config["output"]).parent / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return check(file, overrides)


def footprint(config: dict[str, Any], *overrides: str) -> Footprint:
    """Of a configuration with overrides."""
    return compute_footprint(prepared(config, *overrides))


def test_full_training_keeps_four_numbers_for_each_weight(config: dict[str, Any]) -> None:
    """Weight, gradient and AdamW's two moments, each of 4 bytes."""
    found = footprint(config)
    assert found.parameters == found.trained == WEIGHTS
    assert (found.weights, found.gradients, found.optimizer) == (4 * WEIGHTS, 4 * WEIGHTS, 8 * WEIGHTS)
    assert found.total == 16 * WEIGHTS
    assert found.device == "cpu"


def test_lora_trains_its_own_weights_alone(config: dict[str, Any]) -> None:
    """The model in bfloat16 has 2 bytes a weight; the adapter is in float32, and only it has gradients."""
    found = footprint(config, "lora.rank=4", "model_dtype=bfloat16")
    assert (found.parameters, found.trained) == (WEIGHTS + ADAPTER, ADAPTER)
    assert found.weights == 2 * WEIGHTS + 4 * ADAPTER
    assert (found.gradients, found.optimizer) == (4 * ADAPTER, 8 * ADAPTER)


def test_sgd_keeps_nothing_and_an_unknown_optimizer_is_not_guessed(config: dict[str, Any]) -> None:
    """Plain SGD has no state; Adafactor's depends on shapes in its own way."""
    assert footprint(config, "training.optim=sgd").optimizer == 0
    assert footprint(config, "training.optim=adafactor").optimizer is None


def test_a_reward_model_has_a_score_in_place_of_a_vocabulary_head(config: dict[str, Any]) -> None:
    """One row of 32 weights; the head was tied to the embeddings."""
    found = footprint(config | {"objective": {"method": "bradley_terry"}, "prior": {}})
    assert found.parameters == WEIGHTS + 32


def test_a_given_model_is_counted_as_it_is(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Frozen weights have no gradient."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.get_input_embeddings().weight.requires_grad_(False)
    args = {"use_cpu": True}
    trainer = PreferenceTrainer(model, train_dataset=rows(4, 1), args=args, cache=tmp_path)
    found = trainer.inspect(rows=0).footprint
    assert (found.parameters, found.trained) == (WEIGHTS, WEIGHTS - EMBEDDINGS)


def test_one_step_is_measured_and_leaves_nothing(config: dict[str, Any]) -> None:
    """The step with the longest row gives time and activations; the run folder does not come to be."""
    run = prepared(config)
    measured = measure_step(run)
    # Two steps an epoch, of which the longer one is taken.
    assert run.train.tokens / 2 <= measured.tokens < run.train.tokens
    # At least the input of each of two layers, of 4 bytes each.
    assert measured.activations > measured.row_tokens * 32 * 2 * 4
    assert measured.peak is None
    assert measured.row_tokens == measured.tokens
    expected = measured.seconds / measured.tokens * 2 * run.train.tokens
    assert seconds_of_run(run, measured) == pytest.approx(expected)
    assert not Path(config["output"]).exists()


def test_smaller_rows_keep_less(config: dict[str, Any]) -> None:
    """Half the groups in a row keep about half as much for the backward pass."""
    whole = measure_step(prepared(config, "training.per_device_train_batch_size=8"))
    half = measure_step(prepared(config, "training.per_device_train_batch_size=4"))
    ratio = half.row_tokens / whole.row_tokens
    assert half.activations / whole.activations == pytest.approx(ratio, rel=0.2)


def test_a_model_of_the_callers_is_never_stepped(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Measuring would change its weights."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with pytest.raises(InputError, match="give its name or folder"):
        preftune.inspect(
            model=model, train_dataset=rows(4, 1), args={"use_cpu": True}, cache=tmp_path, measure=True
        )
