"""Every name of TRL's configurations and trainers is taken as it is, or answered with what it is here."""

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from peft import LoraConfig
from transformers import Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, ModelConfig, RewardConfig, RewardTrainer
from trl import ScriptArguments as Script
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig

from preftune import PreferenceTrainer
from preftune import train as api_train
from preftune.api.keywords import Keywords
from preftune.errors import InputError
from preftune.objectives import resolve
from preftune.online.configuration import check_iterate_config
from preftune.training import RunConfig, check_config, trl_names
from preftune.training.configuration import _SECTIONS, TRAINING_OWNED, read_tree, unknown_key
from preftune.training.preparation import with_defaults

CLASSES = (DPOConfig, KTOConfig, CPOConfig, ORPOConfig, RewardConfig, ModelConfig, Script)
OF_TRANSFORMERS = {field.name for field in fields(TrainingArguments)}
NAMES = sorted({field.name for each in CLASSES for field in fields(each) if field.init})
KEYWORDS = sorted(
    {
        name
        for trainer in (DPOTrainer, KTOTrainer, CPOTrainer, RewardTrainer, Trainer)
        for name, parameter in inspect.signature(trainer.__init__).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    - {"self"}
)
TREE: dict[str, Any] = {"model": "m", "data": {"train": "t"}}


def test_the_lists_have_what_they_are_about() -> None:
    """Fields of all classes are there, and the trainers' keywords."""
    assert {"loss_type", "simpo_gamma", "desirable_weight", "lora_r", "dataset_name", "bf16"} <= set(NAMES)
    assert {"ref_model", "data_collator", "compute_metrics", "quantization_config"} <= set(KEYWORDS)


@pytest.mark.parametrize("name", NAMES)
def test_every_field_has_an_answer_at_the_top_of_a_file(name: str) -> None:
    """A field is refused with the key that it is here, or with what to do instead."""
    with pytest.raises(InputError) as refused:
        check_config({**TREE, name: 1})
    said = str(refused.value)
    if name in OF_TRANSFORMERS and name not in trl_names.TRL_KEYS | trl_names.TRL_ANSWERS:
        is_owned = name in TRAINING_OWNED
        assert (f"write 'training.{name}'" in said) is not is_owned
        assert ("it is set by preftune: " in said) is is_owned
    elif name in TRAINING_OWNED and name not in trl_names.TRL_KEYS:
        assert "it is set by preftune: " in said
    else:
        assert re.search(f"what TRL calls {name} is '|TRL's {name} has no key here: .", said)


@pytest.mark.parametrize("name", KEYWORDS)
def test_every_keyword_of_a_trainer_is_taken_or_answered(name: str) -> None:
    """In Python a keyword is one of ours, or an InputError says what it is here."""
    if name in Keywords.__dataclass_fields__ or name in inspect.signature(PreferenceTrainer).parameters:
        return
    with pytest.raises(InputError, match=f"there is no keyword '{name}': .*(TRL calls|TRL's) {name}"):
        PreferenceTrainer("m", train_dataset=[], **{name: 1})
    with pytest.raises(InputError, match=f"there is no keyword '{name}': "):
        api_train(model="m", train_dataset=[], **{name: 1})


@pytest.mark.parametrize("name", [*trl_names.TRL_KEYS, *trl_names.SHORT_NAMES])
def test_every_key_that_is_named_exists(name: str) -> None:
    """The key is one of a section, of the arguments or of an objective; else the answer names none."""
    section, _, key = (trl_names.TRL_KEYS | trl_names.SHORT_NAMES)[name].rpartition(".")
    known = {
        "": set(RunConfig.model_fields),
        "training": trl_names.training_fields(),
        "objective": trl_names.option_names() | trl_names.OBJECTIVE_KEYS,
        **{own: set(found.model_fields) for own, found in _SECTIONS.items()},
    }
    known["lora"] |= {field.name for field in fields(LoraConfig)}
    said = trl_names.answer(name) or ""
    assert key in known[section] or (section == "objective" and "has no key here" in said)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("lora_r", "what TRL calls lora_r is 'lora.rank' here"),
        ("lora.lora_r", "what TRL calls lora_r is 'lora.rank' here"),
        ("lora.r", "what TRL calls lora_r is 'lora.rank' here"),
        ("lora.dropout", "what TRL calls lora_dropout is 'lora.lora_dropout' here"),
        ("use_dora", "what TRL calls use_dora is 'lora.use_dora' here"),
        ("bnb_4bit_compute_dtype", "is 'quantization.compute_dtype' here"),
        ("deepspeed", "shard the model over them by fully_sharded=true"),
        ("lr", "write 'training.learning_rate'"),
        ("training.batch_size", "write 'training.per_device_train_batch_size'"),
        ("epochs", "write 'training.num_train_epochs'"),
        ("method", "write 'objective.method'"),
        ("num_generations", "preftune iterate has sampling.n"),
        ("beta", "what TRL calls beta is 'objective.beta' here"),
        ("training.beta", "what TRL calls beta is 'objective.beta' here"),
        ("load_in_4bit", "set quantization=nf4"),
        ("per_device_train_batch_size", "write 'training.per_device_train_batch_size'"),
        ("data.learning_rate", "write 'training.learning_rate'"),
        ("gamma", "it is an option of a method: write 'objective.gamma'"),
        ("tokens_per_step", "write 'batches.tokens_per_step'"),
    ],
)
def test_a_name_is_answered_wherever_it_stands(path: str, said: str) -> None:
    """The wrong level, and the names of transformers and of our own options."""
    assert said in unknown_key(path, list(RunConfig.model_fields))


