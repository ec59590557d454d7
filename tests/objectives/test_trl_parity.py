"""Our losses against TRL's own trainers: same weights, same token ids, same batch.

TRL tokenizes and collates the rows and computes its loss in its own way; the token ids it collated are then
scored by a plain padded forward, and `build(...)` makes the loss from those log-probabilities.

Where TRL 1.16 differs, by design of either side:

- TRL's CPO trainer logs `logps/*` per token when its loss is simpo; ours are always sums.
- TRL's CPO trainer adds the likelihood term to simpo as well unless `cpo_alpha=0`; ours only if asked.
- TRL's DPO trainer smooths labels with `robust`, `exo_pair` and `aot` alone, its CPO trainer with its own.
- TRL's `simpo_gamma` is the target margin gamma itself, as is our `gamma`, not a multiple of beta.
- TRL's CPO trainer prepends a beginning-of-sequence token if the tokenizer names one, its DPO trainer leaves
  that to the tokenizer; both end each response with </s>, which both losses count.
- TRL's ORPO trainer learns the prompt of the chosen response too; ours learns the response alone.
- TRL takes the mean of the routers' losses of micro-batches, we weigh them by response tokens.
- TRL's DPO trainer with ipo averages log-ratios over tokens, but logs `rewards/*` from the sums; so do we.
- TRL's `f_alpha_divergence_coef` is 1 minus our `alpha`, which is the paper's.
- TRL's DPO trainer logs `rewards/*` and `logps/*` of discounted sums with `ld_alpha`; ours are of whole ones.
- TRL's `use_weighting` has no largest weight, as WPO's own code has; ours has one if `cap` is set.
- TRL's KTO trainer logs `rewards/margins` as a difference of means; ours are of pairs, where there are some.
- TRL estimates z0 anew on each micro-batch, we do so once for the whole step.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from preftune.data import Pair, TokenizedGroup
from preftune.data.packing import pack
from preftune.models import Policy
from preftune.models.policy import own_router_loss_weight
from preftune.objectives import METHODS, Losses, ScoredResponses, build, count_units

ROWS = [
    {"prompt": "name a fruit", "chosen": " an apple", "rejected": " a very green stone indeed"},
    {"prompt": "say", "chosen": " one two three four five six seven", "rejected": " no"},
    {"prompt": "what is the colour of the sea", "chosen": " blue", "rejected": " green stone"},
    {"prompt": "count to three", "chosen": " one two three", "rejected": " three two one"},
]

UNPAIRED = [
    {"prompt": row["prompt"], "completion": row[kind], "label": kind == "chosen"}
    for row in ROWS
    for kind in ("chosen", "rejected")
][:7]
"""The rows' responses one by one, four of them desirable and three not."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Every word of the rows a token, </s> at the end; like Llama's without a beginning-of-sequence token."""
    words = sorted({word for row in ROWS for text in row.values() for word in text.split()})
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


SIZES: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    "tie_word_embeddings": False,
}

MakeModel = Callable[[int], PreTrainedModel]


def make_model(seed: int) -> LlamaForCausalLM:
    """A random two-layer Llama, with weights large enough for log-ratios of several nats."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def make_mixtral(seed: int) -> MixtralForCausalLM:
    """The same with four experts, of which each token takes two."""
    torch.manual_seed(seed)
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2))


def make_qwen3_moe(seed: int) -> Qwen3MoeForCausalLM:
    """The same of another family."""
    torch.manual_seed(seed)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **experts, head_dim=8))


@dataclass
class Side:
    """What one implementation says about the batch."""

    loss: Tensor
    gradients: dict[str, Tensor]
    metrics: dict[str, float]


@dataclass
class Batch:
    """TRL's collated ids, the chosen responses first; `labels` is -100 outside the responses."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


@dataclass
class Unpaired:
    """What TRL's KTO trainer knows of a batch besides its responses."""

    labels: Tensor
    mismatched: Batch
    """Each prompt with the response of the row before it."""


@dataclass
class Theirs:
    """A TRL trainer's answer, and what it answered about."""

    side: Side
    model: PreTrainedModel
    reference: PreTrainedModel | None
    batch: Batch
    unpaired: Unpaired | None = None


COMMON: dict[str, Any] = {
    "per_device_train_batch_size": len(ROWS),
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "max_length": 64,
    "disable_tqdm": True,
}


