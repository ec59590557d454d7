"""`preftune.merge`: an adapter and its base model as one model that anything loads."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import yaml
from peft import PeftConfig

from preftune.api.run import Run
from preftune.data.rules import suggest
from preftune.errors import InputError
from preftune.models import load_model_config
from preftune.models.adapters import base_of, tokenizer_of
from preftune.models.config_files import ADAPTER_FILE
from preftune.models.merging import TOLERANCES, Adapter, Merged, merge_into
from preftune.models.quantization import read_quantization
from preftune.models.value_head import VALUE_HEAD_FILE
from preftune.report.card import write_run_card
from preftune.storage.files import MODEL_FOLDER, replaced_folder
from preftune.training.run import CALIBRATION_FILE, REWARDS_FILE

logger = logging.getLogger(__name__)

BESIDE = (VALUE_HEAD_FILE, REWARDS_FILE, CALIBRATION_FILE)
"""Files of a run that say more about its model; they are copied into the merged model's folder."""


def merge(
    source: str | Path | Run,
    output: str | Path,
    *,
    dtype: str = "float32",
    max_shard_size: str | int = "5GB",
) -> Merged:
    """Merge a trained adapter into its base model, and save the result as a whole model.

    The adapter was trained over its base as it was loaded: a quantised base is dequantised, and the update
    is added to those values in float32. The saved model is loaded again by transformers alone and compared
    with the adapted one on a probe; where they differ by more than rounding, nothing is written. Value head,
    `rewards.json` and `calibration.json` of a run are copied beside the weights, with a card of the run.

    Args:
        source: a run, its folder, or the folder of an adapter.
        output: folder to write, new or empty.
        dtype: of the saved weights: "float32", "bfloat16" or "float16"; 16 bits lose most of a small update.
        max_shard_size: of a file of weights, such as "2GB".

    Raises:
        InputError: there is no adapter, the output cannot be written, the base cannot be loaded, or the
            merged model is not the adapted one.
    """
    if dtype not in TOLERANCES:
        raise InputError(
            f"dtype={dtype} must be one of {', '.join(TOLERANCES)}{suggest(dtype, list(TOLERANCES))}"
        )
    given = source.folder if isinstance(source, Run) else Path(source)
    folder, target = _adapter_folder(given), Path(output)
    _check_output(folder, given, target)
    adapter = _read(folder, given)
    with replaced_folder(target) as aside:
        parameters, difference = merge_into(adapter, aside, dtype, max_shard_size)
        for name in BESIDE:
            found = next((place / name for place in (folder, given) if (place / name).is_file()), None)
            if found is not None:
                shutil.copy2(found, aside / name)
        if (given / "summary.json").is_file():
            write_run_card(given, aside)
    return Merged(
        folder=target,
        base=adapter.base,
        quantization=read_quantization(folder),
        dtype=dtype,
        parameters=parameters,
        difference=difference,
        tolerance=TOLERANCES[dtype],
        files=tuple(sorted(file.name for file in target.iterdir())),
    )


def _adapter_folder(given: Path) -> Path:
    """Where the adapter is: the folder itself, or the model of a run."""
    if not given.is_dir():
        raise InputError(f"{given} is not a folder: give a run's folder, or that of an adapter")
    for folder in (given, given / MODEL_FOLDER):
        if (folder / ADAPTER_FILE).is_file():
            return folder
        if (folder / "config.json").is_file():
            raise InputError(
                f"{folder} is a whole model, merged already or trained without lora: there is nothing to "
                "merge; use it as it is"
            )
    raise InputError(
        f"{given} has no adapter ({ADAPTER_FILE}), and no {MODEL_FOLDER}/ with one: give a finished run's "
        "folder, or that of an adapter"
    )


def _check_output(folder: Path, given: Path, target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise InputError(f"output={target} is a file: give a folder")
    if target.exists() and any(target.iterdir()):
        raise InputError(f"output={target} is not empty: give a new or an empty folder")
    inside, own = target.resolve(), folder.resolve()
    if inside == own or own in inside.parents or inside in own.parents:
        raise InputError(
            f"output={target} and the adapter's folder {folder} contain each other: give another"
        )
    existing = next(place for place in (target.absolute(), *target.absolute().parents) if place.exists())
    if not os.access(existing, os.W_OK):
        raise InputError(f"output={target} cannot be written: give another folder")


def _read(folder: Path, given: Path) -> Adapter:
    """The adapter, once everything about it that needs no weights is known to be right."""
    base = base_of(str(folder))
    read_quantization(folder)
    load_model_config(base)
    scores = PeftConfig.from_pretrained(str(folder)).task_type == "SEQ_CLS"
    return Adapter(
        folder=folder,
        base=base,
        tokenizer=tokenizer_of(str(folder)),
        scores=scores,
        chat_template_kwargs=_template_settings(given) if scores else {},
    )


def _template_settings(given: Path) -> dict[str, Any]:
    """What a run's conversations were rendered with."""
    stored = given / "config.yaml"
    if not stored.is_file():
        return {}
    settings = yaml.safe_load(stored.read_text(encoding="utf-8")).get("data") or {}
    return dict(settings.get("chat_template_kwargs") or {})
