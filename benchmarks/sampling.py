"""How fast sampling is, and beside whom: `make bench-sampling`.

Every contestant samples from the same model object in one process, in turn, round after round, since a
machine's speed drifts. Reported are tokens per second of processor time, which other jobs on the machine
disturb least, and the median over rounds of preftune's rate over theirs; the results' file has the clock's
too. Tokens are those up to and with each response's end. Prompts and settings are the same (temperature 1,
neither top-k nor top-p); the slow ones give fewer responses, since their rate does not depend on how many.
"""

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import trl
from datasets import Dataset
from sections import markdown_table, write_section
from transformers import GenerationConfig

from preftune import demo
from preftune.demo.model import demo_model_dir
from preftune.models import load_language_model, load_tokenizer
from preftune.sampling import sampler as sampling
from preftune.storage.files import write_json

RESULTS = Path("benchmarks/results/sampling.json")
PAGE = Path("docs/performance.md")
MARKERS = "<!-- sampling table -->", "<!-- end of sampling -->"
RESPONSES = Path(demo.__file__).with_name("responses.jsonl.gz")

SOME = 4
"""One prompt a call is sampled for every fourth prompt."""


@dataclass(frozen=True)
class Contestant:
    """Samples responses to prompts, and says how many tokens that were."""

    prompts: int
    responses: int
    sample: Callable[[], int]


def contestants(options: argparse.Namespace, folder: str) -> dict[str, Contestant]:
    """By the name in the table."""
    name = options.model or str(demo_model_dir())
    model, tokenizer = load_language_model(name, torch.float32).eval(), load_tokenizer(name)
    with gzip.open(RESPONSES, "rt", encoding="utf-8") as file:
        prompts = [json.loads(line)["prompt"] for line in islice(file, options.prompts)]
    asked = [sampling.prompt_tokens(tokenizer, prompt) for prompt in prompts]
    rows = options.prompts * options.n

    def preftune(rows: int) -> int:
        groups = sampling.sample_responses(
            model, tokenizer, prompts, n=options.n, max_new_tokens=options.tokens, rows=rows
        )
        return sum(len(response.tokens) for group in groups for response in group)

    def batches() -> int:
        with patch.object(sampling, "decode_in_slots", lambda *arguments: None):
            return preftune(rows // 2)

    def generate(asked: Sequence[Sequence[int]], n: int) -> int:
        settings = GenerationConfig(
            do_sample=True,
            top_k=0,
            max_new_tokens=options.tokens,
            num_return_sequences=n,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        count = 0
        for ids in asked:
            with torch.inference_mode():
                made = model.generate(
                    input_ids=torch.tensor([ids]),
                    attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
                    generation_config=settings,
                )
            ended = made[:, len(ids) :] == tokenizer.eos_token_id
            ended[:, -1] = True
            count += int((ended.int().argmax(-1) + 1).sum())
        return count

    trainer = trl.GRPOTrainer(
        model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl.GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            report_to=[],
            per_device_train_batch_size=rows,
            num_generations=options.n,
            max_completion_length=options.tokens,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokenizer,
    )
    model.eval()
    repeated = [ids for ids in asked for _ in range(options.n)]

    def grpo() -> int:
        completions, _ = trainer._generate_single_turn(repeated, None, {}, options.n)
        return sum(map(len, completions))

    everyone, some = (options.prompts, options.n), asked[::SOME]
    return {
        "preftune": Contestant(*everyone, lambda: preftune(rows)),
        "preftune, half the rows": Contestant(*everyone, lambda: preftune(rows // 2)),
        "preftune, half the rows, batch by batch": Contestant(*everyone, batches),
        "TRL's GRPOTrainer": Contestant(*everyone, grpo),
        "generate, one prompt a call": Contestant(len(some), options.n, lambda: generate(some, options.n)),
        "generate, one response a call": Contestant(options.prompts, 1, lambda: generate(asked, 1)),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of all, and preftune's rate over theirs."""
    torch.manual_seed(0)
    rates: dict[str, list[float]] = {}
    by_processor: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        runs = contestants(options, folder)
        for place in range(options.rounds):
            # Whoever comes second may find a warmer machine.
            for name in list(runs)[:: -1 if place % 2 else 1]:
                began, busy = time.perf_counter(), time.process_time()
                tokens = runs[name].sample()
                seconds, processor = time.perf_counter() - began, time.process_time() - busy
                rates.setdefault(name, []).append(tokens / seconds)
                by_processor.setdefault(name, []).append(tokens / processor)
                print(f"{name}: {tokens} tokens, {seconds:.1f} s, {processor:.1f} s of processor", flush=True)
    ours, ours_busy = rates["preftune"], by_processor["preftune"]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: metadata.version(name) for name in ("preftune", "torch", "transformers", "trl")},
        "threads": torch.get_num_threads(),
        "settings": {key: getattr(options, key) for key in ("model", "prompts", "n", "tokens", "rounds")},
        "contestants": {
            name: {
                "prompts": runs[name].prompts,
                "responses_per_prompt": runs[name].responses,
                "tokens_per_second": median(rates[name]),
                "tokens_per_processor_second": median(by_processor[name]),
                "preftune_is_faster_by": _ratio(ours, rates[name]),
                "preftune_is_faster_by_processor": _ratio(ours_busy, by_processor[name]),
            }
            for name in runs
        },
    }


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return median(our / their for our, their in zip(ours, theirs, strict=True))


def markdown(figures: dict[str, Any]) -> str:
    """The table of docs/performance.md."""
    settings, versions = figures["settings"], figures["versions"]
    rows = settings["prompts"] * settings["n"]
    about = (
        f"Measured {figures['date']}: {settings['model'] or 'SmolLM2-135M-Instruct'} in float32, "
        f"{figures['threads']} thread(s), {settings['prompts']} prompts of the demo, {settings['n']} "
        f"responses to each, up to {settings['tokens']} new tokens, {rows} rows at a time; "
        f"{settings['rounds']} rounds; "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}."
    )
    heads = ("who", "prompts x responses", "tokens per second of processor", "preftune is faster by")
    cells = [
        [
            name,
            f"{row['prompts']} x {row['responses_per_prompt']}",
            f"{row['tokens_per_processor_second']:.0f}",
            f"{row['preftune_is_faster_by_processor']:.2f}",
        ]
        for name, row in figures["contestants"].items()
    ]
    return f"{about}\n\n{markdown_table(heads, cells)}"


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None, help="another model than the demo's")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48, help="new tokens at most")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    figures = measure(options)
    write_json(options.results, figures)
    write_section(options.page, MARKERS, markdown(figures))
    print(markdown(figures))


if __name__ == "__main__":
    main()
