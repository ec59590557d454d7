"""Bad input is one clear message and exit code 2, before any weights load."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import T5Config

from preftune.errors import InputError
from preftune.training import check_config
from preftune.training.preparation import prepare

CommandLine = Callable[..., tuple[int, str]]


def edit(path: str, row: int, **changes: Any) -> None:
    """Change columns of one row; None removes the column everywhere."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    rows[row].update(changes)
    Path(path).write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def without(path: str, *columns: str) -> None:
    """Remove columns from every row."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    kept = [{key: value for key, value in row.items() if key not in columns} for row in rows]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def test_no_chosen_column(refused: Callable[..., str], config: dict[str, Any]) -> None:
    """The message names the missing column and the columns found."""
    without(config["data"]["train"], "chosen")
    message = refused()
    assert "chosen" in message
    assert "`rejected`" in message


def test_scores_missing_where_the_prior_needs_them(
    refused: Callable[..., str], config: dict[str, Any]
) -> None:
    """The message names the columns that would do, and the way out."""
    without(config["data"]["train"], "score_chosen", "score_rejected")
    message = refused()
    assert "score_chosen" in message
    assert "without a prior" in message


def test_scores_missing_in_the_held_out_pairs_only(
    refused: Callable[..., str], config: dict[str, Any]
) -> None:
    """Held-out data is checked before training as well, not after it."""
    without(config["data"]["evaluation"], "score_chosen", "score_rejected")
    assert "score_chosen" in refused()


def test_score_that_is_not_a_number(refused: Callable[..., str], config: dict[str, Any]) -> None:
    """NaN names its row and column."""
    edit(config["data"]["train"], 3, score_chosen=float("nan"))
    message = refused()
    assert "row 3" in message
    assert "score_chosen" in message
    assert "nan_score" in message


def test_equal_responses(refused: Callable[..., str], config: dict[str, Any]) -> None:
    """The message names the row and the setting that would drop it."""
    same = [{"role": "assistant", "content": "the same"}]
    edit(config["data"]["train"], 5, chosen=same, rejected=same)
    message = refused("data.rules.equal_responses=error")
    assert "row 5" in message
    assert "data.rules.equal_responses=drop" in message


def test_prompt_longer_than_the_limit(refused: Callable[..., str]) -> None:
    """The message gives the length, the limit and the actions to choose from."""
    message = refused("data.max_prompt_length=10", "data.rules.prompt_too_long=error")
    assert "max_prompt_length is 10" in message
    assert "data.rules.prompt_too_long=truncate" in message


def test_negative_gap(refused: Callable[..., str], config: dict[str, Any]) -> None:
    """A rejected response with the higher score is the user's decision, never silent."""
    edit(config["data"]["train"], 2, score_chosen=0.1, score_rejected=0.9)
    message = refused()
    assert "0.1" in message
    assert "negative_gap" in message


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("/no/such/folder", "is not a folder"),
        ("./neither", "is not a folder"),
        ("a/b/c", "is not a folder"),
    ],
)
def test_model_path_that_is_not_one(refused: Callable[..., str], model: str, part: str) -> None:
    """A path is recognised as one and never looked up on the hub."""
    message = refused(f"model={model}")
    assert model in message
    assert part in message


def test_model_folder_without_a_model(refused: Callable[..., str], tmp_path: Path) -> None:
    """An existing folder that holds no model says what it lacks."""
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(f"model={tmp_path / 'empty'}")


def test_a_run_folder_as_a_model_says_where_its_model_is(refused: Callable[..., str], tmp_path: Path) -> None:
    """The folder above a model, or an adapter, is one word short."""
    for name in ("config.json", "adapter_config.json"):
        model = tmp_path / name.partition(".")[0] / "model"
        model.mkdir(parents=True)
        (model / name).write_text("{}", encoding="utf-8")
        assert f"{model} is one" in refused(f"model={model.parent}")


