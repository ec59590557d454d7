"""The configuration of a run: a YAML file, `key=value` overrides, and every error before heavy work."""

import difflib
import math
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_type_hints

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_serializer,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from preftune.data.pairing import COUNTED_RULES
from preftune.data.sources import READERS
from preftune.errors import InputError
from preftune.models.quantization import ComputeType, Quantization, QuantizationType
from preftune.models.value_head import Architecture
from preftune.rewards.functions import function_name
from preftune.rewards.summing import Normalize
from preftune.training import trl_names


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2: `no` is text and 1e-4, without a point, a number."""


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if resolver[0] != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
_Loader.add_implicit_resolver(_FLOAT, *_EXPONENT)


class _Dumper(yaml.SafeDumper):
    """What it writes, `_Loader` and other readers of YAML read back as it was: the text "1e5" is quoted."""


_Dumper.add_implicit_resolver(_FLOAT, *_EXPONENT)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _expand(path: str | None) -> str | None:
    return str(Path(path).expanduser()) if path and path.startswith("~") else path


LocalOrHub = Annotated[str, AfterValidator(_expand)]
"""A path, in which ~ is the home folder, or a name on the hub."""


def _identity(source: str) -> str:
    """The same for every spelling of a path."""
    return str(Path(source).resolve()) if Path(source).exists() else source


DECIDED_LORA_FIELDS = {
    "r": "write lora.rank",
    "lora_alpha": "write lora.alpha",
    **dict.fromkeys(
        ("task_type", "peft_type", "auto_mapping"), "it follows from objective.method: remove it"
    ),
    **dict.fromkeys(("base_model_name_or_path", "revision"), "set model"),
    **dict.fromkeys(("inference_mode", "peft_version", "runtime_config"), "preftune sets it: remove it"),
}
"""Fields of peft's LoraConfig that are no keys of `lora`, with what to do instead."""


