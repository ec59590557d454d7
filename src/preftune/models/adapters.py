"""Adapters of peft: read from a folder, checked against their base model, put on it, and saved.

What can be checked is checked on shapes without content, before weights load.
"""

import copy
import difflib
import json
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from preftune.errors import InputError
from preftune.models.config_files import ADAPTER_FILE, ADAPTER_WEIGHTS, BASE_FOLDER
from preftune.models.loading import load_model_config, load_tokenizer
from preftune.models.saving import save_model_files

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

CHANGES_NOTHING = (True, False, "gaussian", "orthogonal")
"""Values of `init_lora_weights` that leave the base model's weights as they are."""
UNTRAINED_INITS = ("eva", "corda", "lora_ga", "loftq")
"""Those that read data, or quantise, before training begins."""

_OUTSIDE = "it works outside the layers, on rows of its own, and packed rows pass through the layers alone"
REFUSED_TYPES = {
    "ADALORA": "its ranks change after every step, by a call that the trainer does not make; use LORA",
    "XLORA": _OUTSIDE,
    "POLY": _OUTSIDE,
}
"""Types of adapters that cannot be trained here, with the reason; prompt learning is refused as a kind."""
REFUSED_FIELDS = {
    "alora_invocation_tokens": "its adapter begins behind a text of each row, and a packed row has many",
    "arrow_config": "it chooses between adapters, and one is trained",
    "monteclora_config": "it needs a term of the loss that is not added",
    "kasa_config": "it changes the base model, and what is saved would not fit that",
}
"""Fields of LoraConfig that cannot be trained here, with the reason."""


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter that peft has saved.

    Attributes:
        folder: where it is.
        config: its configuration.
        base: folder or hub name of the model that it was trained on.
    """

    folder: str
    config: "PeftConfig"
    base: str


def is_adapter(model: str) -> bool:
    """Whether a name is a folder with an adapter of peft."""
    return (Path(model) / ADAPTER_FILE).is_file()


def base_of(model: str) -> str:
    """The model itself, or where it is an adapter's folder, the adapter's base model.

    Raises:
        InputError: it is an adapter that does not say its base model, or says one that is not there.
    """
    return read_adapter(model).base if is_adapter(model) else model


def tokenizer_source(model: str) -> str:
    """Where the tokenizer of a model lies: with an adapter, or else with its base model."""
    if is_adapter(model) and not (Path(model) / "tokenizer_config.json").is_file():
        return base_of(model)
    return model


def read_adapter(folder: str) -> AdapterFolder:
    """The adapter in a folder.

    Raises:
        InputError: its configuration cannot be read, it is of a type that cannot be trained, or its base
            model cannot be found.
    """
    from peft import PeftConfig

    file = Path(folder) / ADAPTER_FILE
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        config = PeftConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"model={folder}: {file} is not an adapter's configuration of peft: {error}"
        ) from None
    check_adapter_config(config, f"model={folder}")
    named = stored.get("base_model_name_or_path")
    own = Path(folder) / BASE_FOLDER
    if (own / "config.json").is_file():
        return AdapterFolder(folder, config, str(own))
    if not named:
        raise InputError(
            f"model={folder} is an adapter whose {ADAPTER_FILE} names no base model: write the base model's "
            "folder or hub name there as base_model_name_or_path"
        )
    path = Path(named).expanduser()
    looks_local = path.is_absolute() or named.startswith((".", "~")) or named.count("/") > 1
    if looks_local and not path.is_dir():
        raise InputError(
            f"model={folder} is an adapter of {named}, which is not a folder: write where its base model is "
            f"as base_model_name_or_path in {file}"
        )
    if is_adapter(str(path)):
        raise InputError(
            f"model={folder} is an adapter of {named}, which is an adapter too: merge that one into its base "
            "model first (peft's merge_and_unload)"
        )
    return AdapterFolder(folder, config, str(path) if path.is_dir() else named)


def base_config(model: str, *, scores: bool = False) -> PretrainedConfig:
    """The configuration of a causal language model, or of the base model of an adapter's folder.

    Args:
        model: folder or hub name.
        scores: take a reward model too.

    Raises:
        InputError: there is none.
    """
    base = base_of(model)
    try:
        return load_model_config(base, scores=scores)
    except InputError as error:
        if base == model:
            raise
        raise InputError(f"model={model} is an adapter, and its base model cannot be used: {error}") from None


def check_adapter_config(config: "PeftConfig", key: str) -> None:
    """Check that adapters of a configuration can be trained on packed rows.

    Args:
        config: the adapter's.
        key: what the message begins with.

    Raises:
        InputError: they cannot.
    """
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    reason = REFUSED_TYPES.get(kind)
    if config.is_prompt_learning:
        reason = (
            "it puts trained vectors before each row, and packed rows begin with a prompt that several "
            "responses share"
        )
    if reason:
        raise InputError(f"{key}: an adapter of type {kind} cannot be trained here: {reason}; use LORA")
    for field, why in REFUSED_FIELDS.items():
        if getattr(config, field, None):
            raise InputError(f"{key}: {field} cannot be trained here: {why}; remove it")


def changes_base(config: "PeftConfig") -> bool:
    """Whether such a LoRA adapter changes the base model's weights when it is put on, as PiSSA and OLoRA."""
    return getattr(config, "init_lora_weights", True) not in CHANGES_NOTHING


