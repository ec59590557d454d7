"""The configuration of online rounds; its defaults are the hyperparameters of MaPPO (Table 4)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from preftune.errors import InputError
from preftune.objectives import methods_of
from preftune.objectives.options import nearest
from preftune.sampling.engines import ELSEWHERE, ENGINES
from preftune.training.configuration import LocalOrHub, RunConfig, check_config, read_tree, unknown_key


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _check_engine(name: str) -> str:
    able = [engine for engine in ENGINES if engine not in ELSEWHERE]
    if name not in able:
        reason = ", which does not have the weights that were just trained" if name in ELSEWHERE else ""
        raise ValueError(
            f"the engine must be one of {', '.join(able)}{reason}: {nearest(name, able) or 'set one'}"
        )
    return name


class SamplingSection(_Section):
    """How training prompts are answered."""

    n: int = Field(8, ge=2, description="responses to a prompt")
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(256, ge=1, description="longest response")
    rows: int = Field(64, ge=1, description="responses decoded together")
    engine: Annotated[str, AfterValidator(_check_engine)] = "transformers"


class EvaluationSection(_Section):
    """How held-out prompts are answered: always at temperature 1, so that drift is the policy's own."""

    n: int = Field(4, ge=2, description="responses to a prompt")
    max_new_tokens: int | None = Field(None, ge=1, description="longest response; sampling's unless given")


class GuardsSection(_Section):
    """When to stop before the last round; equal rewards of all samples always stop."""

    min_entropy: float | None = Field(None, ge=0, allow_inf_nan=False, description="nats per sampled token")
    max_drift: float | None = Field(None, gt=0, allow_inf_nan=False, description="nats per response")


TRAIN_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "objective": {"method": "dpo", "beta": 0.1, "prior": "reward_gap"},
    "prior": {"calibration": "sigmoid"},
    "training": {"learning_rate": 5e-7, "warmup_steps": 100, "weight_decay": 0.01, "optim": "adamw_torch"},
}
"""Of a round's training run: MaPPO, arXiv 2507.21183v5, Table 4 and Appendix D.2.4.

The paper trains all weights; adapters have the learning rate of `preftune train`.
"""
STEP_DEFAULTS: Mapping[str, Any] = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 16}
"""The 128 pairs of a step in the same table, on one process; not set where `batches` counts tokens."""

SECTIONS = ("data", "objective", "prior", "training")
"""Sections of a training run that the rounds or their defaults add to."""
DECIDED: Mapping[str, str] = {
    "model": "set `model` at the top level",
    "reference": "set `reference` at the top level to initial or previous",
    "output": "set `output` at the top level",
    "cache": "set `cache` at the top level",
    "data.train": "a round trains on the pairs of its own samples",
    "data.train_split": "a round trains on the pairs of its own samples",
    "data.evaluation": "pairs of the starting model's held-out answers are evaluated on",
    "data.evaluation_split": "pairs of the starting model's held-out answers are evaluated on",
    "data.pair_rule": "set `pair_rule` at the top level",
    "data.chat_template_kwargs": "sampling does not pass them on",
    "training.seed": "set `seed` at the top level",
    "training.push_to_hub": "push a round's model by `preftune push FOLDER REPOSITORY`",
    "training.load_best_model_at_end": "a round ends in its last step",
}
"""Keys of a training run that the rounds decide, with what to do instead."""


def _without_decided(tree: dict[str, Any]) -> dict[str, Any]:
    for name in SECTIONS:
        if not isinstance(tree.get(name) or {}, dict):
            raise ValueError(f"{name}={tree[name]!r} must be a mapping of keys to values: correct it")
    for key, instead in DECIDED.items():
        *sections, name = key.split(".")
        section: Any = tree
        for part in sections:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict) and name in section:
            raise ValueError(f"{key} is set by the rounds: {instead}")
    return tree


