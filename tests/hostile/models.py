"""Damaged copies of a tiny model, each of one kind; what a seed decides is where the damage lies."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    set_seed,
)

WORDS = ("<unk>", "<s>", "</s>", "user", "assistant", *(f"w{number}" for number in range(43)))
TEMPLATE = (
    "{% for message in messages %}{{ message.role }} {{ message.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
WEIGHTS = "model.safetensors"
Change = Callable[[Path, random.Random], None]


@dataclass(frozen=True)
class Damage:
    """One kind of damage.

    Attributes:
        change: makes it, in a folder with a sound model.
        says: what the message must have; "" where the model is sound all the same.
    """

    change: Change
    says: str


def build(folder: Path, *, tied: bool = True, scores: bool = False) -> Path:
    """A sound model with its tokenizer: 48 words, two layers."""
    set_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=len(WORDS),
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        num_labels=1,
    )
    (LlamaForSequenceClassification if scores else LlamaForCausalLM)(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


# --- ways to change a folder ---


def tensors(change: Callable[[dict[str, torch.Tensor], random.Random], None]) -> Change:
    """Change the weights by name."""

    def of(folder: Path, chance: random.Random) -> None:
        stored = load_file(folder / WEIGHTS)
        change(stored, chance)
        save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})

    return of


def values(file: str, **changes: Any) -> Change:
    """Change values of a JSON file; None removes the key."""

    def of(folder: Path, chance: random.Random) -> None:
        path = folder / file
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        content.update(changes)
        kept = {key: value for key, value in content.items() if value is not None}
        path.write_text(json.dumps(kept), encoding="utf-8")

    return of


def text(file: str, content: str) -> Change:
    """Replace a file."""
    return lambda folder, chance: (folder / file).write_text(content, encoding="utf-8") and None


def template(content: str) -> Change:
    """Replace the chat template."""
    return text("chat_template.jinja", content)


def cut(file: str, least: float, most: float) -> Change:
    """Keep a share of a file's bytes, from its beginning."""

    def of(folder: Path, chance: random.Random) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: int(len(content) * chance.uniform(least, most))])

    return of


def garbage(file: str) -> Change:
    """Replace a file by random bytes."""
    return lambda folder, chance: (folder / file).write_bytes(chance.randbytes(500)) and None


def renamed(prefix: str) -> Change:
    """Put a prefix in front of every name."""

    def of(stored: dict[str, torch.Tensor], chance: random.Random) -> None:
        for name in list(stored):
            stored[prefix + name] = stored.pop(name)

    return tensors(of)


def without_one(stored: dict[str, torch.Tensor], chance: random.Random) -> None:
    """Remove a tensor."""
    stored.pop(chance.choice(sorted(stored)))


def dropped(name: str) -> Callable[[dict[str, torch.Tensor], random.Random], None]:
    """Remove a tensor by its name."""

    def of(stored: dict[str, torch.Tensor], chance: random.Random) -> None:
        del stored[name]

    return of


def with_number(number: float) -> Change:
    """Put a number somewhere into the weights."""

    def of(stored: dict[str, torch.Tensor], chance: random.Random) -> None:
        tensor = stored[chance.choice(sorted(stored))].view(-1)
        tensor[chance.randrange(len(tensor))] = number

    return tensors(of)


def narrowed(stored: dict[str, torch.Tensor], chance: random.Random) -> None:
    """Cut a column or an element off a tensor."""
    name = chance.choice(sorted(stored))
    stored[name] = stored[name][..., :-1].contiguous()


def more(**named: tuple[int, ...]) -> Change:
    """Add tensors; `__` stands for a dot."""

    def of(stored: dict[str, torch.Tensor], chance: random.Random) -> None:
        stored.update({name.replace("__", "."): torch.ones(shape) for name, shape in named.items()})

    return tensors(of)


def untied(folder: Path, chance: random.Random) -> None:
    """A checkpoint whose head is its own, without it."""
    build(folder, tied=False)
    tensors(dropped("lm_head.weight"))(folder, chance)


def scoring(folder: Path, chance: random.Random) -> None:
    """A reward model in the policy's place."""
    build(folder, scores=True)


