"""Weights as they lie in files: whether a model finds all of its own there, before anything loads.

transformers itself says what is missing: it loads tensors that have a shape and no content.
"""

import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import load_state_dict
from transformers.quantizers import AutoHfQuantizer
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from preftune.errors import InputError

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Files that a model's weights can be in, in the order in which transformers looks for them."""
LFS_POINTER = b"version https://git-lfs"
SHOWN_NAMES = 3
"""Tensors of a message that are named."""
WRAPPERS = {
    "_orig_mod.": "torch.compile; save model._orig_mod",
    "_fsdp_wrapped_module.": "FSDP; save the full state dict of the model inside",
    "_checkpoint_wrapped_module.": "activation checkpointing; save the model inside",
    "_forward_module.": "a training framework; save the model inside",
    "pretrained_model.": "a model with a value head; save model.pretrained_model",
    "base_model.model.": "an adapter of peft; save what model.merge_and_unload() returns",
    "module.": "DataParallel or DeepSpeed; save model.module",
}
"""What others leave in the names of tensors, and where it comes from with its fix."""
HEADS = ("score.", "classifier.", "classification_head.")
"""Beginnings of the names of what turns a language model into one that scores."""
OTHER_HEADS = re.compile(r"(^|\.)(pooler|lm_head|embed_out|cls)\.")
"""What a model that scores may have left over from its pretraining."""

logger = logging.getLogger(__name__)

_complete: set[tuple[Any, ...]] = set()
"""Checkpoints that were found complete, as their files are: name, kind, sizes and times."""


