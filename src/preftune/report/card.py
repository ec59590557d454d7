"""The model card: what the hub reads of a model, and what a person wants to know before using it.

It tells what the run's own files say. Names of users' files are cut to the last part of their path, and all
text of the user's stands as code, so that nothing in it is read as Markdown or HTML.
"""

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.data.sources import READERS
from preftune.errors import InputError
from preftune.measuring.formatting import format_number
from preftune.models.adapters import base_of
from preftune.models.config_files import ADAPTER_FILE
from preftune.models.publishing import hub_name
from preftune.models.quantization import QUANTIZATION_FILE
from preftune.objectives import Auxiliary, methods_of, options_of
from preftune.objectives.methods import Method
from preftune.objectives.options import Options
from preftune.report.citations import LORA, MAPPO, UPO, arxiv_numbers, bibtex
from preftune.report.folders import RunRecord, read_run
from preftune.rewards.reliability import share_interval
from preftune.storage.cards import CARD_FILE, is_replaceable, seal
from preftune.storage.files import MODEL_FOLDER, write_whole

LICENCE_FIELDS = ("license", "license_name", "license_link")
_SYMBOLS = {
    r"\bh(bar)?(_[wl])?\b": "h: log pi(y given x) of a response, less that under the reference; hbar: the "
    "same per token",
    r"\bl(bar)?(_[wl])?\b|\bNLL": "l: log pi(y given x) of a response, NLL its negative; lbar: the same per "
    "token",
    r"_[wl]\b": "w, l: the chosen and the rejected response of a pair",
    r"\bs_[wl]\b": "s: the score of a response",
    r"\bdelta\b": "delta: by how much the chosen response's prior reward is higher; 1 without a prior",
    r"\bz0\b": "z0: an estimate of the divergence from the reference",
    r"\bA\b": "A = R - V: a response's auxiliary reward less what its prompt lets expect",
    r"\bsg\(": "sg: without gradient",
    r"\bsigma\b": "sigma: the logistic function",
}
_FIGURES = {
    "loss": "loss",
    "rewards/accuracies": "accuracy: share of pairs whose chosen response is ranked higher",
    "rewards/margins": "margin: reward of chosen less that of rejected",
    "logps/chosen": "log-probability of chosen, nats per response",
    "logps/rejected": "log-probability of rejected, nats per response",
}


def write_run_card(run: Path, model: Path | None = None) -> None:
    """Write the card of a finished run's model into the model's folder; a card of the user's stays.

    Args:
        run: the run folder.
        model: folder of the model, as that of a merged one; None for the run's own.

    Raises:
        InputError: the run folder lacks a file.
    """
    folder = model or run / MODEL_FOLDER
    if folder.is_dir():
        write_card(folder, read_run(run.resolve().name, 0, run))


def write_card(folder: Path, record: RunRecord, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a card, unless the folder has one of the user's.

    Args:
        folder: of the model.
        record: the run it comes from.
        metadata: fields that the caller knows better, such as `license`.
    """
    card = folder / CARD_FILE
    if not card.exists() or is_replaceable(card.read_text(encoding="utf-8", errors="replace")):
        write_whole(card, model_card(folder, record, metadata))


def model_card(folder: Path, record: RunRecord, metadata: Mapping[str, Any] | None = None) -> str:
    """The text of a card, with the metadata that the hub reads at its head."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(**card_metadata(folder, record) | dict(metadata or {}))
    sections = (
        _heading(folder, record),
        _objective(record),
        _data(record),
        _held_out(record),
        _hyperparameters(folder, record),
        _licence(record, data.get("license")),
        _citations(folder, record),
    )
    return seal("\n\n".join([f"---\n{data.to_yaml()}\n---", *filter(None, sections)]))


def card_metadata(folder: Path, record: RunRecord) -> dict[str, Any]:
    """What the hub reads; the base model and data sets only where they have a name on the hub."""
    model = _base(record)
    base = hub_name(model)
    is_adapter = (folder / ADAPTER_FILE).is_file()
    datasets = [name for source in _sources(record) if (name := _hub_data(source))]
    found: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-classification" if _is_reward_model(record) else "text-generation",
        "tags": _tags(folder, record),
        **_base_licence(model),
    }
    if base:
        found |= {"base_model": base, "base_model_relation": "adapter" if is_adapter else "finetune"}
    return found | ({"datasets": datasets} if datasets else {})


