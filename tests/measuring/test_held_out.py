"""A policy on held-out prompts: figures by hand, and samples that a killed call has kept."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from preftune.measuring import held_out as module
from preftune.measuring.held_out import HeldOut, PolicySamples, measure_policy, win_rate
from preftune.sampling.settings import SamplingSettings
from preftune.storage.shards import Shards

KEY = "0123456789ab"


@pytest.fixture
def asked(smollm2_tokenizer: PreTrainedTokenizerBase) -> HeldOut:
    """Three prompts, decoded and read in float32."""
    return HeldOut(
        [{"prompt": "rain falls", "id": 7}, {"prompt": "bread"}, {"prompt": "the old roof"}],
        smollm2_tokenizer,
        SamplingSettings(n=2, max_new_tokens=3),
        dtype=torch.float32,
        device=torch.device("cpu"),
        decoding_dtype=torch.float32,
    )


def test_figures_by_hand() -> None:
    """Two prompts of two responses; each figure is the mean of the prompts' means.

    Drift is (1 + 3) / 2 = 2 and (0 + 2) / 2 = 1. Entropy is (4/2 + 2/1) / 2 = 2 and (3/1 + 2/2) / 2 = 2. Of
    the first prompt's comparisons two are won and two are ties, (2 + 1) / 4; the second's are all lost.
    """
    rows: list[dict[str, Any]] = [
        {"response_tokens": [[5, 6], [5]], "finished": [True, False]},
        {"response_tokens": [[5], [5, 6]], "finished": [True, True]},
    ]
    samples = PolicySamples(rows, [[-4.0, -2.0], [-3.0, -2.0]], [[-5.0, -5.0], [-3.0, -4.0]])
    assert samples.drift == [[1.0, 3.0], [0.0, 2.0]]
    found = samples.figures([[1.0, 1.0], [0.0, 0.5]], [[0.0, 1.0], [2.0, 2.0]])
    means = {name: figure["mean"] for name, figure in found.items()}
    assert means == {
        "reward": 0.625,
        "win_rate": 0.375,
        "drift": 1.5,
        "entropy": 2.0,
        "tokens": 1.5,
        "finished": 0.75,
    }
    # Student's t of one degree of freedom, 12.706, times the deviation of 2 and 1 over the root of 2.
    assert found["drift"]["high"] == pytest.approx(1.5 + 12.7062 * math.sqrt(0.5) / math.sqrt(2), abs=1e-3)
    assert found["entropy"] == {"mean": 2.0, "low": 2.0, "high": 2.0}


def test_win_rate_by_hand() -> None:
    """Of 1 and 3 against 2 and 3: 1 loses twice, 3 wins once and ties once; 1.5 of 4."""
    assert win_rate([1.0, 3.0], [2.0, 3.0]) == 0.375


def test_a_uniform_policy(tiny_model_dir: Path, asked: HeldOut, tmp_path: Path) -> None:
    """A policy with all weights zero gives every token 1 / 49152: ln 49152 = 10.8027 nats, and no drift.

    Against the model that it was, it drifts by what that gives its tokens.
    """
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    model.save_pretrained(tmp_path / "zero")
    zero = str(tmp_path / "zero")
    samples = measure_policy(zero, zero, asked)
    assert samples.rows[0]["id"] == 7
    for logps, lengths in zip(samples.logps, samples.lengths, strict=True):
        assert logps == pytest.approx([-length * math.log(49152) for length in lengths], rel=1e-6)
    assert samples.drift == [[0.0, 0.0]] * 3
    moved = measure_policy(zero, str(tiny_model_dir), asked)
    assert moved.rows == samples.rows
    start = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    prompt, response = asked.tokens()[1], moved.rows[1]["response_tokens"][0]
    with torch.no_grad():
        logits = start(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum().item()
    assert moved.start_logps[1][0] == pytest.approx(expected, abs=1e-4)


def test_a_killed_call_goes_on(
    tiny_model_dir: Path, asked: HeldOut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kept chunk is not sampled again, one that was damaged is, and the samples are the same."""
    monkeypatch.setattr(module, "PROMPTS_PER_CHUNK", 1)
    model, shards = str(tiny_model_dir), Shards(tmp_path / "held_out.jsonl", KEY)
    expected = measure_policy(model, model, asked, shards=Shards(tmp_path / "other.jsonl", KEY))
    sample, calls = module.sample_responses, []

    def killed_at_the_third(*arguments: Any, **settings: Any) -> Any:
        calls.append(arguments[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(*arguments, **settings)

    monkeypatch.setattr(module, "sample_responses", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        measure_policy(model, model, asked, shards=shards)
    file = tmp_path / f"held_out.jsonl.{KEY}.0.part"
    first, second = file.read_text().splitlines(keepends=True)
    assert json.loads(first.partition(" ")[2])[1]["prompt"] == "rain falls"
    file.write_text(first.replace("rain", "pain") + second)
    assert measure_policy(model, model, asked, shards=shards) == expected
    assert calls == [["rain falls"], ["bread"], ["the old roof"], ["rain falls"], ["the old roof"]]