def check_weights(
    said: str, model: str, config: PretrainedConfig, kind: type[PreTrainedModel], fresh: Collection[str] = ()
) -> None:
    """Compare names and shapes of the files with those of the model; reads headers, and no weights.

    What is on the hub and not yet on this machine is compared when it loads.

    Args:
        said: how the user named the model, such as `model=NAME`.
        model: folder or hub name.
        config: its configuration.
        kind: class of the model.
        fresh: names of tensors that may be missing, because they are trained from new ones.

    Raises:
        InputError: a file is damaged, or the model would get other weights than those of its files.
    """
    files = weight_files(said, model, config)
    _check_quantization(said, config)
    if not files:
        return
    stamps = [(str(file), stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.stat()]]
    key = (config.to_json_string(use_diff=False), kind, tuple(fresh), *stamps)
    if key in _complete:
        return
    stored: dict[str, torch.Tensor] = {}
    for file in files:
        stored.update(stored_tensors(said, file))
    if getattr(config, "quantization_config", None) is None:
        with foreign(f"{said} cannot be built as its config.json says"), quiet_loading():
            # The shapes alone: nothing is allocated, and tensors are named and tied as in a real load.
            _, report = kind.from_pretrained(
                None,
                config=config,
                state_dict=dict(stored),
                dtype=torch.float32,
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        refuse_incomplete(said, config, report, fresh)
    _complete.add(key)


def weight_files(said: str, model: str, config: PretrainedConfig) -> list[Path]:
    """The files of the weights; empty where they are on the hub and not on this machine.

    Raises:
        InputError: a folder has none, or its index names one that is not there.
    """
    named = getattr(config, "transformers_weights", None)
    names = WEIGHTS if named is None else (str(named),)
    found = next((file for name in names if (file := _file(model, name))), None)
    if found is None:
        if Path(model).is_dir():
            raise InputError(
                f"{said} has no weights: its folder must hold {WEIGHTS[0]} or {WEIGHTS[2]}, or shards with "
                "their index; copy them there"
            )
        return []
    if found.suffix != ".json":
        return [found]
    return [
        file for shard in _shards(said, found) if (file := _shard_file(said, model, found, shard)) is not None
    ]


def stored_tensors(said: str, file: Path) -> dict[str, torch.Tensor]:
    """Names and shapes of a file's tensors, as tensors on the meta device; pickles hold tensors alone.

    Raises:
        InputError: the file is damaged, or holds something else.
    """
    with file.open("rb") as content:
        begin = content.read(len(LFS_POINTER))
    if not begin:
        raise InputError(f"{said}: {file} is empty: copy it again")
    if begin == LFS_POINTER:
        raise InputError(
            f"{said}: {file} is a Git LFS pointer, and the weights are elsewhere: run `git lfs pull` "
            "in its folder"
        )
    with foreign(f"{said}: {file} is damaged or holds other things than tensors: copy it again"):
        stored: Any = load_state_dict(file, map_location="meta", weights_only=True)
    if not isinstance(stored, Mapping):
        raise InputError(f"{said}: {file} holds a {type(stored).__name__}: it must map names to tensors")
    other = [name for name, tensor in stored.items() if not isinstance(tensor, torch.Tensor)]
    if other or not stored:
        held = f"holds {_listed(map(str, other))}, which are not tensors" if other else "holds no tensor"
        raise InputError(f"{said}: {file} {held}: save the model by save_pretrained")
    return {str(name): tensor for name, tensor in stored.items()}


def refuse_incomplete(
    said: str, config: PretrainedConfig, report: Mapping[str, Any], fresh: Collection[str] = ()
) -> None:
    """Refuse a model that has not got its own weights, all of them and nothing else.

    Args:
        said: how the user named the model.
        config: its configuration.
        report: transformers' loading info.
        fresh: as for `check_weights`; a language model's head has then no place.

    Raises:
        InputError: with what is wrong, and what can be done about it.
    """
    missing = sorted(set(report["missing_keys"]) - set(fresh))
    unexpected = sorted(report["unexpected_keys"])
    left_out = [name for name in unexpected if _is_harmless(name, config)]
    unexpected = sorted(set(unexpected) - set(left_out))
    shapes = sorted(report["mismatched_keys"])
    if shapes:
        name, stored, own = shapes[0]
        raise InputError(
            f"{said}: {len(shapes)} tensors have other shapes in the files than by config.json, such as "
            f"{name} with {list(stored)} and {list(own)}: give the config.json that was saved with them"
        )
    if missing and (wrapper := _wrapper(missing, unexpected)):
        origin = WRAPPERS.get(wrapper, "what the model was part of; save the model inside")
        raise InputError(
            f"{said}: its tensors are named otherwise than the model's: `{wrapper}` stands in their names, "
            f"such as {unexpected[0]}. It comes from {origin}, or remove it from the names"
        )
    if missing:
        tie = "; or set tie_word_embeddings=true in its config.json, if it was trained so"
        raise InputError(
            f"{said} has no weights for {_listed(missing)}, which would be random: give a complete model"
            f"{tie if any(name.startswith('lm_head.') for name in missing) else _if_scores(missing)}"
        )
    if unexpected:
        is_scoring = unexpected[0].startswith(HEADS)
        raise InputError(
            f"{said} has weights that have no place in it: {_listed(unexpected)}: "
            f"{'it is a reward model; give a language model' if is_scoring else ''}"
            f"{'' if is_scoring else 'give the config.json that was saved with the weights'}"
        )
    if left_out and not fresh:
        logger.warning("%s: %s: no part of the model, and left out", said, _listed(left_out))


def _is_harmless(name: str, config: PretrainedConfig) -> bool:
    """Whether a tensor without a place may be left out: the model's own are complete without it."""
    # Of a model that reads images too, the part that reads text is taken.
    reads_more = bool(getattr(config, "sub_configs", None)) and "layers." not in name
    return reads_more or name.startswith("v_head.") or bool(OTHER_HEADS.search(name))


def refuse_not_finite(said: str, model: torch.nn.Module) -> None:
    """Refuse NaN and infinite weights.

    Raises:
        InputError: with their names.
    """
    bad = [name for name, weight in model.named_parameters() if not _is_finite(weight.detach())]
    if bad:
        raise InputError(
            f"{said} has NaN or infinite numbers in {_listed(bad)}: its training failed, or the files are "
            "damaged; give an earlier checkpoint, or copy the files again"
        )


def _is_finite(weight: torch.Tensor) -> bool:
    if not weight.is_floating_point() or weight.element_size() < 2 or not weight.numel() or weight.is_meta:
        return True
    # One pass without a second tensor: NaN becomes the least and the most.
    return bool(torch.isfinite(torch.stack(torch.aminmax(weight))).all())


@contextmanager
def foreign(what: str) -> Iterator[None]:
    """Make one message of whatever damaged files of others raise.

    Raises:
        InputError: `what`, and the reason.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # tokenizers' panics are no Exception
        raise InputError(f"{what}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """The first line of an error, with its kind where that says more."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = (lines or [""])[0][:400]
    if lines and isinstance(error, OSError | ValueError | ImportError):
        return line
    return f"{type(error).__name__}: {line}".rstrip(": ")


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Drop transformers' own tables and bars about loading: what matters is raised as one message."""
    log = logging.getLogger("transformers")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with without_bars():
            yield
    finally:
        log.setLevel(level)


@contextmanager
def without_bars() -> Iterator[None]:
    """Drop transformers' own bars, which break up those of a run and fill its log."""
    has_bar = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if has_bar:
            enable_progress_bar()


def _check_quantization(said: str, config: PretrainedConfig) -> None:
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return
    method = (
        quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization.quant_method
    )
    with foreign(
        f"{said} is quantised (quantization_config.quant_method={getattr(method, 'value', method)}), which "
        "needs the library of that method, or does not run on this machine; install it, or give the model "
        "that it was made from"
    ):
        AutoHfQuantizer.from_config(quantization, pre_quantized=True).validate_environment()


def _file(model: str, name: str) -> Path | None:
    folder = Path(model)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    try:
        found = cached_file(
            model,
            name,
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):
        return None
    return Path(found) if found else None


def _shards(said: str, index: Path) -> list[str]:
    """Names of the files that an index lists."""
    with foreign(f"{said}: {index} is no index of weights: copy it again"):
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(listed.values()))
    outside = [
        name for name in names if not isinstance(name, str) or os.path.isabs(name) or ".." in Path(name).parts
    ]
    if outside or not names:
        found = outside[0] if outside else "none"
        raise InputError(f"{said}: {index} must name files of its own folder, and names {found!r}")
    return names