def test_in_rounds_keys_stand_under_train() -> None:
    """The answer names the key where it is in the rounds' file; their own keys stay."""
    rounds = {"model": "m", "prompts": "p", "held_out": "h", "reward": "r"}
    for name, key in (("lora_r", "train.lora.rank"), ("bf16", "train.training.bf16")):
        with pytest.raises(InputError, match=f"'{key}'"):
            check_iterate_config({**rounds, name: 1})
    with pytest.raises(InputError, match="what TRL calls model_name_or_path is 'model' here"):
        check_iterate_config({**rounds, "model_name_or_path": "m"})


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("loss_type", "what TRL calls loss_type is 'objective.method' here"),
        ("max_length", "what TRL calls max_length is 'data.max_length' here"),
        ("simpo_gamma", "what TRL calls simpo_gamma is 'objective.gamma' here"),
        ("sync_ref_model", "the reference stays as it is"),
    ],
)
def test_names_inside_of_an_objective(option: str, said: str, config: dict[str, Any]) -> None:
    """A name of TRL's beside the options is answered; a misspelt option still names the nearest."""
    with pytest.raises(InputError, match=rf"objective.{option}=1: .*{said}"):
        with_defaults(check_config(config | {"objective": {option: 1}}))
    with pytest.raises(ValueError, match="did you mean 'beta'"):
        resolve({"betta": 1})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--learning_rate", "1e-5"], "write 'training.learning_rate'"),
        (["--use-peft"], "what TRL calls use_peft is 'lora.rank' here"),
        (["--model_name_or_path=m"], "what TRL calls model_name_or_path is 'model' here"),
        (["--resum"], "did you mean --resume?"),
        (["--wrong"], "keys are written KEY=VALUE"),
    ],
)
def test_flags_of_trls_scripts(
    words: list[str], said: str, preftune: Callable[..., tuple[int, str]], tmp_path: Any
) -> None:
    """A flag is answered with its key, whether a file was named before it or not."""
    file = tmp_path / "run.yaml"
    file.write_text("model: m\ndata: {train: t}\n", encoding="utf-8")
    for arguments in ((str(file), *words), words):
        code, errors = preftune("train", *arguments)
        assert code == 2
        assert said in " ".join(errors.split())
    with pytest.raises(InputError, match="there is no flag --x"):
        read_tree(file, ["--x"])


@pytest.mark.parametrize(
    ("keyword", "said"),
    [
        ({"max_length": 512}, r'is \'data\["max_length"\]\' here'),
        ({"loss_type": "ipo"}, r'is \'objective\["method"\]\' here'),
        ({"ref_model": "m"}, "is 'reference' here"),
        ({"tokenizer": None}, "give it as processing_class"),
        ({"learning_rate": 1e-5}, "write 'args.learning_rate'"),
        ({"torch_dtype": "bfloat16"}, "load the model as you want it"),
        ({"objetive": "dpo"}, r"did you mean 'objective'\?"),
    ],
)
def test_keywords_are_answered_in_words_of_python(keyword: dict[str, Any], said: str) -> None:
    """The answer names a keyword or an option of one, never a key of a file."""
    with pytest.raises(InputError, match=said):
        PreferenceTrainer("m", train_dataset=[], **keyword)


def test_an_adapter_from_fields() -> None:
    """A mapping is a LoraConfig on all linear layers; a wrong field names what is taken."""
    keywords = Keywords("m", [{"prompt": "a"}], peft_config={"r": 8})
    _, given = keywords.resolve()
    assert given.adapter is not None
    assert (given.adapter.r, given.adapter.lora_alpha, given.adapter.target_modules) == (8, 32, "all-linear")
    with pytest.raises(InputError, match=r"peft_config=\{'rank': 8\}: .*give fields of peft's LoraConfig"):
        Keywords("m", [{"prompt": "a"}], peft_config={"rank": 8}).resolve()