class IterateConfig(_Section):
    """Everything the rounds depend on.

    Attributes:
        model: the starting policy, a folder or a name on the hub.
        prompts: any source with prompts; answers in it are not read.
        held_out: prompts that every round's policy is measured on.
        rounds: K; the prompts are split into as many equal parts.
        reward: what scores the samples, as `preftune score --prior` takes it, or a built-in measure.
        pair_rule: which of a prompt's responses become pairs.
        reference: what the policy is compared with in its loss, the starting model or the round's start.
        update_every: when the policy that answers learns from it: once a round, or after every batch of
            prompts (MaPPO, Algorithm 1), whose weights then stay in the process.
        start_from: where a round's training starts.
        replay: earlier rounds whose pairs are trained on again.
        train: keys of a `preftune train` configuration, on top of the defaults.
        launch: words before `-m -- preftune`, such as `[torchrun, --nproc_per_node, "8"]`, that start
            the processes which sample, score and train; none does all of it in this process.
        seed: decides the split, the samples and each round's training.
        output: folder of the rounds.
        cache: where reference log-probabilities are kept; None for a folder in the output.
    """

    model: LocalOrHub
    prompts: LocalOrHub
    prompts_split: str = "train"
    held_out: LocalOrHub
    held_out_split: str = "train"
    rounds: int = Field(3, ge=1, lt=1000)
    reward: str = Field(min_length=1)
    sampling: SamplingSection = SamplingSection()  # type: ignore[call-arg]
    pair_rule: str = "best_worst"
    update_every: Literal["round", "batch"] = "round"
    reference: Literal["initial", "previous"] = "initial"
    start_from: Literal["previous", "initial"] = "previous"
    replay: int = Field(0, ge=0)
    evaluation: EvaluationSection = EvaluationSection()  # type: ignore[call-arg]
    guards: GuardsSection = GuardsSection()  # type: ignore[call-arg]
    train: Annotated[dict[str, Any], AfterValidator(_without_decided)] = Field(default_factory=dict)
    launch: list[str] = Field(default_factory=list)
    # With a thousand seeds of rounds for each, the last still fits in numpy's 32 bits.
    seed: int = Field(0, ge=0, lt=4_294_967)
    output: LocalOrHub = "runs/iterate"
    cache: LocalOrHub | None = None

    def run_config(
        self, *, model: str, reference: str | None, data: str, held_out: str | None, seed: int, output: Path
    ) -> RunConfig:
        """The training run of one round.

        Args:
            model: what it starts from.
            reference: what it is compared with, where that is another model.
            data: its groups.
            held_out: held-out pairs, where there are some.
            seed: of its order of groups and its adapters.
            output: its run folder.

        Raises:
            InputError: a key or a value of `train` is wrong.
        """
        given = dict(self.train)
        sections = {
            name: dict(TRAIN_DEFAULTS.get(name, {})) | dict(given.pop(name, None) or {}) for name in SECTIONS
        }
        sections["objective"] = _with_prior(sections["objective"], dict(self.train.get("objective") or {}))
        if given.get("lora") and "learning_rate" not in dict(self.train.get("training") or {}):
            del sections["training"]["learning_rate"]
        if not given.get("batches"):
            sections["training"] = dict(STEP_DEFAULTS) | sections["training"]
        sections["training"]["seed"] = seed
        sections["data"] |= {"train": data, "evaluation": held_out, "pair_rule": self.pair_rule}
        cache = self.cache or str(Path(self.output) / "cache")
        tree = {"model": model, "reference": reference, **given, **sections}
        try:
            return check_config(tree | {"output": str(output), "cache": cache})
        except InputError as error:
            raise InputError(f"train: {error}") from None


def _with_prior(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Another method, or a mix, has its own options; the prior it gets wherever it is defined with one."""
    methods, default = methods_of(given), TRAIN_DEFAULTS["objective"]
    is_default = given.get("method") in (None, default["method"]) or not methods
    if is_default and given.get("mix") is None:
        return defaults
    takes_prior = any(default["prior"] in method.priors for method in methods)
    return ({"prior": default["prior"]} if takes_prior else {}) | given


def read_iterate_config(path: Path, overrides: list[str]) -> IterateConfig:
    """Read a YAML file and apply `key.path=value` overrides (values are YAML).

    Raises:
        InputError: naming the key, the value, the rule and, for a misspelt key, the one that was meant.
    """
    return check_iterate_config(read_tree(path, overrides))


def check_iterate_config(tree: dict[str, Any]) -> IterateConfig:
    """Validate a configuration given as a mapping.

    Raises:
        InputError: as `read_iterate_config`.
    """
    try:
        return IterateConfig.model_validate(tree)
    except ValidationError as error:
        raise InputError("\n".join(_explain(problem) for problem in error.errors())) from None


def _explain(problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        section = IterateConfig.model_fields.get(str(problem["loc"][0]))
        beside = section.annotation if section and len(problem["loc"]) > 1 else IterateConfig
        known = (
            list(beside.model_fields) if isinstance(beside, type) and issubclass(beside, BaseModel) else []
        )
        return unknown_key(path, known, under="train.")
    if problem["type"] == "missing":
        return f"the configuration has no '{path}': add it to the file, or pass {path}=VALUE"
    if path == "train":
        return f"train: {problem['msg'].removeprefix('Value error, ')}"
    return f"{path}={problem['input']!r}: {problem['msg']}"
