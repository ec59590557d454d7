"""Whether every verb runs on this device with a real model, and agrees with the CPU.

`python benchmarks/gpu_real.py --output FILE` trains SmolLM2-135M on the demo's data by the command line:
once on the device in float32 and once on the CPU, whose figures are compared step by step; once killed and
resumed; then it samples, scores, and goes through two rounds in both modes. `--small` takes a tiny random
model.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from gpu_output import Row, options, write

TOLERANCE = 1e-2
"""Largest relative difference of a figure in float32 between the device and the CPU."""
COMPARED = ("loss", "logps/chosen", "logps/rejected")
STEPS = 4

DPO: dict[str, Any] = {"method": "dpo", "prior": "reward_gap", "auxiliary": {"weight": 0.1}}
RUNS: dict[str, dict[str, Any]] = {
    "dpo, prior, auxiliary": {"objective": DPO, "rewards": {"reading_grade": {"goal": "minimise"}}},
    "simpo, LoRA": {"objective": {"method": "simpo"}, "lora": {"rank": 8}},
}


def tiny_model(folder: Path) -> Path:
    """A random Llama with the demo's tokenizer."""
    import transformers

    from preftune.demo.model import demo_model_dir

    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_model_dir())
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Verbs:
    """The command line in a folder of its own, on the device or on the CPU."""

    def __init__(self, folder: Path, model: Path, data: dict[str, Path]) -> None:
        self.folder, self.model, self.data = folder, model, data

    def command(self, *words: str) -> list[str]:
        """What starts a verb."""
        return [sys.executable, "-m", "preftune", *words]

    def environment(self, on_cpu: bool) -> dict[str, str]:
        """Without visible devices everything is on the CPU."""
        return {
            **os.environ,
            "TOKENIZERS_PARALLELISM": "false",
            **({"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}),
        }

    def run(self, *words: str, on_cpu: bool = False) -> float:
        """Run a verb; seconds it took.

        Raises:
            RuntimeError: it failed; the end of what it wrote is the message.
        """
        began = time.perf_counter()
        done = subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.environment(on_cpu),
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-600:])
        return round(time.perf_counter() - began, 1)

    def configuration(self, name: str, output: str, **training: Any) -> str:
        """Write the file of a run."""
        settings: dict[str, Any] = {
            "learning_rate": 1e-5,
            "max_steps": STEPS,
            "per_device_train_batch_size": 2,
            "eval_strategy": "no",
            "eval_on_start": False,
            "save_strategy": "no",
        }
        tree = {
            "model": str(self.model),
            "data": {"train": str(self.data["train"])},
            "prior": {"calibration": "identity"},
            "training": settings | training,
            "output": output,
            "cache": "cache",
            **RUNS[name],
        }
        file = self.folder / f"{output}.yaml"
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return str(file)

    def lines(self, output: str) -> list[Row]:
        """The training lines of a run, by step."""
        text = (self.folder / output / "metrics.jsonl").read_text(encoding="utf-8")
        return [line for line in map(json.loads, text.splitlines()) if "loss" in line]


def difference(one: list[Row], other: list[Row]) -> float:
    """Largest relative difference of the figures that are compared, over all steps."""
    if len(one) != len(other) or not one:
        return math.inf
    largest: float = max(
        abs(a[key] - b[key]) / max(abs(b[key]), 1e-3)
        for a, b in zip(one, other, strict=True)
        for key in COMPARED
    )
    return largest


def trainings(verbs: Verbs) -> Iterator[Row]:
    """Each run on the device and on the CPU."""
    for number, name in enumerate(RUNS):
        here, there = f"device-{number}", f"cpu-{number}"
        seconds = verbs.run("train", verbs.configuration(name, here))
        on_cpu = verbs.run("train", verbs.configuration(name, there, use_cpu=True), on_cpu=True)
        found = difference(verbs.lines(here), verbs.lines(there))
        figures = {"seconds": seconds, "seconds_on_cpu": on_cpu, "difference": float(f"{found:.3g}")}
        yield {"what": f"train {name}", **figures, "holds": found < TOLERANCE}


