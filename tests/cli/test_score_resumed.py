"""`preftune score` killed and started again, and on several processes: the same file to the byte."""

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerBase

from ..forks import Forks

CommandLine = Callable[..., tuple[int, str]]

WORDS = ("rain", "falls", "on", "the", "old", "roof", "while", "a", "kettle", "sings")


@pytest.fixture(scope="module")
def reward_model_dir(
    tmp_path_factory: pytest.TempPathFactory, smollm2_tokenizer: PreTrainedTokenizerBase
) -> Path:
    """Folder of a random reward model with SmolLM2's tokenizer."""
    folder = tmp_path_factory.mktemp("reward-model")
    transformers.set_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=len(smollm2_tokenizer),
        num_labels=1,
        pad_token_id=0,
    )
    model = LlamaForSequenceClassification(config)
    torch.nn.init.normal_(model.score.weight, std=1.0)
    model.save_pretrained(folder)
    smollm2_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand pairs of unequal lengths."""
    generator = random.Random(0)

    def words() -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(2, 30)))

    rows = [
        {"prompt": words(), "chosen": words() + ".", "rejected": words(), "id": index}
        for index in range(1000)
    ]
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def command(pairs: Path, model: Path, output: Path) -> list[str]:
    """Hundreds of batches by a reward model."""
    prior = f"hf:{model}:batch_tokens=128,precision=fp32"
    return ["score", str(pairs), "--prior", prior, "--output", str(output)]


def kill_after(least: int, arguments: list[str], output: Path, forks: Forks) -> None:
    """Run the command and kill it once so many responses are scored."""
    started = forks.start(["preftune", *arguments])
    while started.running() and len(finished(output)) < least:
        time.sleep(0.01)
    started.kill()
    assert started.wait().status == -signal.SIGKILL
    assert not output.exists()


def shards(output: Path) -> list[Path]:
    """The files of finished scores."""
    return sorted(output.parent.glob(f"{output.name}.*.part"))


def finished(output: Path) -> list[int]:
    """Indices of the responses that are scored, each as often as it was."""
    lines = [line for file in shards(output) for line in file.read_text(encoding="utf-8").split("\n")]
    return [json.loads(line.partition(" ")[2])[0] for line in lines if line.endswith("]")]


def test_killed_at_any_moment(
    pairs: Path,
    reward_model_dir: Path,
    preftune: CommandLine,
    forks: Forks,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Killed three times and once within a line, a call scores nothing twice and writes the same file."""
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    code, errors = preftune(*command(pairs, reward_model_dir, whole))
    assert code == 0, errors
    assert not shards(whole)
    for least in (40, 400, 800):
        kill_after(least, command(pairs, reward_model_dir, killed), killed, forks)
    scored = finished(killed)
    assert 800 <= len(scored) == len(set(scored)) < 2000
    (shard,) = shards(killed)
    content = shard.read_bytes()
    shard.write_bytes(content[: content.rindex(b"[", 0, len(content) - 3) + 4])
    lost = len(scored) - len(finished(killed))
    assert lost > 0
    caplog.clear()
    code, errors = preftune(*command(pairs, reward_model_dir, killed))
    assert code == 0, errors
    assert f"{len(scored) - lost} of 2000 responses are already scored" in caplog.text
    assert killed.read_bytes() == whole.read_bytes()
    assert not shards(killed)


def test_two_processes_go_on_where_one_was_killed(
    pairs: Path, reward_model_dir: Path, preftune: CommandLine, forks: Forks, tmp_path: Path
) -> None:
    """Two real processes share what a single one has left, and write the file that one alone writes."""
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    code, errors = preftune(*command(pairs, reward_model_dir, one), "--reward", "lexical_diversity")
    assert code == 0, errors
    kill_after(200, command(pairs, reward_model_dir, two), two, forks)
    before = len(finished(two))
    words = ["preftune", *command(pairs, reward_model_dir, two), "--reward", "lexical_diversity"]
    done = forks.run(words, processes=2)
    assert done.status == 0, done.errors
    assert done.errors.count(f"{before} of 2000 responses are already scored") >= 1
    assert two.read_bytes() == one.read_bytes()
    assert not shards(two)


def test_a_score_that_is_no_number_is_refused(
    pairs: Path, reward_model_dir: Path, preftune: CommandLine, tmp_path: Path
) -> None:
    """A model whose scores overflow stops the call with the row, and no such score is written."""
    model = LlamaForSequenceClassification.from_pretrained(reward_model_dir)
    torch.nn.init.constant_(model.score.weight, torch.finfo(torch.float32).max)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(reward_model_dir).save_pretrained(tmp_path / "model")
    output = tmp_path / "scored.jsonl"
    code, errors = preftune(*command(pairs, tmp_path / "model", output))
    assert code == 2
    assert "which is no finite number" in errors
    assert finished(output) == []


def test_another_key_never_reads_what_is_there(
    pairs: Path, reward_model_dir: Path, preftune: CommandLine, tmp_path: Path
) -> None:
    """Finished scores of other data or another model are neither read nor removed."""
    output = tmp_path / "scored.jsonl"
    stale = tmp_path / "scored.jsonl.0123456789ab.0.part"
    stale.write_text("[[0, 99.0], [1, 99.0]]\n", encoding="utf-8")
    code, errors = preftune("score", str(pairs), "--reward", "repetition", "--output", str(output))
    assert code == 0, errors
    assert "99.0" not in output.read_text(encoding="utf-8")
    assert stale.exists()