# --- shapes ---


def shapes_of(config: PretrainedConfig, dtype: torch.dtype, form: Any) -> nn.Module:
    """A model without content.

    Args:
        config: the model's.
        dtype: of its weights.
        form: the `Auto` class of what it is.
    """
    with torch.device("meta"):
        model: nn.Module = form.from_config(copy.deepcopy(config), dtype=dtype)
    return model


def adapted_without_content(model: nn.Module, config: "PeftConfig", key: str) -> "PeftModel":
    """An adapter without content on a model without content.

    Args:
        model: what it is put on.
        config: the adapter's.
        key: of the configuration, for messages.

    Raises:
        InputError: the adapter does not fit the model.
    """
    from peft import get_peft_model

    _check_modules(model, config, key)
    plain = copy.deepcopy(config)
    if hasattr(plain, "init_lora_weights"):
        # Others are computed of weights.
        plain.init_lora_weights = True
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            adapted = cast("PeftModel", get_peft_model(cast(Any, model), plain, low_cpu_mem_usage=True))
    except (ValueError, TypeError, RuntimeError, KeyError, NotImplementedError) as error:
        raise InputError(f"{key}: {_first_line(error)}") from None
    _check_tied(adapted, key)
    return adapted


def _check_modules(model: nn.Module, config: "PeftConfig", key: str) -> None:
    """Every module that is named must be there: peft leaves out some names in silence."""
    modules = [name for name, _ in model.named_modules() if name]
    for field in ("target_modules", "modules_to_save"):
        named = getattr(config, field, None)
        for wanted in named if isinstance(named, list | set) else ():
            if not any(name == wanted or name.endswith(f".{wanted}") for name in modules):
                raise _no_module(f"{key}.{field}", wanted, modules)
    for field in ("rank_pattern", "alpha_pattern"):
        for wanted in getattr(config, field, None) or {}:
            if not any(re.match(rf"(.*\.)?({wanted})$", name) for name in modules):
                raise _no_module(f"{key}.{field}", wanted, modules)


def _no_module(where: str, wanted: str, modules: Iterable[str]) -> InputError:
    last = sorted({name.rpartition(".")[2] for name in modules if not name.rpartition(".")[2].isdigit()})
    near = difflib.get_close_matches(wanted.rpartition(".")[2], last, n=1)
    meant = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(last)}"
    return InputError(f"{where}: the model has no module {wanted!r}: {meant}")


def _check_tied(model: "PeftModel", key: str) -> None:
    """An adapter on one of two tied weights would merge into another model than was trained."""
    base: Any = model.get_base_model()
    if not getattr(base.config.get_text_config(), "tie_word_embeddings", False):
        return
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    touched = [module for module in (embedding, head) if module is not None and _is_adapted(module)]
    if not touched or head is None:
        return
    if any(hasattr(module, "modules_to_save") for module in touched):
        if trained_copy(embedding).weight is trained_copy(head).weight:
            return
        raise InputError(
            f"{key}: the model ties its head to its embeddings, and modules_to_save would train them apart: "
            "set ensure_weight_tying=true to train one for both"
        )
    # New rows for some tokens, which both weights share.
    if all(hasattr(module, "token_adapter") for module in (embedding, head)):
        return
    raise InputError(
        f"{key}: the model ties its head to its embeddings, and an adapter on one of them would merge into "
        "another model than was trained: leave embeddings and head out, or train both as a whole by "
        "modules_to_save=[embed_tokens] with ensure_weight_tying=true"
    )


def _is_adapted(module: nn.Module) -> bool:
    return type(module) not in (nn.Embedding, nn.Linear) and type(module).__module__.startswith("peft.")


