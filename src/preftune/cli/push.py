"""`preftune push`."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    folder: Annotated[
        Path, typer.Argument(help="Run folder, or folder of a saved model.", show_default=False)
    ],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the hub.", show_default=False)],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Of a new repository; your settings decide unless given."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="The main branch unless given.", show_default=False)
    ] = None,
    message: Annotated[str, typer.Option(metavar="TEXT", help="Of the commit.")] = "Upload model",
) -> None:
    """Upload a tuned model to the hub, with its card. The token is HF_TOKEN or that of `hf auth login`.

    - `preftune push runs/dpo me/tuned --private`: the model of a run
    - `preftune push merged me/tuned --revision v2`: a saved model, to a branch
    """
    import preftune

    typer.echo(preftune.push(folder, repository, private=private, revision=revision, commit_message=message))
