"""What the runs read: tiny random models, their tokenizer and seeded data, made once for both sides."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

Row = dict[str, Any]

SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ("rain", "falls", "on", "the", "old", "roof", "while", "a", "kettle", "sings", "near", "bread.")
SPREAD = 0.15
"""Standard deviation of the random weights: wide enough apart that no drawn token hangs on a rounding."""


def write_inputs(folder: Path) -> None:
    """Write everything that a run may read; the same bytes each time."""
    folder.mkdir(parents=True)
    _write_models(folder)
    _write_rows(folder / "train.jsonl", _pairs(18, seed=1))
    _write_rows(folder / "held_out.jsonl", _pairs(5, seed=2))
    unscored = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in _pairs(9, seed=3)]
    _write_rows(folder / "unscored.jsonl", unscored)
    _write_rows(folder / "prompts.jsonl", _prompts(13, "bread"))
    _write_rows(folder / "held_out_prompts.jsonl", _prompts(3, "rain"))
    _write_benchmarks(folder)


def _tokenizer() -> transformers.PreTrainedTokenizerBase:
    """One token a byte: no vocabulary to learn, and nothing to download."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *alphabet))}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<|pad|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
    )


def _write_models(folder: Path) -> None:
    """A Llama and a Mixtral of the same shape."""
    tokenizer = _tokenizer()
    shape: Row = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.25}
    configs = {
        "tiny": transformers.LlamaConfig(tie_word_embeddings=True, **shape),
        "mixture": transformers.MixtralConfig(**shape, **experts),
    }
    for name, config in configs.items():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=SPREAD)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def _pairs(count: int, seed: int) -> list[Row]:
    """Scored pairs of unequal lengths."""
    generator = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(2, most)))

    return [
        {
            "prompt": [{"role": "user", "content": f"{index} {words(9)}"}],
            "chosen": [{"role": "assistant", "content": words(14)}],
            "rejected": [{"role": "assistant", "content": words(14) + "!"}],
            "score_chosen": round(generator.uniform(0.5, 1), 3),
            "score_rejected": round(generator.uniform(0, 0.5), 3),
        }
        for index in range(count)
    ]


def _prompts(count: int, about: str) -> list[Row]:
    return [{"prompt": [{"role": "user", "content": f"Tell me {n} of {about}."}]} for n in range(count)]


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# --- benchmarks: questions, judge prompts and recorded verdicts in upstream's shapes ---

ASKED = [f"Name {n} things that are {colour}." for n, colour in enumerate(("red", "blue") * 3, start=1)]
ALPACA_PROMPT = """<|im_start|>user
{instruction}

m: {output_1}

M: {output_2}

Which is better, m or M?
<|im_end|>"""
ARENA_PROMPT = """
system_prompt: "Say which answer is better: [[A>B]], [[A=B]] or [[B>A]]."
prompt_template: "{QUESTION}\\n\\nA: {ANSWER_A}\\n\\nB: {ANSWER_B}"
max_tokens: 64
"""
MT_BENCH_PROMPTS = {
    "single-v1": "{question}\n\n{answer}",
    "single-math-v1": "{question}\n\n{ref_answer_1}\n\n{answer}",
    "single-v1-multi-turn": "{question_1}\n\n{answer_1}\n\n{question_2}\n\n{answer_2}",
    "single-math-v1-multi-turn": "{question_1}{ref_answer_1}{answer_1}{question_2}{ref_answer_2}{answer_2}",
}


def _write_benchmarks(folder: Path) -> None:
    theirs = {"output": "Cherries.", "generator": "theirs"}
    message = {"role": "assistant", "content": "Cherries."}
    ids = [f"q{n}" for n in range(len(ASKED))]
    rows: dict[str, list[Row]] = {
        "alpaca": [{"instruction": text, "dataset": "d"} | theirs for text in ASKED],
        "arena": [
            {"uid": uid, "category": "arena-hard-v0.1", "prompt": text}
            for uid, text in zip(ids, ASKED, strict=True)
        ],
        "arena_baseline": [{"uid": uid, "model": "theirs", "messages": [message]} for uid in ids],
        "mt_bench": [
            {"question_id": n, "category": "writing", "turns": [text, "Shorter."]}
            for n, text in enumerate(ASKED, start=81)
        ],
        "mt_bench_prompts": [
            {"name": name, "system_prompt": "Grade it from 1 to 10, as [[5]].", "prompt_template": template}
            for name, template in MT_BENCH_PROMPTS.items()
        ],
        "head_to_head_baseline": [
            row | {"response": "Cherries.", "model": "theirs"} for row in _prompts(3, "rain")
        ],
    }
    for name, content in rows.items():
        _write_rows(folder / f"{name}.jsonl", content)
    texts = {
        "alpaca_prompt.txt": ALPACA_PROMPT,
        "arena_prompt.yaml": ARENA_PROMPT,
        "alpaca_outputs.json": json.dumps([{"instruction": text} | theirs for text in ASKED]),
        "annotations_a.json": json.dumps(_annotations("a", 0.0)),
        "annotations_b.json": json.dumps(_annotations("b", 0.1)),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _annotations(model: str, shift: float) -> Row:
    """An AlpacaEval file of 120 prompts in the slim shape."""
    rows = range(120)
    return {
        "model": model,
        "baseline": "theirs",
        "preference": [1 + min(1.0, index % 6 / 8 + shift) for index in rows],
        "len_model": [300 + 13 * (index % 17) for index in rows],
        "len_baseline": [400 + 7 * (index % 11) for index in rows],
    }
