"""`preftune merge`."""

from pathlib import Path
from typing import Annotated

import typer


def merge(
    sources: Annotated[
        list[Path], typer.Argument(help="Folder of a run, or of an adapter; several.", show_default=False)
    ],
    output: Annotated[Path, typer.Option(help="Folder to write, new or empty.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of the weights: float32 (unless given), bfloat16 or float16; 16 bits lose small updates."
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(help="Of a file of weights: 5GB unless given.")
    ] = None,
    average: Annotated[bool, typer.Option("--average", help="Average the models of several runs.")] = False,
    weights: Annotated[
        str | None, typer.Option(help="Of each run, with --average: 0.7,0.3; equal ones unless given.")
    ] = None,
) -> None:
    """Merge a run's adapter into its base model, and check that the two are one.

    A base in 4 or 8 bits is dequantised: the adapter was trained over the rounded weights, and makes up for
    some of their rounding. What is saved is loaded again and compared with the adapted model on a probe;
    where they differ by more than rounding, nothing is written. A call that was killed leaves no half model.

    With --average, models of several runs become one: whole models weight by weight, adapters of one base by
    their updates.
    """
    import preftune

    if average:
        if dtype or max_shard_size:
            raise preftune.InputError("--average keeps data type and files: remove --dtype, --max-shard-size")
        folder = preftune.average(sources, _numbers(weights), output=output)
        typer.echo(f"Done: the average of {len(sources)} runs, {folder}")
        return
    if len(sources) > 1 or weights:
        raise preftune.InputError(
            "one run is merged at a time, without --weights; add --average to average several"
        )
    source, dtype, max_shard_size = sources[0], dtype or "float32", max_shard_size or "5GB"
    merged = preftune.merge(source, output, dtype=dtype, max_shard_size=max_shard_size)
    was = f", dequantised from {merged.quantization.type}" if merged.quantization else ""
    typer.echo(
        f"Done: {source} on {merged.base}{was}: {merged.parameters:,} weights in {merged.dtype}, {output}\n"
        f"Saved and adapted model: largest difference of an output {merged.difference:.1e} of the largest "
        f"(at most {merged.tolerance:g})"
    )


def _numbers(text: str | None) -> list[float] | None:
    from preftune.errors import InputError

    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--weights={text} must be numbers with commas, such as 0.7,0.3") from None
