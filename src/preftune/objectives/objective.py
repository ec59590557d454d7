"""An objective, and `build`: from the words of a configuration to one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from preftune.objectives.auxiliary import AdvantageLikelihood, Standardization
from preftune.objectives.bounds import DualDescent
from preftune.objectives.kto import LabelBalance, ProspectUtility
from preftune.objectives.methods import METHODS, Auxiliary, OfEveryMethod
from preftune.objectives.needs import check_part
from preftune.objectives.options import Value, nearest, options_of, resolve_options
from preftune.objectives.parts import Part
from preftune.objectives.priors import PRIORS
from preftune.objectives.responses import NEEDS, Losses, Need, ScoredResponses, Term
from preftune.objectives.scores import log_likelihood

Settings = dict[str, Value | dict[str, Value]]
"""An objective as words: options by name, and those of `auxiliary` by name in a mapping of their own."""

_BESIDE_OPTIONS = ("method", "prior", "auxiliary")

_NAMES_ELSEWHERE = {
    "sigmoid": "dpo",
    "slic": "hinge",
    "mappo": "reward_gap",
    "ppo": "offline_ppo",
    "a_lol": "alol",
    "dro": "dro_v",
    "reward": "bradley_terry",
    "reward_model": "bradley_terry",
    "conditional_sft": "csft",
}
"""What other libraries and papers call things, by our names."""


@dataclass(frozen=True)
class Objective:
    """A sum of parts. Calling it gives per-pair losses; the caller reduces them (`Losses.total`).

    Attributes:
        parts: the summands, each with its own name.

    Raises:
        ValueError: there are no parts, two of the same name, or one that needs more than it declares.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"parts must have distinct names, and at least one is needed: got {names}")
        for part in self.parts:
            check_part(part, part.name, part.needs)

    @property
    def needs(self) -> frozenset[Need]:
        """What the responses must carry for every part to work."""
        return frozenset[Need]().union(*(part.needs for part in self.parts))

    @property
    def dual(self) -> DualDescent | None:
        """How the multipliers of bounds move from step to step; None where nothing is bounded."""
        parts = (part.dual for part in self.parts if isinstance(part, AdvantageLikelihood))
        return next(parts, None)

    def __call__(self, responses: ScoredResponses) -> Losses:
        """Terms with their gradient, and detached float32 metrics, one value per pair.

        Raises:
            ValueError: the responses lack something that `needs` names.
        """
        for need in sorted(self.needs):
            if getattr(responses, field := NEEDS[need]) is None:
                raise ValueError(
                    f"{field} is None, but this objective needs {need!r}: give ScoredResponses "
                    f"its {field}, or choose settings that do not need it"
                )
        # Once and for all parts: autograd then adds up their gradients in float32 as well.
        responses = replace(
            responses,
            logps=_wide(responses.logps),
            reference_logps=_wide(responses.reference_logps),
            scores=_wide(responses.scores),
        )
        metrics = {}
        if "score" not in self.needs:
            logps = log_likelihood(responses)
            metrics = {
                "logps/chosen": logps[responses.chosen],
                "logps/rejected": logps[responses.rejected],
            }
        terms: dict[str, Term] = {}
        weighted_means: dict[str, Tensor] = {}
        for part in self.parts:
            terms[part.name], explained = part(responses)
            metrics.update(explained)
            metrics.setdefault(f"loss/{part.name}", terms[part.name].values)
            if isinstance(part, AdvantageLikelihood):
                weighted_means |= part.weighted_means(responses)
        return Losses(terms, {name: _metric(values) for name, values in metrics.items()}, weighted_means)


def label_balance(objective: Objective, desirable: int, undesirable: int) -> LabelBalance | None:
    """How a data set's labels weigh in an objective; None if it does not learn from labels.

    Raises:
        ValueError: there are responses of one kind only.
    """
    parts = (part for part in objective.parts if isinstance(part, ProspectUtility))
    return next((part.balance(desirable, undesirable) for part in parts), None)


