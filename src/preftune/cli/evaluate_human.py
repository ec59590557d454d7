"""`preftune evaluate human`: a page to rate pairs on, and the figures of what was chosen."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from preftune.cli.evaluate import app

if TYPE_CHECKING:
    from preftune.evaluation.verdicts import Results

human = typer.Typer(
    help="People as judges: a blinded page, and the figures of their answers.", no_args_is_help=True
)
app.add_typer(human, name="human")


@human.command()
def page(
    model: Annotated[
        Path, typer.Argument(metavar="A.json", help="ModelOutputs of the model.", show_default=False)
    ],
    baseline: Annotated[
        Path, typer.Argument(metavar="B.json", help="ModelOutputs of the other.", show_default=False)
    ],
    output: Annotated[Path, typer.Option(help="HTML file to write; the key is written beside it.")],
    questions: Annotated[
        Path | None, typer.Option(help="The prompts, if the answers name them by an id.")
    ] = None,
    n: Annotated[int, typer.Option(help="Most prompts to show.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the draw, the shuffling and the sides.")] = 0,
) -> None:
    """Write a page on which people rate pairs of answers, without knowing whose they are.

    The page is one file that loads and sends nothing. Send it to the raters, and keep the `.key.json`.

    - `preftune evaluate human page tuned.json base.json --output page.html`
    """
    from rich.console import Console

    from preftune.evaluation.human.page import key_path, make_page

    key = make_page(model, baseline, output, questions=questions, n=n, seed=seed)
    console = Console()
    console.print(f"{len(key.items)} pairs: {output}", markup=False, soft_wrap=True)
    if key.identical:
        console.print(f"{len(key.identical)} more have the same answer twice, and are ties.")
    console.print(f"Whose answers are whose: {key_path(output)}. Raters must not see it.", markup=False)


@human.command()
def score(
    key: Annotated[Path, typer.Argument(help="The page's .key.json.", show_default=False)],
    answers: Annotated[
        list[Path], typer.Argument(metavar="ANSWERS...", help="One file for each rater.", show_default=False)
    ],
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
) -> None:
    """Win rate with its interval over prompts, agreement, ties, and each rater's lean to a side.

    - `preftune evaluate human score page.key.json answers-*.json --output results.json`
    """
    import logging

    from rich.console import Console

    from preftune.evaluation.human.figures import score_page
    from preftune.evaluation.tables import as_table
    from preftune.storage.files import write_json

    results = score_page(key, answers, seed)
    for warning in results["warnings"]:
        logging.getLogger(__name__).warning("%s", warning)
    console = Console()
    console.print(as_table([results]))
    console.print(_agreement(results), markup=False, soft_wrap=True)
    for name, habits in results["raters"].items():
        console.print(_habits(name, habits), markup=False, soft_wrap=True)
    if output is not None:
        write_json(output, [results])


def _agreement(results: "Results") -> str:
    found, ties = results["agreement"], f"ties {results['tie_rate']:.0%} of {results['ratings']} ratings"
    if found is None:
        return f"One rater, so no agreement; {ties}."
    if not found["n"]:
        return f"No pair was rated by all raters, so no agreement; {ties}."
    name = "Cohen's" if "cohen_kappa" in found else "Fleiss'"
    kappa = found.get("cohen_kappa", found.get("fleiss_kappa"))
    said = "none, since all ratings are the same" if kappa is None else f"{kappa:.3f}"
    return f"Raters agree on {found['share']:.0%} over {found['n']} pairs; {name} kappa {said}; {ties}."


def _habits(name: str, habits: "Results") -> str:
    left = habits["left_share"]
    side = "no side" if left is None else f"left {left:.0%} of decided (p {habits['left_p']:.3f})"
    rates = f"win rate {habits['win_rate']:.1f}, ties {habits['tie_rate']:.0%}"
    return f"{name}: {habits['n']} pairs, {rates}, {side}"
