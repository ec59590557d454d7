"""What a model that scores is: the hash of its content, and the precision it computes in."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

CONTENT = (
    "*.safetensors",
    "*.bin",
    "*.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "*.model",
    "*.tiktoken",
    "*.txt",
    "*.py",
)
"""Files of a model's folder that decide its scores: weights, configuration, tokenizer, template, code."""
NO_CONTENT = ("training_args.bin", "optimizer.bin", "scheduler.bin")
"""Files of a training that stand beside a checkpoint's weights, and decide nothing."""
INDEX = "*.index.json"
MOST_BASES = 8
"""Adapters on adapters."""

TEMPLATE_KEY = "preftune_chat_template_kwargs"
"""Where a model's configuration says which settings of its chat template it was trained with."""

Precision = Literal["fp32", "bf16"]


def model_content(model: str) -> str:
    """A hash of the files of a folder, an adapter's with its base model's, or the revision of a hub name."""
    return _content(model, MOST_BASES)


def _content(model: str, bases: int) -> str:
    folder = Path(model)
    if not folder.is_dir():
        from transformers import AutoConfig

        return f"{model}@{AutoConfig.from_pretrained(model)._commit_hash}"
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(_content_files(folder)):
        with file.open("rb") as content:
            own = hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16))
        digest.update(str(file.relative_to(folder)).encode() + b"\0" + own.digest())
    base = _read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if isinstance(base, str) and base and bases:
        try:
            digest.update(b"base\0" + _content(base, bases - 1).encode())
        except (OSError, ValueError):
            digest.update(b"base\0" + base.encode())
    return digest.hexdigest()


def _content_files(folder: Path) -> set[Path]:
    """Files that decide what the model says; shards are found where their index says they are."""
    found = {file for pattern in CONTENT for file in folder.glob(pattern)}
    for index in folder.glob(INDEX):
        shards = _read_json(index).get("weight_map")
        if isinstance(shards, dict):
            found |= {folder / str(shard) for shard in shards.values() if ".." not in Path(str(shard)).parts}
    return {file for file in found if file.name not in NO_CONTENT and file.is_file()}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def scoring_precision(precision: Precision | None) -> "tuple[torch.device, torch.dtype]":
    """Where a model scores and in what: bf16 where that is fast, unless said."""
    import torch

    from preftune.models import generation_device, generation_dtype

    device = generation_device()
    given = {None: generation_dtype(device), "fp32": torch.float32, "bf16": torch.bfloat16}
    return device, given[precision]
