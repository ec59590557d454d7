"""What a model that scores is: the hash of its content, and the precision it computes in."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

CONTENT = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")
"""Files of a model's folder that decide its scores: weights, configuration, tokenizer, template, code."""

TEMPLATE_KEY = "preftune_chat_template_kwargs"
"""Where a model's configuration says which settings of its chat template it was trained with."""

Precision = Literal["fp32", "bf16"]


def model_content(model: str) -> str:
    """A hash of the files of a folder, or the revision of a name on the hub."""
    folder = Path(model)
    if not folder.is_dir():
        from transformers import AutoConfig

        return f"{model}@{AutoConfig.from_pretrained(model)._commit_hash}"
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted({file for pattern in CONTENT for file in folder.glob(pattern)}):
        with file.open("rb") as content:
            own = hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16))
        digest.update(file.name.encode() + b"\0" + own.digest())
    return digest.hexdigest()


def scoring_precision(precision: Precision | None) -> "tuple[torch.device, torch.dtype]":
    """Where a model scores and in what: bf16 where that is fast, unless said."""
    import torch

    from preftune.models import generation_device, generation_dtype

    device = generation_device()
    given = {None: generation_dtype(device), "fp32": torch.float32, "bf16": torch.bfloat16}
    return device, given[precision]