class LoraSection(_Section):
    """Low-rank adapters instead of full fine-tuning; beside these keys, any field of peft's LoraConfig."""

    model_config = ConfigDict(extra="allow", frozen=True)

    start: Literal["continue", "merge"] | None = Field(
        default=None, description="what becomes of the adapter that model names: trained further, or merged"
    )
    rank: int | None = Field(default=16, gt=0, description="null, with start=merge, trains all weights")
    alpha: float = Field(default=32, gt=0)
    target_modules: str | list[str] = "all-linear"

    @property
    def more(self) -> dict[str, Any]:
        """Fields of peft's LoraConfig beside those that are keys here."""
        return dict(self.__pydantic_extra__ or {})

    @model_validator(mode="after")
    def _are_fields_of_peft(self) -> "LoraSection":
        if self.more:
            from peft import LoraConfig

            hints = get_type_hints(LoraConfig)
        for key, value in self.more.items():
            if key in DECIDED_LORA_FIELDS:
                raise _said(f"lora.{key} is no key: {DECIDED_LORA_FIELDS[key]}")
            if key not in hints:
                raise _said(unknown_key(f"lora.{key}", [*type(self).model_fields, *hints]))
            # Its hint has the names, of which pissa_niter_N are many.
            hint: Any = bool | str if key == "init_lora_weights" else hints[key]
            try:
                TypeAdapter(hint).validate_python(value)
            except ValidationError as error:
                reasons = "; ".join(dict.fromkeys(problem["msg"] for problem in error.errors()))
                raise _said(f"lora.{key}={value!r}: {reasons}") from None
        return self

    @model_validator(mode="after")
    def _starts_in_one_way(self) -> "LoraSection":
        others = sorted(self.model_fields_set - {"start"})
        if self.start == "continue" and others:
            raise _said(
                f"lora.start=continue trains the start's adapter as it is, and lora.{others[0]} describes a "
                "new one: remove that, or set lora.start=merge to merge the start's and train a new one"
            )
        if self.start == "merge" and not others:
            raise _said(
                "lora.start=merge does not say what is trained on the merged model: set lora.rank=16 for a "
                "new adapter, or lora.rank=null for all its weights"
            )
        if self.rank is None and (self.start != "merge" or others != ["rank"]):
            raise _said(
                "lora.rank=null trains all weights of a merged start: set lora.start=merge with it and no "
                "other key of lora, or remove it"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_read(
        self, serialize: Callable[["LoraSection"], dict[str, Any]]
    ) -> dict[str, Any]:
        """A resumed run reads it back."""
        found = serialize(self)
        if self.start == "continue":
            return {"start": self.start}
        if self.rank is None:
            return {"start": self.start, "rank": None}
        return {key: value for key, value in found.items() if key != "start" or value}


def _said(message: str) -> PydanticCustomError:
    """An error whose message is all that is said."""
    return PydanticCustomError("said", "{message}", {"message": message})


class QuantizationSection(_Section):
    """A base model in 4 or 8 bits, under adapters; `nf4` or `int8` alone stands for its type."""

    type: QuantizationType
    double: bool = Field(default=False, description="quantise the constants of nf4 too")
    compute_dtype: ComputeType | None = Field(
        None, description="of nf4's products; that of training unless given"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_its_type(cls, given: Any) -> Any:
        return {"type": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _fits_its_type(self) -> "QuantizationSection":
        if self.type == "int8" and (self.double or self.compute_dtype):
            raise ValueError("double and compute_dtype belong to type=nf4: remove them, or set type=nf4")
        return self

    def of_model(self) -> Quantization:
        """What a model is loaded with."""
        return Quantization(self.type, self.double, self.compute_dtype)


class ControlSection(_Section):
    """Texts that end the prompt of a response, by its label, for methods that are conditioned on that."""

    good: str = Field(default="<|good|>", description="before desirable responses, and where one samples")
    bad: str = Field(default="<|bad|>", description="before undesirable responses")

    @model_validator(mode="after")
    def _tells_apart(self) -> "ControlSection":
        if self.good == self.bad or not self.good:
            raise ValueError(
                f"good={self.good!r} and bad={self.bad!r} must differ, and good must not be empty: change "
                "one of them"
            )
        return self


ColumnMapping = dict[str, str | list[str]]
"""The data's column, or columns, for a name such as prompt."""


class SourceSection(_Section):
    """One of several sources that are trained on together."""

    source: LocalOrHub
    name: str | None = Field(None, description="for messages and counts; the source unless given")
    split: str = "train"
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="how often each row is used")
    limit: int | None = Field(None, gt=0, description="most rows that are used, drawn by pair_seed")
    columns: ColumnMapping = Field(default_factory=dict, description="as data.columns, of this source")


class DataSection(_Section):
    """Where the pairs come from and what becomes of them."""

    train: LocalOrHub | list[SourceSection] = Field(min_length=1)
    train_split: str = "train"
    evaluation: LocalOrHub | dict[str, LocalOrHub] | None = None
    evaluation_split: str = "train"
    evaluation_fraction: float | None = Field(
        None, gt=0, lt=1, description="share of the training prompts that is held out, in place of evaluation"
    )
    pair_rule: str = "best_worst"
    evaluation_pair_rule: str | None = Field(None, description="of held-out data; pair_rule unless given")
    pairs_per_prompt: int | None = Field(None, gt=0, description="for max_margin_topk")
    pair_seed: int = Field(0, ge=0, description="for best_random")
    length_penalty: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="off a score per character, where pairs are chosen"
    )
    max_length: int = Field(1024, ge=2, description="tokens of prompt and response together")
    max_prompt_length: int | None = Field(None, ge=1, description="tokens of the prompt alone")
    columns: ColumnMapping = Field(
        default_factory=dict, description="column of the data for a name such as prompt: docs/data.md"
    )
    rules: dict[str, str] = Field(default_factory=dict, description="what to do with bad rows: docs/data.md")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    template_date: date | None = Field(
        None, description="what a chat template writes as today's date; the run's first day unless given"
    )
    control: ControlSection | None = None

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt at most, with room for a response."""
        return self.max_prompt_length or self.max_length - 1

    @model_validator(mode="after")
    def _is_held_out(self) -> "DataSection":
        trained = {(_identity(each.source), each.split) for each in self.sources}
        named = self.evaluation if isinstance(self.evaluation, dict) else {"evaluation": self.evaluation}
        wrong = [name for name in named if name == "train" or not re.fullmatch(r"\w[\w-]*", name)]
        if wrong:
            raise ValueError(f"evaluation.{wrong[0]}: a name must be a word, and other than train: rename it")
        for name, source in named.items():
            if source and (_identity(source), self.evaluation_split) in trained:
                raise ValueError(
                    f"{name}={source} must differ from the training data: give another file, or set "
                    "evaluation_split=NAME"
                )
        if self.evaluation and self.evaluation_fraction:
            raise ValueError(
                f"evaluation={self.evaluation} and evaluation_fraction={self.evaluation_fraction} exclude "
                "each other: remove one"
            )
        return self

    @model_validator(mode="after")
    def _sources_have_their_own(self) -> "DataSection":
        if not isinstance(self.train, str) and (self.columns or self.train_split != "train"):
            raise ValueError(
                "columns and train_split belong to each source if train is a list: set them there"
            )
        return self

    @property
    def sources(self) -> list[SourceSection]:
        """What is trained on, as a list of one or more."""
        if isinstance(self.train, str):
            one = {"source": self.train, "split": self.train_split, "columns": self.columns}
            return [SourceSection.model_validate(one)]
        return self.train

    @model_validator(mode="after")
    def _pairs_are_counted(self) -> "DataSection":
        if self.pairs_per_prompt and not COUNTED_RULES & {self.pair_rule, self.evaluation_pair_rule}:
            raise ValueError(
                f"pairs_per_prompt={self.pairs_per_prompt} is not read by pair_rule={self.pair_rule}; set "
                f"pair_rule={' or '.join(sorted(COUNTED_RULES))}, or remove the number"
            )
        return self


class BatchesSection(_Section):
    """Steps filled to a number of tokens, in place of a number of groups."""

    tokens_per_step: int = Field(gt=0, description="tokens of an optimizer step, over all processes")
    tokens_per_row: int | None = Field(None, gt=0, description="most tokens in one pass through the model")


def _temperature(value: object) -> object:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value == "fit" or (is_number and 0 < cast(float, value) < math.inf):
        return value
    raise ValueError("give a number > 0, or fit for the maximum-likelihood one on the training pairs")


class PriorSection(_Section):
    """How raw scores become the reward gap; read when the objective's prior is `reward_gap`."""

    calibration: str = "sigmoid"
    temperature: Annotated[float | Literal["fit"], BeforeValidator(_temperature)] = 1.0
    negative_gap: Literal["drop", "swap", "clip", "error"] = "error"


VALUE_HEADS: dict[str, dict[str, Any]] = {
    "preftune": {"width": 256, "dropout": 0.0},
    "halos": {"width": None, "dropout": 0.1},
}
"""What an architecture of the value head is built with, unless a configuration says otherwise."""


class ValueHeadSection(_Section):
    """The estimate of V(x) in the advantage, whose gradient is clipped apart from the model's."""

    architecture: Architecture = Field(default="preftune", description="ours, or that of HALOs")
    width: int | None = Field(default=256, gt=0, description="of its two hidden layers; null for the model's")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="after each hidden layer, in training")
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    max_grad_norm: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _of_its_architecture(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return VALUE_HEADS.get(str(given.get("architecture")), {}) | given


class RewardSumSection(_Section):
    """How several auxiliary rewards become one."""

    normalize: Normalize = Field(
        default="sum", description="what is standardised: their sum, or each before it is weighted"
    )
    weights: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(
        default_factory=dict, description="by the reward's name, in place of its own weight"
    )


class StopSection(_Section):
    """When training ends before its last step; what is kept is then the newest checkpoint from before."""

    not_finite: int | None = Field(
        default=3,
        gt=0,
        description="steps on end whose loss or gradient norm is NaN or infinite; null for never",
    )
    chosen_logp_change_below: float | None = Field(
        default=None,
        lt=0,
        allow_inf_nan=False,
        description="change of log-probability of held-out chosen responses since the start, in nats per "
        "response",
    )
    divergence_above: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="held-out estimate of KL(policy || reference), in nats per response; of methods that "
        "have one",
    )


