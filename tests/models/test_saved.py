"""Every saved model is whole: transformers or peft alone read it, in a process without preftune."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from preftune import PreferenceTrainer

from ..conftest import rows

IDS = [1, 40, 7, 300, 12, 5]


@dataclass(frozen=True)
class Saving:
    """What a row of the table works with.

    Attributes:
        base: folder of the model to start from.
        place: an empty folder.
    """

    base: Path
    place: Path

    def trained(self, objective: Any = "dpo", **keywords: Any) -> PreferenceTrainer:
        """A trainer after one step that changes the weights visibly."""
        trainer = PreferenceTrainer(
            str(self.base),
            objective,
            TrainingArguments(
                str(self.place / "checkpoints"),
                max_steps=1,
                learning_rate=0.02,
                report_to="none",
                save_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=rows(4, seed=1),
            cache=self.place / "cache",
            **keywords,
        )
        trainer.train()
        return trainer

    def saved(self, trainer: PreferenceTrainer, **options: Any) -> tuple[Path, nn.Module]:
        """Where the trainer's model is saved, and the model in memory."""
        folder = self.place / "saved"
        trainer.save_model(str(folder), **options)
        return folder, trainer.model.language_model


LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
SCORING_LORA = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS")
AUXILIARY = {"method": "dpo", "auxiliary": {"weight": 0.1}}
REWARDS = {
    "words": lambda prompts, completions, **_: [float(len(text[-1]["content"])) for text in completions]
}

SAVED: dict[str, Callable[[Saving], tuple[Path, nn.Module]]] = {
    "full": lambda to: to.saved(to.trained()),
    "sharded": lambda to: to.saved(to.trained(), max_shard_size="2MB"),
    "LoRA": lambda to: to.saved(to.trained(peft_config=LORA)),
    "reward model": lambda to: to.saved(to.trained("bradley_terry")),
    "reward model, LoRA": lambda to: to.saved(to.trained("bradley_terry", peft_config=SCORING_LORA)),
    "value head": lambda to: to.saved(to.trained(AUXILIARY, rewards=REWARDS)),
}
"""A folder and the model in memory that it must equal, for every way to save one."""
FILES: dict[str, set[str]] = {
    "full": {"model.safetensors", "config.json", "generation_config.json"},
    "sharded": {"model.safetensors.index.json", "config.json", "generation_config.json"},
    "LoRA": {"adapter_model.safetensors", "adapter_config.json", "generation_config.json"},
    "reward model": {"model.safetensors", "config.json"},
    "reward model, LoRA": {"adapter_model.safetensors", "adapter_config.json"},
    "value head": {"model.safetensors", "value_head.safetensors", "generation_config.json"},
}
"""What must be in the folder, beside tokenizer, chat template and card."""
OF_ALL = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md"}


@pytest.fixture(scope="module")
def made(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Tensor]]:
    """Folder and logits of each."""
    found = {}
    for name, make in SAVED.items():
        folder, model = make(Saving(tiny_model_dir, tmp_path_factory.mktemp("saved")))
        with torch.no_grad():
            found[name] = folder, model.eval()(input_ids=torch.tensor([IDS])).logits.float()
    return found


@pytest.fixture(scope="module")
def loaded(
    made: dict[str, tuple[Path, Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a process without preftune says of each: logits, chat and end tokens."""
    place = tmp_path_factory.mktemp("plain")
    (place / "folders.json").write_text(json.dumps({name: str(folder) for name, (folder, _) in made.items()}))
    script = Path(__file__).with_name("load_plainly.py")
    command = [sys.executable, str(script), str(place / "folders.json"), json.dumps(IDS), str(place / "out")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with safe_open(place / "out", "pt") as file:
        said = {name: json.loads(text) for name, text in file.metadata().items()}
        return {name: file.get_tensor(name) for name in file.keys()}, said  # noqa: SIM118 no mapping


@pytest.mark.parametrize("name", SAVED)
def test_plain_libraries_compute_the_same_logits(
    name: str, made: dict[str, tuple[Path, Tensor]], loaded: tuple[dict[str, Tensor], dict[str, Any]]
) -> None:
    """The model that was trained is the model that others load."""
    torch.testing.assert_close(loaded[0][name], made[name][1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_folder_has_all_that_generation_needs(
    name: str,
    made: dict[str, tuple[Path, Tensor]],
    loaded: tuple[dict[str, Tensor], dict[str, Any]],
    tiny_model_dir: Path,
) -> None:
    """Weights are safetensors alone; the tokenizer, its template and the end tokens are the model's."""
    files = {path.name for path in made[name][0].iterdir()}
    assert files >= FILES[name] | OF_ALL
    assert not [file for file in files if file.endswith((".bin", ".pt", ".pth", ".pkl"))]
    base = AutoTokenizer.from_pretrained(tiny_model_dir)
    turn = [{"role": "user", "content": "2+2?"}]
    expected = base.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert loaded[1][name] == {
        "chat": expected,
        # <|im_end|>, which closes the trained turns.
        "ends": None if name.startswith("reward model") else 2,
    }


def test_models_that_differ_are_told_apart(
    made: dict[str, tuple[Path, Tensor]], tiny_model_dir: Path
) -> None:
    """One step has moved every policy's logits by far more than the tolerance above."""
    start = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        before = start(input_ids=torch.tensor([IDS])).logits
    for name in ("full", "sharded", "LoRA", "value head"):
        assert (made[name][1] - before).abs().max() > 1e-3


def test_shards_are_no_larger_than_asked(made: dict[str, tuple[Path, Tensor]]) -> None:
    """`max_shard_size` is transformers' own: a shard has several weights up to it, or one that is larger."""
    folder = made["sharded"][0]
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 1
    for shard in shards:
        weights = [name for name, place in index["weight_map"].items() if place == shard]
        assert (folder / shard).stat().st_size < 2_100_000 or len(weights) == 1