# --- text of the user's ---


def as_code(text: object) -> str:
    """Text as a code span, in which nothing is markup; control characters and line ends become spaces."""
    plain = " ".join("".join(sign if sign.isprintable() else " " for sign in str(text)).split())
    fence = "`" * (max(map(len, re.findall("`+", plain)), default=0) + 1)
    space = " " if plain.startswith("`") or plain.endswith("`") or not plain else ""
    return f"{fence}{space}{plain}{space}{fence}".replace("|", "\\|")


def without_path(name: str) -> str:
    """A name on the hub, or of something in memory, as it is; of a path, its last part."""
    if name.startswith("<") or hub_name(name.partition(":")[0]):
        return name
    return name.rstrip("/").rpartition("/")[2]


def _hub_data(source: str) -> str | None:
    """A data set's name on the hub; None for rows in memory and files."""
    is_file = source.lower().endswith(tuple(READERS))
    return None if is_file else hub_name(source.partition(":")[0])


def _block(text: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- sections ---


def _heading(folder: Path, record: RunRecord) -> str:
    base, method = _base(record), _method_names(record)
    what = "reward model" if _is_reward_model(record) else "language model"
    is_adapter = (folder / ADAPTER_FILE).is_file()
    kind = f"An adapter that makes a {what} of" if is_adapter else f"A {what}, tuned from"
    auto = "SequenceClassification" if _is_reward_model(record) else "CausalLM"
    package, prefix = ("peft", "AutoPeftModelFor") if is_adapter else ("transformers", "AutoModelFor")
    # An adapter's base has no head with one score yet.
    options = ", num_labels=1" if is_adapter and _is_reward_model(record) else ""
    more, before, said = _quantized_base(folder)
    options += ", quantization_config=quantization" * bool(before)
    loading = (
        f"from {package} import {prefix}{auto}\n"
        f"from transformers import AutoTokenizer{more}\n\n{before}"
        f'model = {prefix}{auto}.from_pretrained("THIS_REPOSITORY"{options})\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS_REPOSITORY")'
    )
    text = f"# {as_code(record.name)}\n\n{kind} {as_code(without_path(base))} with preftune, by {method}."
    if not hub_name(base):
        text += " The base model was read from a folder, so its name on a hub is not known here."
    return f"{text}{said}\n\n{_block(loading)}"


def _quantized_base(folder: Path) -> tuple[str, str, str]:
    """Of an adapter trained over a quantised base: what to import, how to load it so, and why."""
    if not (folder / QUANTIZATION_FILE).is_file():
        return "", "", ""
    found = json.loads((folder / QUANTIZATION_FILE).read_text(encoding="utf-8"))
    options = "load_in_8bit=True"
    if found["type"] == "nf4":
        options = (
            f'\n    load_in_4bit=True,\n    bnb_4bit_quant_type="nf4",\n    bnb_4bit_use_double_quant='
            f'{found["double"]},\n    bnb_4bit_compute_dtype="{found["compute_dtype"]}",\n'
        )
    said = (
        f" While the adapter was trained, bitsandbytes held the base model's matrices in {found['type']}: "
        "over other weights it makes another model."
    )
    return ", BitsAndBytesConfig", f"quantization = BitsAndBytesConfig({options})\n", said


def _objective(record: RunRecord) -> str:
    lines = list(_formulas(record.config["objective"]))
    if not lines:
        return "## Objective\n\nAn objective of the caller's own."
    formula = "\n".join(text for text, _ in lines)
    said = "\n".join(f"- {options}" for _, options in lines if options)
    prior = record.config["objective"].get("prior", "none")
    if prior != "none":
        own = record.config["prior"]
        temperature = f", temperature {as_code(own['temperature'])}" if own["temperature"] != 1 else ""
        said += f"\n- prior {as_code(prior)}, by the calibration {as_code(own['calibration'])}{temperature}"
    if rewards := record.config.get("rewards"):
        said += f"\n- auxiliary rewards: {', '.join(as_code(without_path(name)) for name in rewards)}"
    legend = [meaning for pattern, meaning in _SYMBOLS.items() if re.search(pattern, formula)]
    return f"## Objective\n\n{_block(formula)}\n\n{said.strip()}\n\n" + ". ".join(legend) + "."


def _formulas(objective: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each summand of the loss, and where it comes from with its options' values."""
    given = objective.get("mix") or ({"": objective} if "method" in objective else {})
    shown = [each for each in given.values() if each.get("weight") != 0]
    for each in shown:
        method = methods_of({"method": each["method"]})[0]
        formula, note = formula_of(method)
        formula = f"{each['weight']} * ( {formula} )" if "mix" in objective else formula
        sign = "     + " if each is not shown[0] else "loss = "
        yield f"{sign}{formula}", f"{method.name}{f' ({note})' if note else ''}: {_values(method, each)}"
    has_own = any("likelihood_weight" in options_of(method) for method in methods_of(objective))
    if objective.get("likelihood_weight") and not has_own:
        yield f"     + {objective['likelihood_weight']} * NLL_w", ""
    auxiliary = objective.get("auxiliary") or {}
    if auxiliary.get("weight"):
        yield (
            f"     + {auxiliary['weight']} * ( {formula_of(Auxiliary)[0]} )",
            f"auxiliary: {_values(Auxiliary, auxiliary)}",
        )


def formula_of(method: type) -> tuple[str, str]:
    """A method's formula and where it comes from, which are the first sentence of its docstring."""
    said = str(inspect.getdoc(method) or getattr(method, "summary", method.__name__))
    formula, _, note = " ".join(said.partition("\n\n")[0].split()).rstrip(".").partition(": ")
    return formula, note


def _values(options: type[Options], given: Mapping[str, Any]) -> str:
    values = [f"{key} = {as_code(given[key])}" for key in options_of(options) if key in given]
    return ", ".join(values) or "no options"


def _data(record: RunRecord) -> str:
    rows = [
        _counts("training", record.summary["train"]),
        *(_counts(f"held out{f', {name}' if name else ''}", own) for name, own in _held_out_sets(record)),
    ]
    heads = ["split", "rows read", "kept", "dropped", "prompts", "pairs", "responses", "tokens"]
    sources = ", ".join(as_code(without_path(source)) for source in _sources(record))
    return f"## Data\n\nTrained on {sources}.\n\n{_table(heads, rows)}"


def _counts(name: str, split: Mapping[str, Any]) -> list[str]:
    read, dropped = split["rows"]["read"], split["rows"]["dropped"]
    counts = (read, read - dropped, dropped, split["groups"], split["pairs"])
    return [name, *(f"{count:,}" for count in (*counts, split["responses"], split["tokens"]))]


def _held_out(record: RunRecord) -> str:
    before, after = (record.summary.get(f"evaluation_{when}") or {} for when in ("start", "end"))
    rows = []
    for name, own in _held_out_sets(record):
        prefix = f"eval_{name}_" if name else "eval_"
        for metric, label in _FIGURES.items():
            if prefix + metric in after:
                start = before.get(prefix + metric) if before.get("step") == 0 else None
                # Before its first step a model is compared with itself, and ranks nothing.
                is_tied = metric == "rewards/accuracies" and before.get(prefix + "rewards/margins") == 0.0
                cells = ["all tied" if is_tied else format_number(start, 3)]
                cells.append(_with_interval(metric, after[prefix + metric], own["pairs"]))
                rows.append([f"{name}: {label}" if name else label, *cells])
    if not rows:
        return "## Held-out figures\n\nNothing was held out: how good the model is has not been measured."
    note = (
        "Means over the held-out data. The interval of the accuracy is 95% (Wilson), with pairs taken as "
        "independent; the other figures have none."
    )
    return f"## Held-out figures\n\n{_table(['figure', 'before', 'after'], rows)}\n\n{note}"


def _with_interval(metric: str, value: float, pairs: int) -> str:
    if metric != "rewards/accuracies" or not pairs:
        return format_number(value, 3)
    share = share_interval(value, pairs)
    return format_number(value, 3, interval=(share.low, share.high))


def _hyperparameters(folder: Path, record: RunRecord) -> str:
    config, environment = record.config, record.environment
    found = {
        **environment.get("training", {}),
        "optimizer steps": record.summary.get("steps"),
        "processes": environment.get("processes"),
        "data type of the weights": config["model_dtype"],
        **_adapter_options(folder),
        **{f"lora.{key}": value for key, value in (config.get("lora") or {}).items()},
        **{f"quantization.{key}": value for key, value in (config.get("quantization") or {}).items()},
        "data.max_length": config["data"]["max_length"],
        **{f"batches.{key}": value for key, value in (config.get("batches") or {}).items()},
    }
    rows = [[name, as_code(value)] for name, value in found.items() if value not in (None, -1)]
    versions = ", ".join(f"{name} {number}" for name, number in environment.get("versions", {}).items())
    text = f"## Hyperparameters\n\n{_table(['name', 'value'], rows)}"
    return f"{text}\n\nVersions: {versions}." if versions else text


def _adapter_options(folder: Path) -> dict[str, Any]:
    """What a caller's own adapter is: a configuration says it under `lora` otherwise."""
    file = folder / ADAPTER_FILE
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    modules = found.get("target_modules")
    if isinstance(modules, list):
        # Those of every layer, where all linear layers were asked for.
        modules = ", ".join(sorted({name.rpartition(".")[2] for name in modules}))
    shown = {"rank": found.get("r"), "alpha": found.get("lora_alpha"), "target_modules": modules}
    return {f"lora.{key}": value for key, value in shown.items()}


def _licence(record: RunRecord, licence: object) -> str:
    base = as_code(without_path(_base(record)))
    known = f"its card says {as_code(licence)}" if licence else "it is not known here: see its card"
    return (
        f"## Licence\n\nThe licence of the base model, {base}, holds for this model too; {known}. The "
        "licences of the data sets are not known here: see their cards. preftune, which trained the model, "
        "is under Apache-2.0, which says nothing about the weights."
    )


def _citations(folder: Path, record: RunRecord) -> str:
    objective = record.config["objective"]
    methods = methods_of(objective) if objective else ()
    numbers = arxiv_numbers(getattr(method, "source", "") for method in methods)
    if objective.get("prior", "none") == "none":
        numbers = [number for number in numbers if number != MAPPO]
    elif MAPPO not in numbers:
        numbers.append(MAPPO)
    if (objective.get("auxiliary") or {}).get("weight"):
        numbers.append(UPO)
    if record.config.get("lora") or (folder / ADAPTER_FILE).is_file():
        numbers.append(LORA)
    if not numbers:
        return ""
    return "## Cite\n\n" + _block("\n\n".join(map(bibtex, dict.fromkeys(numbers))))


# --- what the run's files say ---


def _base(record: RunRecord) -> str:
    """The base model: where a run starts from an adapter, that of the adapter."""
    model = str(record.config["model"])
    try:
        return base_of(model)
    except InputError:
        # The adapter's base has moved since.
        return model


def _is_reward_model(record: RunRecord) -> bool:
    return "score" in record.summary.get("needs", ())


def _method_names(record: RunRecord) -> str:
    objective = record.config["objective"]
    if not objective:
        return "an objective of the caller's own"
    names = " + ".join(as_code(method.name) for method in methods_of(objective))
    return names + (" with a prior" if objective.get("prior", "none") != "none" else "")


def _tags(folder: Path, record: RunRecord) -> list[str]:
    objective = record.config["objective"]
    methods: Sequence[type[Method]] = methods_of(objective) if objective else ()
    tags = ["preftune", "preference-tuning", *(method.name for method in methods)]
    if objective.get("prior", "none") != "none":
        tags.append("mappo")
    if (objective.get("auxiliary") or {}).get("weight"):
        tags.append("upo")
    if _is_reward_model(record):
        tags.append("reward-model")
    if (folder / ADAPTER_FILE).is_file():
        tags.append("lora")
    return tags


def _sources(record: RunRecord) -> list[str]:
    train = record.config["data"]["train"]
    return [train] if isinstance(train, str) else [each["source"] for each in train]


def _held_out_sets(record: RunRecord) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and summary of each; a single one has no name."""
    found = record.summary.get("evaluation")
    if not found:
        return []
    return [("", found)] if "rows" in found else list(found.items())


def _base_licence(base: str) -> dict[str, str]:
    """The licence in the base model's own card, where that lies on this machine; the network is not asked."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    card: object = Path(base) / CARD_FILE
    if hub_name(base):
        card = try_to_load_from_cache(base, CARD_FILE)
    try:
        data = ModelCard.load(Path(card)).data.to_dict() if isinstance(card, str | Path) else {}
    except (OSError, ValueError):
        return {}
    found = {key: data[key] for key in LICENCE_FIELDS if isinstance(data.get(key), str)}
    return found if "license" in found else {}
