"""Memory and time of a step: all weights, LoRA, QLoRA, and TRL's QLoRA on the same pairs.

Each is built and measured in a process of its own, one after another, round after round. Weights and products
are in float32. TRL computes its reference in the step; preftune has computed it before, as its runs do.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from contestants import TrainingSteps, move_off_reference
from datasets import Dataset
from trl_examples import trl_examples
from worker import forget_peak, memory_mb, release_memory
from workloads import WORKLOADS, count_tokens, draw_groups

from preftune import objectives
from preftune.demo.model import demo_model_dir
from preftune.models import Policy, load_tokenizer, with_reference
from preftune.storage.files import write_json
from preftune.training import check_config
from preftune.training.policy import language_model
from preftune.training.preparation import training_arguments, with_defaults
from preftune.training.recording import environment
from preftune.training.trainer import PackedTrainer

RESULTS = Path(__file__).parent / "results" / "quantized.json"
GROUPS, STEPS = 2, 2
QLORA = {"type": "nf4", "double": True}
WAYS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "LoRA": {"lora": {"rank": 16}},
    "QLoRA": {"lora": {"rank": 16}, "quantization": QLORA},
    "TRL's QLoRA": {},
}


def measure(way: str, shrink: int) -> dict[str, float]:
    """Build one, take a step to warm up, then some that count; MB of resident memory, and seconds."""
    model = str(demo_model_dir())
    before = memory_mb("VmRSS") or 0.0
    steps = _of_trl(model, shrink) if way.startswith("TRL") else _of_preftune(model, WAYS[way], shrink)
    release_memory()
    resident = (memory_mb("VmRSS") or 0.0) - before
    steps.step(1)
    release_memory()
    forget_peak()
    taken = [steps.step(1) for _ in range(STEPS)]
    return {
        "built_mb": resident,
        "peak_mb": (memory_mb("VmHWM") or 0.0) - before,
        "seconds": statistics.median(step.seconds for step in taken),
        "loss": taken[-1].loss,
    }


def _groups(model: str, shrink: int) -> Any:
    groups = draw_groups(WORKLOADS["chat"].shrunk(shrink), model)
    return groups[:GROUPS]


def _of_preftune(model: str, way: dict[str, Any], shrink: int) -> TrainingSteps:
    config = with_defaults(
        check_config(
            {
                "model": model,
                "data": {"train": "given as tokens"},
                "objective": {"method": "dpo"},
                "training": {"per_device_train_batch_size": GROUPS, "report_to": "none", "use_cpu": True},
                "output": tempfile.mkdtemp(),
                **way,
            }
        )
    )
    language = language_model(config)
    policy = Policy(language)
    groups = with_reference(policy, _groups(model, shrink), nullcontext())
    move_off_reference(language, lora="lora" in way)
    trainer = PackedTrainer(
        policy,
        objectives.build(config.objective),
        training_arguments(config, is_evaluated=False),
        groups,
        None,
        load_tokenizer(model),
        callbacks=[],
    )
    return TrainingSteps(trainer, groups, 1)


def _of_trl(model: str, shrink: int) -> TrainingSteps:
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from trl import DPOConfig, DPOTrainer

    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, quantization_config=how, dtype=torch.float32),
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=load_tokenizer(model),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    move_off_reference(trainer.model, lora=True)
    return TrainingSteps(trainer, trl_examples(_groups(model, shrink)), 1)


def run(rounds: int, shrink: int) -> dict[str, Any]:
    """All ways, in turn, each in a new process."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            words = [sys.executable, __file__, "--way", way, "--shrink", str(shrink)]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(way, found[way][-1], flush=True)
    return {
        way: {key: statistics.median(one[key] for one in each) for key in each[0]}
        for way, each in found.items()
    }


def table(content: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| | built, MB | peak of a step, MB | seconds of a step |", "|---|---|---|---|"]
    lines += [
        f"| {way} | {one['built_mb']:,.0f} | {one['peak_mb']:,.0f} | {one['seconds']:.2f} |"
        for way, one in content["ways"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure one way and print it as JSON, or all of them and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shrink", type=int, default=2)
    chosen = parser.parse_args()
    if chosen.way:
        print(json.dumps(measure(chosen.way, chosen.shrink)))
        return
    model = str(demo_model_dir())
    config = check_config({"model": model, "data": {"train": "-"}, "training": {"use_cpu": True}})
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "environment": environment(training_arguments(config, is_evaluated=False), {}),
        "tokens": count_tokens(_groups(model, chosen.shrink)),
        "rounds": chosen.rounds,
        "ways": run(chosen.rounds, chosen.shrink),
    }
    write_json(RESULTS, content)
    print(table(content))


if __name__ == "__main__":
    main()