def trained_copy(module: Any) -> Any:
    """The module that is in use: of one that peft trains as a whole (`modules_to_save`), the copy."""
    copies = getattr(module, "modules_to_save", None)
    if copies is None:
        return module
    is_off = module.disable_adapters or not module.active_adapters
    return module.original_module if is_off else copies[module.active_adapters[0]]


def check_adapter_weights(adapter: AdapterFolder, adapted: "PeftModel", adds_head: bool) -> None:
    """Check an adapter's stored weights against the adapter without content; peft only warns.

    Args:
        adapter: what is read.
        adapted: the adapter's form on its base model.
        adds_head: the form has a head (`score`) that the adapter was not trained with.

    Raises:
        InputError: there are too few, too many, or weights of other shapes.
    """
    stored, own = _stored_shapes(adapter), _own_shapes(adapted)
    lacking = [name for name in own.keys() - stored.keys() if not (adds_head and ".score." in name)]
    base = {f"base_model.model.{name}": shape for name, shape in _base_shapes(adapted).items()}
    more = [name for name in stored if name not in own and stored[name] != base.get(_plain_name(name))]
    unlike = [name for name in own.keys() & stored.keys() if own[name] != stored[name]]
    if unlike:
        name = min(unlike)
        raise _of_another(adapter, f"{name} is {stored[name]}, and the base model needs {own[name]}")
    if lacking:
        raise _of_another(adapter, f"{min(lacking)} and {len(lacking) - 1} more weights are missing")
    if more:
        raise _of_another(adapter, f"{min(more)} and {len(more) - 1} more weights fit no place")


def _of_another(adapter: AdapterFolder, what: str) -> InputError:
    return InputError(
        f"model={adapter.folder} does not fit its base model {adapter.base}: {what}; the adapter is of "
        f"another model, or its file is damaged: correct base_model_name_or_path in its {ADAPTER_FILE}"
    )


def _stored_shapes(adapter: AdapterFolder) -> dict[str, tuple[int, ...]]:
    file = Path(adapter.folder) / ADAPTER_WEIGHTS
    if not file.is_file():
        raise InputError(
            f"model={adapter.folder} is an adapter without {ADAPTER_WEIGHTS}: save it by peft's "
            "save_pretrained (weights of other formats are not read)"
        )
    try:
        with safe_open(file, framework="pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"model={adapter.folder}: {file} cannot be read: {error}") from None


def _own_shapes(adapted: "PeftModel") -> dict[str, tuple[int, ...]]:
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: tuple(weight.shape) for name, weight in state.items()}


def _base_shapes(adapted: "PeftModel") -> dict[str, tuple[int, ...]]:
    return {_plain_name(name): tuple(w.shape) for name, w in adapted.get_base_model().state_dict().items()}


def _plain_name(name: str) -> str:
    """A base model's weight, without what peft has put around its module."""
    for part in (".token_adapter", ".base_layer", ".original_module"):
        name = name.replace(part, "")
    return name


# --- on the model ---


def put_on(adapter: AdapterFolder, model: nn.Module, task: str) -> "PeftModel":
    """The model with a stored adapter, which can be trained.

    Args:
        adapter: what is put on, checked by `check_adapter_weights`.
        model: its base model.
        task: peft's name of the model's form.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    config = copy.deepcopy(adapter.config)
    config.task_type, config.inference_mode = task, False
    if hasattr(config, "init_lora_weights"):
        # Its weights are loaded: what it once began with is of no use.
        config.init_lora_weights = True
    with warnings.catch_warnings():
        # What peft would warn of has been checked.
        warnings.simplefilter("ignore")
        adapted = cast("PeftModel", get_peft_model(cast(Any, model), config))
        # A head that the adapter was not trained with stays as it is.
        own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        set_peft_model_state_dict(adapted, own | load_file(Path(adapter.folder) / ADAPTER_WEIGHTS))
    return adapted


def check_peft_model(model: "PeftModel") -> None:
    """Check that a caller's `PeftModel` has one adapter, in use, of a type that can be trained.

    Raises:
        InputError: it has not.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    names = list(model.peft_config)
    if len(names) != 1:
        raise InputError(
            f"model is a PeftModel with the adapters {', '.join(names) or '(none)'}, and one is trained: "
            "remove the others (model.delete_adapter(NAME))"
        )
    check_adapter_config(model.peft_config[names[0]], "model is a PeftModel")
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if any(layer.merged for layer in layers):
        raise InputError("model is a PeftModel whose adapter is merged: call model.unmerge_adapter() first")
    if any(layer.disable_adapters for layer in layers):
        raise InputError(
            "model is a PeftModel whose adapter is off: call model.base_model.enable_adapter_layers() first"
        )
    _check_tied(model, "model is a PeftModel")


