"""Reward models: the same loss as TRL's, prompts shared or not, and folders that plain transformers reads."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import RewardConfig, RewardTrainer

from preftune.data import TokenizedGroup
from preftune.data.packing import pack
from preftune.errors import InputError
from preftune.models import Policy, RewardModel, load_language_model, load_reward_model, padding_token
from preftune.objectives import build, count_units

from ..forks import Forks

Train = Callable[..., Path]
Killed = Callable[[Path, int], Path]

COMMON: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 200,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = COMMON | {"num_key_value_heads": 2}
WINDOWED = GROUPED | {"head_dim": 12, "sliding_window": 5}

ARCHITECTURES: dict[str, PretrainedConfig] = {
    "llama": transformers.LlamaConfig(**GROUPED),
    "qwen2": transformers.Qwen2Config(**GROUPED),
    "gemma2": transformers.Gemma2Config(**WINDOWED, attn_logit_softcapping=2.0, query_pre_attn_scalar=12),
    "mistral": transformers.MistralConfig(**WINDOWED),
    "gpt2": transformers.GPT2Config(
        n_embd=48, n_layer=2, n_head=4, vocab_size=200, n_positions=128, pad_token_id=0, eos_token_id=2
    ),
    "gpt_neox": transformers.GPTNeoXConfig(**COMMON),
    "mixtral": transformers.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
}


def classifier(config: PretrainedConfig) -> PreTrainedModel:
    """A random model with one label, wide enough that scores differ."""
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def loss_and_gradients(
    model: RewardModel, groups: list[TokenizedGroup], settings: dict[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch of its own, and every weight's gradient."""
    model.train().zero_grad()
    responses = model(pack(groups))
    loss = build({"method": "bradley_terry", **settings})(responses).total(
        count_units(responses.lengths, responses.chosen)
    )
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.language_model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def rows_of(groups: list[TokenizedGroup]) -> list[Tensor]:
    """Prompt and response of every packed response."""
    joined = [np.concatenate((g.prompt, g.responses[index])) for g in groups for index in g.packed]
    return [torch.from_numpy(ids.astype(np.int64)) for ids in joined]


@torch.no_grad()
def plain_scores(
    model: PreTrainedModel, rows: list[Tensor], side: str, pad_token_id: int | None = None
) -> Tensor:
    """The rows' scores by transformers alone, padded on one side."""
    padding = model.config.pad_token_id if pad_token_id is None else pad_token_id
    input_ids, mask = (
        torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=value, padding_side=side)
        for ids, value in ((rows, padding), ([torch.ones_like(row) for row in rows], 0))
    )
    return model.eval()(input_ids=input_ids, attention_mask=mask).logits[:, 0]


TRL_SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "centred": {"center_weight": 0.05},
    "margin": {"margin": True, "center_weight": 0.05},
}


