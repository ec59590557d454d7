"""`policy:` the implicit reward of a tuned model."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from preftune.data import Group, Response
from preftune.rewards.scoring import Answer
from preftune.rewards.sources import resolve_source

CommandLine = Callable[..., tuple[int, str]]

GROUP = {
    "prompt": "The rain",
    "responses": [" falls on the roof", " sings", " on bread"],
    "scores": [1, 2, 3],
}
PAIR = {
    "prompt": [{"role": "user", "content": "Where does the rain fall?"}],
    "chosen": [{"role": "assistant", "content": "On the old roof."}],
    "rejected": [{"role": "assistant", "content": "No."}],
}


@pytest.fixture
def tuned_dir(tiny_model_dir: Path, tmp_path: Path, smollm2_tokenizer: PreTrainedTokenizerBase) -> Path:
    """Folder of the tiny model with other weights."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "tuned")
    smollm2_tokenizer.save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned"


def log_probability(folder: Path, prompt: list[int], response: list[int]) -> float:
    """Sum over the response's tokens, by the plain model on one row."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logps = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    return sum(float(logps[place, token]) for place, token in zip(places, response, strict=True))


def test_log_ratio_of_every_response(
    preftune: CommandLine,
    tuned_dir: Path,
    tiny_model_dir: Path,
    smollm2_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    """It is log pi_theta - log pi_ref summed over the response and its EOS, for all responses of a group."""
    data, scored = tmp_path / "data.jsonl", tmp_path / "scored.jsonl"
    data.write_text(json.dumps(GROUP) + "\n", encoding="utf-8")
    reward = f"policy:{tuned_dir}:reference={tiny_model_dir},name=implicit,precision=fp32"
    code, errors = preftune("score", str(data), "--reward", reward, "--output", str(scored))
    assert code == 0, errors
    prompt = smollm2_tokenizer("The rain")["input_ids"]
    expected = []
    for text in GROUP["responses"]:
        response = [*smollm2_tokenizer(text)["input_ids"], smollm2_tokenizer.eos_token_id]
        expected.append(
            log_probability(tuned_dir, prompt, response) - log_probability(tiny_model_dir, prompt, response)
        )
    assert max(expected) - min(expected) > 0.01
    written = json.loads(scored.read_text(encoding="utf-8"))["implicit"]
    assert written == pytest.approx(expected, abs=1e-4)


def test_settings_of_the_template(
    tuned_dir: Path, tiny_model_dir: Path, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    """They reach the tuned model's template, as in its training, and another setting is another cache key."""
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.chat_template = "{{ effort }} effort. " + tokenizer.chat_template
    tokenizer.save_pretrained(tuned_dir)
    answer = Answer(Group(({"role": "user", "content": "Hi"},), (Response("Yes."),), ()), 0)
    written = {}
    for effort in ("Low", "High"):
        text = f"policy:{tuned_dir}:reference={tiny_model_dir},chat_template_kwargs={{effort: {effort}}}"
        scorer = resolve_source("--prior", text).scorer
        (unit,) = scorer.plan([answer])
        written[scorer.identity] = tokenizer.decode(unit.inputs[0].prompt).partition("<|im_start|>")[0]
    assert sorted(written.values()) == ["High effort. ", "Low effort. "]


def test_rows_of_any_size_give_the_same(
    preftune: CommandLine, tuned_dir: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """How many groups share a packed row changes nothing but rounding, and the model against itself is 0."""
    data = tmp_path / "data.jsonl"
    other = {**PAIR, "prompt": [{"role": "user", "content": "And the snow, where does it fall?"}]}
    data.write_text(json.dumps(PAIR) + "\n" + json.dumps(other) + "\n", encoding="utf-8")
    scores = []
    for name, options in {"one": "", "many": ",row_tokens=1", "self": ""}.items():
        scored = tmp_path / f"{name}.jsonl"
        reference = tuned_dir if name == "self" else tiny_model_dir
        prior = f"policy:{tuned_dir}:reference={reference},precision=fp32{options}"
        code, errors = preftune("score", str(data), "--prior", prior, "--output", str(scored))
        assert code == 0, errors
        rows = map(json.loads, scored.read_text(encoding="utf-8").splitlines())
        scores.append([row[key] for row in rows for key in ("score_chosen", "score_rejected")])
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert len({round(score, 3) for score in scores[0]}) == 4
    assert scores[2] == [0.0] * 4
