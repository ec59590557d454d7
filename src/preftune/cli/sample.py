"""`preftune sample`."""

import os
from pathlib import Path
from typing import Annotated

import typer


def sample(
    model: Annotated[
        str,
        typer.Argument(help="Folder or hub name of the model; its name at the server.", show_default=False),
    ],
    prompts: Annotated[
        Path, typer.Argument(help="JSONL file (or .jsonl.gz) with a `prompt` column.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option(help="JSONL file to write: each prompt's row with `responses` added.")
    ],
    n: Annotated[int, typer.Option(help="Responses per prompt.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Longest response, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="Divides the logits; 0 is greedy.")] = 1.0,
    top_p: Annotated[
        float, typer.Option(help="Draw among the likeliest tokens that together have this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same responses.")] = 0,
    rows: Annotated[
        int, typer.Option(help="Responses decoded together; more is faster and takes more memory.")
    ] = 64,
    engine: Annotated[str, typer.Option(help="transformers, vllm or server.")] = "transformers",
    price: Annotated[
        str | None, typer.Option(metavar="IN,OUT", help="The server's, for a million tokens.")
    ] = None,
    max_cost: Annotated[float | None, typer.Option(help="Stops before this process spends more.")] = None,
) -> None:
    """Sample n responses to every prompt, each prompt read once for all of them.

    `--engine server` asks an OpenAI-compatible server (OPENAI_BASE_URL, OPENAI_API_KEY), vLLM's or any other;
    `--engine vllm` runs vLLM in this process, if it is installed.

    A call that was killed continues when it is started again. `torchrun -m -- preftune sample ...` shares the
    work among processes.
    """
    import preftune

    is_main = os.environ.get("RANK", "0") == "0"
    count = preftune.sample_file(
        model,
        prompts,
        output,
        n=n,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        rows=rows,
        engine=engine,
        price=price,
        max_cost=max_cost,
        progress=is_main,
    )
    if is_main:
        typer.echo(f"Done: {count} prompts in {output}")