def adapter_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The modules of an adapter on a layer; of other modules, none."""
    if not hasattr(module, "base_layer") or not hasattr(module, "adapter_layer_names"):
        return
    for name, child in module.named_children():
        if name != "base_layer":
            yield from child.modules()


def let_train(model: "PeftModel") -> None:
    """Let the adapter be trained, if it was loaded for use alone."""
    if not any(weight.requires_grad for weight in model.parameters()):
        (name,) = model.peft_config
        model.peft_config[name].inference_mode = False
        model.set_adapter(name)


def merged(model: "PeftModel") -> PreTrainedModel:
    """The base model with the adapter's weights added to its own, in place.

    Raises:
        InputError: adapters of this type cannot be merged.
    """
    try:
        whole = cast(Any, model).merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError, ValueError) as error:
        kind = next(iter(model.peft_config.values())).peft_type
        raise InputError(
            f"lora.start=merge: an adapter of type {kind} cannot be merged: {_first_line(error)}"
        ) from None
    return cast(PreTrainedModel, whole)


# --- saving ---


def keep_first_weights(model: "PeftModel") -> None:
    """Keep the weights of an adapter that has changed its base model, for `save_tuned`."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    first = {name: weight.detach().cpu().clone().contiguous() for name, weight in state.items()}
    setattr(model, _FIRST, first)


_FIRST = "preftune_first_weights"


def save_tuned(model: Any, folder: Path, state: Mapping[str, Tensor] | None = None, **options: Any) -> None:
    """Save a language model; of one with an adapter, the adapter, and its base model if that has no name.

    An adapter that has changed its base model becomes a plain LoRA adapter of twice the rank, on the base
    model as it was (`keep_first_weights`).

    Args:
        model: what was trained.
        folder: where to.
        state: its whole weights, where the model holds a part of them.
        **options: of `save_pretrained`, such as `max_shard_size`.
    """
    if not hasattr(model, "peft_config"):
        save_model_files(model, folder, state_dict=state, **options)
        return
    config = next(iter(model.peft_config.values()))
    if config.base_model_name_or_path == BASE_FOLDER:
        # First: peft reads its configuration.
        base = model.get_base_model()
        save_model_files(base, folder / BASE_FOLDER, state_dict=_base_weights(model, state), **options)
    with _first_adapter(model) as first, _named_base(config, folder):
        more = {} if first is None else {"path_initial_model_for_weight_conversion": str(first)}
        save_model_files(model, folder, state_dict=state, **more, **options)


def checkpoint_options(model: Any) -> dict[str, bool]:
    """What `save_pretrained` has to be told of an adapter whose base model has no name yet.

    peft would look for a base model of that name on the hub, to see whether its embeddings are others.
    """
    config = next(iter(getattr(model, "peft_config", {}).values()), None)
    if config is None or config.base_model_name_or_path != BASE_FOLDER:
        return {}
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    targets = getattr(config, "target_modules", None) or ()
    has_embeddings = any(name in targets for name in EMBEDDING_LAYER_NAMES)
    return {} if has_embeddings else {"save_embedding_layers": False}


@contextmanager
def _named_base(config: "PeftConfig", folder: Path) -> Iterator[None]:
    """The adapter's configuration with a base model's name that others can load."""
    before = config.base_model_name_or_path
    if before == BASE_FOLDER:
        config.base_model_name_or_path = str((folder / BASE_FOLDER).absolute())
    try:
        yield
    finally:
        config.base_model_name_or_path = before


@contextmanager
def _first_adapter(model: "PeftModel") -> Iterator[Path | None]:
    """A folder with an adapter's first weights, if they were kept; its name is what peft loads them as."""
    if not hasattr(model, _FIRST):
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first"
        first.mkdir()
        save_file(getattr(model, _FIRST), first / ADAPTER_WEIGHTS)
        yield first


def _base_weights(model: "PeftModel", state: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The base model's own weights, by their names without the adapter."""
    base: Any = model.get_base_model()
    prefix = "base_model.model."
    with torch.device("meta"):
        plain = set(type(base)(copy.deepcopy(base.config)).state_dict())
    found = model.state_dict() if state is None else state
    own = {_plain_name(name.removeprefix(prefix)): weight for name, weight in found.items()}
    return {name: weight for name, weight in own.items() if name in plain}


def tokenizer_of(model: str) -> Any:
    """The tokenizer of a model, or of an adapter or its base model."""
    return load_tokenizer(tokenizer_source(model))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
