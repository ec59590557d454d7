"""`preftune methods`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from preftune.objectives import MethodOverview, Option

WIDTH = 80
DATA = {"auxiliary": "auxiliary rewards", "prior_gap": "reward gaps", "prior_reward": "prior rewards"}
"""What methods learn from in words, where the name of the need is not one."""

OWN_SAMPLES = "the policy's own, new for every step (preftune iterate update_every=batch)"
LEGEND = """
ref: compared with a reference policy. prior: takes objective.prior. aux: takes
objective.auxiliary. `preftune methods NAME` shows one with its options."""


def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="Show this one, or your own module:Class, with its options.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show the methods: what each learns from, needs and takes, and what it is.

    docs/choosing.md says which to try.
    """
    import json

    from preftune.errors import InputError
    from preftune.objectives import overview, overview_of

    try:
        chosen = overview() if name is None else [overview_of(name)]
    except ValueError as error:
        raise InputError(str(error)) from None
    if as_json:
        typer.echo(json.dumps([_as_dict(each) for each in chosen], indent=2))
    elif name:
        typer.echo(details(chosen[0]))
    else:
        typer.echo("\n".join(_lines(chosen)))
        typer.echo(LEGEND)


def _lines(found: "Sequence[MethodOverview]") -> list[str]:
    """Under what they learn from, no longer than a terminal is wide."""
    import textwrap

    name = 3 + max(len(each.name) for each in found)
    start = f"{'method':{name}}ref  prior  aux  "
    lines = [f"{start}what it is"]
    for data, on_policy in dict.fromkeys((each.data, each.on_policy) for each in found):
        own = " of the policy's own samples (iterate update_every=batch)" if on_policy else ""
        lines += ["", f"from {_listed(data)}{own}:"]
        for each in found:
            if (each.data, each.on_policy) == (data, on_policy):
                flags = (each.needs_reference, bool(each.priors), each.takes_auxiliary)
                marks = "  ".join(
                    f"{'x' if flag else '-':{width}}" for flag, width in zip(flags, (3, 5, 3), strict=True)
                )
                first = f"  {each.name:{name - 2}}{marks}  "
                lines += textwrap.wrap(
                    first + each.summary, WIDTH, subsequent_indent=" " * len(start), break_on_hyphens=False
                )
    return lines


def _listed(data: "Sequence[str]") -> str:
    return " and ".join(DATA.get(need, need) for need in data)


def details(method: "MethodOverview") -> str:
    """Everything about a method, in lines no longer than a terminal is wide."""
    figures = {
        method.name: method.summary or "a method of your own, without a summary",
        "source": method.source or "not given",
        "learns from": _listed(method.data),
        "responses": OWN_SAMPLES if method.on_policy else "of anyone",
        "reference policy": "yes" if method.needs_reference else "no",
        "prior": ", ".join(method.priors) or "none",
        "auxiliary rewards can be added": "yes" if method.takes_auxiliary else "no",
        "learning rate of all weights unless given": f"{method.learning_rate:g}",
        "options": "" if method.options else "none",
    }
    lines = [line for key, value in figures.items() for line in wrapped(f"{key}: {value}")]
    return "\n".join([*lines, *options_lines(method.options)])


def options_lines(options: "Mapping[str, Option]") -> list[str]:
    """Each option with default and rule, indented."""
    from preftune.cli.tables import list_options

    return [part for line in list_options(options).splitlines() for part in wrapped(line, "  ")]


def wrapped(line: str, indent: str = "") -> list[str]:
    """The line in lines no longer than a terminal is wide."""
    import textwrap

    return textwrap.wrap(
        line, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
    )


def _as_dict(method: "MethodOverview") -> dict[str, Any]:
    """Everything as JSON types."""
    options = {
        key: {"default": option.default, "rule": option.rule.text, "what": option.summary}
        for key, option in method.options.items()
    }
    return {**vars(method), "options": options}