def run_dpo_trainer(folder: Path, options: dict[str, Any], make: MakeModel = make_model) -> Theirs:
    """TRL's DPO trainer, with a reference that differs from the policy."""
    model, reference = make(0), make(1)
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=DPOConfig(output_dir=str(folder), **COMMON, **options),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=make_tokenizer(),
    )
    inputs = collate(trainer)
    batch = Batch(
        inputs["input_ids"],
        inputs["attention_mask"],
        inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100),
    )
    side = backward(trainer, model, inputs)
    side.metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return Theirs(side, model, reference, batch)


def run_cpo_trainer(folder: Path, options: dict[str, Any]) -> Theirs:
    """TRL's CPO trainer, which also has SimPO."""
    return without_reference(CPOTrainer, CPOConfig, folder, options)


def run_orpo_trainer(folder: Path, options: dict[str, Any]) -> Theirs:
    """TRL's ORPO trainer."""
    return without_reference(ORPOTrainer, ORPOConfig, folder, options)


def without_reference(
    trainer_class: Callable[..., Any], config: Callable[..., Any], folder: Path, options: dict[str, Any]
) -> Theirs:
    """A trainer of TRL that knows no reference."""
    model = make_model(0)
    trainer = trainer_class(
        model=model,
        args=config(output_dir=str(folder), remove_unused_columns=False, **COMMON, **options),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=make_tokenizer(),
    )
    inputs = collate(trainer)
    joined = trainer.concatenated_inputs(inputs, padding_value=make_tokenizer().pad_token_id)
    batch = Batch(
        joined["concatenated_input_ids"],
        joined["concatenated_attention_mask"],
        joined["concatenated_labels"],
    )
    side = backward(trainer, model, inputs)
    side.metrics = {name: values[-1] for name, values in trainer._stored_metrics["train"].items()}
    return Theirs(side, model, None, batch)


def run_kto_trainer(folder: Path, options: dict[str, Any], seeds: tuple[int, int]) -> Theirs:
    """TRL's KTO trainer, with policy and reference of these seeds."""
    model, reference = make_model(seeds[0]), make_model(seeds[1])
    common = {**COMMON, "per_device_train_batch_size": len(UNPAIRED)}
    trainer = KTOTrainer(
        model=model,
        ref_model=reference,
        args=KTOConfig(output_dir=str(folder), **common, **options),
        train_dataset=Dataset.from_list(UNPAIRED),
        processing_class=make_tokenizer(),
    )
    inputs = collate(trainer)
    batch, mismatched = (
        Batch(
            inputs[f"{prefix}input_ids"],
            inputs[f"{prefix}attention_mask"],
            inputs[f"{prefix}input_ids"].masked_fill(inputs[f"{prefix}completion_mask"] == 0, -100),
        )
        for prefix in ("", "KL_")
    )
    side = backward(trainer, model, inputs)
    side.metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return Theirs(side, model, reference, batch, Unpaired(inputs["label"], mismatched))


def collate(trainer: Any) -> dict[str, Any]:
    """All rows in their own order, through the trainer's own tokens and collator."""
    return trainer.data_collator(list(trainer.train_dataset))


def backward(trainer: Any, model: PreTrainedModel, inputs: dict[str, Any]) -> Side:
    """The trainer's loss on the batch and its gradients."""
    model.train()
    model.zero_grad()
    loss = trainer.compute_loss(model, dict(inputs))
    loss.backward()
    return Side(loss.detach(), take_gradients(model), {})


