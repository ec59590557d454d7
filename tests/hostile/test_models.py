"""A damaged model is one message, whoever reads it; an odd but sound one keeps its weights."""

import contextlib
import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from preftune.errors import InputError
from preftune.models.content import model_content
from preftune.models.loading import load_language_model, load_tokenizer
from preftune.models.reward_model import load_reward_model
from preftune.rewards.reward_model import RewardModelScorer
from preftune.sampling.sampler import sample_responses

from .models import DAMAGES, SLOW, SOUND, WEIGHTS, Damage, build, damaged, dropped, pickled, tensors

SECONDS = 60
SEEDS = range(1, 5)
CommandLine = Callable[..., tuple[int, str]]


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail where it takes longer."""

    def stop(*_: Any) -> None:
        pytest.fail(f"it took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model."""
    return build(tmp_path_factory.mktemp("sound") / "model")


def answer(folder: Path) -> list[int]:
    """Load model and tokenizer, and sample two tokens for a question."""
    model = load_language_model(str(folder), torch.float32)
    tokenizer = load_tokenizer(str(folder))
    asked = [({"role": "user", "content": "w1 w2"},)]
    sampled = sample_responses(model, tokenizer, asked, n=1, max_new_tokens=2, temperature=0.0, seed=0)
    return list(sampled[0][0].tokens)


