"""`preftune iterate update_every=batch`: the policy answers and learns by turns, and its weights stay."""

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from preftune.errors import InputError
from preftune.measuring.statistics import mean_interval
from preftune.objectives import policy_gradients
from preftune.online.interleaved import COLLAPSED_BATCHES
from preftune.sampling.sampler import sample_responses
from preftune.training.configuration import read_run_config
from preftune.training.run import run_training

from ..conftest import Endpoint, response_in
from .conftest import FILE, artifacts, iterate

BY_BATCH = ("update_every=batch", "rounds=1")
STEADY = ("train.training.lr_scheduler_type=constant", "train.training.optim=sgd")
UNFITTED = ("train.prior.calibration=bradley_terry", "train.prior.temperature=30")


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def trained(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log that are about its steps."""
    return [line for line in lines(path / "training" / "metrics.jsonl") if "samples/reward" in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """A model's."""
    return load_file(folder / "model.safetensors")


def by_step(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """The scored samples of every step."""
    steps = defaultdict(list)
    for row in lines(folder / "scored.jsonl"):
        steps[row["sampler"]["step"]].append(row)
    return steps


def steps(folder: Path) -> list[Path]:
    """The files of the first round's steps, a line for each."""
    return list((folder / "out" / "round-1").glob("scored.jsonl.steps.*.part"))


# --- what is answered, by whom ---


def test_a_batch_is_answered_by_the_policy_that_the_last_step_has_left(
    empty: Path, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    """The third batch's answers are those of the model that two steps leave, and not the start's."""
    steady = (*BY_BATCH, *STEADY, "train.training.learning_rate=1.0")
    assert iterate(*steady).last_good == 1
    asked = by_step(empty / "out" / "round-1")[3]
    prompts = [row["prompt"] for row in asked]
    iterate(*steady, "train.training.max_steps=2", "output=short")

    def answers(model: Path) -> list[list[str]]:
        loaded = AutoModelForCausalLM.from_pretrained(model)
        sampled = sample_responses(loaded, smollm2_tokenizer, prompts, n=3, max_new_tokens=6, seed=1)
        return [[response.text for response in group] for group in sampled]

    expected = [row["responses"] for row in asked]
    start = yaml.safe_load((empty / FILE).read_text())["model"]
    assert answers(empty / "short" / "round-1" / "model") == expected
    assert answers(Path(start)) != expected


def test_one_batch_is_one_round(empty: Path) -> None:
    """Where all prompts are one batch, both ways sample, pair and train alike."""
    one_step = ("rounds=1", "train.training.per_device_train_batch_size=13", *STEADY, *UNFITTED)
    whole = iterate(*one_step)
    batch = iterate("update_every=batch", *one_step, "output=batch")

    def texts(name: str) -> dict[str, Any]:
        rows = lines(empty / name / "round-1" / "scored.jsonl")
        return {row["prompt"][0]["content"]: (row["responses"], row["scores"]) for row in rows}

    assert texts("batch") == texts("out")
    assert batch.figures[1]["pairs"] == pytest.approx(whole.figures[1]["pairs"])
    assert batch.figures[1]["samples"] == pytest.approx(whole.figures[1]["samples"])
    assert batch.figures[1]["training"]["prior_gap"] == pytest.approx(
        whole.figures[1]["training"]["prior_gap"]
    )
    one, two = (weights(empty / name / "round-1" / "model") for name in ("out", "batch"))
    start = weights(Path(yaml.safe_load((empty / FILE).read_text())["model"]))
    for name in one:
        assert not torch.equal(one[name], start[name])
        # The order of groups in the row decides the rounding.
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-7)


def test_every_epoch_draws_anew(empty: Path) -> None:
    """A prompt that comes again is answered by other draws, even by the same policy."""
    iterate(*BY_BATCH, "train.training.num_train_epochs=2", "train.training.learning_rate=0")
    answers = defaultdict(list)
    for row in lines(empty / "out" / "round-1" / "scored.jsonl"):
        answers[row["prompt"][0]["content"]].append(row["responses"])
    assert len(answers) == 13
    assert all(len(both) == 2 and both[0] != both[1] for both in answers.values())


# --- what it learns ---


@pytest.mark.parametrize(
    ("reference", "lora"),
    [
        ("initial", "{rank: 4}"),
        ("previous", "{rank: 4}"),
        pytest.param("initial", "null", marks=pytest.mark.slow),
        pytest.param("previous", "null", marks=pytest.mark.slow),
    ],
)
def test_the_reference_stays_where_it_was(reference: str, lora: str, empty: Path) -> None:
    """The first step of round 2 has the figures of an ordinary run on its pairs with that reference.

    Compared with where the round starts, no reward has moved yet.
    """
    settings = (f"train.lora={lora}", f"reference={reference}", *UNFITTED, "train.training.warmup_steps=0")
    iterate("update_every=batch", "rounds=2", *settings)
    second = empty / "out" / "round-2"
    first_line = trained(second)[0]
    assert (first_line["rewards/chosen"] == 0) is (reference == "previous")

    tree = yaml.safe_load((second / "training" / "config.yaml").read_text())
    prompts = {json.dumps(row["prompt"]) for row in by_step(second)[1]}
    pairs = [row for row in lines(second / "pairs.jsonl") if json.dumps(row["prompt"]) in prompts]
    assert len(pairs) == 2
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    tree["data"] |= {"train": "pairs.jsonl", "evaluation": None}
    tree["training"] |= {"max_steps": 1}
    Path("offline.yaml").write_text(yaml.safe_dump(tree | {"output": "offline"}))
    run_training(read_run_config(Path("offline.yaml"), []))
    expected = lines(Path("offline/metrics.jsonl"))[0]
    for name in ("loss", "logps/chosen", "logps/rejected", "rewards/chosen", "prior/gap", "tokens"):
        assert first_line[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), name


def test_what_is_fitted_is_fitted_to_the_start(empty: Path) -> None:
    """Auxiliary rewards are standardised by the starting model's held-out answers, in every round alike."""
    auxiliary = (
        "train.objective.auxiliary.weight=0.1",
        "train.rewards={lexical_diversity: {goal: maximise}}",
    )
    iterate("update_every=batch", "rounds=2", *auxiliary)
    runs = [empty / "out" / f"round-{number}" / "training" for number in (1, 2)]
    scales = [json.loads((run / "rewards.json").read_text()) for run in runs]
    assert scales[0] == scales[1]
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    assert summaries[0]["train"]["groups"] == 6
    assert summaries[0]["train"]["responses"] == 18
    assert summaries[0]["evaluation"]["groups"] == 3
    assert (runs[0] / "value_head.safetensors").exists()


def test_it_runs_in_bfloat16(empty: Path) -> None:
    """The default wherever the machine is fast in it: keys of 32 bits, values of 16."""
    assert iterate(*BY_BATCH, "train.training.bf16=true", "train.training.max_steps=2").stopped is None
    log = trained(empty / "out" / "round-1")
    assert [line["samples/paired"] for line in log] == [1.0, 1.0]
    assert log[1]["rewards/chosen"] != 0


def test_figures_are_of_the_steps_that_were_taken(empty: Path) -> None:
    """13 prompts in twos, twice: 14 steps, and a prompt counts once in the interval of its rewards."""
    outcome = iterate(*BY_BATCH, "train.training.num_train_epochs=2")
    figures = outcome.figures[1]
    assert figures["training"]["steps"] == 14
    rows = lines(empty / "out" / "round-1" / "scored.jsonl")
    by_prompt = defaultdict(list)
    for row in rows:
        by_prompt[row["prompt"][0]["content"]] += row["scores"]
    means = [sum(scores) / len(scores) for scores in by_prompt.values()]
    ends = [figures["samples"][end] for end in ("mean", "low", "high")]
    assert ends == pytest.approx(list(mean_interval(means)))


def test_a_batch_whose_rows_are_dropped_leaves_the_control_text(empty: Path) -> None:
    """With csft every batch is answered behind the text of good responses, after a dropped one too."""
    rules = ("train.data.rules.response_too_long=drop", "train.data.max_length=50")
    short = ("train.data.max_prompt_length=47", "train.training.per_device_train_batch_size=1")
    csft = ("train.objective={method: csft}", "train.prior={}")
    assert iterate(*BY_BATCH, *csft, *rules, *short).stopped is None
    log = trained(empty / "out" / "round-1")
    assert {line["grad_norm"] == 0 for line in log} == {True, False}
    template = (empty / "out" / "round-1" / "model" / "chat_template.jinja").read_text()
    assert "<|good|>" in template


@pytest.mark.parametrize("kept", [0, 2])
def test_a_batch_that_is_missing_is_made_again(
    kept: int, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a stopped run has lost samples of steps that it has taken, those steps are taken again."""
    fails = "number(p) == 7 and not Path('mended').exists()"
    reward = write_reward(f"missing_{kept}", f"len(c[0]['content']) / (0 if {fails} else 1)")
    with pytest.raises(InputError, match="round-1, train"):
        iterate(*BY_BATCH, reward)
    (shard,) = steps(empty)
    taken = shard.read_text().splitlines(keepends=True)
    assert len(taken) > 2
    shard.write_text("".join(taken[:kept] if kept else taken[1:]))
    Path("mended").touch()
    assert iterate(*BY_BATCH, reward).last_good == 1
    healed = artifacts(empty / "out")
    assert len(lines(empty / "out" / "round-1" / "scored.jsonl")) == 13
    shutil.rmtree(empty / "out")
    iterate(*BY_BATCH, reward)
    assert artifacts(empty / "out") == healed


def write_reward(module: str, body: str) -> str:
    """A reward of one's own in the current folder, whose modules have one name each; its source."""
    Path(f"{module}.py").write_text(
        "from pathlib import Path\n"
        "def number(messages):\n"
        "    return int(messages[0]['content'].split()[2])\n"
        "def reward(prompts, completions, **columns):\n"
        f"    return [float({body}) for p, c in zip(prompts, completions)]\n"
    )
    return f"reward={module}:reward"


def test_a_batch_without_pairs_changes_nothing(empty: Path) -> None:
    """Answers that are all worth the same teach nothing: no gradient, no step of the weights."""
    reward = write_reward(
        "odd_ones", "len(c[0]['content']) if number(p) % 2 or 'rain' in p[0]['content'] else 1"
    )
    one_each = ("train.training.per_device_train_batch_size=1", "train.training.weight_decay=0.1")
    assert iterate(*BY_BATCH, reward, *one_each).stopped is None
    folder = empty / "out" / "round-1"
    log = trained(folder)
    assert len(log) == 13
    usable = {
        step: number % 2 for step, (row,) in by_step(folder).items() for number in [number_of(row["prompt"])]
    }
    for line in log:
        assert line["samples/paired"] == usable[line["step"]]
        assert (line["grad_norm"] > 0) is bool(usable[line["step"]])
        assert ("loss/preference" in line) is bool(usable[line["step"]])
    # Only half of the prompts have pairs, and only those are in the joined file.
    assert len(lines(folder / "pairs.jsonl")) == sum(usable.values()) == 6


def number_of(prompt: list[dict[str, str]]) -> int:
    """Of a question in `prompts.jsonl`."""
    return int(prompt[0]["content"].split()[2])


def test_rewards_that_tell_nothing_apart_stop_it_early(empty: Path) -> None:
    """After so many batches on end without a pair nothing more is sampled, and no model is left."""
    reward = write_reward("all_alike", "len(c[0]['content']) if 'rain' in p[0]['content'] else 1")
    outcome = iterate(*BY_BATCH, reward, "train.training.per_device_train_batch_size=1")
    assert outcome.stopped is not None
    assert "reward collapse" in outcome.stopped["reason"]
    assert f"{COLLAPSED_BATCHES} prompts" in outcome.stopped["reason"]
    (shard,) = steps(empty)
    assert shard.read_text().count("\n") == COLLAPSED_BATCHES
    assert not (empty / "out" / "model").exists()


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_policy_gradients_compare_all_samples_of_a_prompt(
    method: str, empty: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Three samples are all learned from, each text as often as it came; there is no word of foreign ones."""
    answers = ["rain falls", "rain falls", "a kettle sings near"]

    def sampled(row: dict[str, Any], _: object, about: dict[str, Any]) -> dict[str, Any]:
        return {**row, "responses": answers, "response_tokens": [3, 3, 5], "sampler": about}

    monkeypatch.setattr("preftune.online.interleaved.answered", sampled)
    seen: list[dict[str, Any]] = []
    calculate = policy_gradients.pairwise_advantage

    def watched(reward: torch.Tensor, responses: Any, prior: Any) -> torch.Tensor:
        seen.append({"groups": responses.groups.tolist(), "rewards": len(set(reward.tolist()))})
        return calculate(reward, responses, prior)

    monkeypatch.setattr(policy_gradients, "pairwise_advantage", watched)
    reward = write_reward(f"long_{method}", "len(c[0]['content'])")
    objective = f"train.objective={{method: {method}, prior: none}}"
    unfitted = ("train.prior.calibration=sigmoid", "train.prior.temperature=30")
    outcome = iterate(*BY_BATCH, reward, objective, *unfitted, "train.training.max_steps=2")
    assert outcome.stopped is None
    folder = empty / "out" / "round-1"
    log = trained(folder)
    assert len(log) == 2
    assert all(line["grad_norm"] > 0 and line["samples/paired"] == 1 for line in log)
    kept = lines(folder / "pairs.jsonl")
    assert [row["responses"] for row in kept] == [answers] * len(kept)
    assert {"groups": [0, 0, 0, 1, 1, 1], "rewards": 2} in seen
    # The mean of -A over a prompt is 0.
    assert all(abs(line["loss"]) < 1e-5 for line in log)
    assert "learns from samples of the policy as it is" not in caplog.text


def test_losses_over_groups_learn_from_all_samples(empty: Path) -> None:
    """All three samples of a prompt are taken, and not the two that best_worst pairs."""
    iterate(*BY_BATCH, "train.objective={method: infonca}", "train.training.max_steps=1")
    folder = empty / "out" / "round-1"
    scored = {row["prompt"][0]["content"]: row["responses"] for row in lines(folder / "scored.jsonl")}
    kept = lines(folder / "pairs.jsonl")
    assert kept
    for row in kept:
        assert sorted(row["responses"]) == sorted(set(scored[row["prompt"][0]["content"]]) - {""})
    assert max(len(row["responses"]) for row in kept) == 3


# --- what is kept ---


def test_finished_rounds_are_kept_and_damaged_ones_made_again(empty: Path) -> None:
    """A second call changes nothing; a cut file of a round makes the round again, the same to the byte."""
    iterate(*BY_BATCH)
    output = empty / "out"
    expected = artifacts(output)
    stamp = (output / "round-1" / "scored.jsonl").stat().st_mtime_ns
    assert iterate(*BY_BATCH).last_good == 1
    assert (output / "round-1" / "scored.jsonl").stat().st_mtime_ns == stamp
    scored = output / "round-1" / "scored.jsonl"
    scored.write_bytes(scored.read_bytes()[:-30])
    assert iterate(*BY_BATCH).last_good == 1
    assert artifacts(output) == expected


def test_a_batch_that_was_damaged_is_answered_again(empty: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where a stopped run goes on, samples with a changed word are not trained on."""
    fails = "number(p) == 7 and not Path('mended').exists()"
    reward = write_reward("seventh", f"len(c[0]['content']) / (0 if {fails} else 1)")
    with pytest.raises(InputError, match="round-1, train"):
        iterate(*BY_BATCH, reward)
    (shard,) = steps(empty)
    shard.write_text(shard.read_text().replace("Tell me", "Tell us", 1))
    Path("mended").touch()
    assert iterate(*BY_BATCH, reward).last_good == 1
    assert f"{shard.relative_to(empty)} is damaged" in caplog.text
    healed = artifacts(empty / "out")
    shutil.rmtree(empty / "out")
    iterate(*BY_BATCH, reward)
    assert artifacts(empty / "out") == healed


def test_ratings_of_a_batch_are_kept_when_the_judge_fails(empty: Path, endpoint: Endpoint) -> None:
    """The next call asks for those that are missing, and for nothing else; no other batch has any."""
    judged = (*BY_BATCH, "reward=judge:m:workers=1")
    refused: list[str] = []

    def refuses_the_fifth_of_the_third_batch(message: str) -> str:
        # Six answers are held out, and six are in each batch.
        if refused or ("bread" in message and len(endpoint.asked) > 6 + 2 * 6 + 4):
            refused.append(message)
            return "I would rather not."
        return rating(message)

    endpoint.reply = refuses_the_fifth_of_the_third_batch
    with pytest.raises(InputError, match="I would rather not"):
        iterate(*judged)
    rated = [body["messages"][0]["content"] for body in endpoint.asked]
    rated = [message for message in rated if message not in refused]
    (shard,) = steps(empty)
    assert shard.read_text().count("\n") == 2
    (scores,) = {*shard.parent.glob("scored.jsonl.*.part")} - {shard}
    # Those that were asked for at the same time are kept too.
    assert 4 <= scores.read_text().count("\n") < 6
    endpoint.asked.clear()
    endpoint.reply = rating
    assert iterate(*judged).last_good == 1
    assert not [body for body in endpoint.asked if body["messages"][0]["content"] in rated]


def rating(message: str) -> str:
    """By the response's text, from 1 to 10."""
    return f"Rating: {1 + sum(map(ord, response_in(message))) % 10}"


# --- what it cannot do ---


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("launch=[torchrun]", "launch=.*one process"),
        ("replay=1", "replay=1.*remove it"),
        ("sampling.engine=vllm", "sampling.engine=vllm.*engine=transformers"),
        ("train.batches={tokens_per_step: 100}", "train.batches=.*per_device_train_batch_size"),
        ("train.fully_sharded=true", "train.fully_sharded=True.*remove it"),
        ("train.training.fp16=true", "train.training.fp16=True.*bf16=true"),
        ("train.training.per_device_train_batch_size=0", "per_device_train_batch_size.*must be 1 or more"),
    ],
)
def test_what_a_batch_cannot_do_is_refused_before_anything_is_sampled(
    empty: Path, override: str, says: str
) -> None:
    """The message names the key, and what to set in its place."""
    with pytest.raises(InputError, match=says):
        iterate(*BY_BATCH, override)
    assert not (empty / "out").exists()