def take_gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of every parameter's gradient."""
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def response_logps(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sums of log-probabilities over response tokens, and their number, by the plain padded forward."""
    logits = model(batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    labels = batch.labels[:, 1:]
    inside = labels != -100
    token_logps = logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (token_logps * inside).sum(-1), inside.sum(-1)


def by_tokens(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probabilities of response tokens, and for each response the sum of log sum_v p(v)^2."""
    logps = model(batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1].log_softmax(-1)
    labels = batch.labels[:, 1:]
    inside = labels != -100
    token_logps = logps.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return token_logps[inside], ((logps.exp() ** 2).sum(-1).log() * inside).sum(-1).detach()


def ours(theirs: Theirs, settings: dict[str, Any], gap: float | None = None) -> tuple[Side, Losses]:
    """Our loss on the ids TRL collated, with the same weights."""
    theirs.model.zero_grad()
    logps, lengths = response_logps(theirs.model, theirs.batch)
    reference_logps = reference_token_logps = None
    token_logps, collision_logps = by_tokens(theirs.model, theirs.batch)
    if theirs.reference is not None:
        with torch.no_grad():
            reference_logps, _ = response_logps(theirs.reference, theirs.batch)
            reference_token_logps, _ = by_tokens(theirs.reference, theirs.batch)
    unpaired = theirs.unpaired
    pairs = torch.arange(0 if unpaired else len(ROWS))
    responses = ScoredResponses(
        logps,
        lengths,
        chosen=pairs,
        rejected=pairs + len(pairs),
        reference_logps=reference_logps,
        prior_gap=None if gap is None else torch.full((len(pairs),), gap),
        labels=unpaired and unpaired.labels,
        divergence=unpaired and divergence(theirs.model, theirs.reference, unpaired.mismatched),
        token_logps=token_logps,
        reference_token_logps=reference_token_logps,
        collision_logps=collision_logps,
    )
    losses = build(settings)(responses)
    loss = losses.total(count_units(lengths, pairs))
    loss.backward()
    metrics = {name: values.mean().item() for name, values in losses.metrics.items()}
    return Side(loss.detach(), take_gradients(theirs.model), metrics), losses


@torch.no_grad()
def divergence(model: PreTrainedModel, reference: PreTrainedModel | None, mismatched: Batch) -> Tensor:
    """z0 of KTO: the mean log-ratio of mismatched responses, at least 0."""
    assert reference is not None
    ratios = response_logps(model, mismatched)[0] - response_logps(reference, mismatched)[0]
    return ratios.mean().clamp(min=0)


METRICS_CLOSE = {"rel": 1e-5, "abs": 1e-6}
"""Rewards of nearly 0 are differences of log-probabilities of 25 nats, which float32 rounds by 2e-6."""

REWARDS = ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"]
LOGPS = ["logps/chosen", "logps/rejected"]

CASES: dict[
    str, tuple[Callable[[Path, dict[str, Any]], Theirs], dict[str, Any], dict[str, Any], list[str]]
] = {
    "dpo": (
        run_dpo_trainer,
        {"loss_type": ["sigmoid"], "beta": 0.1},
        {"method": "dpo"},
        REWARDS + LOGPS,
    ),
    "ipo": (
        run_dpo_trainer,
        {"loss_type": ["ipo"], "beta": 0.1},
        {"method": "ipo"},
        REWARDS + LOGPS,
    ),
    "hinge": (
        run_dpo_trainer,
        {"loss_type": ["hinge"], "beta": 0.05},
        {"method": "hinge", "beta": 0.05},
        REWARDS + LOGPS,
    ),
    "exo": (
        run_dpo_trainer,
        {"loss_type": ["exo_pair"], "beta": 0.1, "label_smoothing": 0.05},
        {"method": "exo", "label_smoothing": 0.05},
        REWARDS + LOGPS,
    ),
    "discopop": (
        run_dpo_trainer,
        {"loss_type": ["discopop"], "beta": 0.05, "discopop_tau": 0.5},
        {"method": "discopop", "tau": 0.5},
        REWARDS + LOGPS,
    ),
    "reverse_kl": (
        run_dpo_trainer,
        {"loss_type": ["sigmoid"], "beta": 0.1, "f_divergence_type": "reverse_kl"},
        {"method": "f_dpo", "f_divergence_type": "reverse_kl"},
        REWARDS + LOGPS,
    ),
    "forward_kl": (
        run_dpo_trainer,
        {"loss_type": ["sigmoid"], "beta": 0.1, "f_divergence_type": "forward_kl"},
        {"method": "f_dpo", "f_divergence_type": "forward_kl"},
        REWARDS + LOGPS,
    ),
    "js_divergence": (
        run_dpo_trainer,
        {"loss_type": ["sigmoid"], "beta": 0.1, "f_divergence_type": "js_divergence"},
        {"method": "f_dpo", "f_divergence_type": "js_divergence"},
        REWARDS + LOGPS,
    ),
    "alpha_divergence": (
        run_dpo_trainer,
        {
            "loss_type": ["sigmoid"],
            "beta": 0.1,
            "f_divergence_type": "alpha_divergence",
            "f_alpha_divergence_coef": 0.7,
        },
        {"method": "f_dpo", "f_divergence_type": "alpha_divergence", "alpha": 0.3},
        REWARDS + LOGPS,
    ),
    "apo_zero": (
        run_dpo_trainer,
        {"loss_type": ["apo_zero"], "beta": 0.1},
        {"method": "apo_zero"},
        REWARDS + LOGPS,
    ),
    "apo_down": (
        run_dpo_trainer,
        {"loss_type": ["apo_down"], "beta": 0.1},
        {"method": "apo_down"},
        REWARDS + LOGPS,
    ),
    "nca": (
        run_dpo_trainer,
        {"loss_type": ["nca_pair"], "beta": 0.1},
        {"method": "nca", "beta": 0.1},
        REWARDS + LOGPS,
    ),
    "sppo": (
        run_dpo_trainer,
        {"loss_type": ["sppo_hard"], "beta": 0.1},
        {"method": "sppo", "beta": 0.1},
        REWARDS + LOGPS,
    ),
    "bco": (
        run_dpo_trainer,
        {"loss_type": ["bco_pair"], "beta": 0.1},
        {"method": "bco", "beta": 0.1},
        REWARDS + LOGPS,
    ),
    "ld_dpo": (
        run_dpo_trainer,
        {"loss_type": ["sigmoid"], "beta": 0.1, "ld_alpha": 0.4},
        {"method": "ld_dpo", "alpha": 0.4},
        [],
    ),
    "ld_dpo_shared_tokens_alone": (
        run_dpo_trainer,
        {"loss_type": ["sigmoid"], "beta": 0.1, "ld_alpha": 0.0},
        {"method": "ld_dpo", "alpha": 0.0},
        [],
    ),
    "wpo": (
        run_dpo_trainer,
        {"loss_type": ["sigmoid"], "beta": 0.1, "use_weighting": True},
        {"method": "wpo"},
        REWARDS + LOGPS,
    ),
    "cpo": (
        run_cpo_trainer,
        {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 0.2},
        {"method": "cpo"},
        REWARDS + LOGPS,
    ),
    "simpo": (
        run_cpo_trainer,
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0},
        {"method": "simpo"},
        REWARDS,
    ),
    "cpo_smoothed": (
        run_cpo_trainer,
        {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 0.2, "label_smoothing": 0.2},
        {"method": "cpo", "label_smoothing": 0.2},
        REWARDS + LOGPS,
    ),
    "simpo_smoothed": (
        run_cpo_trainer,
        {
            "loss_type": "simpo",
            "beta": 2.0,
            "simpo_gamma": 1.0,
            "cpo_alpha": 0.0,
            "label_smoothing": 0.2,
        },
        {"method": "simpo", "label_smoothing": 0.2},
        REWARDS,
    ),
    # TRL adds the likelihood to simpo too, and calls the method then CPO-SimPO.
    "simpo_likelihood": (
        run_cpo_trainer,
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.5},
        {"method": "simpo", "likelihood_weight": 0.5},
        REWARDS,
    ),
    "robust": (
        run_dpo_trainer,
        {"loss_type": ["robust"], "beta": 0.1, "label_smoothing": 0.2},
        {"method": "robust", "label_smoothing": 0.2},
        REWARDS + LOGPS,
    ),
    "dpo_means": (
        run_dpo_trainer,
        {"loss_type": ["sigmoid_norm"], "beta": 0.5},
        {"method": "dpo", "beta": 0.5, "length_normalized": True},
        REWARDS + LOGPS,
    ),
    "dpo_likelihood": (
        run_dpo_trainer,
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "beta": 0.1},
        {"method": "dpo", "likelihood_weight": 0.5},
        REWARDS + LOGPS,
    ),
    "mix": (
        run_dpo_trainer,
        {"loss_type": ["sigmoid", "ipo", "robust", "sft"], "loss_weights": [0.8, 0.3, 0.5, 1.0], "beta": 0.1}
        | {"label_smoothing": 0.2},
        {
            "mix": {"dpo": 0.8, "ipo": 0.3, "robust": {"weight": 0.5, "label_smoothing": 0.2}},
            "likelihood_weight": 1.0,
        },
        REWARDS + LOGPS,
    ),
}


