"""What both sides read: tiny random models and small seeded data, written once."""

import json
import random
from pathlib import Path
from typing import Any

WORDS = (
    "rain",
    "falls",
    "on",
    "the",
    "old",
    "roof",
    "while",
    "a",
    "kettle",
    "sings",
    "near",
    "bread",
    "damn",
)

OWN_REWARD = '''"""A reward function of one's own."""


def count(prompts, completions, **columns):
    """Words of each completion."""
    return [len(str(completion).split()) for completion in completions]
'''


def write_inputs(folder: Path) -> Path:
    """The folder, filled if it is new."""
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    write_models(folder)
    write_data(folder)
    write_verdicts(folder)
    (folder / "words.py").write_text(OWN_REWARD, encoding="utf-8")
    (folder / "done").touch()
    return folder


def write_models(folder: Path) -> None:
    """Two random Llamas and a mixture with the demo's tokenizer."""
    import torch
    import transformers

    from preftune.demo.model import demo_model_dir

    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_model_dir())
    common: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    llama = transformers.LlamaConfig(**common, tie_word_embeddings=True)
    mixture = transformers.MixtralConfig(**common, num_local_experts=4, num_experts_per_tok=2)
    for seed, (name, config) in enumerate((("model", llama), ("other", llama), ("mixture", mixture))):
        torch.manual_seed(seed)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def write_data(folder: Path) -> None:
    """Scored pairs, the same without scores, prompts and questions."""
    for name, count, seed in (("train", 16, 1), ("held_out", 5, 2)):
        write_lines(folder / f"{name}.jsonl", pairs(count, seed))
    plain = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in pairs(6, 3)]
    write_lines(folder / "plain.jsonl", plain)
    chats = [{"prompt": [{"role": "user", "content": f"Tell me {n} of bread."}]} for n in range(9)]
    write_lines(folder / "prompts.jsonl", chats)
    write_lines(folder / "questions.jsonl", [{"prompt": f"Why does rain fall {n} times?"} for n in range(4)])


def pairs(count: int, seed: int) -> list[dict[str, Any]]:
    """Pairs of unequal lengths."""
    generator = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(2, most)))

    return [
        {
            "prompt": [{"role": "user", "content": f"{index} {words(12)}"}],
            "chosen": [{"role": "assistant", "content": words(20)}],
            "rejected": [{"role": "assistant", "content": words(20) + "."}],
            "score_chosen": round(generator.uniform(0.5, 1), 3),
            "score_rejected": round(generator.uniform(0, 0.5), 3),
        }
        for index in range(count)
    ]


def write_verdicts(folder: Path) -> None:
    """Recorded verdicts as AlpacaEval, MT-Bench and Arena-Hard write them."""
    rows = range(60)
    slim = {
        "model": "ours",
        "baseline": "theirs",
        "preference": [1 + index % 6 / 8 for index in rows],
        "len_model": [300 + 13 * (index % 17) for index in rows],
        "len_baseline": [400 + 7 * (index % 11) for index in rows],
    }
    (folder / "slim.json").write_text(json.dumps(slim), encoding="utf-8")
    grades = [
        {
            "question_id": 81 + number,
            "model": "ours",
            "judge": ["judge", "single-v1"],
            "turn": turn,
            "score": score,
        }
        for number in range(6)
        for turn, score in ((1, 3 + number), (2, 8 - number))
    ]
    write_lines(folder / "single.jsonl", grades)
    labels = ("A>B", "A=B", "B>A", "B>>A")
    battles = [
        {
            "question_id": f"q{number}",
            "model": "ours",
            "judge": "judge",
            "games": [{"score": labels[number % 4]}, {"score": labels[(number + 1) % 4]}],
        }
        for number in range(8)
    ]
    write_lines(folder / "battles.jsonl", battles)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
