"""An objective, and `build`: from the words of a configuration to one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from preftune.objectives.auxiliary import AdvantageLikelihood, PredictedFactors, Standardization
from preftune.objectives.bounds import DualDescent
from preftune.objectives.kto import LabelBalance, ProspectUtility
from preftune.objectives.methods import METHODS, Auxiliary, Method, OfEveryMethod, OfPairs
from preftune.objectives.mixing import MixSettings, methods_of, mixed_parts, resolve_mix
from preftune.objectives.naming import SETTINGS_ELSEWHERE, method_named, one_named
from preftune.objectives.needs import check_part, example
from preftune.objectives.options import Value, options_of, resolve_options
from preftune.objectives.parts import MixedPart, Part, displacement
from preftune.objectives.priors import PRIORS
from preftune.objectives.responses import NEEDS, UNITS_OF_PAIRS, Losses, Need, ScoredResponses, Term
from preftune.objectives.scores import log_likelihood

Settings = dict[str, Value | dict[str, Value] | MixSettings]
"""An objective as words: options by name, those of `auxiliary` and of each method in `mix` in mappings."""

_BESIDE_OPTIONS = ("method", "mix", "prior", "auxiliary")


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
            token_logps=_wide(responses.token_logps),
            reference_token_logps=_wide(responses.reference_token_logps),
            collision_logps=_wide(responses.collision_logps),
            scores=_wide(responses.scores),
        )
        metrics = {}
        if "score" not in self.needs:
            logps = log_likelihood(responses)
            metrics = {
                "logps/chosen": logps[responses.chosen],
                "logps/rejected": logps[responses.rejected],
            }
        if "reference" in self.needs:
            metrics |= displacement(responses)
        terms: dict[str, Term] = {}
        weighted_means: dict[str, Tensor] = {}
        for part in self.parts:
            terms[part.name], explained = _weighted(part, *part(responses), responses.weights)
            metrics.update(explained)
            metrics.setdefault(f"loss/{part.name}", terms[part.name].values)
            if isinstance(part, AdvantageLikelihood):
                weighted_means |= part.weighted_means(responses)
        return Losses(terms, {name: _metric(values) for name, values in metrics.items()}, weighted_means)


def metric_names(objective: Objective, *, has_pairs: bool = True) -> list[str]:
    """Names of what is logged of an objective: `loss`, its terms as `loss/NAME`, and its metrics.

    Args:
        objective: the objective.
        has_pairs: whether there are pairs; without them, metrics of pairs are left out.
    """
    bounds = max(len(getattr(part, "bounds", ())) for part in objective.parts) or 1
    losses = objective(example(objective.needs, bounds))
    names = ["loss", *losses.metrics, *losses.weighted_means]
    if not has_pairs:
        alone = objective(example(objective.needs, bounds, pairs=0)).metrics
        names = [
            name for name in names if name not in alone or len(alone[name]) or not len(losses.metrics[name])
        ]
    return names


def label_balance(objective: Objective, desirable: int, undesirable: int) -> LabelBalance | None:
    """How a data set's labels weigh in an objective; None if it does not learn from labels.

    Raises:
        ValueError: there are responses of one kind only.
    """
    plain = (part.part if isinstance(part, MixedPart) else part for part in objective.parts)
    parts = (part for part in plain if isinstance(part, ProspectUtility))
    return next((part.balance(desirable, undesirable) for part in parts), None)


def predicted_factors(objective: Objective, rewards: Float[Tensor, "responses"]) -> PredictedFactors | None:
    """The factors of auxiliary rewards before the first step; None if the objective has none.

    Args:
        objective: with the standardization of the training set.
        rewards: R of the training responses, one at least.
    """
    parts = (part for part in objective.parts if isinstance(part, AdvantageLikelihood))
    return next((part.predicted(rewards) for part in parts), None)


def resolve(settings: Mapping[str, object]) -> Settings:
    """The settings with every default filled in, checked; resolving them again changes nothing.

    Args:
        settings: `method` (default "dpo"; your own as `module:Class`) with its options, or `mix`, a mapping
            of methods to weights; `prior` (default "none") with its options, options of every method (of
            pairs), and `auxiliary`, a mapping of the options of `Auxiliary`, where there are such rewards.

    Raises:
        ValueError: a key or a value is not allowed; the message names it, the rule and the fix.
    """
    own = {key: value for key, value in settings.items() if key not in _BESIDE_OPTIONS}
    resolved: Settings
    if settings.get("mix") is None:
        name = str(settings.get("method", "dpo"))
        method = method_named(settings.get("method", "dpo"))
        resolved, owner, options = {"method": name}, name, options_of(method)
    else:
        if "method" in settings:
            raise ValueError(
                f"method = {settings['method']!r} and mix are two ways to say what is trained: remove one"
            )
        mix = resolve_mix(settings["mix"])
        resolved, owner, options = {"mix": mix}, "a mix", {}
    methods = methods_of(resolved)
    resolved["prior"] = prior = _resolve_prior(settings.get("prior", "none"), methods)
    for key, value in own.items():
        if key in SETTINGS_ELSEWHERE and key not in options:
            raise ValueError(f"{key} = {value!r}: what others call {key} is {SETTINGS_ELSEWHERE[key]} here")
        owners = [name for name, other in PRIORS.items() if key in options_of(*other.options)]
        if owners and prior not in owners and key not in options:
            raise ValueError(
                f"{key} = {value!r} is read with prior = {' or '.join(map(repr, owners))}, and prior is "
                f"{prior!r}: set that prior, or remove {key}"
            )
    of_pairs = options_of(OfPairs) if _takes_likelihood(resolved) else {}
    options = {**options, **of_pairs, **options_of(OfEveryMethod, *PRIORS[prior].options)}
    resolved |= resolve_options(own, options, f"{owner} (and prior, auxiliary)", others=_BESIDE_OPTIONS)
    OfPairs(**_chosen(resolved, of_pairs))
    if "mix" not in resolved:
        # What options say of each other is checked where they meet.
        methods[0](**_chosen(resolved, options_of(methods[0])))
    if settings.get("auxiliary") is not None:
        resolved["auxiliary"] = _resolve_auxiliary(settings["auxiliary"], methods)
    return resolved


def _resolve_prior(prior: object, methods: list[type[Method]]) -> str:
    """The prior's name, if it is defined for one of the methods.

    Raises:
        ValueError: there is no such prior, or it is defined for none of them.
    """
    name = one_named("prior", prior, PRIORS)
    if any(name in method.priors for method in methods):
        return name
    takers = [other.name for other in METHODS.values() if name in other.priors]
    raise ValueError(
        f"prior = {name!r} is not defined for method {' or '.join(repr(method.name) for method in methods)}: "
        f"remove prior, or choose one of {', '.join(takers)}"
    )


def _resolve_auxiliary(auxiliary: object, methods: list[type[Method]]) -> dict[str, Value]:
    """The options of `auxiliary`, if it can be added to all of the methods.

    Raises:
        ValueError: it is no mapping, or cannot be added.
    """
    if not isinstance(auxiliary, Mapping):
        raise ValueError(
            f"auxiliary = {auxiliary!r} must be a mapping: write auxiliary.weight = {auxiliary!r}, or remove "
            "auxiliary"
        )
    found = resolve_options(auxiliary, options_of(Auxiliary), "auxiliary", "auxiliary.")
    refusing = next((method for method in methods if not method.takes_auxiliary()), None)
    if found["weight"] and refusing:
        others = [other.name for other in METHODS.values() if other.takes_auxiliary()]
        learns = (
            "learns from the auxiliary rewards itself" if refusing.learns_auxiliary else "trains no policy"
        )
        raise ValueError(
            f"auxiliary cannot be added to method {refusing.name!r}, which {learns}: remove auxiliary, or "
            f"use one of {', '.join(others)}"
        )
    return found


def _takes_likelihood(resolved: Settings) -> bool:
    """Whether the likelihood of the chosen response can be added; in a mix, terms have names of their own."""
    if "mix" in resolved:
        return any(method.learns_from("pairs") for method in methods_of(resolved))
    return method_named(resolved["method"]).takes_likelihood()


def _chosen(settings: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: settings[key] for key in keys if key in settings}


def build(settings: Mapping[str, object], standardization: Standardization | None = None) -> Objective:
    """An objective from settings such as {"method": "dpo", "beta": 0.1, "prior": "reward_gap"}.

    Args:
        settings: see `resolve`.
        standardization: of the auxiliary reward, once the training set is known.

    Raises:
        ValueError: a key or a value is not allowed; the message names it, the rule and the fix.
    """
    resolved = cast(dict[str, Any], resolve(settings))
    standardization = standardization or Standardization()
    prior, auxiliary = PRIORS[resolved["prior"]], resolved.get("auxiliary", {"weight": 0.0})
    prior = prior.with_options(_chosen(resolved, options_of(*prior.options)))
    of_pairs = _chosen(resolved, options_of(OfPairs) if _takes_likelihood(resolved) else ())
    if "mix" in resolved:
        parts = mixed_parts(resolved["mix"], resolved["prior"], prior, standardization)
    else:
        method = method_named(resolved["method"])
        parts = method(**_chosen(resolved, options_of(method))).parts(prior, standardization)
    return Objective(
        (
            *parts,
            *OfPairs(**of_pairs).parts(),
            *Auxiliary(**auxiliary).parts(standardization),
            *OfEveryMethod(**_chosen(resolved, options_of(OfEveryMethod))).parts(),
        )
    )


def methods_of_labels() -> list[str]:
    """Names of the methods that learn from single responses with a label."""
    # Asked for with every split and online batch: parts alone, without the checks of a whole objective.
    return [name for name, method in METHODS.items() if method.learns_from("labels")]


def _weighted(
    part: Part, term: Term, metrics: dict[str, Tensor], weights: Tensor | None
) -> tuple[Term, dict[str, Tensor]]:
    """A term of pairs and its loss times the pairs' weights; not divided by their sum."""
    if weights is None or term.unit not in UNITS_OF_PAIRS:
        return term, metrics
    weights, loss = weights.to(term.values.dtype), f"loss/{part.name}"
    weighted = {loss: metrics[loss] * weights} if loss in metrics else {}
    return replace(term, values=term.values * weights), {**metrics, **weighted}


def _wide(values: Tensor | None) -> Tensor | None:
    """Half precision leaves too few bits of a sum over hundreds of tokens to subtract it from another."""
    return None if values is None else values.to(torch.promote_types(values.dtype, torch.float32))


def _metric(values: Tensor) -> Tensor:
    """A metric keeps no graph, whatever precision the loss has."""
    return values.detach().to(torch.float32)
