"""The configuration of rounds: defaults, and every error before heavy work."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.errors import InputError
from preftune.online import configuration
from preftune.online.configuration import IterateConfig, check_iterate_config, read_iterate_config
from preftune.online.plan import make_plan
from preftune.sampling.engines import ENGINES

SLOW = pytest.mark.slow
NEEDED = {"model": "base", "prompts": "asked.jsonl", "held_out": "held.jsonl", "reward": "reading_ease"}


def run_config(config: IterateConfig):
    """The training run of a first round."""
    return config.run_config(
        model="base",
        reference=None,
        data="pairs.jsonl",
        held_out=None,
        seed=7,
        output=Path("out/round-1/training"),
    )


def test_the_defaults_are_the_papers_hyperparameters() -> None:
    """MaPPO (arXiv 2507.21183v5) Table 4 and Section 4.1, on one process: 8 x 16 = 128 pairs in a step."""
    config = IterateConfig.model_validate(NEEDED)
    assert (config.rounds, config.sampling.n, config.sampling.temperature) == (3, 8, 1.0)
    assert config.pair_rule == "best_worst"
    run = run_config(config)
    assert run.objective == {"method": "dpo", "beta": 0.1, "prior": "reward_gap"}
    assert run.prior.calibration == "sigmoid"
    training = run.training
    assert training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] == 128
    assert (training["learning_rate"], training["warmup_steps"], training["weight_decay"]) == (
        5e-7,
        100,
        0.01,
    )
    assert training["optim"] == "adamw_torch"
    assert (training["seed"], run.data.train, run.cache) == (7, "pairs.jsonl", "runs/iterate/cache")


def test_every_engine_with_weights_of_its_own_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is added to the table can be named in rounds; a server never has the trained weights."""
    monkeypatch.setattr(configuration, "ENGINES", {**ENGINES, "mlx": ENGINES["vllm"]})
    for engine in ("transformers", "vllm", "mlx"):
        sampling = {"sampling": {"engine": engine}}
        assert check_iterate_config(NEEDED | sampling).sampling.engine == engine
    for engine, said in (("server", "does not have the weights that were just trained"), ("vlm", "'vllm'")):
        with pytest.raises(InputError, match=f"sampling.engine='{engine}': .*{said}"):
            check_iterate_config(NEEDED | {"sampling": {"engine": engine}})


@pytest.mark.parametrize(
    ("train", "rate"),
    [({}, 5e-7), ({"lora": {"rank": 4}}, None), ({"lora": {}, "training": {"learning_rate": 1e-4}}, 1e-4)],
)
def test_the_papers_learning_rate_is_for_all_weights(train: dict[str, Any], rate: float | None) -> None:
    """Adapters are left to the default of `preftune train`, unless a rate is given."""
    run = run_config(IterateConfig.model_validate(NEEDED | {"train": train}))
    assert run.training.get("learning_rate") == rate