def sharded(change: Callable[[dict[str, Any]], object]) -> Change:
    """Two shards, and a change of their index."""

    def of(folder: Path, chance: random.Random) -> None:
        stored = load_file(folder / WEIGHTS)
        names = sorted(stored)
        (folder / WEIGHTS).unlink()
        halves = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
        for file, half in halves.items():
            save_file({name: stored[name] for name in half}, folder / file, metadata={"format": "pt"})
        listed = {name: file for file, half in halves.items() for name in half}
        index: dict[str, Any] = {"metadata": {}, "weight_map": listed}
        change(index)
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index), encoding="utf-8")

    return of


def one_shard(index: dict[str, Any]) -> None:
    """List the first shard alone."""
    listed = index["weight_map"]
    index["weight_map"] = {name: file for name, file in listed.items() if file == "one.safetensors"}


def pickled(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """Weights in a `.bin`."""

    def of(folder: Path, chance: random.Random) -> None:
        stored = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        torch.save(change(stored), folder / "pytorch_model.bin")

    return of


def half(stored: dict[str, torch.Tensor], chance: random.Random) -> None:
    """16-bit weights."""
    stored.update({name: tensor.half() for name, tensor in stored.items()})


def wider(folder: Path, chance: random.Random) -> None:
    """Embeddings for more tokens than the tokenizer has."""
    rows = {"model.embed_tokens.weight": torch.ones(64, 16)}
    tensors(lambda stored, _: stored.update(rows))(folder, chance)
    values("config.json", vocab_size=64)(folder, chance)


def added_token(special: str | None) -> Change:
    """A token that has no embedding."""

    def of(folder: Path, chance: random.Random) -> None:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        tokenizer.add_special_tokens({special: "[NEW]"}) if special else tokenizer.add_tokens(["w1"[::-1]])
        tokenizer.save_pretrained(folder)

    return of


def gone(file: str) -> Change:
    """Remove a file."""
    return lambda folder, chance: (folder / file).unlink()


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}"

SOUND: dict[str, Change] = {
    "as it is": lambda folder, chance: None,
    "16 bits": tensors(half),
    "a .bin": pickled(lambda stored: stored),
    "two shards": sharded(lambda index: None),
    "embeddings for more tokens": wider,
    "an old buffer": more(model__layers__0__self_attn__rotary_emb__inv_freq=(4,)),
    "a tied head in its file": tensors(
        lambda stored, _: stored.update({"lm_head.weight": stored["model.embed_tokens.weight"].clone()})
    ),
    "an unused token more": added_token(None),
    "no generation configuration": gone("generation_config.json"),
}
"""Odd models that must load, with their own weights."""

