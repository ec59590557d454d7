"""What a score, a prior or a part needs of the responses: said where it is written, and checked early."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import partial
from typing import Any, TypeVar

import torch

from preftune.objectives.responses import FIELDS, NEEDS, Need, ScoredResponses

F = TypeVar("F", bound=Callable[..., Any])


def needing(*needs: Need) -> Callable[[F], F]:
    """Say of a function what it needs of the responses; a `functools.partial` of it needs the same.

    Args:
        needs: names in NEEDS, beyond log-probabilities and lengths; none for a function of those alone.

    Raises:
        ValueError: a name is unknown.
    """
    checked = _known(needs, "@needing")

    def declare(function: F) -> F:
        function.needs = checked  # type: ignore[attr-defined]  # of any function
        return function

    return declare


def needs_of(function: Callable[..., object]) -> frozenset[Need]:
    """What a function says that it needs: its attribute `needs`, or that of what it is a partial of.

    Raises:
        ValueError: it does not say, or names something unknown.
    """
    if isinstance(function, partial):
        return needs_of(function.func)
    needs = getattr(function, "needs", None)
    name = getattr(function, "__name__", repr(function))
    if needs is None:
        raise ValueError(
            f"{name} does not say what it needs: write @needing(...) above it with names of "
            f"{', '.join(NEEDS)}, or @needing() where log-probabilities and lengths are enough"
        )
    return _known(needs, name)


def check_part(part: Callable[[ScoredResponses], object], name: str, needs: frozenset[Need]) -> None:
    """Try a part on two responses that have what it says it needs, and nothing else.

    A need that it does not declare is then found when the objective is put together, and not once weights
    are loaded.

    Raises:
        ValueError: it names an unknown need, or cannot do with what it names.
    """
    _known(needs, f"part {name!r}")
    try:
        part(example(needs, len(getattr(part, "bounds", ())) or 1))
    except Exception as error:
        declared = ", ".join(sorted(needs)) or "nothing"
        raise ValueError(
            f"part {name!r} fails on responses with what it says it needs ({declared}): "
            f"{type(error).__name__}: {error}. Let it, its score or its prior declare every need"
        ) from error


def example(needs: frozenset[Need], bounds: int, pairs: int = 1) -> ScoredResponses:
    """Two responses of one token, a pair unless there are to be none, with numbers as registered."""
    sizes = {"response": (2,), "pair": (pairs,), "token": (2,), "batch": (), "bound": (bounds,)}
    sizes["response and bound"] = (2, bounds)
    given = {NEEDS[need] for need in needs} | (set() if "score" in needs else {"logps"})
    numbers: dict[str, Any] = {"logps": None}
    for name in given - {"chosen"}:
        number = FIELDS[name]
        values = torch.full(sizes[number.per], 0.5)
        numbers[name] = values > 0 if number.dtype == "bool" else values.to(getattr(torch, number.dtype))
    indices = {"chosen": torch.tensor([0])[:pairs], "rejected": torch.tensor([1])[:pairs]}
    return ScoredResponses(lengths=torch.tensor([1, 1]), **indices, **numbers)


def _known(needs: Iterable[Need], owner: str) -> frozenset[Need]:
    for need in needs:
        if need not in NEEDS:
            near = get_close_matches(str(need), NEEDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "remove it"
            raise ValueError(
                f"{owner} names the need {need!r}, which is unknown; there are {', '.join(NEEDS)}: {hint}"
            )
    return frozenset(needs)