def assert_equal(side: Side, theirs: Side) -> None:
    """Loss and gradients agree to 1e-5 relative."""
    torch.testing.assert_close(side.loss, theirs.loss, rtol=1e-5, atol=0)
    assert side.gradients.keys() == theirs.gradients.keys()
    for weight, gradient in theirs.gradients.items():
        assert gradient.norm() > 0, weight
        assert (side.gradients[weight] - gradient).norm() <= 1e-5 * gradient.norm(), weight


def gaps_of(name: str) -> list[tuple[str, float | None]]:
    """A case without the prior and, where its method takes it, with a gap of 1."""
    takes_prior = "reward_gap" in METHODS[CASES[name][2]["method"]].priors
    return [(name, None), (name, 1.0)] if takes_prior else [(name, None)]


@pytest.mark.parametrize(
    ("name", "gap"),
    [case for name in CASES for case in gaps_of(name)],
    ids=lambda value: value if isinstance(value, str) else "plain" if value is None else "gap_1",
)
def test_loss_and_gradients_equal_trl(name: str, gap: float | None, tmp_path: Path) -> None:
    """The loss, and every weight's gradient, equal TRL's to 1e-5 relative; with a reward gap of 1 as well."""
    run_trainer, their_options, our_settings, shared_metrics = CASES[name]
    theirs = run_trainer(tmp_path, their_options)
    prior = {} if gap is None else {"prior": "reward_gap"}
    side, _ = ours(theirs, {**our_settings, **prior}, gap)
    assert_equal(side, theirs.side)
    for metric in shared_metrics:
        assert side.metrics[metric] == pytest.approx(theirs.side.metrics[metric], **METRICS_CLOSE), metric


