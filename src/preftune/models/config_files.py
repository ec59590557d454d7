"""The small files beside a model's weights: what in them would fail, or never end, much later."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import CONFIG_MAPPING, GenerationConfig

from preftune.errors import InputError
from preftune.models.weights import foreign

CONFIG_FILE, GENERATION_FILE = "config.json", "generation_config.json"
ADAPTER_FILE, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE_FOLDER = "base"
"""In an adapter's folder: its base model, where that has no name of its own."""
SPECIAL_IDS = ("pad_token_id", "eos_token_id")
MOST_PARTS = 10_000
"""Layers, experts or labels of a model; transformers makes lists of them as it reads their number."""
PARTS = (
    *("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
    *("num_labels", "num_experts", "num_local_experts"),
)
GENERATION_NUMBERS = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("max_length", "max_new_tokens", "repetition_penalty"),
)


def check_config_file(said: str, folder: Path, trust_remote_code: bool = False) -> None:
    """Refuse a folder's config.json that is not what it must be, before anything is made of it.

    Args:
        said: how the user named the model.
        folder: where it is; without a config.json nothing is checked.
        trust_remote_code: whether the model's own code may run.

    Raises:
        InputError: with the key and its value.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        return
    with foreign(f"{said}: {file} is damaged: copy it again"):
        content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise InputError(
            f"{said}: {file} must be a mapping with a model_type, such as llama: give the config.json that "
            "was saved with the weights"
        )
    kind = content["model_type"]
    if "auto_map" in content and kind not in CONFIG_MAPPING and not trust_remote_code:
        raise InputError(
            f"{said}: its architecture {kind} is code of its own (auto_map of its config.json), and code "
            "that comes with a model is not run (but by `score --trust-remote-code`): give a model of an "
            "architecture that transformers has"
        )
    names = content.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InputError(f"{said}: architectures={names!r} of its config.json must be a list of names")
    for name, value in content.items():
        if name in PARTS and value is not None and (type(value) is not int or not 0 < value <= MOST_PARTS):
            raise InputError(
                f"{said}: {name}={value!r} of its config.json must be a whole number from 1 to {MOST_PARTS}: "
                "give the config.json that was saved with the weights"
            )


def check_generation_file(model: str) -> None:
    """Refuse a folder's generation_config.json that would stop sampling, or never let it stop.

    Raises:
        InputError: with the key and its value.
    """
    file = Path(model) / GENERATION_FILE
    if not file.is_file():
        return
    said = f"model={model}"
    with foreign(f"{said}: {file} cannot be read: mend it, or remove it"):
        generation = GenerationConfig.from_pretrained(model)
    for name in GENERATION_NUMBERS:
        value = getattr(generation, name, None)
        if value is not None and type(value) not in (int, float):
            raise InputError(f"{said}: {name}={value!r} of its {file.name} must be a number: mend it")
    if vocabulary := vocabulary_of(Path(model)):
        ids = {name: getattr(generation, name, None) for name in SPECIAL_IDS}
        check_special_ids(said, file.name, ids, vocabulary)


def vocabulary_of(folder: Path) -> int | None:
    """The size of the vocabulary by a folder's config.json, where there is one that says it."""
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        size = (content.get("text_config") or content).get("vocab_size")
    except (OSError, ValueError, AttributeError):
        return None
    return size if type(size) is int else None


def check_special_ids(said: str, place: str, ids: Mapping[str, Any], vocabulary: int) -> None:
    """Refuse special tokens without an embedding.

    Args:
        said: how the user named the model.
        place: where the numbers stand.
        ids: by name; each a number, a list of numbers, or None where there is no such token.
        vocabulary: rows of the model's embeddings.

    Raises:
        InputError: with the key and its value.
    """
    for name, value in ids.items():
        for number in value if isinstance(value, list) else [value]:
            if number is not None and (type(number) is not int or not 0 <= number < vocabulary):
                raise InputError(
                    f"{said}: {name}={value!r} of its {place} must be a token that the model has an "
                    f"embedding for, 0 to {vocabulary - 1}: set one of those, such as that of the text's end"
                )


def check_token_ids(what: str, rows: Iterable[Any], vocabulary: int) -> None:
    """Refuse tokens without an embedding.

    Args:
        what: has the tokens.
        rows: arrays of token ids.
        vocabulary: rows of the model's embeddings.

    Raises:
        InputError: with the greatest of them.
    """
    most = max((int(np.max(ids)) for ids in rows if len(ids)), default=0)
    if most >= vocabulary:
        raise InputError(
            f"{what} has the token {most}, and the model has embeddings for {vocabulary} tokens: give the "
            "tokenizer that it was trained with, or resize its embeddings for tokens that were added"
        )
