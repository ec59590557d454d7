"""A judge in this process: the log-probabilities of its labels are exact, and its samples are its own."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from preftune.errors import InputError
from preftune.evaluation.local_model import LocalModel, label_log_probs
from preftune.serving.asking import Interview, Request
from preftune.serving.replies import Reply, ReplyCache

MESSAGES = ({"role": "user", "content": "Which is better, m or M?"},)


def test_labels_weigh_what_the_model_says(
    tiny_model_dir: Path, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Each label's log-probability is the sum over its own tokens, read one by one from whole forward passes.

    ` roof kettle` has several tokens, ` roof` is the beginning of it, and `m` is a single other one.
    """
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    labels = ["m", " roof", " roof kettle"]
    prompt = [1, 5, 9, 200]
    expected = []
    for label in labels:
        tokens = smollm2_tokenizer(label, add_special_tokens=False)["input_ids"]
        total = 0.0
        for place, token in enumerate(tokens):
            logits = model(torch.tensor([prompt + tokens[:place]])).logits[0, -1]
            total += float(logits.log_softmax(-1)[token].detach())
        expected.append(total)
    assert expected[2] < expected[1]
    found = label_log_probs(model, smollm2_tokenizer, prompt, labels)
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_likeliest_label_is_the_reply(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The reply has a server's shape: the label, and every label's weight below it, the likeliest first."""
    judge = Interview(LocalModel(str(tiny_model_dir)), ReplyCache(tmp_path / "replies.jsonl"), "test 1")
    (reply,) = judge.ask([Request("q", MESSAGES, 1, 1.0, 5, ("m", "M"))], "test")
    assert reply.log_probs is not None
    (first, second) = reply.log_probs[0]["top_logprobs"]
    assert {first["token"], second["token"]} == {"m", "M"}
    assert first["logprob"] >= second["logprob"]
    assert reply.text == first["token"] == reply.log_probs[0]["token"]


def test_samples_are_those_of_the_seed(tiny_model_dir: Path) -> None:
    """Another attempt and another seed sample anew, the same do not; greedy replies depend on neither."""

    def sampled(model: LocalModel, attempt: int, temperature: float) -> str:
        replies: dict[int, Reply] = {}
        model.reply([Request("q", MESSAGES, 12, temperature, attempt=attempt)], replies.__setitem__)
        return replies[0].text

    one, other = LocalModel(str(tiny_model_dir)), LocalModel(str(tiny_model_dir), seed=7)
    warm = [sampled(one, 0, 1.0), sampled(one, 1, 1.0), sampled(other, 0, 1.0)]
    assert len(set(warm)) == 3
    assert sampled(one, 0, 1.0) == warm[0]
    assert sampled(one, 0, 0.0) == sampled(one, 1, 0.0) == sampled(other, 0, 0.0)
    assert one.identity != other.identity


def test_a_model_without_chat_template_is_refused(
    tiny_model_dir: Path, tmp_path: Path, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    """It cannot be asked by messages, and that is said before its weights are loaded."""
    import copy
    import shutil

    folder = shutil.copytree(tiny_model_dir, tmp_path / "plain", ignore=shutil.ignore_patterns("*.jinja"))
    plain = copy.deepcopy(smollm2_tokenizer)
    plain.chat_template = None
    plain.save_pretrained(folder)
    with pytest.raises(InputError, match="chat template"):
        LocalModel(str(folder))