def resolve(settings: Mapping[str, object]) -> Settings:
    """The settings with every default filled in, checked; resolving them again changes nothing.

    Args:
        settings: `method` (default "dpo"), `prior` (default "none"), the method's options, those of every
            method, and `auxiliary`, a mapping of the options of `Auxiliary`, where there are such rewards.

    Raises:
        ValueError: a key or a value is not allowed; the message names it, the rule and the fix.
    """
    name = _one_of("method", settings.get("method", "dpo"), METHODS)
    prior = _one_of("prior", settings.get("prior", "none"), PRIORS)
    method = METHODS[name]
    if prior not in method.priors:
        takers = [other.name for other in METHODS.values() if prior in other.priors]
        raise ValueError(
            f"prior = {prior!r} is not defined for method {name!r}: remove prior, or choose one of "
            f"{', '.join(takers)}"
        )
    own = {key: value for key, value in settings.items() if key not in _BESIDE_OPTIONS}
    options = options_of(method, OfEveryMethod)
    resolved: Settings = {"method": name, "prior": prior}
    resolved |= resolve_options(own, options, f"{name} (and prior, auxiliary)", others=_BESIDE_OPTIONS)
    auxiliary = settings.get("auxiliary")
    if isinstance(auxiliary, Mapping):
        found = resolve_options(auxiliary, options_of(Auxiliary), "auxiliary", "auxiliary.")
        if found["weight"] and not method.takes_auxiliary():
            others = [other.name for other in METHODS.values() if other.takes_auxiliary()]
            learns = (
                "learns from the auxiliary rewards itself" if method.learns_auxiliary else "trains no policy"
            )
            raise ValueError(
                f"auxiliary cannot be added to method {name!r}, which {learns}: remove auxiliary, or use "
                f"one of {', '.join(others)}"
            )
        resolved["auxiliary"] = found
    elif auxiliary is not None:
        raise ValueError(
            f"auxiliary = {auxiliary!r} must be a mapping: write auxiliary.weight = {auxiliary!r}, or remove "
            "auxiliary"
        )
    return resolved


def build(settings: Mapping[str, object], standardization: Standardization | None = None) -> Objective:
    """An objective from settings such as {"method": "dpo", "beta": 0.1, "prior": "reward_gap"}.

    Args:
        settings: see `resolve`.
        standardization: of the auxiliary reward, once the training set is known.

    Raises:
        ValueError: a key or a value is not allowed; the message names it, the rule and the fix.
    """
    resolved = cast(dict[str, Any], resolve(settings))
    method, prior = METHODS[resolved.pop("method")], PRIORS[resolved.pop("prior")]
    auxiliary = resolved.pop("auxiliary", {"weight": 0.0})
    of_every = {key: resolved.pop(key) for key in options_of(OfEveryMethod) if key in resolved}
    standardization = standardization or Standardization()
    return Objective(
        (
            *method(**resolved).parts(prior, standardization),
            *Auxiliary(**auxiliary).parts(standardization),
            *OfEveryMethod(**of_every).parts(),
        )
    )


def methods_without_pairs() -> list[str]:
    """Names of the methods that learn from single responses."""
    return [name for name in METHODS if "pairs" not in build({"method": name}).needs]


def _one_of(key: str, value: object, table: Mapping[str, object]) -> str:
    if isinstance(value, str) and value in table:
        return value
    hint = nearest(value, table, _NAMES_ELSEWHERE) or "choose one of them"
    raise ValueError(f"{key} = {value!r} is unknown; there are {', '.join(table)}: {hint}")


def _wide(values: Tensor | None) -> Tensor | None:
    """Half precision leaves too few bits of a sum over hundreds of tokens to subtract it from another."""
    return None if values is None else values.to(torch.promote_types(values.dtype, torch.float32))


def _metric(values: Tensor) -> Tensor:
    """A metric keeps no graph, whatever precision the loss has."""
    return values.detach().to(torch.float32)
