"""Figures of benchmarks on a terminal."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preftune.api.evaluate import Scores


def print_scores(scores: "Scores") -> None:
    """Print the table, and log what must be known before it is used."""
    import logging

    from rich.console import Console

    from preftune.evaluation.tables import as_table

    logger = logging.getLogger(__name__)
    for warning in scores.warnings:
        logger.warning("%s", warning)
    Console().print(as_table(scores.results))
