"""From the keywords of the Python API to a configuration, and its errors back to keywords."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from preftune.data.rules import suggest
from preftune.errors import InputError
from preftune.models import load_tokenizer
from preftune.objectives import Objective
from preftune.training import RunConfig, check_config, trl_names
from preftune.training.configuration import LoraSection
from preftune.training.given import Given
from preftune.training.preparation import EVALUATION

if TYPE_CHECKING:
    from peft import PeftConfig

NamedOrRows = Any
"""A file, folder or hub name; a `datasets.Dataset`; or a list of rows, each a mapping from columns."""
RewardOptions = Mapping[str, Any] | Callable[..., Any] | None
"""Options of an auxiliary reward, with a function of your own under `measure`; or the function itself."""


@dataclass(frozen=True)
class Keywords:
    """What `preftune.train` and `PreferenceTrainer` are given; see there."""

    model: str | Path | nn.Module
    train_dataset: NamedOrRows
    eval_dataset: NamedOrRows | Mapping[str, NamedOrRows] = None
    objective: str | Mapping[str, Any] | Objective | None = None
    rewards: Mapping[str, RewardOptions] | None = None
    prior: Mapping[str, Any] | None = None
    reward_sum: Mapping[str, Any] | None = None
    value_head: Mapping[str, Any] | None = None
    batches: Mapping[str, Any] | None = None
    reference: str | Path | nn.Module | None = None
    data: Mapping[str, Any] | None = None
    args: TrainingArguments | Mapping[str, Any] | None = None
    processing_class: PreTrainedTokenizerBase | None = None
    peft_config: "PeftConfig | Mapping[str, Any] | None" = None
    lora_start: str | None = None
    callbacks: Sequence[TrainerCallback] | None = None
    optimizers: tuple[Any, Any] = (None, None)
    quantization: str | Mapping[str, Any] | None = None
    fully_sharded: bool = False
    output: str | Path | None = None
    cache: str | Path | None = None
    stop: Mapping[str, Any] | None = None
    learning_rates: Mapping[str, float] | None = None
    stochastic_rounding: bool = False
    ema: Mapping[str, Any] | None = None

    def resolve(self) -> tuple[RunConfig, Given]:
        """The run's configuration, and the objects that stand in for names in it.

        Raises:
            InputError: a keyword has a value that it cannot have, or two of them contradict each other.
        """
        if self.train_dataset is None:
            raise InputError("train_dataset is missing: give rows, a datasets.Dataset, a path or a hub name")
        _check_model(self.model, self.peft_config, self.lora_start)
        tree: dict[str, Any] = {
            "model": _named(self.model),
            "reference": None if self.reference is None else _named(self.reference),
            "quantization": self.quantization,
            "fully_sharded": self.fully_sharded,
            "lora": self._lora(),
            "data": {
                **_options(
                    "data", self.data, reserved={"train": "train_dataset", "evaluation": "eval_dataset"}
                ),
                "train": _source_name("train_dataset", self.train_dataset),
                "evaluation": _source_name("eval_dataset", self.eval_dataset),
            },
            "batches": self.batches and dict(self.batches),
            "objective": _objective_options(self.objective),
            "prior": _options("prior", self.prior),
            "rewards": _rewards(self.rewards),
            "reward_sum": _options("reward_sum", self.reward_sum),
            "value_head": _options("value_head", self.value_head),
            "training": dict(self.args) if isinstance(self.args, Mapping) else {},
            "stop": _options("stop", self.stop),
            "learning_rates": _options("learning_rates", self.learning_rates),
            "stochastic_rounding": self.stochastic_rounding,
            "ema": None if self.ema is None else _options("ema", self.ema),
            "cache": self.cache and str(self.cache),
        }
        output = _output(self.output, tree["training"])
        if output is not None:
            tree["output"] = str(output)
        given = Given(
            model=self.model if isinstance(self.model, nn.Module) else None,
            tokenizer=self._tokenizer(),
            reference=self.reference if isinstance(self.reference, nn.Module) else None,
            train=None if isinstance(self.train_dataset, str | Path) else self.train_dataset,
            held_out=_held_out(self.eval_dataset),
            objective=self.objective if isinstance(self.objective, Objective) else None,
            arguments=_arguments(self.args),
            adapter=_adapter(self.peft_config),
            callbacks=tuple(self.callbacks or ()),
            optimizers=self.optimizers,
        )
        return check_config(tree), given

    def _lora(self) -> dict[str, Any] | None:
        """The section of a start; a new adapter is an object, and without one all weights are trained."""
        if self.lora_start is None:
            return None
        whole = {"rank": None} if self.lora_start == "merge" else {}
        return {"start": self.lora_start, **whole}

    def _tokenizer(self) -> PreTrainedTokenizerBase | None:
        if isinstance(self.model, nn.Module):
            return loaded_tokenizer(self.model, self.processing_class)
        return self.processing_class


def _output(output: str | Path | None, training: dict[str, Any]) -> str | Path | None:
    """The run folder, which is `output_dir` in a mapping of arguments; that is taken out of it.

    Raises:
        InputError: both are given, or it is no path.
    """
    if "output_dir" not in training:
        return output
    named = training.pop("output_dir")
    if output is not None:
        raise InputError(f"output={output} and args.output_dir={named} both name the run folder: remove one")
    if not isinstance(named, str | Path):
        raise InputError(f"args.output_dir={named!r} must be a path: give the run folder, or remove it")
    return named


def loaded_tokenizer(
    model: nn.Module, processing_class: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a loaded model: the given one, or that of the name it was loaded from.

    Raises:
        InputError: there is none.
    """
    if processing_class is not None:
        return processing_class
    if not _name_of(model):
        raise InputError(
            "processing_class is missing: the model was not loaded by name, so its tokenizer is unknown: "
            "give it"
        )
    return load_tokenizer(_name_of(model))


