"""What is measured of a model's own responses, against plain transformers."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from preftune.errors import InputError
from preftune.sampling.sampler import sample_responses
from preftune.sampling.settings import SamplingSettings
from preftune.sweep.evaluation import measure_run, read_held_out
from preftune.training.configuration import RunConfig, check_config

CPU = torch.device("cpu")
TWO_OF_FOUR = SamplingSettings(n=2, max_new_tokens=4)


@pytest.fixture
def run(config: dict[str, Any]) -> RunConfig:
    """A run with five held-out prompts and two rewards, one of them a column of the data."""
    rewards = {
        "length": {"target": 3, "weight": 2.0},
        "column:score": {"weight": 0.5},
    }
    return check_config({**config, "rewards": rewards})


@pytest.fixture
def moved(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """The starting model with every weight moved, as if trained."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(tmp_path / "moved")
    return tmp_path / "moved"


def plain_logp(model: PreTrainedModel, prompt: list[int], response: tuple[int, ...]) -> float:
    """Sum of the response tokens' log-probabilities from one ordinary forward pass."""
    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        logps = model(input_ids=ids).logits[0].log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    return sum(float(logps[place, token]) for place, token in zip(places, response, strict=True))


def test_drift_is_the_log_ratio_of_the_models_own_responses(run: RunConfig, moved: Path) -> None:
    """Row by row: log-probability under the moved model less that under the start, by plain forwards."""
    sampling = SamplingSettings(n=2, max_new_tokens=5, seed=3)
    held_out = read_held_out(run, sampling, CPU)
    rows, figures = measure_run(run, moved, held_out)
    start = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32)
    policy = AutoModelForCausalLM.from_pretrained(moved, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    prompts = [group.prompt for group in held_out.groups]
    sampled = sample_responses(policy, tokenizer, prompts, n=2, max_new_tokens=5, seed=3)
    for row, prompt, responses in zip(rows, prompts, sampled, strict=True):
        ids = tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True)["input_ids"]
        assert row["responses"] == [response.text for response in responses]
        expected = [
            plain_logp(policy, ids, response.tokens) - plain_logp(start, ids, response.tokens)
            for response in responses
        ]
        assert row["drift"] == pytest.approx(expected, abs=1e-3)
    drifts = [value for row in rows for value in row["drift"]]
    assert figures["drift"]["mean"] == pytest.approx(sum(drifts) / len(drifts))
    assert figures["drift"]["mean"] > 0.1


def test_a_column_of_the_data_is_no_reward_of_a_sample(
    run: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """What only the data's responses have is left out of R and named; the rest is measured."""
    with caplog.at_level(logging.INFO, logger="preftune"):
        held_out = read_held_out(run, TWO_OF_FOUR, CPU)
    assert "no part of the samples' reward: column:score" in caplog.text
    rows, figures = measure_run(run, None, held_out)
    assert list(figures["measurements"]) == ["length"]
    for row in rows:
        assert row["rewards"] == [-2 * abs(length - 3) for length in row["measurements"]["length"]]


def test_a_conditioned_model_is_asked_behind_its_text(run: RunConfig) -> None:
    """With a control text every prompt ends with its tokens, and samples and drift begin behind them."""
    plain, behind = (read_held_out(run, TWO_OF_FOUR, CPU, control) for control in ("", "<|good|>"))
    ends = AutoTokenizer.from_pretrained(run.model)("<|good|>")["input_ids"]
    assert behind.held_out.tokens() == [(*ids, *ends) for ids in plain.held_out.tokens()]
    rows, figures = measure_run(run, None, behind)
    assert figures["drift"] == pytest.approx({"mean": 0, "low": 0, "high": 0}, abs=1e-6)
    assert rows != measure_run(run, None, plain)[0]


def test_without_rewards_there_is_drift_alone(config: dict[str, Any]) -> None:
    """A run without auxiliary rewards is measured all the same."""
    run = check_config(config)
    rows, figures = measure_run(run, None, read_held_out(run, TWO_OF_FOUR, CPU))
    assert figures["reward"] is None
    assert figures["measurements"] == {}
    assert set(figures["drift"].values()) == {0.0}
    assert 1 <= figures["tokens"]["mean"] <= 4
    assert "rewards" not in rows[0]


def test_an_adapter_is_measured_on_its_base(run: RunConfig, tmp_path: Path) -> None:
    """A run's adapter counts: fresh, it is the start exactly; moved, it drifts."""
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "fresh")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=3.0)
    adapted.save_pretrained(tmp_path / "moved")
    held_out = read_held_out(run, TWO_OF_FOUR, CPU)
    _, fresh = measure_run(run, tmp_path / "fresh", held_out)
    assert fresh["drift"]["mean"] == pytest.approx(0.0, abs=1e-4)
    rows, _ = measure_run(run, tmp_path / "moved", held_out)
    # Of each response: their mean may be near 0 by chance.
    assert max(abs(value) for row in rows for value in row["drift"]) > 0.1


def test_responses_to_a_prompt_count_once(run: RunConfig) -> None:
    """The interval is over the prompts' means: five prompts of four responses are five observations."""
    from preftune.measuring.statistics import mean_interval

    sampling = SamplingSettings(n=4, max_new_tokens=8)
    rows, figures = measure_run(run, None, read_held_out(run, sampling, CPU))
    means = [sum(row["rewards"]) / 4 for row in rows]
    assert len(means) == 5
    assert list(figures["reward"].values()) == pytest.approx(list(mean_interval(means)))


def test_long_prompts_are_left_out_and_too_few_refused(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A prompt beyond data.max_prompt_length is not sampled, and one prompt makes no interval."""
    lengths = sorted(
        len(ids) for ids in read_held_out(check_config(config), TWO_OF_FOUR, CPU).held_out.tokens()
    )
    data = {**config["data"], "max_prompt_length": lengths[1]}
    with caplog.at_level(logging.INFO, logger="preftune"):
        held_out = read_held_out(check_config({**config, "data": data}), TWO_OF_FOUR, CPU)
    assert len(held_out.groups) == sum(length <= lengths[1] for length in lengths) < 5
    assert "too long to be sampled" in caplog.text
    shortest = {**config["data"], "max_prompt_length": lengths[0] - 1}
    with pytest.raises(InputError, match=r"has 0 distinct prompts of at most .* give more prompts"):
        read_held_out(check_config({**config, "data": shortest}), TWO_OF_FOUR, CPU)