def test_a_given_key_replaces_its_default_alone() -> None:
    """Other keys of the section keep theirs, and token batches leave the counts of groups out.

    Another method has its own options, and the prior where it is defined with one.
    """
    train = {
        "objective": {"method": "ipo"},
        "training": {"learning_rate": 1e-6},
        "batches": {"tokens_per_step": 99},
    }
    run = run_config(IterateConfig.model_validate(NEEDED | {"train": train}))
    assert run.objective == {"method": "ipo", "prior": "reward_gap"}
    assert (run.training["learning_rate"], run.training["warmup_steps"]) == (1e-6, 100)
    assert "per_device_train_batch_size" not in run.training
    for method, beta, prior in (("dpo", 0.1, "reward_gap"), ("kto", None, None)):
        given = {"objective": {"method": method}}
        objective = run_config(IterateConfig.model_validate(NEEDED | {"train": given})).objective
        assert (objective.get("beta"), objective.get("prior")) == (beta, prior)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["round=3"], "unknown key 'round': did you mean 'rounds'?"),
        (["beta=0.2"], "what TRL calls beta is 'train.objective.beta' here"),
        (["objective.method=ipo"], "it is a key of the training run: write 'train.objective'"),
        (["sampling.temprature=1"], "unknown key 'sampling.temprature': did you mean 'temperature'?"),
        (["sampling.n=1"], "sampling.n=1: Input should be greater than or equal to 2"),
        (["rounds=0"], "rounds=0"),
        (["reference=last"], "reference='last'"),
        (["guards.max_drift=-1"], "guards.max_drift=-1"),
        (["train.model=other"], "model is set by the rounds: set `model` at the top level"),
        (["train.data.train=x.jsonl"], "data.train is set by the rounds"),
        (["train.data.pair_rule=all_pairs"], "set `pair_rule` at the top level"),
        (["train.training=3"], "training=3 must be a mapping"),
        (["train.training.seed=3"], "set `seed` at the top level"),
        (["prompts=null"], "prompts=None"),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path: Path, overrides: list[str], message: str) -> None:
    """The message has the key, the value and the rule, or the key that was meant."""
    file = tmp_path / "rounds.yaml"
    file.write_text(yaml.safe_dump(NEEDED), encoding="utf-8")
    with pytest.raises(InputError) as wrong:
        read_iterate_config(file, overrides)
    assert message in str(wrong.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    """A configuration without a reward says so."""
    file = tmp_path / "rounds.yaml"
    file.write_text(yaml.safe_dump({key: NEEDED[key] for key in ("model", "prompts", "held_out")}))
    with pytest.raises(InputError, match="the configuration has no 'reward'"):
        read_iterate_config(file, [])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.training.learning_rat=1"],
            "unknown key 'training.learning_rat': did you mean 'learning_rate'",
        ),
        pytest.param(["train.objective.bta=1"], "train: objective", marks=SLOW),
        pytest.param(["train.objective.method=bradley_terry"], "trains a reward model", marks=SLOW),
        pytest.param(["train.lora.rnk=4"], "train: unknown key 'lora.rnk': did you mean 'rank'", marks=SLOW),
        pytest.param(["pair_rule=best"], "data.pair_rule=best: there is no such rule", marks=SLOW),
        pytest.param(["reward=reding_grade"], "is unknown (did you mean 'reading_grade'?)", marks=SLOW),
        (
            ["train.model_dtype=bfloat16", "train.lora={rank: 4}"],
            "train.model_dtype=bfloat16 with train.lora: a round merges",
        ),
        pytest.param(["sampling.engine=vllm"], "vllm", marks=SLOW),
        (["reward=length"], "length has no default goal"),
        pytest.param(["reward=column:scores"], "sampled responses have no column", marks=SLOW),
        pytest.param(["prompts=nowhere.jsonl"], "nowhere.jsonl", marks=SLOW),
        pytest.param(["rounds=14"], "13 usable prompts for rounds=14", marks=SLOW),
        pytest.param(["held_out=one.jsonl"], "held_out=one.jsonl has 1 usable prompts", marks=SLOW),
        pytest.param(
            ["sampling.max_new_tokens=250"], "sampling.max_new_tokens=250: the longest prompt has", marks=SLOW
        ),
        pytest.param(
            ["launch=[no-such-launcher]"], "the program 'no-such-launcher' is not installed", marks=SLOW
        ),
        pytest.param(["output=rounds.yaml"], "output=rounds.yaml is a file", marks=SLOW),
        (["output=taken"], "output=taken is not empty and has no rounds"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_sampled(
    empty: Path, overrides: list[str], message: str
) -> None:
    """Training options, rewards, sources and places are checked first, and nothing is written."""
    (empty / "one.jsonl").write_text('{"prompt": "rain"}\n')
    (empty / "taken").mkdir()
    (empty / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(InputError) as wrong:
        make_plan(read_iterate_config(empty / "rounds.yaml", overrides))
    assert message in str(wrong.value)
    assert not (empty / "out").exists()


@pytest.mark.slow
def test_a_warmup_longer_than_a_round_is_pointed_out(empty: Path, caplog: pytest.LogCaptureFixture) -> None:
    """4 prompts in steps of 2 are 2 steps, which 100 steps of warmup never leave."""
    make_plan(read_iterate_config(empty / "rounds.yaml", ["train.training.warmup_steps=100"]))
    assert "a round has 2 steps of 2 prompts and train.training.warmup_steps=100" in caplog.text
    # Nothing is said of the stand-in answers that training is tried on.
    assert "prior:" not in caplog.text


def test_held_out_prompts_are_never_trained_on(empty: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A prompt in both sources is held out; repeats count once; other columns of the first row stay."""
    (empty / "both.jsonl").write_text(
        '{"prompt": "rain"}\n{"prompt": "bread", "id": 1}\n{"prompt": "bread", "id": 2}\n{"prompt": "tea"}\n'
    )
    (empty / "held.jsonl").write_text('{"prompt": "rain"}\n{"prompt": "snow"}\n')
    plan = make_plan(
        read_iterate_config(empty / "rounds.yaml", ["prompts=both.jsonl", "held_out=held.jsonl", "rounds=2"])
    )
    rows = [row for part in plan.prompts.parts for row in part]
    assert sorted(row["prompt"] for row in rows) == ["bread", "tea"]
    assert {"prompt": "bread", "id": 1} in rows
    assert "1 are held out and not trained on" in caplog.text
