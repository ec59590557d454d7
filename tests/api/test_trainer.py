"""`PreferenceTrainer` with objects: the same numbers as the command line, and a Trainer as users know it."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    TrainerCallback,
    TrainingArguments,
)
from trl import DPOConfig

from preftune import InputError, PreferenceTrainer, check, sample
from preftune.objectives import Logistic, Margin, Objective, ScoredResponses, Term, log_ratio

from ..conftest import rows, write_rows

Make = Callable[..., PreferenceTrainer]


@pytest.fixture
def model(tiny_model_dir: Path) -> PreTrainedModel:
    """A loaded model, as a notebook has it."""
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir)


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., TrainingArguments]:
    """Arguments of two epochs of two steps."""

    def make(**changed: Any) -> TrainingArguments:
        settings = {
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 8,
            "num_train_epochs": 2,
            "warmup_steps": 0.1,
            "logging_steps": 1,
            "save_strategy": "epoch",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return TrainingArguments(str(tmp_path / "checkpoints"), **settings | changed)

    return make


@pytest.fixture
def make(model: PreTrainedModel, arguments: Callable[..., TrainingArguments], tmp_path: Path) -> Make:
    """A trainer of dpo with a prior on 16 pairs; keywords change it."""

    def build(**changed: Any) -> PreferenceTrainer:
        keywords: dict[str, Any] = {
            "model": model,
            "objective": {"method": "dpo", "prior": "reward_gap"},
            "prior": {"calibration": "identity"},
            "args": arguments(),
            "train_dataset": Dataset.from_list(rows(16, seed=1)),
            "cache": tmp_path / "cache",
        }
        return PreferenceTrainer(**keywords | changed)

    return build


def test_objects_train_to_the_command_lines_weights(
    make: Make, config: dict[str, Any], train: Callable[..., Path], tmp_path: Path
) -> None:
    """A loaded model, a Dataset and TrainingArguments end in the weights of a run from files, bit for bit."""
    expected = load_file(train(config) / "model" / "model.safetensors")
    trainer = make(eval_dataset=Dataset.from_list(rows(5, seed=2)))
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


def test_the_given_model_is_tuned_in_place_and_generates(make: Make, model: PreTrainedModel) -> None:
    """After training the caller's model has new weights, its own attention and its own dropout."""
    model.config.attention_dropout = 0.25
    layer = model.model.layers[0].self_attn
    layer.attention_dropout = 0.25
    attention, before = model.config._attn_implementation, layer.q_proj.weight.detach().clone()
    trainer = make()
    assert (model.config._attn_implementation, layer.attention_dropout) == (attention, 0.25)
    trainer.train()
    assert (model.config._attn_implementation, layer.attention_dropout) == (attention, 0.25)
    assert not torch.equal(layer.q_proj.weight, before)
    prompt = torch.tensor([[5, 6, 7]])
    own = model.generate(prompt, max_new_tokens=4, do_sample=False)
    assert own.shape[1] > 3
    assert torch.equal(trainer.model.generate(prompt, max_new_tokens=4, do_sample=False), own)
    few: dict[str, Any] = {"n": 2, "max_new_tokens": 3, "processing_class": trainer.processing_class}
    sampled = [sample(each, ["the cat"], **few)[0]["responses"] for each in (trainer.model, model)]
    assert sampled[0] == sampled[1]


