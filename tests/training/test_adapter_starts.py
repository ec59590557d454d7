"""Runs from a base model, from an adapter that goes on, and from one that is merged, held to plain peft.

Each trains 10 steps on the tiny model. The other side is peft's own model, read in padded rows by the model's
own forward pass and stepped by torch's AdamW: it shares the objective and the tokens, and nothing else.
"""

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed

from preftune.data import TokenizedGroup
from preftune.data.packing import pack
from preftune.objectives import ScoredResponses, count_units
from preftune.training import check_config
from preftune.training.preparation import PreparedRun, prepare

from ..conftest import rows, write_rows
from ..forks import Forks

STEPS = 10
RATE = 2e-3
LORA = {"rank": 4, "alpha": 8}
NEW = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


@dataclass(frozen=True)
class StartedFrom:
    """A row of the table.

    Attributes:
        lora: the section of the configuration.
        is_adapter: whether `model` is the SFT adapter's folder, and not its base.
        build: the model as plain peft has it at the start, of the base and the adapter's folder.
    """

    lora: dict[str, Any]
    is_adapter: bool
    build: Callable[[Any, Path, str], PeftModel]


def _new(base: Any, _: Path, task: str) -> PeftModel:
    return get_peft_model(base, LoraConfig(**NEW, task_type=task))


def _continued(base: Any, adapter: Path, task: str) -> PeftModel:
    config = LoraConfig.from_pretrained(adapter)
    config.task_type, config.inference_mode = task, False
    model = get_peft_model(base, config)
    stored = load_file(adapter / "adapter_model.safetensors")
    # A reward model's score is new.
    set_peft_model_state_dict(model, get_peft_model_state_dict(model) | stored)
    return model


def _merged(base: Any, adapter: Path, task: str) -> PeftModel:
    return _new(_continued(base, adapter, task).merge_and_unload(), adapter, task)


STARTS = {
    "base": StartedFrom(LORA, False, _new),
    "continue": StartedFrom({"start": "continue"}, True, _continued),
    "merge": StartedFrom({"start": "merge", **LORA}, True, _merged),
}
"""What a run may start from; another is another row."""

METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"method": "dpo", "prior": "reward_gap"},
    "kto": {"method": "kto"},
    "simpo": {"method": "simpo"},
    "bradley_terry": {"method": "bradley_terry"},
}


def save_sft_adapter(base: Path, folder: Path) -> Path:
    """An adapter that is far from nothing, as SFT leaves one."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """The adapter's folder."""
    return save_sft_adapter(tiny_model_dir, tmp_path_factory.mktemp("sft") / "adapter")


def configure(config: dict[str, Any], start: str, method: str, base: Path, adapter: Path) -> dict[str, Any]:
    """A run whose every step has all rows, so that no shuffling matters."""
    row = STARTS[start]
    config = copy.deepcopy(config)
    del config["data"]["evaluation"]
    write_rows(Path(config["data"]["train"]), rows(8, seed=1))
    config |= {
        "model": str(adapter if row.is_adapter else base),
        "lora": row.lora,
        "objective": METHODS[method],
    }
    if method != "dpo":
        del config["prior"]
    config["training"] |= {
        "learning_rate": RATE,
        "per_device_train_batch_size": 8,
        "num_train_epochs": STEPS,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "save_strategy": "steps",
        "save_steps": 5,
    }
    return config


# --- the other side ---


def plain_numbers(model: PeftModel, groups: Sequence[TokenizedGroup]) -> Tensor:
    """Log-probabilities of each response, or its score, from padded rows of the model's own forward pass."""
    answers = [(group.prompt, group.responses[index]) for group in groups for index in group.packed]
    lengths = [len(prompt) + len(response) for prompt, response in answers]
    ids = torch.zeros(len(answers), max(lengths), dtype=torch.int64)
    for row, parts in zip(ids, answers, strict=True):
        joined = torch.cat([torch.from_numpy(part).long() for part in parts])
        row[: len(joined)] = joined
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    logits = model(input_ids=ids, attention_mask=mask).logits
    if model.peft_config["default"].task_type == "SEQ_CLS":
        return logits[:, 0]
    logps = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    spans = zip(logps, answers, lengths, strict=True)
    return torch.stack([row[len(prompt) - 1 : length - 1].sum() for row, (prompt, _), length in spans])


def scored(prepared: PreparedRun, model: PeftModel, groups: Sequence[TokenizedGroup]) -> ScoredResponses:
    """What the objective reads, with the divergence that KTO asks for."""
    numbers, batch = plain_numbers(model, groups), pack(groups)
    is_score = "score" in prepared.objective.needs
    divergence = None
    if "divergence" in prepared.objective.needs:
        assert batch.mismatched is not None
        with torch.no_grad():
            mismatched = [group.mismatched for group in groups if group.mismatched]
            other = plain_numbers(model, mismatched) - batch.mismatched.numbers["reference_logps"]
        divergence = other.double().mean().clamp(min=0).float()
    return ScoredResponses(
        logps=None if is_score else numbers,
        scores=numbers if is_score else None,
        lengths=batch.lengths,
        chosen=batch.chosen,
        rejected=batch.rejected,
        divergence=divergence,
        **batch.numbers,
    )


