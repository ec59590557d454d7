"""Pages of one look: a template of this package, its style inside, and everything else escaped."""

from importlib.resources import files
from typing import Any

from preftune.measuring.formatting import format_number


def render_page(template: str, **values: Any) -> str:
    """A page that needs no network and no other file.

    Args:
        template: name of a file of this package.
        **values: what it shows; text is escaped.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    folder = files("preftune.report")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = format_number
    style = Markup(folder.joinpath("style.css").read_text("utf-8").rstrip("\n"))
    page = environment.from_string(folder.joinpath(template).read_text("utf-8"))
    return page.render(style=style, **values)