def test_an_adapter_that_came_with_the_model_is_part_of_the_reference(
    make: Make, model: PreTrainedModel
) -> None:
    """A PeftModel whose adapter is far from zero starts at margin 0 and loss log 2."""
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    trainer = make(model=adapted, objective="dpo", eval_dataset=rows(4, seed=2))
    figures = trainer.evaluate()
    assert figures["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert figures["eval_rewards/margins"] == pytest.approx(0.0, abs=1e-6)


def test_a_peft_config_trains_an_adapter_alone(make: Make, model: PreTrainedModel, tmp_path: Path) -> None:
    """With `peft_config` the base weights stay as they were, and what is saved is the adapter."""
    before = model.model.embed_tokens.weight.detach().clone()
    trainer = make(peft_config=LoraConfig(r=4, target_modules="all-linear"))
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    assert torch.equal(model.model.embed_tokens.weight, before)
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_held_out_sets_by_name_have_metrics_of_their_own(make: Make) -> None:
    """Two named sets give `eval_easy_loss` and `eval_hard_loss`, each as if it were alone."""
    easy, hard = rows(4, seed=2), rows(3, seed=3)
    together = make(eval_dataset={"easy": easy, "hard": Dataset.from_list(hard)}).evaluate()
    assert together["eval_easy_loss"] == make(eval_dataset=easy).evaluate()["eval_loss"]
    assert together["eval_hard_loss"] == make(eval_dataset=hard).evaluate()["eval_loss"]


def test_other_data_can_be_evaluated_until_the_reference_is_gone(make: Make) -> None:
    """Before the first step any data have a reference; after full fine-tuning the error says what to do."""
    trainer = make(eval_dataset=rows(4, seed=2))
    other = rows(3, seed=3)
    assert trainer.evaluate(other)["eval_loss"] == make(eval_dataset=other).evaluate()["eval_loss"]
    trainer.train()
    with pytest.raises(InputError, match="eval_dataset: the reference is the model before training"):
        trainer.evaluate(other)


def test_another_model_can_be_the_reference(make: Make, tiny_model_dir: Path) -> None:
    """A loaded reference and its name give the same first loss, which is not log 2."""
    torch.manual_seed(0)
    other = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(1.5)
    trainer = make(objective="dpo", reference=other, eval_dataset=rows(4, seed=2))
    assert abs(trainer.evaluate()["eval_loss"] - math.log(2)) > 1e-3
    named = make(objective="dpo", reference=str(tiny_model_dir), eval_dataset=rows(4, seed=2))
    assert named.evaluate()["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)


def count_words(completions: list[list[dict[str, str]]], **_: Any) -> list[int]:
    """A reward of the caller's own."""
    return [len(completion[-1]["content"].split()) for completion in completions]


def test_a_function_is_a_reward(make: Make) -> None:
    """A callable under `rewards` measures every response, alone or with options beside it."""
    auxiliary = {"method": "dpo", "auxiliary": {"weight": 0.1}}
    plain = make(objective=auxiliary, rewards={"words": count_words})
    halved = make(objective=auxiliary, rewards={"words": {"measure": count_words, "weight": 0.5}})
    counts = [
        len(row[side][0]["content"].split()) for row in rows(16, seed=1) for side in ("chosen", "rejected")
    ]
    assert plain.prepared.train.auxiliary.tolist() == counts
    assert halved.prepared.train.auxiliary.tolist() == [count / 2 for count in counts]


class Length:
    """A part of an objective: the mean number of response tokens, whatever the policy says."""

    name, needs = "length", frozenset[Any]()

    def __call__(self, responses: ScoredResponses) -> tuple[Term, dict[str, torch.Tensor]]:
        """Tokens of each response, without a gradient of its own."""
        assert responses.logps is not None
        values = responses.lengths + 0.0 * responses.logps
        return Term(values, "responses"), {"loss/length": values}


def test_an_objective_of_ones_own_is_trained(make: Make) -> None:
    """Parts from the library and from the caller add up in one loss."""
    objective = Objective((Margin(log_ratio, Logistic(0.1)), Length()))
    figures = make(objective=objective, eval_dataset=rows(4, seed=2)).evaluate()
    assert figures["eval_loss"] == pytest.approx(math.log(2) + figures["eval_loss/length"], rel=1e-6)


def test_callbacks_and_optimizers_are_the_callers(make: Make, model: PreTrainedModel) -> None:
    """A callback hears every log line, and the given optimizer makes the steps."""
    heard: list[int] = []

    class Listener(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                heard.append(state.global_step)

    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    before = model.model.embed_tokens.weight.detach().clone()
    trainer = make(callbacks=[Listener()], optimizers=(frozen, None))
    trainer.train()
    assert heard == [1, 2, 3, 4]
    assert torch.equal(model.model.embed_tokens.weight, before)


def test_a_trainer_that_could_not_be_built_leaves_the_model_as_it_was(
    make: Make, model: PreTrainedModel
) -> None:
    """Where the Trainer's construction fails the model still generates, and the next trainer takes it."""

    class Fails(TrainerCallback):
        def on_init_end(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("no")

    attention = model.config._attn_implementation
    with pytest.raises(RuntimeError, match=r"^no$"):
        make(callbacks=[Fails()])
    assert model.config._attn_implementation == attention
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False).shape[1] > 3
    make()


def test_a_resumed_trainer_ends_where_an_uninterrupted_one_does(
    make: Make, arguments: Callable[..., TrainingArguments], tiny_model_dir: Path
) -> None:
    """Training that stopped after an epoch and goes on at its checkpoint gives the same weights."""
    whole = make()
    whole.train()
    expected = {name: weight.clone() for name, weight in whole.model.state_dict().items()}
    resumed = make(model=AutoModelForCausalLM.from_pretrained(tiny_model_dir))
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-2"))
    for name, weight in resumed.model.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_a_model_by_name_brings_its_tokenizer(make: Make, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Names and paths work in every place that takes objects."""
    data = write_rows(tmp_path / "train.jsonl", rows(16, seed=1))
    trainer = make(model=str(tiny_model_dir), train_dataset=data)
    assert trainer.processing_class.get_vocab() == AutoTokenizer.from_pretrained(tiny_model_dir).get_vocab()
    assert len(trainer.train_dataset) == 16


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_dataset": None}, "train_dataset is missing"),
        ({"train_dataset": [1, 2]}, "row 0 is 1"),
        ({"train_dataset": 5}, "the data is a int"),
        ({"eval_dataset": {"train": []}}, "eval_dataset has the names train"),
        ({"objective": {"method": "dpo", "beta": -1}}, r"objective: beta = -1 must be a finite number > 0"),
        ({"data": {"train": "x"}}, r"data\['train'\]: give it by the keyword train_dataset"),
        ({"data": {"max_lenght": 5}}, r"unknown key .*max_lenght.*did you mean .max_length."),
        ({"data": {"max_length": 1}}, r'data={"max_length": 1}'),
        ({"args": {"learning_rat": 1}}, "unknown key 'args.learning_rat': did you mean 'learning_rate'"),
        ({"args": {"output_dir": 3}}, "args.output_dir=3 must be a path: give the run folder"),
        ({"args": {"fsdp": "full_shard"}}, "args.fsdp is set by preftune: .* by fully_sharded=true"),
        ({"model": "no/such/folder"}, "model=no/such/folder is not a folder"),
    ],
)
def test_errors_speak_of_keywords(make: Make, changed: dict[str, Any], message: str) -> None:
    """What a caller gives wrongly is named by the keyword it was given by."""
    with pytest.raises(InputError, match=message):
        make(**changed)


def test_a_mapping_of_arguments_names_the_run_folder(tiny_model_dir: Path, tmp_path: Path) -> None:
    """`output_dir` is the run folder, of a trainer and of `train`; a second name for it is refused."""
    keywords: dict[str, Any] = {"model": str(tiny_model_dir), "train_dataset": rows(16, seed=1)}
    arguments = {"output_dir": str(tmp_path / "run"), "max_steps": 1}
    trainer = PreferenceTrainer(**keywords, args=arguments, cache=tmp_path / "cache")
    assert Path(trainer.args.output_dir) == tmp_path / "run" / "checkpoints"
    checked = check(**keywords, args=arguments)
    assert (checked.config.output, checked.config.training["max_steps"]) == (str(tmp_path / "run"), 1)
    with pytest.raises(InputError, match=r"output=a and args\.output_dir=\S+ both name the run folder"):
        check(**keywords, args=arguments, output="a")


WRONG_TYPES = """
from preftune import InputError, PreferenceTrainer
for wrong in ({"prior": "sigmoid"}, {"rewards": {"words": 3}}, {"rewards": [len]}, {"args": 3}, {"model": 3}):
    try:
        PreferenceTrainer(**{"model": "x", "train_dataset": [{}]} | wrong)
    except InputError as error:
        print(error)
"""


def test_values_of_another_type_are_errors_too() -> None:
    """Each message names the keyword, what it was given and what it takes."""
    command = [sys.executable, "-c", WRONG_TYPES]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [
        "prior='sigmoid' must be a mapping of options to values",
        "rewards['words']=3 must be a mapping of options to values",
        "rewards is a list: give a mapping by name, such as "
        'rewards={"short": function} or rewards={"reading_grade": {"goal": "minimise"}}',
        "args is a int: give transformers' TrainingArguments, or a mapping",
        "model is a int: give a name, a folder, a transformers model or a PeftModel",
    ]


def test_arguments_of_another_trainer_are_refused_with_their_new_places(make: Make, tmp_path: Path) -> None:
    """TRL's DPOConfig has settings that TrainingArguments lacks: the error says where each belongs."""
    with pytest.raises(InputError, match=r"DPOConfig.*beta is objective.*max_length is data"):
        make(args=DPOConfig(str(tmp_path), use_cpu=True, bf16=False))


def test_fields_that_preftune_decides_are_refused(
    make: Make, arguments: Callable[..., TrainingArguments]
) -> None:
    """A field that would have no effect is an error; one at its default is none."""
    with pytest.raises(InputError, match=r"args.neftune_noise_alpha=5.0 is set by preftune"):
        make(args=arguments(neftune_noise_alpha=5.0))


def test_a_second_adapter_is_refused(make: Make, model: PreTrainedModel) -> None:
    """A PeftModel together with `peft_config` could mean two things; the error names both."""
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    with pytest.raises(InputError, match="remove peft_config to continue with its adapter, or merge it"):
        make(model=adapted, peft_config=LoraConfig(r=4))


def test_a_model_without_a_name_needs_its_tokenizer(make: Make, tiny_model_dir: Path) -> None:
    """A model that was made in memory has no tokenizer to be found."""
    config = AutoModelForCausalLM.from_pretrained(tiny_model_dir).config
    config._name_or_path = ""
    with pytest.raises(InputError, match="processing_class is missing"):
        make(model=AutoModelForCausalLM.from_config(config))