def referenced(groups: Sequence[TokenizedGroup], model: PeftModel) -> list[TokenizedGroup]:
    """The groups with the model's log-probabilities as the reference's."""
    found = []
    for group in groups:
        with torch.no_grad():
            logps = plain_numbers(model, [group]).numpy()
        mismatched = group.mismatched and referenced([group.mismatched], model)[0]
        per_response = {**group.per_response, "reference_logps": logps}
        found.append(replace(group, per_response=per_response, mismatched=mismatched))
    return found


def plain_start(prepared: PreparedRun, start: str, base: Path, adapter: Path) -> PeftModel:
    """The model at the start as plain transformers and peft have it."""
    set_seed(prepared.arguments.seed)
    if "score" in prepared.objective.needs:
        kwargs = {"num_labels": 1, "pad_token_id": prepared.tokenizer.pad_token_id}
        model: Any = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32, **kwargs)
        return STARTS[start].build(model, adapter, "SEQ_CLS")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return STARTS[start].build(model, adapter, "CAUSAL_LM")


def plain_run(config: dict[str, Any], start: str, base: Path, adapter: Path) -> tuple[list[float], Tensor]:
    """The loss of every step, and the numbers of all responses after the last."""
    prepared = prepare(check_config(config))
    # What pads a reward model's rows is settled when it loads.
    if "score" in prepared.objective.needs:
        prepared.tokenizer.pad_token_id = 0
    model = plain_start(prepared, start, base, adapter).eval()
    groups = prepared.train.groups
    if "reference" in prepared.objective.needs:
        groups = referenced(groups, model)
    losses = []
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    for _ in range(STEPS):
        responses = scored(prepared, model, groups)
        counts = count_units(responses.lengths, responses.chosen, responses.groups)
        loss = prepared.objective(responses).total(counts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with torch.no_grad():
        return losses, plain_numbers(model, groups)


def saved_numbers(run: Path, config: dict[str, Any], base: Path) -> Tensor:
    """The numbers of all responses, of what the run has saved as plain transformers and peft load it."""
    prepared, folder = prepare(check_config(config)), run / "model"
    if "score" in prepared.objective.needs:
        named = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        own: Any = AutoModelForSequenceClassification.from_pretrained(named, num_labels=1, pad_token_id=0)
        model = PeftModel.from_pretrained(own, folder)
    else:
        model = AutoPeftModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return plain_numbers(model.eval(), prepared.train.groups)


def losses_of(run: Path) -> list[float]:
    """The loss of every step."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line]


FAST = {("continue", "dpo", "resumed"), ("merge", "kto", "plain")}
"""The cells that every run of the tests has."""
CELLS = [
    pytest.param(*(start, method, way), marks=[] if (start, method, way) in FAST else [pytest.mark.slow])
    for start in STARTS
    for method in METHODS
    for way in ("plain", "resumed", "two processes")
]


@pytest.mark.parametrize(("start", "method", "way"), CELLS)
def test_ten_steps_are_those_of_plain_peft(
    start: str,
    method: str,
    way: str,
    config: dict[str, Any],
    sft: Path,
    tiny_model_dir: Path,
    train: Callable[..., Path],
    killed_behind: Callable[[Path, int], Path],
    forks: Forks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The losses of all steps, and what the saved model says as plain peft loads it, are the other side's.

    No checkpoint asks the hub for a base model, which would have to be called `base`.
    """
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", pytest.fail)
    config = configure(config, start, method, tiny_model_dir, sft)
    if way == "two processes":
        config["training"]["per_device_train_batch_size"] = 4
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        done = forks.run(["preftune", "train", str(file)], processes=2)
        assert done.status == 0, done.errors
        run = Path(config["output"])
    else:
        run = train(config)
    if way == "resumed":
        run = train(config, f"output={killed_behind(run, 5)}", "--resume")
    losses, numbers = plain_run(config, start, tiny_model_dir, sft)
    assert losses_of(run) == pytest.approx(losses, rel=2e-4, abs=2e-5)
    if method == "dpo":
        assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0]
    torch.testing.assert_close(saved_numbers(run, config, tiny_model_dir), numbers, rtol=1e-3, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
def test_ten_steps_on_smollm2_are_those_of_plain_peft(
    start: str, config: dict[str, Any], smollm2_dir: Path, train: Callable[..., Path], tmp_path: Path
) -> None:
    """On the real model too: dpo with a prior from every start."""
    sft = save_sft_adapter(smollm2_dir, tmp_path / "sft")
    config = configure(config, start, "dpo", smollm2_dir, sft)
    config["training"]["save_strategy"] = "no"
    run = train(config)
    losses, numbers = plain_run(config, start, smollm2_dir, sft)
    assert losses_of(run) == pytest.approx(losses, rel=1e-2, abs=1e-4)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    torch.testing.assert_close(saved_numbers(run, config, smollm2_dir), numbers, rtol=1e-2, atol=5e-2)