def test_hub_name_that_cannot_be_found(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub name that cannot be read says so in one line."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "model=nobody/no-model" in refused("model=nobody/no-model")


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("data.trian=x.jsonl", "did you mean 'train'"),
        ("objetive.method=dpo", "did you mean 'objective'"),
        ("objective.bta=0.1", "beta"),
        ("objective.method=dpoo", "dpo"),
        ("objective.method=sigmoid", "did you mean 'dpo'"),
        ("loss_type=ipo", "'objective.method' here"),
        ("training.padding_free=true", "TRL's padding_free has no key here"),
        ("objective.prior=reward_gab", "reward_gap"),
        ("training.learning_rat=1e-4", "did you mean 'learning_rate'"),
        ("lora.rnak=8", "did you mean 'rank'"),
        ("prior.temprature=2", "did you mean 'temperature'"),
        ("data.rules.equal_response=drop", "equal_responses"),
        ("prior.calibration=sigmiod", "sigmoid"),
    ],
)
def test_misspelt_key_says_which_was_meant(refused: Callable[..., str], override: str, meant: str) -> None:
    """Every level of the configuration finds the nearest name."""
    assert meant in refused(override)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("objective.beta=-1", "beta"),
        ("lora.rank=0", "lora.rank"),
        ("training.output_dir=x", "set `output`"),
        ("training.hub_token=hf_secret", "must not stand in a configuration"),
        ("max_shard_size=big", "max_shard_size='big'"),
        ("training.max_steps=many", "max_steps"),
        ("data.max_length=1", "data.max_length"),
        ("prior.negative_gap=ignore", "prior.negative_gap"),
        ("justakey", "must be written as key=value"),
        ("model.deeper=1", "and not a mapping"),
        ("data.evaluation_split=test", "split"),
        ("data.train=/no/such/file.jsonl", "/no/such/file.jsonl"),
        ("cache=/dev/null/no", "cache=/dev/null/no cannot be written"),
    ],
)
def test_wrong_value_names_its_key(refused: Callable[..., str], override: str, part: str) -> None:
    """The message names the key or quotes the value."""
    assert part in refused(override)


def test_row_longer_than_the_models_context(refused: Callable[..., str], config: dict[str, Any]) -> None:
    """A limit beyond what the model can read is found before it reads, with the limit to set."""
    edit(config["data"]["train"], 4, chosen=[{"role": "assistant", "content": "rain " * 300}])
    assert "the model's context is 256; set data.max_length=256" in refused()


def test_model_that_is_no_language_model(refused: Callable[..., str], tmp_path: Path) -> None:
    """A model of another kind is named for what it is."""
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    T5Config().save_pretrained(encoder)
    assert "give a causal language model" in refused(f"model={encoder}")