def _shard_file(said: str, model: str, index: Path, shard: str) -> Path | None:
    file = _file(model, shard)
    if file is None and Path(model).is_dir():
        raise InputError(f"{said}: {index.name} lists {shard}, which is not in the folder: copy it there")
    return file


def _wrapper(missing: Collection[str], unexpected: Collection[str]) -> str:
    """What has to be taken from the names of unexpected tensors to make them those of missing ones."""
    wanted = set(missing)
    for wrapper in WRAPPERS:
        if any(name.replace(wrapper, "") in wanted for name in unexpected if wrapper in name):
            return wrapper
    inside = {name: re.sub(r"\.base_layer\.", ".", name) for name in unexpected}
    if any(plain.removeprefix("base_model.model.") in wanted for name, plain in inside.items()):
        return "base_model.model."
    for name in unexpected:
        for other in wanted:
            if name.endswith(f".{other}"):
                return name[: -len(other)]
    return ""


def _if_scores(missing: Collection[str]) -> str:
    return ", that was trained to score" if all(name.startswith(HEADS) for name in missing) else ""


def _listed(names: Collection[str] | Iterator[str]) -> str:
    known = list(names)
    more = f" and {len(known) - SHOWN_NAMES} more" if len(known) > SHOWN_NAMES else ""
    return ", ".join(known[:SHOWN_NAMES]) + more