@pytest.mark.parametrize("settings", TRL_SETTINGS.values(), ids=TRL_SETTINGS)
def test_loss_and_gradients_are_those_of_trl(
    settings: dict[str, Any],
    token_groups: list[TokenizedGroup],
    smollm2_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    """TRL's RewardTrainer and ours agree to 1e-5 on the same token ids, centred and with margins or not."""
    pairs = [(group, pair) for group in token_groups for pair in group.pairs]
    margins = [0.5, -0.25, 3.0, 0.0] if settings.get("margin") else [None] * 4
    groups = [
        TokenizedGroup(group.prompt, group.responses, (replace(pair, margin=margin),))
        for (group, pair), margin in zip(pairs, margins, strict=True)
    ]
    ids = [[row.tolist() for row in rows_of([group])] for group in groups]
    places = [(group.pairs[0].chosen, group.pairs[0].rejected) for group in groups]
    ordered = [
        pair if chosen < rejected else pair[::-1]
        for pair, (chosen, rejected) in zip(ids, places, strict=True)
    ]
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.pad_token = "<|endoftext|>"
    model = classifier(ARCHITECTURES["llama"])
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=str(tmp_path),
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            center_rewards_coefficient=settings.get("center_weight"),
        ),
        train_dataset=Dataset.from_list(
            [
                {"chosen_ids": chosen, "rejected_ids": rejected}
                | ({} if margin is None else {"margin": margin})
                for (chosen, rejected), margin in zip(ordered, margins, strict=True)
            ]
        ),
        processing_class=tokenizer,
    )
    assert model.config.pad_token_id == 0
    inputs = trainer.data_collator(list(trainer.train_dataset))
    model.train().zero_grad()
    expected = trainer.compute_loss(model, dict(inputs))
    expected.backward()
    theirs = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    loss, gradients = loss_and_gradients(RewardModel(model, share_prompts=True), groups, settings)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shared_prompts_change_nothing(name: str, token_groups: list[TokenizedGroup]) -> None:
    """Prompts shared, padded rows and plain transformers, padded left or right, give the same scores.

    Loss and gradients of shared and padded rows agree too.
    """
    settings = {"center_weight": 0.1}
    packed = RewardModel(classifier(ARCHITECTURES[name]), share_prompts=True)
    padded = RewardModel(classifier(ARCHITECTURES[name]), share_prompts=False)
    loss, gradients = loss_and_gradients(packed, token_groups, settings)
    expected, others = loss_and_gradients(padded, token_groups, settings)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    scale = max(gradient.norm() for gradient in others.values())
    for weight, gradient in gradients.items():
        assert (gradient - others[weight]).norm() < 1e-4 * max(others[weight].norm(), 1e-2 * scale), weight
    scores = packed(pack(token_groups)).scores.detach()
    assert scores.std() > 0.1
    packed.restore()
    # GPT-2 has absolute positions, which transformers does not shift for padding on the left.
    for side in ("right",) if name == "gpt2" else ("right", "left"):
        plain = plain_scores(packed.causal_lm(), rows_of(token_groups), side)
        torch.testing.assert_close(scores, plain, rtol=1e-4, atol=1e-5)


def test_a_model_that_cannot_share_prompts_has_padded_rows(
    token_groups: list[TokenizedGroup], caplog: pytest.LogCaptureFixture
) -> None:
    """Bloom adds its positions to the attention scores: its rows are padded, and the log says so."""
    config = transformers.BloomConfig(hidden_size=48, n_layer=2, n_head=4, vocab_size=200, pad_token_id=0)
    with caplog.at_level("WARNING", logger="preftune"):
        model = RewardModel(classifier(config))
    assert not model.shares_prompts
    assert "BloomForSequenceClassification cannot share prompts" in caplog.text
    plain = plain_scores(model.causal_lm(), rows_of(token_groups), "right")
    torch.testing.assert_close(model(pack(token_groups)).scores.detach(), plain, rtol=1e-5, atol=1e-6)


def test_the_score_is_read_at_the_last_token(token_groups: list[TokenizedGroup]) -> None:
    """Another last token changes the score of its response and of no other."""
    model = RewardModel(classifier(ARCHITECTURES["llama"]))
    before = model(pack(token_groups)).scores
    last = token_groups[1].responses[1].copy()
    last[-1] += 1
    changed = [
        token_groups[0],
        TokenizedGroup(token_groups[1].prompt, (token_groups[1].responses[0], last), token_groups[1].pairs),
        token_groups[2],
    ]
    differs = (model(pack(changed)).scores - before).abs() > 1e-4
    assert differs.tolist() == [False, False, False, False, True, False, False]