@pytest.mark.parametrize("gap", [None, 1.0], ids=["plain", "gap_1"])
def test_orpo_equals_trl(gap: float | None, tmp_path: Path) -> None:
    """The odds ratio plus the likelihood of prompt and chosen response has TRL's loss and gradients to 1e-5.

    Our own likelihood is that of the response alone, which `cpo` shows to be TRL's.
    """
    theirs = run_orpo_trainer(tmp_path, {"beta": 0.5})
    prior = {} if gap is None else {"prior": "reward_gap"}
    side, losses = ours(theirs, {"method": "orpo", "beta": 0.5, **prior}, gap)
    inside = theirs.batch.attention_mask[: len(ROWS)] == 1
    everything = theirs.batch.input_ids[: len(ROWS)].masked_fill(~inside, -100)
    chosen = Batch(theirs.batch.input_ids[: len(ROWS)], inside.long(), everything)
    responses = replace(chosen, labels=theirs.batch.labels[: len(ROWS)])
    theirs.model.zero_grad()
    (total, tokens), (own, own_tokens) = (response_logps(theirs.model, b) for b in (chosen, responses))
    difference = own.sum() / own_tokens.sum() - total.sum() / tokens.sum()
    difference.backward()
    gradients = take_gradients(theirs.model)
    assert difference.abs() > 0.01
    whole = {weight: gradient + gradients[weight] for weight, gradient in side.gradients.items()}
    assert_equal(Side(side.loss + difference.detach(), whole, {}), theirs.side)
    for metric in REWARDS:
        assert side.metrics[metric] == pytest.approx(theirs.side.metrics[metric], **METRICS_CLOSE), metric
    odds_ratio = losses.metrics["loss/preference"].mean().item() / -0.5
    assert odds_ratio == pytest.approx(theirs.side.metrics["log_odds_ratio"], **METRICS_CLOSE)


KTO_CASES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "plain": ({}, (0, 1)),
    "weighted": ({"beta": 0.5, "desirable_weight": 1.25, "undesirable_weight": 0.7}, (0, 1)),
    "swapped": ({}, (1, 0)),
}
"""Options, which our method has by TRL's names, and the seeds of policy and reference."""


