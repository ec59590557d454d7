"""Tables on a terminal: figures of benchmarks, and what there is to choose from."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preftune.api.evaluate import Scores
    from preftune.objectives import Option


def list_options(options: "Mapping[str, Option]") -> str:
    """A line for each option: what it is, its default, its rule."""
    return "\n".join(
        f"{key}: {option.summary}{'' if option.default is None else f' ({option.default})'}; "
        f"{option.rule.text}"
        for key, option in options.items()
    )


def print_scores(scores: "Scores") -> None:
    """Print the table, and log what must be known before it is used."""
    import logging

    from rich.console import Console

    from preftune.evaluation.tables import as_table

    logger = logging.getLogger(__name__)
    for warning in scores.warnings:
        logger.warning("%s", warning)
    Console().print(as_table(scores.results))