def resumed(verbs: Verbs) -> Iterator[Row]:
    """A run that is killed behind its second checkpoint goes on to the figures of an uninterrupted one."""
    name = "dpo, prior, auxiliary"
    saving = {"save_strategy": "steps", "save_steps": 1}
    verbs.run("train", verbs.configuration(name, "whole", **saving))
    file = verbs.configuration(name, "killed", **saving)
    process = subprocess.Popen(
        verbs.command("train", file),
        cwd=verbs.folder,
        env=verbs.environment(on_cpu=False),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    state = verbs.folder / "killed" / "checkpoints" / "checkpoint-2" / "trainer_state.json"
    while process.poll() is None and not state.exists():
        time.sleep(0.05)
    was_killed = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    verbs.run("train", file, "--resume")
    found = difference(verbs.lines("killed"), verbs.lines("whole"))
    difference_found = float(f"{found:.3g}")
    yield {
        "what": "killed and resumed",
        "was_killed": was_killed,
        "difference": difference_found,
        "holds": found < TOLERANCE,
    }


def sampled_and_scored(verbs: Verbs) -> Iterator[Row]:
    """Greedy responses of the device and the CPU, and their scores under the tuned policy."""
    prompts = verbs.folder / "prompts.jsonl"
    rows = verbs.data["held_out"].read_text(encoding="utf-8").splitlines()[:4]
    kept = [{"prompt": json.loads(row)["prompt"]} for row in rows]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    words = ("--n", "1", "--max-new-tokens", "12", "--temperature", "0")
    texts = {}
    for place, on_cpu in (("device", False), ("cpu", True)):
        output = verbs.folder / f"sampled-{place}.jsonl"
        seconds = verbs.run(
            "sample", str(verbs.model), str(prompts), "--output", str(output), *words, on_cpu=on_cpu
        )
        found = output.read_text(encoding="utf-8").splitlines()
        texts[place] = [json.loads(row)["responses"][0] for row in found]
        yield {"what": f"sample on {place}", "seconds": seconds, "holds": len(texts[place]) == len(kept)}
    # The device samples in 16 bits, so that some of the texts may part.
    same = sum(one == other for one, other in zip(texts["device"], texts["cpu"], strict=True))
    yield {"what": "the same greedy text", "of": len(kept), "same": same}
    scores = {}
    for place, on_cpu in (("device", False), ("cpu", True)):
        output = verbs.folder / f"scored-{place}.jsonl"
        tuned = verbs.folder / "device-0" / "model"
        reward = f"policy:{tuned}:reference={verbs.model},precision=fp32,name=implicit"
        verbs.run("score", str(verbs.data["few"]), "--reward", reward, "--output", str(output), on_cpu=on_cpu)
        found = output.read_text(encoding="utf-8").splitlines()
        scores[place] = [number for row in found for number in json.loads(row)["implicit"]]
    apart = max(abs(a - b) for a, b in zip(scores["device"], scores["cpu"], strict=True))
    yield {"what": "score by the implicit reward", "nats_apart": float(f"{apart:.3g}"), "holds": apart < 0.05}


def rounds(verbs: Verbs) -> Iterator[Row]:
    """Two rounds in each mode; every figure is finite."""
    for mode in ("round", "batch"):
        tree = {
            "model": str(verbs.model),
            "prompts": str(verbs.data["train"]),
            "held_out": str(verbs.folder / "prompts.jsonl"),
            "rounds": 2,
            "reward": "reading_grade",
            "update_every": mode,
            "sampling": {"n": 2, "max_new_tokens": 8},
            "evaluation": {"n": 2},
            "train": {
                "prior": {"calibration": "minmax"},
                "training": {
                    "max_steps": 2,
                    "per_device_train_batch_size": 2,
                    "gradient_accumulation_steps": 1,
                    "warmup_steps": 0,
                },
            },
            "output": f"rounds-{mode}",
        }
        file = verbs.folder / f"rounds-{mode}.yaml"
        file.write_text(yaml.safe_dump(tree), encoding="utf-8")
        seconds = verbs.run("iterate", str(file))
        summary = (verbs.folder / f"rounds-{mode}" / "summary.json").read_text(encoding="utf-8")
        yield {
            "what": f"iterate, update_every={mode}",
            "seconds": seconds,
            "holds": "NaN" not in summary and "Infinity" not in summary,
        }


def all_rows(small: bool) -> Iterator[Row]:
    """In order of value; what fails ends no other."""
    from preftune.demo.data import demo_rows, write_jsonl, write_splits
    from preftune.demo.model import demo_model_dir

    folder = Path(tempfile.mkdtemp())
    try:
        model = tiny_model(folder / "tiny") if small else demo_model_dir()
        train, held_out = demo_rows("train")[:16], demo_rows("held_out")[:6]
        data = write_splits(folder / "data", train, held_out)
        data["few"] = folder / "data" / "few.jsonl"
        write_jsonl(data["few"], held_out[:2])
        verbs = Verbs(folder, model, data)
        for part in (trainings, resumed, sampled_and_scored, rounds):
            try:
                yield from part(verbs)
            except Exception as error:  # the others are still worth having
                yield {"what": part.__name__, "outcome": f"failed: {error}"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Run, and write after every row."""
    given = options(__doc__)
    write(given.output, all_rows(given.small))


if __name__ == "__main__":
    main()
