"""Makes the demo's data: samples responses to its prompts, scores them, and writes them down.

Run as `python -m preftune.demo.make_data`; `make demo-data` does. Processors and thread counts round
differently, and a rounded logit can change a sample: a new file resembles the shipped one, but is no copy.
"""

import gzip
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.demo.data import DATA_FILE, DemoRow
from preftune.demo.model import demo_model_dir
from preftune.demo.prompts import DemoPrompt, demo_prompts
from preftune.rewards.instructions import instruction_score
from preftune.sampling.sampler import sample_responses

RESPONSES_PER_PROMPT = 8
MAX_NEW_TOKENS = 64
TEMPERATURE = 1.0
SEED = 0


def main() -> None:
    """Samples, scores and writes the demo's data, then prints its statistics."""
    model_dir = demo_model_dir()
    prompts = demo_prompts()
    responses = sample_responses(
        AutoModelForCausalLM.from_pretrained(model_dir),
        AutoTokenizer.from_pretrained(model_dir),
        [prompt["prompt"] for prompt in prompts],
        n=RESPONSES_PER_PROMPT,
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=TEMPERATURE,
        seed=SEED,
        # Half the memory traffic; the rows are scored by their text alone.
        dtype=torch.bfloat16,
        progress=True,
    )
    texts = [[response.text for response in group] for group in responses]
    rows = [scored_row(prompt, group) for prompt, group in zip(prompts, texts, strict=True)]
    write_rows(rows, DATA_FILE)
    console = Console()
    for name, value in statistics(rows).items():
        console.print(f"{name:40} {value:.3f}")


def scored_row(prompt: DemoPrompt, responses: Sequence[str]) -> DemoRow:
    """One line of the data file: the prompt, its responses, and their scores to four decimals."""
    scores = [round(instruction_score(response, prompt["instructions"]), 4) for response in responses]
    return {"prompt": prompt["prompt"], "responses": list(responses), "scores": scores} | {
        "instructions": prompt["instructions"],
        "split": prompt["split"],
    }


def write_rows(rows: Sequence[DemoRow], path: Path) -> None:
    """Writes JSON lines through gzip, at once or not at all; the same rows give the same bytes."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    scratch.write_bytes(gzip.compress(text.encode(), mtime=0))
    scratch.replace(path)


def statistics(rows: Sequence[DemoRow]) -> dict[str, float]:
    """Mean scores by split and by instruction, and how far a group's best and worst responses lie apart."""
    gaps = [max(row["scores"]) - min(row["scores"]) for row in rows]
    found: dict[str, float] = {
        f"mean score, {split}": fmean(
            score for row in rows if row["split"] == split for score in row["scores"]
        )
        for split in ("train", "held_out")
    }
    found["mean gap of best and worst"] = fmean(gaps)
    found["share of groups that tie"] = fmean(gap == 0 for gap in gaps)
    by_instruction: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        for instruction in row["instructions"]:
            for check in instruction:
                by_instruction[check] += [instruction_score(text, [instruction]) for text in row["responses"]]
    return found | {f"mean of {check}": fmean(scores) for check, scores in sorted(by_instruction.items())}


if __name__ == "__main__":
    main()