DAMAGES: dict[str, Damage] = {
    # Other weights than its own.
    "a tensor is missing": Damage(tensors(without_one), "has no weights for"),
    "an untied head is missing": Damage(untied, "lm_head.weight"),
    "torch.compile's names": Damage(renamed("_orig_mod."), "`_orig_mod.`"),
    "DataParallel's names": Damage(renamed("module."), "`module.`"),
    "peft's names": Damage(renamed("base_model.model."), "`base_model.model.`"),
    "names of another's": Damage(renamed("actor.inner."), "`actor.inner.`"),
    "a narrower tensor": Damage(tensors(narrowed), "other shapes"),
    "a layer more": Damage(more(model__layers__2__mlp__up_proj__weight=(24, 16)), "no place in it"),
    "another vocabulary": Damage(values("config.json", vocab_size=50), "other shapes"),
    "another width": Damage(values("config.json", hidden_size=32), "other shapes"),
    "more layers by the configuration": Damage(values("config.json", num_hidden_layers=3), "no weights for"),
    "fewer layers by the configuration": Damage(values("config.json", num_hidden_layers=1), "no place in it"),
    "a reward model": Damage(scoring, "is a reward model"),
    "a reward model without a name": Damage(more(score__weight=(1, 16)), "is a reward model"),
    "NaN": Damage(with_number(float("nan")), "NaN or infinite"),
    "infinite": Damage(with_number(float("-inf")), "NaN or infinite"),
    # Files of weights.
    "no weights": Damage(gone(WEIGHTS), "has no weights"),
    "empty weights": Damage(text(WEIGHTS, ""), "is empty"),
    "a cut header": Damage(cut(WEIGHTS, 0.001, 0.05), "is damaged"),
    "cut weights": Damage(cut(WEIGHTS, 0.5, 0.99), "is damaged"),
    "garbage for weights": Damage(garbage(WEIGHTS), "is damaged"),
    "a pointer for weights": Damage(text(WEIGHTS, LFS), "git lfs pull"),
    "an index without a shard": Damage(sharded(one_shard), "has no weights for"),
    "an index of nothing": Damage(sharded(lambda index: index.clear()), "is no index"),
    "an index of numbers": Damage(sharded(lambda index: index["weight_map"].update(a=1)), "index"),
    "an index of another folder's": Damage(
        sharded(lambda index: index["weight_map"].update(a="../x.safetensors")), "its own folder"
    ),
    "an index of a lost shard": Damage(
        sharded(lambda index: index["weight_map"].update(a="x.safetensors")), "not in the folder"
    ),
    "a .bin with code": Damage(pickled(lambda stored: {"a": Path()}), "is damaged or holds other things"),
    "a .bin of a training": Damage(pickled(lambda stored: {"model": stored}), "are not tensors"),
    "a .bin with a list": Damage(pickled(lambda stored: list(stored.values())), "must map names"),
    # Configurations.
    "a configuration that is a list": Damage(text("config.json", "[]"), "must be a mapping"),
    "a cut configuration": Damage(cut("config.json", 0.1, 0.9), "is damaged"),
    "no model_type": Damage(values("config.json", model_type=None), "model_type"),
    "code of its own": Damage(
        values("config.json", model_type="odd", auto_map={"AutoConfig": "a.B"}), "code of its own"
    ),
    "an unknown architecture": Damage(values("config.json", model_type="odd"), "cannot be loaded"),
    "text for a number": Damage(values("config.json", hidden_size="wide"), "cannot be loaded"),
    "layers without end": Damage(values("config.json", num_hidden_layers=10**9), "num_hidden_layers"),
    "labels without end": Damage(values("config.json", num_labels=10**9), "num_labels"),
    "no heads": Damage(values("config.json", num_attention_heads=0), "cannot be loaded"),
    "pad id -1": Damage(values("config.json", pad_token_id=-1), "pad_token_id=-1"),
    "pad id beyond": Damage(values("config.json", pad_token_id=48), "pad_token_id=48"),
    "a method of quantisation nobody has": Damage(
        values("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), "is quantised"
    ),
    "an unknown method of quantisation": Damage(
        values("config.json", quantization_config={"quant_method": "odd"}), "is quantised"
    ),
    "text for a temperature": Damage(
        values("generation_config.json", temperature="hot"), "generation_config.json"
    ),
    "text for an end": Damage(values("generation_config.json", eos_token_id="two"), "eos_token_id='two'"),
    "a list for the generation": Damage(text("generation_config.json", "[]"), "generation_config.json"),
    # Tokenizers.
    "no tokenizer": Damage(gone("tokenizer.json"), "tokenizer"),
    "an empty tokenizer": Damage(text("tokenizer.json", ""), "tokenizer"),
    "a cut tokenizer": Damage(cut("tokenizer.json", 0.1, 0.9), "tokenizer"),
    "a tokenizer that is a list": Damage(text("tokenizer.json", "[]"), "tokenizer"),
    "garbage for a tokenizer": Damage(garbage("tokenizer.json"), "tokenizer"),
    "text for a length": Damage(values("tokenizer_config.json", model_max_length="long"), "tokenizer"),
    "a number for a token": Damage(values("tokenizer_config.json", eos_token=2), "tokenizer"),
    "a padding token without embedding": Damage(added_token("pad_token"), "pad_token_id=48"),
    # Templates.
    "a template that is not valid": Damage(template("{% if"), "not valid"),
    "a template that fails": Damage(template("{{ 1 / 0 }}"), "ZeroDivisionError"),
    "a template of white space": Damage(template(" \n"), "no text"),
    "a template that calls itself": Damage(
        template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), "calls itself"
    ),
    "a template with a power": Damage(template("{{ 9 ** 9 ** 9 ** 9 }}"), "a power"),
    "a template that takes all memory at once": Damage(template("{{ 'a' * 10 ** 11 }}"), "a power"),
    "a template that multiplies": Damage(template("{{ 'a' * 100000000000 }}"), "memory"),
    "a template that writes much": Damage(template("{{ 'a' * 9000000 }}"), "characters"),
}
"""Models that must be refused."""

SLOW: dict[str, Damage] = {
    "a template that loops": Damage(template(LOOP), "longer than"),
    "a template that doubles": Damage(template(DOUBLING), "memory"),
}
"""Those that run into a limit on time or memory."""


def damaged(source: Path, target: Path, change: Change, seed: int) -> Path:
    """A copy of a sound model with one damage."""
    shutil.copytree(source, target)
    change(target, random.Random(seed))
    return target