class EmaSection(_Section):
    """An exponential moving average of the trained weights."""

    decay: float = Field(default=0.999, gt=0, lt=1, description="share of the average that stays at a step")
    keep: Literal["average", "last"] = Field(
        default="average", description="which weights are evaluated, and saved as the run's model"
    )


def _is_regular_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, Field(min_length=1), AfterValidator(_is_regular_expression)]
"""A regular expression, searched in names of weights."""


class RunConfig(_Section):
    """Everything a run depends on.

    Attributes:
        model: a folder, or a name on the hub.
        model_dtype: data type of the weights.
        reference: what the policy is compared with, a folder or hub name; None for the model it starts from.
        quantization: of the base model under adapters; None trains on its weights as they are.
        fully_sharded: shard weights, gradients and optimizer state over the processes (FSDP2).
        batches: steps of so many tokens; None for `training.per_device_train_batch_size` groups.
        objective: options of `preftune.objectives.build`.
        rewards: options of `preftune.rewards.auxiliary_rewards` by name, for objectives that learn from them.
        reward_sum: how they become one.
        training: any field of `transformers.TrainingArguments`, on top of `TRAINING_DEFAULTS`, and
            `EARLY_STOPPING`.
        learning_rates: for weights whose names match a pattern, in place of `training.learning_rate`.
        stochastic_rounding: round updates of weights in bfloat16 by chance, so that small ones count.
        ema: an average of the trained weights, None for none.
        stop: when training ends before its last step.
        max_shard_size: of a file of the saved model's weights, such as 5GB; None for transformers' own.
        output: the run folder.
        cache: where reference log-probabilities are kept; None for `$PREFTUNE_CACHE` or `~/.cache/preftune`.
    """

    model: LocalOrHub
    model_dtype: Literal["float32", "bfloat16"] = "float32"
    reference: LocalOrHub | None = None
    quantization: QuantizationSection | None = None
    fully_sharded: bool = False
    lora: LoraSection | None = None
    data: DataSection
    batches: BatchesSection | None = None
    objective: dict[str, Any] = Field(default_factory=dict)
    prior: PriorSection = PriorSection()
    rewards: dict[str, dict[str, Any]] = Field(default_factory=dict)
    reward_sum: RewardSumSection = RewardSumSection()
    value_head: ValueHeadSection = ValueHeadSection()
    training: dict[str, Any] = Field(default_factory=dict)
    learning_rates: dict[Pattern, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    stochastic_rounding: bool = False
    ema: EmaSection | None = None
    stop: StopSection = StopSection()
    max_shard_size: str | None = Field(None, pattern=r"^[0-9]+(\.[0-9]+)? ?[KMGT]B$")
    output: LocalOrHub = "runs/train"
    cache: LocalOrHub | None = None

    @field_serializer("rewards", when_used="json")
    def _name_functions(self, rewards: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {
            name: {key: function_name(value) if callable(value) else value for key, value in options.items()}
            for name, options in rewards.items()
        }


TRAINING_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "logging_steps": 1,
    "eval_strategy": "epoch",
    "eval_on_start": True,
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "max_grad_norm": 1.0,
    "seed": 42,
}
"""What differs from transformers' own defaults; the learning rate goes by what is trained."""

EARLY_STOPPING: dict[str, Any] = {
    "early_stopping_patience": Annotated[int, Field(gt=0)],
    "early_stopping_threshold": Annotated[float, Field(ge=0, allow_inf_nan=False)],
}
"""Keys of `training` that are options of transformers' EarlyStoppingCallback."""

_PACKED = "batches are packed rows without labels or columns"
_DEALT = "preftune deals groups to processes itself"
_WHOLE = "start several processes with torchrun, and shard the model over them by fully_sharded=true"
_SECRET = "a token must not stand in a configuration; run `hf auth login`, or set HF_TOKEN"

MOST_KEYS_TO_LIST = 20

TRAINING_OWNED: dict[str, str] = {
    "output_dir": "set `output` at the top level",
    "tokens_per_step": "set batches.tokens_per_step",
    "tokens_per_row": "set batches.tokens_per_row",
    "auto_find_batch_size": "count steps in tokens (batches.tokens_per_step) and bound a row's memory by "
    "batches.tokens_per_row",
    "accelerator_config": _DEALT,
    "fsdp": _WHOLE,
    "deepspeed": _WHOLE,
    "resume_from_checkpoint": "continue a run by --resume, or in Python by "
    "trainer.train(resume_from_checkpoint=True)",
    "remove_unused_columns": _PACKED,
    "label_names": _PACKED,
    "label_smoothing_factor": _PACKED,
    "bf16_full_eval": "held-out figures are in the precision of training",
    "fp16_full_eval": "held-out figures are in the precision of training",
    "train_sampling_strategy": _PACKED,
    "include_for_metrics": _PACKED,
    "neftune_noise_alpha": "noise would reach one of the two policies that are compared",
    "use_liger_kernel": "the vocabulary head is computed in chunks already",
    "dataloader_pin_memory": "memory is pinned where there is a device",
    "logging_nan_inf_filter": "it would read the loss back from the device after every micro-batch",
    "disable_tqdm": "the command line draws its own bar",
    "hub_token": _SECRET,
    "push_to_hub_token": _SECRET,
}
"""Fields of `TrainingArguments` that preftune decides, with what to do instead."""


def dump_yaml(tree: dict[str, Any]) -> str:
    """YAML that `read_run_config` reads back as the same values."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False)
    return text


def read_run_config(path: Path, overrides: list[str]) -> RunConfig:
    """Read a YAML file and apply `key.path=value` overrides (values are YAML).

    Raises:
        InputError: the file, a key or a value is wrong; the message says which was meant.
    """
    return check_config(read_tree(path, overrides))


def read_tree(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The mapping in a YAML file, with `key.path=value` overrides.

    Raises:
        InputError: the file or an override cannot be read.
    """
    for word in (str(path), *overrides):
        if word.startswith("--"):
            raise InputError(trl_names.flag_answer(word))
    _check_first_argument(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path} must be a mapping of keys to values, such as 'model: NAME'")
    for override in overrides:
        _apply_override(tree, override)
    return tree


def _check_first_argument(path: Path) -> None:
    """An override or a data set in the place of the YAML file is named as that."""
    name = str(path)
    if "=" in name and not path.exists():
        raise InputError(
            f"'{name}' stands where the YAML file of the run belongs: name the file first, then the overrides"
        )
    # YAML reads JSON, so that may be a run.
    if path.suffix != ".json" and path.name.lower().endswith(tuple(READERS)):
        raise InputError(
            f"{name} is a data file: name the YAML file of the run first, then data.train={name}"
        )


def _apply_override(tree: dict[str, Any], override: str) -> None:
    path, separator, value = override.partition("=")
    keys = path.split(".")
    if not separator or not all(keys):
        raise InputError(f"'{override}' must be written as key=value, such as objective.beta=0.05")
    try:
        parsed = yaml.load(value, _Loader)
    except yaml.YAMLError:
        raise InputError(
            f"the value of '{override}' is not YAML; quote it, such as key='\"text: more\"'"
        ) from None
    for key in keys[:-1]:
        child = tree.get(key)
        if child is None:
            child = tree[key] = {}
        if not isinstance(child, dict):
            raise InputError(
                f"'{override}' sets a key inside '{key}', which has the value {child!r} and not a mapping: "
                "remove the value, or the override"
            )
        tree = child
    tree[keys[-1]] = parsed


def check_config(tree: dict[str, Any]) -> RunConfig:
    """Validate a configuration given as a mapping.

    Raises:
        InputError: naming the key, the value, the rule and, for a misspelt key, the one that was meant.
    """
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise InputError("\n".join(_explain(problem) for problem in error.errors())) from None


def _explain(problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return unknown_key(path, _keys_beside(problem["loc"]))
    if problem["type"] == "said":
        return str(problem["msg"])
    if problem["type"] == "missing":
        return f"the configuration has no '{path}': add it to the file, or pass {path}=VALUE"
    if problem["type"] in ("model_type", "dict_type"):
        return (
            f"{path}={problem['input']!r} must be a mapping of keys to values: write {path}.KEY=VALUE, or "
            f"remove {path} to use its defaults"
        )
    return f"{path}={problem['input']!r}: {problem['msg']}"


_SECTIONS: dict[str, type[_Section]] = {
    "lora": LoraSection,
    "quantization": QuantizationSection,
    "data": DataSection,
    "data.control": ControlSection,
    "data.train": SourceSection,
    "batches": BatchesSection,
    "prior": PriorSection,
    "reward_sum": RewardSumSection,
    "value_head": ValueHeadSection,
    "ema": EmaSection,
    "stop": StopSection,
}


def _keys_beside(location: tuple[str | int, ...]) -> list[str]:
    section = _SECTIONS.get(".".join(map(str, location[:-1])), RunConfig)
    return list(section.model_fields)


def _elsewhere(path: str, under: str, known: list[str]) -> str | None:
    """What a key is that others have, or None; in the section lora those of peft's LoraConfig."""
    section, _, key = path.rpartition(".")
    if key in TRAINING_OWNED.keys() & trl_names.training_fields() - trl_names.TRL_KEYS.keys():
        return f"it is set by preftune: {TRAINING_OWNED[key]}"
    of_peft = trl_names.answer(f"lora_{key}", under, known) if section == "lora" else None
    return of_peft or trl_names.answer(key, under, known)


def unknown_key(path: str, known: list[str], under: str = "") -> str:
    """Message about a key that does not exist, naming the nearest one that does.

    Args:
        path: what was written.
        known: keys that exist in its place.
        under: what stands before the keys of a run, where those are part of another configuration.
    """
    key = path.rpartition(".")[2]
    near = difflib.get_close_matches(key, known, n=1)
    if under and path in RunConfig.model_fields:
        meant = f"it is a key of the training run: write '{under}{path}'"
    elif said := _elsewhere(path, under, known):
        meant = said
    elif near:
        meant = f"did you mean '{near[0]}'?"
    elif sections := [name for name, section in _SECTIONS.items() if key in section.model_fields]:
        meant = f"write '{under}{sections[0]}.{key}'"
    elif len(known) > MOST_KEYS_TO_LIST:
        meant = "docs/configuration.md lists the keys"
    else:
        meant = f"the keys here are {', '.join(sorted(known))}"
    return f"unknown key '{path}': {meant}"