def refused(source: Path, target: Path, damage: Damage, seed: int) -> None:
    """The damage must end in its message."""
    folder = damaged(source, target, damage.change, seed)
    with at_most(SECONDS), pytest.raises(InputError) as stopped:
        answer(folder)
    said = str(stopped.value)
    assert damage.says in said
    assert len(said) < 1200


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model_is_one_message(sound: Path, tmp_path: Path, name: str) -> None:
    """What is wrong is said in one message, and no model with other weights is ever returned."""
    refused(sound, tmp_path / "model", DAMAGES[name], seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", DAMAGES)
def test_damage_anywhere_is_one_message(sound: Path, tmp_path: Path, name: str, seed: int) -> None:
    """Wherever a file is cut and whichever tensor is wrong, the message is the same."""
    refused(sound, tmp_path / "model", DAMAGES[name], seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_template_without_end_is_one_message(sound: Path, tmp_path: Path, name: str) -> None:
    """A template that never ends is stopped."""
    refused(sound, tmp_path / "model", SLOW[name], seed=0)


@pytest.mark.parametrize("name", SOUND)
def test_an_odd_but_sound_model_loads(sound: Path, tmp_path: Path, name: str) -> None:
    """It has its own weights: those of the model that it was made from."""
    folder = damaged(sound, tmp_path / "model", SOUND[name], seed=0)
    found = load_language_model(str(folder), torch.float32)
    original = load_language_model(str(sound), torch.float32)
    for layer, other in zip(found.model.layers, original.model.layers, strict=True):
        weight, own = layer.mlp.up_proj.weight, other.mlp.up_proj.weight
        assert torch.equal(weight, own.half().float() if name == "16 bits" else own)
    assert len(answer(folder)) in (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize("file", [WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_flipped_bytes_end_in_an_answer_or_a_message(
    sound: Path, tmp_path: Path, file: str, seed: int
) -> None:
    """Some bytes of a file are others: the model answers, or there is one message."""

    def flip(folder: Path, chance: random.Random) -> None:
        content = bytearray((folder / file).read_bytes())
        for _ in range(chance.randint(1, 5)):
            content[chance.randrange(min(len(content), 4000))] = chance.randrange(256)
        (folder / file).write_bytes(content)

    folder = damaged(sound, tmp_path / "model", flip, seed)
    with at_most(SECONDS), contextlib.suppress(InputError):
        answer(folder)


# --- by the doors of the package ---


def run_of(folder: Path, tmp_path: Path, **changes: Any) -> Path:
    """The configuration file of a short run."""
    data = [{"prompt": "w1 w2", "chosen": f"w{3 + row} w4", "rejected": f"w{20 + row}"} for row in range(8)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    config = {
        "model": str(folder),
        "data": {"train": str(rows), "max_length": 32},
        "objective": {"method": "dpo"},
        "training": {"max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True},
        "output": str(tmp_path / "run"),
        "cache": str(tmp_path / "cache"),
        **changes,
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "name", ["a tensor is missing", "torch.compile's names", "cut weights", "a reward model"]
)
def test_a_dry_run_finds_it_without_weights(
    preftune: CommandLine, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """`--dry-run` and a run that would replace another one refuse; the old run stays."""
    folder = damaged(sound, tmp_path / "model", DAMAGES[name].change, seed=0)
    run = tmp_path / "run"
    run.mkdir()
    for name_of_file in ("summary.json", "config.yaml"):
        (run / name_of_file).write_text("{}", encoding="utf-8")
    file = str(run_of(folder, tmp_path))
    for flag in ("--dry-run", "--overwrite"):
        code, said = preftune("train", file, flag)
        assert code == 2
        assert DAMAGES[name].says in " ".join(said.split())
    assert (run / "summary.json").read_text(encoding="utf-8") == "{}"


def test_a_damaged_reference_is_found_by_a_dry_run(
    preftune: CommandLine, sound: Path, tmp_path: Path
) -> None:
    """The reference is checked as the policy is."""
    folder = damaged(sound, tmp_path / "other", DAMAGES["a tensor is missing"].change, seed=0)
    code, said = preftune("train", str(run_of(sound, tmp_path, reference=str(folder))), "--dry-run")
    assert code == 2
    assert "has no weights for" in " ".join(said.split())


def test_a_new_score_head_is_only_for_training(sound: Path, tmp_path: Path) -> None:
    """A base model starts a reward model; it is refused where it would score with a random head."""
    started = load_reward_model(str(sound), torch.float32, pad_token_id=0)
    assert started.score.weight.shape == (1, 16)
    with pytest.raises(InputError, match=r"no weights for score\.weight, .* trained to score"):
        RewardModelScorer(str(sound))


def test_a_reward_model_to_go_on_with_has_its_head(tmp_path: Path) -> None:
    """A reward model whose head is lost is refused, also where training would go on with it."""
    folder = build(tmp_path / "scores", scores=True)
    trained = load_reward_model(str(folder), torch.float32, pad_token_id=0)
    tensors(dropped("score.weight"))(folder, random.Random(0))
    assert bool(trained.score.weight.any())
    with pytest.raises(InputError, match=r"no weights for score\.weight"):
        load_reward_model(str(folder), torch.float32, pad_token_id=0)


def test_no_code_of_a_pickle_runs(sound: Path, tmp_path: Path) -> None:
    """A `.bin` that would write a file does not write it."""
    trace = tmp_path / "trace"

    class Writes:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.write_text, (trace, "ran"))

    folder = damaged(sound, tmp_path / "model", pickled(lambda stored: {"a": Writes()}), seed=0)
    with pytest.raises(InputError, match=r"pytorch_model\.bin is damaged or holds other things"):
        load_language_model(str(folder), torch.float32)
    assert not trace.exists()


# --- identity ---


@pytest.mark.parametrize("how", [pickled, lambda change: tensors(lambda stored, _: change(stored) and None)])
def test_other_weights_are_another_model(sound: Path, tmp_path: Path, how: Callable[..., Any]) -> None:
    """One number in the weights is enough, in a `.bin` as in safetensors."""

    def plus_one(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        stored["model.norm.weight"] += 1
        return stored

    one = damaged(sound, tmp_path / "one", how(lambda stored: stored), seed=0)
    again = damaged(sound, tmp_path / "again", how(lambda stored: stored), seed=0)
    two = damaged(sound, tmp_path / "two", how(plus_one), seed=0)
    assert model_content(str(one)) == model_content(str(again)) != model_content(str(two))


def test_an_adapter_is_another_on_another_base(sound: Path, tmp_path: Path) -> None:
    """An adapter's identity has its base model's in it."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    base = damaged(sound, tmp_path / "base", lambda folder, chance: None, seed=0)
    (adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(base)}), encoding="utf-8"
    )
    before = model_content(str(adapter))
    tensors(lambda stored, _: stored["model.norm.weight"].add_(1) is None)(base, random.Random(0))
    assert model_content(str(adapter)) != before
