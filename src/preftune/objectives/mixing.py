"""Several methods as one objective: the weighted sum of their losses."""

import re
from collections.abc import Mapping
from typing import Any

from preftune.objectives.auxiliary import Standardization
from preftune.objectives.methods import Method, OfEveryMethod, OfPairs
from preftune.objectives.naming import MIX_EXAMPLE, method_named
from preftune.objectives.options import (
    NOT_NEGATIVE,
    Option,
    Value,
    is_finite_number,
    options_of,
    resolve_options,
)
from preftune.objectives.parts import MixedPart, Part
from preftune.objectives.priors import PRIORS, Prior

MixSettings = dict[str, dict[str, Value]]
"""Methods of a mix by name: each with its method, its weight and its options."""

_WEIGHT = Option(1.0, NOT_NEGATIVE, "factor of the method's loss; 0 leaves it out")
_BESIDE_MIX = ("prior", *options_of(OfPairs, OfEveryMethod))


def resolve_mix(mix: object) -> MixSettings:
    """Every method of a mix with its weight and options, defaults filled in.

    Args:
        mix: a weight, or a mapping of options with `weight` and `method`, by a name; the method is the name
            unless given.

    Raises:
        ValueError: it is no such mapping, or a method, an option or a value of it is not allowed.
    """
    if not isinstance(mix, Mapping) or not mix:
        raise ValueError(f"mix = {mix!r} must be a mapping of methods to weights: write {MIX_EXAMPLE}")
    found = {label: _resolve_entry(label, entry) for label, entry in mix.items()}
    methods = methods_of({"mix": found})
    if not methods:
        raise ValueError(f"mix = {mix!r} has no method with a weight > 0: set one")
    learners = [method.name for method in methods if method.learns_auxiliary]
    if len(learners) > 1:
        raise ValueError(
            f"mix has {' and '.join(learners)}, which learn from the auxiliary rewards, and they are learned "
            "from once: remove one"
        )
    return found


def _resolve_entry(label: object, entry: object) -> dict[str, Value]:
    key = f"mix.{label}"
    if not isinstance(label, str) or not re.fullmatch(r"\w[\w-]*", label):
        raise ValueError(f"{key}: a name in mix must be a word, such as dpo: rename it")
    settings: dict[Any, object] = {"weight": entry} if is_finite_number(entry) else {}
    if isinstance(entry, Mapping):
        settings = dict(entry)
    elif not settings and entry is not None:
        raise ValueError(f"{key} = {entry!r} must be a weight, or a mapping of options: write {MIX_EXAMPLE}")
    place, name = key if "method" not in settings else f"{key}.method", settings.pop("method", label)
    method, name = method_named(name, place), str(name)
    if not method.trains_policy or method.reads_control:
        why = "reads each response after a text of its own" if method.trains_policy else "trains no policy"
        raise ValueError(f"{key}: method {name!r} {why}, and cannot be mixed with others: set it alone")
    for other in (*_BESIDE_MIX, "auxiliary"):
        if other in settings and other not in options_of(method):
            raise ValueError(f"{key}.{other} is for all methods of the mix: set {other} beside mix")
    options = {"weight": _WEIGHT, **options_of(method)}
    found: dict[str, Any] = resolve_options(settings, options, f"{name} in a mix", f"{key}.")
    try:
        method(**{option: value for option, value in found.items() if option != "weight"})
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    return {"method": name, **found}


def mixed_parts(
    mix: MixSettings, name: str, prior: Prior, standardization: Standardization
) -> tuple[Part, ...]:
    """The parts of every method with a weight; the prior goes to those that are defined with it.

    Args:
        mix: as resolved.
        name: of the prior.
        prior: with its options.
        standardization: of the auxiliary reward.
    """
    parts: list[Part] = []
    for label, entry in mix.items():
        options: dict[str, Any] = {**entry}
        method, weight = method_named(options.pop("method")), options.pop("weight")
        if weight:
            own = prior if name in method.priors else PRIORS["none"]
            plain = method(**options).parts(own, standardization)
            parts += [MixedPart(part, weight, label, is_first=not parts) for part in plain]
    return tuple(parts)


def plain_methods(settings: Mapping[str, Any]) -> list[str]:
    """Names in a resolved mix of the methods with a weight that do not take its prior; none without a mix."""
    return [
        label
        for label, entry in settings.get("mix", {}).items()
        if entry["weight"] and settings["prior"] not in method_named(entry["method"]).priors
    ]


def methods_of(settings: Mapping[str, Any]) -> list[type[Method]]:
    """The known methods that an objective's words name, resolved or not; in a mix, those with a weight."""
    mix = settings.get("mix")
    if not isinstance(mix, Mapping):
        names = [settings.get("method") or "dpo"]
    else:
        entries = {
            label: entry if isinstance(entry, Mapping) else {"weight": entry} for label, entry in mix.items()
        }
        names = [entry.get("method", label) for label, entry in entries.items() if entry.get("weight") != 0]
    return [method for name in names if (method := _known(name))]


def _known(name: object) -> type[Method] | None:
    try:
        return method_named(name)
    except ValueError:
        # Who resolves the words says what is wrong.
        return None