def _check_model(model: object, peft_config: object, lora_start: str | None) -> None:
    from peft import PeftModel
    from transformers import PreTrainedModel

    if isinstance(model, PeftModel) and peft_config is not None and lora_start != "merge":
        raise InputError(
            "model is a PeftModel with an adapter, and peft_config asks for another: remove peft_config to "
            'continue with its adapter, or merge it first (lora_start="merge")'
        )
    if not isinstance(model, str | Path | PeftModel | PreTrainedModel):
        raise InputError(
            f"model is a {type(model).__name__}: give a name, a folder, a transformers model or a PeftModel"
        )


def _adapter(peft_config: "PeftConfig | Mapping[str, Any] | None") -> "PeftConfig | None":
    """An adapter from fields of peft's LoraConfig, on all linear layers unless they say where."""
    if not isinstance(peft_config, Mapping):
        return peft_config
    from peft import LoraConfig

    section = LoraSection()
    own = {"r": section.rank, "lora_alpha": section.alpha, "target_modules": section.target_modules}
    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM", **own, **peft_config})
    except (TypeError, ValueError) as error:
        raise InputError(
            f"peft_config={dict(peft_config)!r}: {error}; give fields of peft's LoraConfig, such as "
            '{"r": 16, "target_modules": "all-linear"}, or the object'
        ) from None


def unknown_keyword(name: str) -> InputError:
    """The error about a keyword that there is not, with what TRL's trainers call so."""
    known = list(Keywords.__dataclass_fields__)
    if said := trl_names.answer(name, here=known):
        # A loaded model has its type already.
        is_type = trl_names.TRL_KEYS.get(name) == "model_dtype"
        said = trl_names.LOAD_YOURSELF if is_type else as_keywords(said)
        return InputError(f"there is no keyword {name!r}: {said}")
    return InputError(f"there is no keyword {name!r}; there are {', '.join(known)}{suggest(name, known)}")


def _name_of(model: nn.Module) -> str:
    """Where a loaded model came from; empty if it was made here."""
    name: Any = getattr(model.config, "_name_or_path", None)
    return str(name or "")


def _named(model: str | Path | nn.Module) -> str:
    """A model's name for the configuration."""
    if isinstance(model, nn.Module):
        return _name_of(model) or f"<{type(model).__name__}>"
    return str(model)


def _source_name(keyword: str, source: NamedOrRows) -> str | None:
    """A source's name for the configuration; of rows in memory, what they are."""
    if source is None or isinstance(source, str | Path):
        return None if source is None else str(source)
    if type(source) is dict:
        return f"<{keyword}: {len(source)} sources>"
    size = f", {len(source):,} rows" if hasattr(source, "__len__") else ""
    return f"<{keyword}: {type(source).__name__}{size}>"