@pytest.mark.parametrize("name", KTO_CASES)
def test_kto_equals_trl(name: str, tmp_path: Path) -> None:
    """Loss, every weight's gradient and z0 equal TRL's KTO trainer's to 1e-5 relative.

    z0 is that of the trainer's own mismatched completions; with policy and reference swapped it would be
    negative, and is 0.
    """
    options, seeds = KTO_CASES[name]
    theirs = run_kto_trainer(tmp_path, options, seeds)
    assert theirs.unpaired is not None
    assert theirs.unpaired.labels.tolist() == [True, False, True, False, True, False, True]
    side, losses = ours(theirs, {"method": "kto", **options})
    assert_equal(side, theirs.side)
    assert theirs.side.metrics["kl"] == 0 if name == "swapped" else theirs.side.metrics["kl"] > 0.1
    for metric in ["kl", "rewards/chosen", "rewards/rejected", *LOGPS]:
        assert side.metrics[metric] == pytest.approx(theirs.side.metrics[metric], **METRICS_CLOSE), metric
    assert losses.metrics["rewards/margins"].tolist() == []


def groups_of(batch: Batch) -> list[TokenizedGroup]:
    """The rows that TRL collated, as groups of two."""
    is_prompt = (batch.labels == -100) & (batch.attention_mask == 1)
    ids, labels = batch.input_ids.int(), batch.labels.int()
    prompts = [row[inside].numpy() for row, inside in zip(ids, is_prompt, strict=True)]
    responses = [row[row != -100].numpy() for row in labels]
    return [
        TokenizedGroup(prompts[row], (responses[row], responses[row + len(ROWS)]), (Pair(0, 1),))
        for row in range(len(ROWS))
    ]


@pytest.mark.parametrize("weight", [None, 0.5], ids=["models_own", "given"])
@pytest.mark.parametrize("make", [make_mixtral, make_qwen3_moe])
def test_router_loss_equals_trl(make: MakeModel, weight: float | None, tmp_path: Path) -> None:
    """With shared prompts too, and with the weight that either takes from the model where none is given."""
    options = {} if weight is None else {"router_aux_loss_coef": weight}
    theirs = run_dpo_trainer(tmp_path, {"loss_type": ["sigmoid"], "beta": 0.1, **options}, make)
    batch = pack(groups_of(theirs.batch))
    assert theirs.reference is not None
    with torch.no_grad():
        reference = Policy(theirs.reference)(batch).logps
    theirs.model.zero_grad()
    policy = Policy(theirs.model, share_prompts=True, router_loss=True)
    scored = policy(replace(batch, numbers={**batch.numbers, "reference_logps": reference}))
    own = own_router_loss_weight(theirs.model.config) if weight is None else weight
    losses = build({"method": "dpo", "beta": 0.1, "router_loss_weight": own})(scored)
    loss = losses.total(count_units(batch.lengths, batch.chosen))
    loss.backward()
    assert_equal(Side(loss.detach(), take_gradients(theirs.model), {}), theirs.side)
    assert losses.metrics["loss/router"][0].item() == pytest.approx(theirs.side.metrics["aux_loss"], rel=1e-5)


def test_batch_tells_the_reductions_apart(tmp_path: Path) -> None:
    """Chosen responses have 2 to 8 tokens, each ending in </s>: a mean of means would not pass."""
    theirs = run_cpo_trainer(tmp_path, CASES["cpo"][1])
    _, lengths = response_logps(theirs.model, theirs.batch)
    assert lengths.tolist() == [3, 8, 2, 4, 6, 2, 3, 4]
    for labels in theirs.batch.labels:
        assert labels[labels != -100][-1] == 1

    _, losses = ours(theirs, CASES["cpo"][2])
    token_mean = losses.terms["chosen_likelihood"].values.sum() / lengths[: len(ROWS)].sum()
    assert theirs.side.metrics["nll_loss"] == pytest.approx(token_mean.item(), rel=1e-5)
    assert losses.metrics["loss/chosen_likelihood"].mean().item() != pytest.approx(
        token_mean.item(), rel=1e-2
    )


def test_simpo_logps_are_sums_here_and_means_in_trl(tmp_path: Path) -> None:
    """TRL's CPO trainer logs the mean log-probability per token for simpo; ours stay comparable: sums."""
    theirs = run_cpo_trainer(tmp_path, CASES["simpo"][1])
    side, _ = ours(theirs, CASES["simpo"][2])
    logps, lengths = response_logps(theirs.model, theirs.batch)
    assert side.metrics["logps/chosen"] == pytest.approx(logps[: len(ROWS)].mean().item())
    per_token = (logps / lengths)[: len(ROWS)].mean().item()
    assert theirs.side.metrics["logps/chosen"] == pytest.approx(per_token, rel=1e-5)
