"""`preftune sample`."""

from pathlib import Path
from typing import Annotated

import typer


def sample(
    model: Annotated[str, typer.Argument(help="Folder or hub name of the model.", show_default=False)],
    prompts: Annotated[
        Path, typer.Argument(help="JSONL file (or .jsonl.gz) with a `prompt` column.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option(help="JSONL file to write: each prompt's row with `responses` added.")
    ],
    n: Annotated[int, typer.Option(help="Responses per prompt.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Longest response, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="Divides the logits; 0 is greedy.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same responses.")] = 0,
    rows: Annotated[
        int, typer.Option(help="Responses decoded together; more is faster and takes memory.")
    ] = 64,
) -> None:
    """Sample n responses to every prompt, each prompt read once for all of them."""
    from preftune.online.sample_file import sample_file

    written = sample_file(
        model,
        prompts,
        output,
        n=n,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        rows=rows,
        progress=True,
    )
    typer.echo(f"Done: {written} prompts in {output}")