def test_home_folder_in_paths(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the home folder in every path, not a folder of that name."""
    monkeypatch.setenv("HOME", "/home/of/nobody")
    assert "model=/home/of/nobody/model is not a folder" in refused("model=~/model")
    assert "/home/of/nobody/pairs.jsonl" in refused("data.train=~/pairs.jsonl")


def test_more_processes_than_held_out_rows(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without a row would leave the others waiting; the message gives both numbers."""
    monkeypatch.setattr("transformers.TrainingArguments.world_size", property(lambda self: 6))
    with pytest.raises(InputError, match=r"data\.evaluation has 5 rows for 6 processes"):
        prepare(check_config(config))


def test_training_data_as_held_out_data(refused: Callable[..., str], config: dict[str, Any]) -> None:
    """The same file for both is a mistake, not an evaluation."""
    assert "must differ from the training data" in refused(f"data.evaluation={config['data']['train']}")


def test_a_file_that_is_not_yaml(preftune: CommandLine, tmp_path: Path) -> None:
    """Neither a missing nor a broken configuration file is a traceback."""
    file = tmp_path / "broken.yaml"
    file.write_text("model: [unclosed", encoding="utf-8")
    for path in (file, tmp_path / "missing.yaml"):
        code, errors = preftune("train", str(path))
        assert code == 2
        assert path.name in errors.replace("\n", "")


@pytest.mark.parametrize("arguments", [[], ["--overwrite"], ["--resume"]])
def test_an_output_folder_with_other_files_is_left_alone(
    preftune: CommandLine, config: dict[str, Any], tmp_path: Path, arguments: list[str]
) -> None:
    """Whatever is asked, a folder that has no run keeps every file."""
    work = Path(config["output"]) / "model" / "thesis.txt"
    work.parent.mkdir(parents=True)
    work.write_text("years of work", encoding="utf-8")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    code, errors = preftune("train", str(file), *arguments)
    assert code == 2
    assert "has no run" in errors
    assert work.read_text(encoding="utf-8") == "years of work"


def test_an_output_folder_with_a_run_is_not_overwritten(
    preftune: CommandLine, config: dict[str, Any], tmp_path: Path
) -> None:
    """A second run into the same folder is refused and names the three ways on."""
    folder = Path(config["output"])
    folder.mkdir()
    (folder / "config.yaml").write_text("{}", encoding="utf-8")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    code, errors = preftune("train", str(file))
    assert code == 2
    assert "--resume" in errors
    assert "--overwrite" in errors
    assert (folder / "config.yaml").read_text(encoding="utf-8") == "{}"


def test_unknown_reward(refused: Callable[..., str], config: dict[str, Any]) -> None:
    """A misspelt reward names the measures there are, and the one that was meant."""
    config["rewards"] = {"reading_grad": {}}
    message = refused("objective.auxiliary.weight=0.1")
    assert (
        "rewards.reading_grad: there is no measure 'reading_grad' (did you mean 'reading_grade'?)" in message
    )
    assert "toxicity_words, " in message


def test_a_wrong_reward_is_refused_even_where_it_is_not_trained_on(
    refused: Callable[..., str], config: dict[str, Any]
) -> None:
    """At weight 0 a mistake in the rewards is still one: a sweep would meet it after hours."""
    config["rewards"] = {"length": {}}
    assert "rewards.length.target" in refused("objective.auxiliary.weight=0")


def test_auxiliary_without_rewards(refused: Callable[..., str]) -> None:
    """An auxiliary term needs something to reward; the message names a way to say what, and a way out."""
    message = refused("objective.auxiliary.weight=0.1")
    assert "rewards.reading_grade.goal=minimise" in message
    assert "remove objective.auxiliary" in message


def test_auxiliary_that_is_no_mapping(refused: Callable[..., str]) -> None:
    """A bare number says where it belongs."""
    assert "write auxiliary.weight = 0.1" in refused("objective.auxiliary=0.1")


def test_misspelt_auxiliary_option(refused: Callable[..., str]) -> None:
    """The path of the option is named, with the one that was meant."""
    message = refused("objective.auxiliary.temprature=1")
    assert "auxiliary.temprature = 1" in message
    assert "did you mean 'temperature'?" in message


def test_a_reward_column_missing_in_some_rows(refused: Callable[..., str], config: dict[str, Any]) -> None:
    """The count, the first row and the choice are named."""
    config["rewards"] = {"column:grade": {}}
    for split in ("train", "evaluation"):
        for row in range(16 if split == "train" else 5):
            edit(config["data"][split], row, grade_chosen=1.0, grade_rejected=2.0)
    for row in (3, 7):
        edit(config["data"]["train"], row, grade_rejected=None)
    message = refused("objective.auxiliary.weight=0.1")
    assert "2 of 16 rows" in message
    assert "row 3" in message
    assert "data.rules.missing_reward=drop" in message


def test_a_reward_function_that_fails(
    refused: Callable[..., str], config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function that gives NaN on one row stops the run before training, with the reward and the row."""
    (tmp_path / "own_rewards.py").write_text(
        "def brevity(completions, **columns):\n"
        "    return [float('nan') if '.' in str(c[0]['content'][-1:]) else 1.0 for c in completions]\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    config["rewards"] = {"own_rewards:brevity": {}}
    message = refused("objective.auxiliary.weight=0.1")
    assert "reward 'own_rewards:brevity' returned nan" in message
    assert "row 0" in message


def test_a_step_too_small_for_the_divergence(refused: Callable[..., str], config: dict[str, Any]) -> None:
    """One prompt a step gives no estimate; the message says what batch size would."""
    del config["prior"]
    message = refused("objective={method: kto}", "training.per_device_train_batch_size=1", "batches=null")
    assert "training.per_device_train_batch_size=2" in message


def test_labels_of_one_kind(refused: Callable[..., str], config: dict[str, Any], tmp_path: Path) -> None:
    """Nothing is learned from desirable responses alone; the counts are named."""
    file = tmp_path / "labelled.jsonl"
    rows = [{"prompt": f"p {row}", "completion": f"c {row}", "label": True} for row in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config["data"] = {"train": str(file)}
    del config["prior"]
    assert "8 desirable and 0 undesirable" in refused("objective={method: kto}")


def test_labels_where_pairs_are_needed(
    refused: Callable[..., str], config: dict[str, Any], tmp_path: Path
) -> None:
    """Labelled responses have no pairs; the method that learns from them is named."""
    file = tmp_path / "labelled.jsonl"
    file.write_text('{"prompt": "p", "completion": "c", "label": true}\n', encoding="utf-8")
    config["data"]["train"] = str(file)
    assert "Set objective.method to kto or csft, or give" in refused("objective={method: dpo}")


def test_no_prior_for_labels(refused: Callable[..., str]) -> None:
    """The prior weighs a rejected response against its chosen one, which labels do not have."""
    message = refused("objective.method=kto")
    assert "prior = 'reward_gap' is not defined for method 'kto'" in message
    assert "dpo, ipo, simpo, cpo, hinge" in message


def test_rewards_that_float32_cannot_hold(refused: Callable[..., str], config: dict[str, Any]) -> None:
    """A finite number may still be too large to compute with, or too far from zero to vary visibly."""
    config["rewards"] = {"column:grade": {}}
    for grade, found in ((1e39, "must be below 1e+15"), (1.7e9, "cannot distinguish")):
        for split, rows in (("train", 16), ("evaluation", 5)):
            for row in range(rows):
                edit(config["data"][split], row, grade_chosen=grade + row, grade_rejected=grade)
        assert found in refused("objective.auxiliary.weight=0.1")


@pytest.mark.parametrize("body", ["raise SystemExit(0)", "def f(completions, **_): raise SystemExit(0)"])
def test_a_reward_that_leaves_the_program(
    body: str,
    refused: Callable[..., str],
    config: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A user's exit, at import or in a call, is an error of the reward, not the silent end of the run."""
    name = f"leaves_{len(body)}"
    (tmp_path / f"{name}.py").write_text(body + "\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config["rewards"] = {f"{name}:f": {}}
    assert "SystemExit" in refused("objective.auxiliary.weight=0.1")


def test_numbers_that_no_float_holds(refused: Callable[..., str]) -> None:
    """A whole number of four hundred digits breaks the rule for the option, without a traceback."""
    assert "a finite number >= 0" in refused(f"objective.auxiliary.weight=1{'0' * 400}")


def test_an_infinite_learning_rate_of_the_value(refused: Callable[..., str]) -> None:
    """NaN would be exported otherwise."""
    assert "value_head.learning_rate=inf" in refused("value_head.learning_rate=.inf")


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_sharding_by_the_launcher(
    name: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch` with a sharding configuration stops, instead of training without it."""
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    assert f"accelerate was started with {name}" in refused()