def _held_out(source: NamedOrRows | Mapping[str, NamedOrRows]) -> dict[str, NamedOrRows]:
    if source is None or isinstance(source, str | Path):
        return {}
    if not isinstance(source, Mapping):
        return {EVALUATION: source}
    wrong = [name for name in source if not re.fullmatch(r"\w[\w-]*", str(name)) or name == "train"]
    if wrong or not source:
        raise InputError(
            f"eval_dataset has the names {', '.join(map(str, source)) or '(none)'}: a name must be a word, "
            "and other than train; rename the set"
        )
    return dict(source)


def _options(
    keyword: str, value: Mapping[str, Any] | None, reserved: Mapping[str, str] | None = None
) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise InputError(f"{keyword}={value!r} must be a mapping of options to values")
    for option, instead in (reserved or {}).items():
        if value and option in value:
            raise InputError(f"{keyword}[{option!r}]: give it by the keyword {instead}")
    return dict(value or {})


def _objective_options(objective: str | Mapping[str, Any] | Objective | None) -> dict[str, Any]:
    if objective is None or isinstance(objective, Objective):
        return {}
    if isinstance(objective, str):
        return {"method": objective}
    return _options("objective", objective)


def _rewards(rewards: Mapping[str, RewardOptions] | None) -> dict[str, Any]:
    if rewards is not None and not isinstance(rewards, Mapping):
        raise InputError(
            f"rewards is a {type(rewards).__name__}: give a mapping by name, such as "
            'rewards={"short": function} or rewards={"reading_grade": {"goal": "minimise"}}'
        )
    return {name: _reward_options(name, options) for name, options in (rewards or {}).items()}


def _reward_options(name: str, options: RewardOptions) -> dict[str, Any]:
    if callable(options):
        return {"measure": options}
    return _options(f"rewards[{name!r}]", options)


def _arguments(args: TrainingArguments | Mapping[str, Any] | None) -> TrainingArguments | None:
    if args is None or isinstance(args, Mapping):
        return None
    if not isinstance(args, TrainingArguments):
        raise InputError(
            f"args is a {type(args).__name__}: give transformers' TrainingArguments, or a mapping"
        )
    return args


# --- errors ---

_KEY = r"(?<![\w/.\-])"
_END = r"(?![\w/-]|\.\w)"
_SECTIONS = "data|objective|prior|value_head|batches|rewards|reward_sum|quantization|stop|ema"
_WORDS: tuple[tuple[str, str], ...] = (
    (rf"{_KEY}data\.train{_END}", "train_dataset"),
    (rf"{_KEY}data\.evaluation{_END}", "eval_dataset"),
    (rf"{_KEY}training\.(\w+)", r"args.\1"),
    (rf"{_KEY}lora\.start=(continue|merge)\b", r'lora_start="\1"'),
    (rf"{_KEY}lora\.start{_END}", "lora_start"),
    (rf"{_KEY}lora\.rank=null{_END}", "no peft_config"),
    (rf"{_KEY}lora\.rank{_END}", "peft_config.r"),
    (rf"{_KEY}lora\.alpha{_END}", "peft_config.lora_alpha"),
    (rf"{_KEY}lora\.(\w+)", r"peft_config.\1"),
    (r"(?:pass )?(?<!\S)--(resume|overwrite)\b", r"\1=True"),
)


def as_keywords(message: str) -> str:
    """A message about keys of a configuration, in the words of the Python API."""
    for pattern, word in _WORDS:
        message = re.sub(pattern, word, message)
    message = re.sub(rf"{_KEY}({_SECTIONS})((?:\.\w+)+)=([^\s,;:)]*[^\s,;:).])", _assignment, message)
    return re.sub(rf"{_KEY}({_SECTIONS})((?:\.\w+)+)", _lookup, message)


def _assignment(found: re.Match[str]) -> str:
    text = _literal(found[3])
    for name in reversed(found[2].split(".")[1:]):
        text = f'{{"{name}": {text}}}'
    return f"{found[1]}={text}"


def _literal(value: str) -> str:
    """A value as Python has it."""
    if value in ("true", "false", "null"):
        return {"true": "True", "false": "False", "null": "None"}[value]
    return f'"{value}"' if re.fullmatch(r"[a-z]\w*", value) else value


def _lookup(found: re.Match[str]) -> str:
    return found[1] + "".join(f'["{name}"]' for name in found[2].split(".")[1:])


@contextmanager
def errors_name_keywords() -> Iterator[None]:
    """Say errors about the configuration in the words of the Python API."""
    try:
        yield
    except InputError as error:
        raise type(error)(as_keywords(str(error))) from error.__cause__
