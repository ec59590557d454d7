"""The reference is computed once for what it depends on, and again when any of that changes."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.data import Pair, TokenizedGroup
from preftune.data.packing import pack
from preftune.models import Policy, ReferenceCache, reference, reference_identity

Train = Callable[..., Path]


def groups_found(caplog: pytest.LogCaptureFixture) -> list[str]:
    """`found of all` for the training and the held-out groups of the last run."""
    found = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Reference:")]
    caplog.clear()
    return [message.removeprefix("Reference: ").partition(" groups")[0] for message in found]


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The package's log at the level of the command line."""
    caplog.set_level(logging.INFO, logger="preftune")
    return caplog


@pytest.mark.parametrize(
    "change",
    [
        "training.learning_rate=1e-5",
        "training.seed=7",
        "objective.beta=0.5",
        "objective.method=ipo",
        "objective.prior=none",
        "lora.rank=2",
    ],
)
def test_hits_when_the_reference_stays_the_same(
    change: str, config: dict[str, Any], train: Train, tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    """Learning rate, seed, objective, adapter and output folder are no part of the key."""
    config["training"]["max_steps"] = 2
    train(config)
    assert groups_found(logs) == ["0 of 16", "0 of 5"]
    train(config, change, f"output={tmp_path / 'other'}")
    assert groups_found(logs) == ["16 of 16", "5 of 5"]


def _other_weights(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.get_input_embeddings().weight.data[7] += 1e-3
    model.save_pretrained(folder)


def _other_frequencies(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["rope_parameters"]["rope_theta"] *= 2
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _other_template(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("helpful", "terse")
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    "change", [_other_weights, _other_frequencies, _other_template], ids=lambda c: c.__name__
)
def test_misses_when_the_model_folder_changes(
    change: Callable[[Path], None],
    config: dict[str, Any],
    train: Train,
    tmp_path: Path,
    tiny_model_dir: Path,
    logs: pytest.LogCaptureFixture,
) -> None:
    """One changed weight, number of the configuration or word of the template is another reference."""
    config["training"]["max_steps"] = 2
    train(config)
    groups_found(logs)
    copy = tmp_path / "model-copy"
    shutil.copytree(tiny_model_dir, copy)
    change(copy)
    train(config, f"model={copy}", f"output={tmp_path / 'other'}")
    assert groups_found(logs) == ["0 of 16", "0 of 5"]


def test_misses_when_precision_changes(
    config: dict[str, Any], train: Train, tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    """bf16 log-probabilities are not fp32's."""
    config["training"]["max_steps"] = 2
    train(config)
    groups_found(logs)
    train(config, "training.bf16=true", f"output={tmp_path / 'other'}")
    assert groups_found(logs) == ["0 of 16", "0 of 5"]


def test_misses_when_truncation_changes(
    config: dict[str, Any], train: Train, tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    """A limit that cuts every response is another key for every response."""
    config["training"]["max_steps"] = 2
    train(config)
    groups_found(logs)
    limits = ["data.max_prompt_length=30", "data.max_length=32", "data.rules.prompt_too_long=truncate"]
    train(config, *limits, f"output={tmp_path / 'other'}")
    assert groups_found(logs) == ["0 of 16", "0 of 5"]


def test_misses_only_the_rows_that_changed(
    config: dict[str, Any], train: Train, tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    """One edited response is computed again, the other rows are found."""
    config["training"]["max_steps"] = 2
    train(config)
    groups_found(logs)
    lines = Path(config["data"]["train"]).read_text(encoding="utf-8").splitlines()
    edited = json.loads(lines[3])
    edited["chosen"][0]["content"] += " edited"
    lines[3] = json.dumps(edited)
    Path(config["data"]["train"]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    train(config, f"output={tmp_path / 'other'}")
    assert groups_found(logs) == ["15 of 16", "5 of 5"]


def test_lora_reference_is_the_model_with_the_adapter_off(
    tiny_model_dir: Path, token_groups: list[TokenizedGroup], tmp_path: Path
) -> None:
    """With an adapter that changes the policy, the cache still holds the base model's numbers."""
    plain = Policy(AutoModelForCausalLM.from_pretrained(tiny_model_dir))
    identity = reference_identity(plain.causal_lm(), "full")
    expected = ReferenceCache(tmp_path / "plain", identity).fill(plain, token_groups)
    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir),
        peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    policy = Policy(adapted)
    assert reference_identity(policy.causal_lm(), "full") == identity
    found = ReferenceCache(tmp_path / "lora", identity).fill(policy, token_groups)
    for group, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            group.per_response["reference_logps"], other.per_response["reference_logps"], rtol=1e-6
        )
    changed = policy(pack(token_groups[:1])).logps
    assert (changed - torch.tensor(expected[0].per_response["reference_logps"])).abs().max() > 0.01


def test_what_is_stored_is_the_policys_own_number(
    tiny_model_dir: Path, token_groups: list[TokenizedGroup], tmp_path: Path
) -> None:
    """Read back from the file, every paired response has the log-probability that the policy gives it."""
    policy = Policy(AutoModelForCausalLM.from_pretrained(tiny_model_dir))
    ReferenceCache(tmp_path, "id").fill(policy, token_groups)
    for group in ReferenceCache(tmp_path, "id").fill(policy, token_groups):
        alone = policy(pack([group])).logps.detach().numpy()
        np.testing.assert_allclose(group.per_response["reference_logps"], alone, rtol=1e-5)


def test_two_runs_add_to_one_file(
    tiny_model_dir: Path, token_groups: list[TokenizedGroup], tmp_path: Path
) -> None:
    """What another run has written since this one read the file is kept."""
    policy = Policy(AutoModelForCausalLM.from_pretrained(tiny_model_dir))
    first, second = ReferenceCache(tmp_path, "id"), ReferenceCache(tmp_path, "id")
    first.fill(policy, token_groups[:1])
    second.fill(policy, token_groups[1:])
    found = []
    third = ReferenceCache(tmp_path, "id")
    third._compute = lambda *a: found.append(a)  # type: ignore[method-assign]
    third.fill(policy, token_groups)
    assert found == []


def test_a_damaged_file_is_computed_again(
    tiny_model_dir: Path, token_groups: list[TokenizedGroup], tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    """Half a file is no crash and no wrong number."""
    policy = Policy(AutoModelForCausalLM.from_pretrained(tiny_model_dir))
    whole = ReferenceCache(tmp_path, "id").fill(policy, token_groups)
    file = tmp_path / "reference" / "id.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    again = ReferenceCache(tmp_path, "id").fill(policy, token_groups)
    assert "is damaged" in logs.text
    for group, other in zip(again, whole, strict=True):
        np.testing.assert_array_equal(
            group.per_response["reference_logps"], other.per_response["reference_logps"]
        )


def test_a_response_without_a_pair_has_no_reference(
    tiny_model_dir: Path, token_groups: list[TokenizedGroup], tmp_path: Path
) -> None:
    """Only paired responses are computed; the others are NaN, which no pair can pick up."""
    group = TokenizedGroup(token_groups[0].prompt, token_groups[0].responses, (Pair(0, 2),))
    policy = Policy(AutoModelForCausalLM.from_pretrained(tiny_model_dir))
    (filled,) = ReferenceCache(tmp_path, "id").fill(policy, [group])
    assert np.isnan(filled.per_response["reference_logps"]).tolist() == [False, True, False]


def test_only_what_the_steps_visit_is_computed(
    config: dict[str, Any], train: Train, tmp_path: Path, logs: pytest.LogCaptureFixture
) -> None:
    """A run of a step asks for its eight groups, and what it trains on is what a whole epoch's pass gives."""
    config["cache"] = str(tmp_path / "few")
    few = train(config, "training.max_steps=1", f"output={tmp_path / 'one'}")
    assert groups_found(logs) == ["0 of 8", "0 of 5"]
    train(config, f"cache={tmp_path / 'all'}", f"output={tmp_path / 'whole'}")
    assert groups_found(logs) == ["0 of 16", "0 of 5"]
    again = train(config, "training.max_steps=1", f"cache={tmp_path / 'all'}", f"output={tmp_path / 'again'}")
    weights = [load_file(run / "model" / "model.safetensors") for run in (few, again)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


@pytest.mark.parametrize("only", [set(), {1}, {0, 2}])
def test_the_wanted_numbers_are_those_of_all(
    only: set[int], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, since rows stay as they are; other groups stay without."""
    monkeypatch.setattr(reference, "TOKENS_PER_ROW", 40)
    random = np.random.default_rng(0)

    def tokens(count: int) -> np.ndarray:
        return random.integers(3, 200, size=count, dtype=np.int32)

    groups = [TokenizedGroup(tokens(4 + place), (tokens(5), tokens(9)), (Pair(0, 1),)) for place in range(4)]
    policy = Policy(AutoModelForCausalLM.from_pretrained(tiny_model_dir)).eval()
    whole = ReferenceCache(tmp_path / "whole", "model").fill(policy, groups)
    part = ReferenceCache(tmp_path / "part", "model").fill(policy, groups, only=only)
    for place, (expected, found) in enumerate(zip(whole, part, strict=True)):
        if place in only:
            logps = [group.per_response["reference_logps"] for group in (expected, found)]
            np.testing.assert_array_equal(*logps)
        else:
            assert found is groups[place]
