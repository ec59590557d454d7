"""`python -m experiments`: runs what is missing of the protocol's cells, or lists them."""

import argparse
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from experiments.cells import (
    PARTS,
    PROCESSES_ON_CUDA,
    TABLES,
    Cell,
    cells_of,
    expected_seconds,
    result_path,
    share_of,
)
from experiments.sizes import TINY, Sizes, sizes_of


def main() -> int:
    """Run, list, or write the pages."""
    asked = _arguments()
    sizes = TINY if asked.tiny else sizes_of(asked.device, asked.times)
    cells = cells_of(asked.part, asked.tables, sizes)
    if asked.list:
        show(cells, sizes, asked.processes)
        return 0
    if asked.shard is not None:
        return run_shard(cells, sizes, asked, *asked.shard)
    status = 0 if asked.analyse else run_all(sizes, asked)
    from experiments.analysis import write_all

    write_all(asked.part, asked.tables, sizes, asked.pages)
    return status


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=["a", "b"])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=["main"])
    parser.add_argument("--where", type=Path, help="folder with the preference data of b, c and d")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--times", type=float, default=1, help="how many times as large")
    parser.add_argument("--model", help="the starting policy; the demo's unless given")
    parser.add_argument("--shard", type=_shard, help="I/K: this process's share, counted from 1")
    parser.add_argument("--processes", type=int, help="a process for each core unless given; eight on cuda")
    parser.add_argument("--list", action="store_true", help="say what there is to run, and how long it takes")
    parser.add_argument("--analyse", action="store_true", help="only write the pages, from what is there")
    parser.add_argument("--pages", type=Path, default=Path("docs/experiments"), help="where they go")
    parser.add_argument("--tiny", action="store_true", help="try the runner out; figures mean nothing")
    asked = parser.parse_args()
    if asked.processes is None:
        asked.processes = PROCESSES_ON_CUDA if asked.device == "cuda" else os.cpu_count() or 1
    return asked


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text} must be I/K with 1 <= I <= K, such as 1/2")
    return int(number), int(count)


def show(cells: Sequence[Cell], sizes: Sizes, processes: int) -> None:
    """Every cell with its minutes, and their sum for each process."""
    expected = expected_seconds(cells, sizes)
    for cell in cells:
        state = "done" if result_path(cell, sizes).exists() else "to run"
        print(f"{expected[cell] / 60:6.1f} min  {state:6}  {cell.name}")
    to_run = [cell for cell in cells if not result_path(cell, sizes).exists()]
    shares = [
        sum(expected[cell] for cell in share_of(to_run, number, processes)) / 60
        for number in range(1, processes + 1)
    ]
    print(
        f"{len(cells)} cells, {len(to_run)} to run; {sum(shares):.0f} minutes, "
        f"in {processes} processes about {max(shares):.0f}"
    )


def run_all(sizes: Sizes, asked: argparse.Namespace) -> int:
    """A process for each share, with a thread each on the CPU; 1 if a cell has failed."""
    sizes.folder.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if asked.device == "cpu":
        # Small matrices: a process for each core gets more out of the cores than a thread for each.
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "experiments", *sys.argv[1:]]
    shares = [
        subprocess.Popen([*command, "--shard", f"{number}/{asked.processes}"], env=environment)
        for number in range(1, asked.processes + 1)
    ]
    try:
        return int(sum(share.wait() for share in shares) > 0)
    except KeyboardInterrupt:
        for share in shares:
            share.wait()
        raise


def run_shard(cells: Sequence[Cell], sizes: Sizes, asked: argparse.Namespace, number: int, count: int) -> int:
    """Run a share's cells that are not finished; a failed one is noted, and the others go on."""
    import torch

    from experiments.running import Place, run_cell
    from preftune.demo.model import demo_model_dir

    if asked.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: there is no GPU here; give --device cpu", file=sys.stderr)
        return 2
    place = Place(asked.model or str(demo_model_dir()), asked.where, sizes)
    share = share_of(cells, number, count)
    failed = 0
    for place_in_share, cell in enumerate(share, 1):
        path = result_path(cell, sizes)
        if path.exists():
            continue
        print(f"[{number}/{count}] {place_in_share} of {len(share)}: {cell.name}", flush=True)
        note = path.with_name("error.txt")
        note.unlink(missing_ok=True)
        try:
            run_cell(cell, place)
        except Exception as error:
            failed += 1
            path.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(traceback.format_exc(), encoding="utf-8")
            print(f"{cell.name} failed: {error}; {note} has more, the others go on", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