def test_the_padding_token_is_one_that_is_never_read(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    """SmolLM2 pads with the end of a turn, 2, which is in use; its unknown token, 0, is not.

    The tokenizer's own padding token stays where it is free, tokens without an embedding are no choice, and
    where every special token is in use the message says what to add.
    """
    size = len(smollm2_tokenizer)
    assert padding_token(smollm2_tokenizer, {2, 5}, size) == "<|endoftext|>"
    assert padding_token(smollm2_tokenizer, {0, 5}, size) == "<|im_end|>"
    assert padding_token(smollm2_tokenizer, {0, 2}, size) == "<|im_start|>"
    with pytest.raises(InputError, match="add a padding token"):
        padding_token(smollm2_tokenizer, {0, 1, 2}, 3)


def test_what_no_reward_model_can_start_from(tmp_path: Path, tiny_model_dir: Path) -> None:
    """Three labels, an architecture without classifiers, and a model with a vocabulary head are refused."""
    three = transformers.AutoConfig.from_pretrained(tiny_model_dir, num_labels=3)
    AutoModelForSequenceClassification.from_config(three).save_pretrained(tmp_path / "three")
    with pytest.raises(InputError, match="a classifier with 3 labels"):
        load_reward_model(str(tmp_path / "three"), torch.float32, 0)
    mamba = transformers.MambaConfig(hidden_size=48, num_hidden_layers=1, vocab_size=200)
    transformers.MambaForCausalLM(mamba).save_pretrained(tmp_path / "mamba")
    with pytest.raises(InputError, match="a mamba: transformers has no sequence classification"):
        load_reward_model(str(tmp_path / "mamba"), torch.float32, 0)
    with pytest.raises(ValueError, match="one label and a padding token"):
        RewardModel(load_language_model(str(tiny_model_dir), torch.float32))


@pytest.fixture
def reward(config: dict[str, Any]) -> dict[str, Any]:
    """The run of a reward model, in three steps an epoch."""
    config["objective"] = {"method": "bradley_terry", "center_weight": 0.01}
    del config["prior"]
    config["training"] |= {"per_device_train_batch_size": 6, "save_strategy": "steps", "save_steps": 2}
    config["training"]["save_total_limit"] = 3
    return config


def metrics(run: Path) -> list[dict[str, float]]:
    """Every logged line, without what the clock decides."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    times = ("runtime", "per_second", "seconds")
    return [{k: v for k, v in json.loads(line).items() if not k.endswith(times)} for line in lines]


def held_out_rows(config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """Held-out responses, chosen and rejected in turn, as the template writes them up to the turn's end."""
    found = []
    for line in Path(config["data"]["evaluation"]).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for kind in ("chosen", "rejected"):
            text = tokenizer.apply_chat_template(row["prompt"] + row[kind], tokenize=False).rstrip("\n")
            found.append(torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return found


@pytest.mark.parametrize("side", ["left", "right"])
def test_plain_transformers_reads_what_was_trained(side: str, reward: dict[str, Any], train: Train) -> None:
    """The saved folder's scores are those of the run's last evaluation, to 1e-5, padded on either side.

    It has one label, how its text was written, safetensors, the tokenizer with its template, and a padding
    token that no row holds.
    """
    run = train(reward, "data.chat_template_kwargs={enable_thinking: false}")
    folder = run / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.num_labels == 1
    assert model.config.preftune_tokens == "training"
    assert model.config.preftune_chat_template_kwargs == {"enable_thinking": False}
    assert model.config.architectures == ["LlamaForSequenceClassification"]
    assert (tokenizer.pad_token, tokenizer.pad_token_id, model.config.pad_token_id) == ("<|endoftext|>", 0, 0)
    assert not list(run.rglob("*.bin"))
    rows = held_out_rows(reward, tokenizer)
    assert {int(row[-1]) for row in rows} == {2}
    scores = plain_scores(model, rows, side).view(-1, 2)
    last = [line for line in metrics(run) if "eval_loss" in line][-1]
    assert last["eval_rewards/chosen"] == pytest.approx(scores[:, 0].mean().item(), abs=1e-5)
    assert last["eval_rewards/rejected"] == pytest.approx(scores[:, 1].mean().item(), abs=1e-5)
    right = (scores[:, 0] > scores[:, 1]).float().mean().item()
    assert last["eval_rewards/accuracies"] == pytest.approx(right)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["accuracy"] == pytest.approx(right)
    assert summary["shares_prompts"]
    assert not any("logps" in name for line in metrics(run) for name in line)
    assert (run / "report.html").exists()


def test_it_learns_what_is_preferred(reward: dict[str, Any], train: Train) -> None:
    """Where bread is always preferred to rain, every held-out pair ends up the right way round."""
    for split, count in (("train", 32), ("evaluation", 20)):
        path = Path(reward["data"][split])
        rows = [
            {
                "prompt": f"{split} {index}",
                "chosen": f" the old {index} bread",
                "rejected": f" the old {index} rain",
            }
            for index in range(count)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    reward["training"] |= {"learning_rate": 3e-3, "num_train_epochs": 6}
    run = train(reward)
    evaluations = [line for line in metrics(run) if "eval_loss" in line]
    assert evaluations[-1]["eval_rewards/accuracies"] == 1.0
    assert evaluations[-1]["eval_rewards/margins"] > 1.0
    assert evaluations[-1]["eval_loss/preference"] < 0.3


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["full", "lora"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    lora: dict[str, int] | None, reward: dict[str, Any], train: Train, killed_behind: Killed
) -> None:
    """Killed after its second step and resumed, a run ends in the same weights and metrics, bit for bit."""
    reward["lora"] = lora
    whole = train(reward)
    resumed = train(reward, f"output={killed_behind(whole, 2)}", "--resume")
    file = "adapter_model.safetensors" if lora else "model.safetensors"
    expected, found = (load_file(run / "model" / file) for run in (whole, resumed))
    assert any("score" in name for name in expected)
    assert found.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    assert metrics(resumed)[:-1] == metrics(whole)[:-1]  # the last line averages over this process's steps


def test_an_adapter_holds_the_score(reward: dict[str, Any], train: Train) -> None:
    """On a base model with a new random score, the adapter's own score is the one that counts."""
    run = train(reward, "lora.rank=4")
    torch.manual_seed(99)
    base = load_reward_model(reward["model"], torch.float32, 0)
    merged = PeftModel.from_pretrained(base, run / "model").merge_and_unload()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    scores = plain_scores(merged, held_out_rows(reward, tokenizer), "right").view(-1, 2)
    last = [line for line in metrics(run) if "eval_loss" in line][-1]
    assert last["eval_rewards/chosen"] == pytest.approx(scores[:, 0].mean().item(), abs=1e-5)


def test_a_reward_model_can_be_trained_on(reward: dict[str, Any], train: Train, tmp_path: Path) -> None:
    """Started from a trained one, at a learning rate of nearly 0 a run ends with its score and its scale."""
    first = train(reward)
    second = train(
        reward, f"model={first / 'model'}", f"output={tmp_path / 'on'}", "training.learning_rate=1e-12"
    )
    scores = [load_file(run / "model" / "model.safetensors")["score.weight"] for run in (first, second)]
    torch.testing.assert_close(*scores, rtol=0, atol=1e-9)


def test_the_new_score_is_decided_by_the_seed(reward: dict[str, Any], train: Train, tmp_path: Path) -> None:
    """The same seed gives the same run bit for bit, another seed another score."""
    runs = [
        train(reward, f"output={tmp_path / name}", f"training.seed={seed}")
        for name, seed in (("one", 1), ("again", 1), ("two", 2))
    ]
    one, again, two = (load_file(run / "model" / "model.safetensors")["score.weight"] for run in runs)
    assert torch.equal(one, again)
    assert (one - two).abs().max() > 1e-3


def test_two_processes_equal_one(reward: dict[str, Any], train: Train, forks: Forks, tmp_path: Path) -> None:
    """Two real processes give the weights and metrics of one."""
    one = train(reward)
    reward["training"]["per_device_train_batch_size"] = 3
    output = tmp_path / "two"
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(reward | {"output": str(output)}), encoding="utf-8")
    done = forks.run(["preftune", "train", str(file)], processes=2)
    assert done.status == 0, done.errors
    expected, found = (load_file(run / "model" / "model.safetensors") for run in (one, output))
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=2e-6)
    for line, other in zip(metrics(output), metrics(one), strict=True):
        assert line == pytest.approx(other, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("columns", ["scores", "margin"])
def test_margins_come_from_the_data(
    columns: str, reward: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    """A margin of 100 in every pair, as a column or as scores 70 and -30, adds 100 to a nearly linear loss.

    At a learning rate of nearly 0 scores hardly differ, and -log sigma(d - 100) = 100 - d.
    """
    path = Path(reward["data"]["evaluation"])
    for file in (path, Path(reward["data"]["train"])):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            del row["score_chosen"], row["score_rejected"]
            row |= {"margin": 100} if columns == "margin" else {"score_chosen": 70, "score_rejected": -30}
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = train(reward, "objective.margin=true", "training.learning_rate=1e-12")
    last = [line for line in metrics(run) if "eval_loss" in line][-1]
    assert last["eval_loss/preference"] == pytest.approx(100 - last["eval_rewards/margins"], rel=1e-6)
    assert abs(last["eval_rewards/margins"]) < 1


def test_a_margin_without_scores_is_refused(
    reward: dict[str, Any], preftune: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """Before any weights load, the message names what the columns lack."""
    path = Path(reward["data"]["train"])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(reward), encoding="utf-8")
    code, errors = preftune("train", str(file), "objective.margin=true", "--dry-run")
    assert code != 0
    assert "needs a score per response" in errors


def test_other_margins_are_other_data(
    reward: dict[str, Any], preftune: Callable[..., tuple[int, str]], train: Train
) -> None:
    """A run is not resumed on pairs with other margins."""
    run = train(reward, "objective.margin=true")
    (run / "summary.json").unlink()
    path = Path(reward["data"]["train"])
    path.write_text(
        path.read_text(encoding="utf-8").replace('"score_chosen": 0.', '"score_chosen": 1.', 1),
        encoding="utf-8",
    )
    file = run.parent / "config.yaml"
    code, errors = preftune("train", str(file), "objective.margin=true", "--resume")
    assert code != 0
    assert "the data changed" in errors


def test_routers_are_refused(
    reward: dict[str, Any], preftune: Callable[..., tuple[int, str]], tiny_model_dir: Path, tmp_path: Path
) -> None:
    """A mixture's load-balancing loss, on by default, is refused by its key, and trains when set to 0."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    sizes = GROUPED | {"vocab_size": len(tokenizer), "pad_token_id": 2, "max_position_embeddings": 256}
    mixture = transformers.MixtralConfig(
        **sizes, num_local_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.01
    )
    transformers.MixtralForCausalLM(mixture).save_pretrained(tmp_path / "mixture")
    tokenizer.save_pretrained(tmp_path / "mixture")
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(reward | {"model": str(tmp_path / "mixture")}), encoding="utf-8")
    code, errors = preftune("train", str(file))
    assert code != 0
    assert "set objective.router_loss_weight=0" in errors
    code, errors = preftune(
        "train", str(file), "objective.router_loss_weight=0", "training.max_steps=1", "--overwrite"
    )
    assert code == 0, errors


def test_policies_and_reward_models_do_not_share_a_model() -> None:
    """A model that is wrapped is not wrapped again before its attention is restored."""
    model = classifier(ARCHITECTURES["llama"])
    reward_model = RewardModel(model)
    for wrap in (RewardModel, Policy):
        with pytest.raises(ValueError, match="restore"):
            wrap(model)
    reward_model.restore()
    RewardModel(model)
