"""`preftune merge`."""

from pathlib import Path
from typing import Annotated

import typer


def merge(
    source: Annotated[Path, typer.Argument(help="Folder of a run, or of an adapter.", show_default=False)],
    output: Annotated[Path, typer.Option(help="Folder to write, new or empty.")],
    dtype: Annotated[
        str, typer.Option(help="Of the weights: float32, bfloat16 or float16; 16 bits lose small updates.")
    ] = "float32",
    max_shard_size: Annotated[str, typer.Option(help="Of a file of weights.")] = "5GB",
) -> None:
    """Merge a run's adapter into its base model, and check that the two are one.

    A base in 4 or 8 bits is dequantised: the adapter was trained over the rounded weights, and makes up for
    some of their rounding. What is saved is loaded again and compared with the adapted model on a probe;
    where they differ by more than rounding, nothing is written. A call that was killed leaves no half model.
    """
    import preftune

    merged = preftune.merge(source, output, dtype=dtype, max_shard_size=max_shard_size)
    was = f", dequantised from {merged.quantization.type}" if merged.quantization else ""
    typer.echo(
        f"Done: {source} on {merged.base}{was}: {merged.parameters:,} weights in {merged.dtype}, {output}\n"
        f"Saved and adapted model: largest difference of an output {merged.difference:.1e} of the largest "
        f"(at most {merged.tolerance:g})"
    )
