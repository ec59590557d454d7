"""What TRL's trainers, configurations and scripts call things, with the answer to each name.

Its fields and keywords as of 1.16, and names of earlier versions that tutorials still have.
"""

from collections.abc import Collection
from dataclasses import fields
from difflib import get_close_matches

from transformers import TrainingArguments

from preftune.objectives import METHODS, PRIORS, OfPairs, options_of
from preftune.objectives.methods import OfEveryMethod

TRL_KEYS: dict[str, str] = {
    # the objective
    "loss_type": "objective.method",
    "beta": "objective.beta",
    "loss_weights": "objective.mix",
    "f_divergence_type": "objective.f_divergence_type",
    "label_smoothing": "objective.label_smoothing",
    "rpo_alpha": "objective.likelihood_weight",
    "cpo_alpha": "objective.likelihood_weight",
    "simpo_gamma": "objective.gamma",
    "desirable_weight": "objective.desirable_weight",
    "undesirable_weight": "objective.undesirable_weight",
    "center_rewards_coefficient": "objective.center_weight",
    "router_aux_loss_coef": "objective.router_loss_weight",
    # the model
    "model_name_or_path": "model",
    "dtype": "model_dtype",
    "torch_dtype": "model_dtype",
    "ref_model": "reference",
    "ref_model_name_or_path": "reference",
    "use_peft": "lora.rank",
    "peft_config": "lora.rank",
    "quantization_config": "quantization",
    "bnb_4bit_quant_type": "quantization.type",
    "use_bnb_nested_quant": "quantization.double",
    "bnb_4bit_compute_dtype": "quantization.compute_dtype",
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_target_modules": "lora.target_modules",
    "lora_dropout": "lora.lora_dropout",
    "lora_modules_to_save": "lora.modules_to_save",
    "lora_target_parameters": "lora.target_parameters",
    "use_rslora": "lora.use_rslora",
    "use_dora": "lora.use_dora",
    # the data
    "train_dataset": "data.train",
    "eval_dataset": "data.evaluation",
    "dataset_name": "data.train",
    "datasets": "data.train",
    "dataset_train_split": "data.train_split",
    "dataset_test_split": "data.evaluation_split",
    "max_length": "data.max_length",
    "max_prompt_length": "data.max_prompt_length",
    # the rest
    "output_dir": "output",
    "warmup_ratio": "training.warmup_steps",
}
"""Our key for a name of TRL's, where there is one that means the same."""

SHORT_NAMES: dict[str, str] = {
    "lr": "training.learning_rate",
    "epochs": "training.num_train_epochs",
    "num_epochs": "training.num_train_epochs",
    "batch_size": "training.per_device_train_batch_size",
    "optimizer": "training.optim",
    "scheduler": "training.lr_scheduler_type",
    "lora_rank": "lora.rank",
    "reference_model": "reference",
    "sft_weight": "objective.likelihood_weight",
}
"""Our key for what people and other libraries call it in short."""
LOAD_YOURSELF = "in Python load the model as you want it and give the object; a file names it by model alone"
_FIXED_REFERENCE = "the reference stays as it is; iterate has train.reference=previous, a new one each round"
_CACHED = "always so: log-probabilities of the reference are computed once and kept by content (cache)"
_PACKED = "rows are packed without padding: there is nothing to set"
_TEMPLATE = "the tokenizer's own chat template is read, with data.chat_template_kwargs"
_CALLBACK = "metrics are the objective's; write a callback, or read metrics.jsonl"
_OWN_LOSS = "write a method or an Objective of your own: docs/python.md"
_NO_CODE = "no code from a hub is run: use a model that transformers knows"
_SAMPLE = "run preftune sample on the trained model"
_CAUSAL = "models are causal language models"

TRL_ANSWERS: dict[str, str] = {
    # the objective
    "ld_alpha": "set objective.method=ld_dpo and objective.alpha",
    "f_alpha_divergence_coef": "set objective.method=f_dpo and objective.alpha, which is 1 minus TRL's",
    "use_weighting": "set objective.method=wpo",
    "discopop_tau": "set objective.method=discopop and objective.tau",
    "alpha": "AlphaPO's transformation is not offered: remove it, or set objective.method=simpo",
    "reference_free": "choose a method without a reference: preftune methods says which need one",
    "sync_ref_model": _FIXED_REFERENCE,
    "ref_model_mixup_alpha": _FIXED_REFERENCE,
    "ref_model_sync_steps": _FIXED_REFERENCE,
    "num_generations": "preftune iterate has sampling.n",
    "use_vllm": "preftune iterate has sampling.engine",
    "reward_funcs": "preftune iterate has reward; your own functions are auxiliary rewards: docs/rewards.md",
    "reward_weights": "set rewards.NAME.weight of each auxiliary reward",
    # the model
    "model_init_kwargs": LOAD_YOURSELF,
    "ref_model_init_kwargs": "in Python load the reference as you want it and give the object as reference",
    "model_init": LOAD_YOURSELF,
    "model_revision": LOAD_YOURSELF,
    "attn_implementation": "the attention over packed rows is preftune's own, and exact: remove it",
    "trust_remote_code": _NO_CODE,
    "disable_dropout": "always so in the model; an adapter's own dropout is lora.lora_dropout",
    "model_adapter_name": "in Python give a PeftModel with one adapter, which is trained",
    "ref_adapter_name": "the reference is the model as it starts; name another by reference",
    "force_use_ref_model": "name the reference by reference",
    "lora_task_type": "it follows from objective.method: remove it",
    "load_in_8bit": "set quantization=int8",
    "load_in_4bit": "set quantization=nf4",
    "bnb_4bit_quant_storage": "it follows from fully_sharded: remove it",
    "ignore_bias_buffers": "buffers need no exception here: remove it",
    # the data
    "dataset_config": "write it behind a colon: data.train=ORG/NAME:CONFIG",
    "dataset_streaming": "data are read whole; limit them by a slice, such as data.train_split=train[:10%]",
    "dataset_num_proc": "tokenisation is one pass in one process: remove it",
    "max_completion_length": "set data.max_length (prompt and response) and data.max_prompt_length",
    "max_seq_length": "set data.max_length (prompt and response)",
    "truncation_mode": "a response that is too long is cut at its end, which is TRL's keep_start",
    "chat_template_path": _TEMPLATE,
    "eos_token": _TEMPLATE,
    "tools": "a row's column tools is read: docs/data.md",
    "is_encoder_decoder": _CAUSAL,
    "padding_value": _PACKED,
    "label_pad_token_id": _PACKED,
    "pad_token": _PACKED,
    "pad_to_multiple_of": _PACKED,
    "padding_free": "always so: a batch is one row without padding",
    "packing": "always so: a batch is one row without padding",
    "data_collator": _PACKED,
    # the trainer
    "tokenizer": "in Python give it as processing_class; a file's model brings its own",
    "processing_class": "it is a keyword of the Python API; a file's model brings its own tokenizer",
    "args": "it is a keyword of the Python API; in a file write training.FIELD",
    "callbacks": "it is a keyword of the Python API",
    "optimizers": "it is a keyword of the Python API; in a file set training.optim",
    "optimizer_cls_and_kwargs": "give optimizers=(optimizer, scheduler) in Python, or set training.optim",
    "compute_metrics": _CALLBACK,
    "preprocess_logits_for_metrics": _CALLBACK,
    "compute_loss_func": _OWN_LOSS,
    "precompute_ref_log_probs": _CACHED,
    "precompute_ref_batch_size": "set training.per_device_eval_batch_size, or batches.tokens_per_row",
    "use_liger_loss": "always so: the vocabulary head is computed in chunks",
    "use_liger_kernel": "always so: the vocabulary head is computed in chunks",
    "use_logits_to_keep": "always so: only the response's positions reach the vocabulary head",
    "activation_offloading": "set training.gradient_checkpointing=true, or batches.tokens_per_row lower",
    "generate_during_eval": _SAMPLE,
}
"""What to do about a name of TRL's that has no key here."""


OBJECTIVE_KEYS = frozenset({"method", "mix", "prior", "auxiliary"})
"""What an objective has beside options."""


def answer(name: str, under: str = "", here: Collection[str] = ()) -> str | None:
    """What to do in place of a name that is TRL's, transformers' or an option's; None for other words.

    Args:
        name: a key, keyword or flag, without what stands before it.
        under: what stands before the keys of a run, where those are part of another configuration.
        here: keys that do not stand under that.
    """
    options = option_names()
    own = TRL_KEYS.get(name, "")
    section, _, key = own.rpartition(".")
    if own and (section != "objective" or key in options | OBJECTIVE_KEYS):
        return f"what TRL calls {name} is '{own if own in here else under + own}' here"
    if name in TRL_ANSWERS:
        return f"TRL's {name} has no key here: {TRL_ANSWERS[name]}"
    if name in SHORT_NAMES:
        return f"write '{under}{SHORT_NAMES[name]}'"
    if name in OBJECTIVE_KEYS:
        return f"it is a part of the objective: write '{under}objective.{name}'"
    if own:
        return f"TRL's {name} has no key here: `preftune methods` says what each method takes"
    if name in training_fields():
        return f"it is a field of transformers' TrainingArguments: write '{under}training.{name}'"
    if name in options:
        return f"it is an option of a method: write '{under}objective.{name}'"
    return None


def flag_answer(flag: str) -> str:
    """What to write in place of a flag that the command line does not have, such as `--learning_rate=1e-5`.

    Args:
        flag: with its dashes, and with a value or without.
    """
    name = flag.lstrip("-").partition("=")[0].replace("-", "_")
    if name in KNOWN_FLAGS:
        return f"{flag} takes no value: write --{name.replace('_', '-')}"
    said = answer(name)
    if said is None and (near := get_close_matches(name, KNOWN_FLAGS, n=1)):
        said = f"did you mean --{near[0].replace('_', '-')}?"
    return f"there is no flag {flag}: {said or 'keys are written KEY=VALUE, behind the file of the run'}"


KNOWN_FLAGS = ("resume", "overwrite", "dry_run", "json", "list", "help")
"""Of `preftune train`."""


def training_fields() -> set[str]:
    """Fields of transformers' TrainingArguments that can be given."""
    return {field.name for field in fields(TrainingArguments) if field.init}


def option_names() -> set[str]:
    """Options of all published methods, of every method, and of the priors."""
    of_priors = [owner for prior in PRIORS.values() for owner in prior.options]
    return set(options_of(*METHODS.values(), OfPairs, OfEveryMethod, *of_priors))
