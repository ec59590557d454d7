"""The kit for a bare machine: pieces that travel, and a script that puts them together."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

KIT = Path(__file__).parents[2] / "benchmarks" / "gpu_kit"
sys.path.insert(0, str(KIT))
import make_kit  # noqa: E402  # a script beside others


def test_the_kit_carries_what_is_run_and_not_what_is_there() -> None:
    """TRL, datasets and openai come along with what they need; torch and the large ones do not."""
    carried = make_kit.carried()
    assert {"trl", "datasets", "openai", "transformers", "pydantic", "pydantic-core", "pyphen"} <= set(
        carried
    )
    assert set(carried).isdisjoint(make_kit.ON_THE_MACHINE)
    assert "preftune" not in carried


def test_halves_are_the_whole(tmp_path: Path) -> None:
    """Two halves of a file, joined, are the file; an odd byte goes to the first."""
    file = tmp_path / "model.whl"
    file.write_bytes(b"abcde")
    make_kit.halve(file, (tmp_path / "1", tmp_path / "2"))
    parts = [(tmp_path / str(number) / f"model.whl.{number}").read_bytes() for number in (1, 2)]
    assert parts == [b"abc", b"de"]


def test_a_piece_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each folder is measured with all its files; the message names the one that is over the limit."""
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "a.whl").write_bytes(b"123")
    assert make_kit.pieces(tmp_path) == {"wheels": 3}
    monkeypatch.setattr(make_kit, "LARGEST", 2)
    with pytest.raises(SystemExit, match="wheels has 3 bytes, more than 2"):
        make_kit.pieces(tmp_path)


def wheel(folder: Path, name: str) -> Path:
    """The smallest wheel that pip installs."""
    file = folder / f"{name}-1.0-py3-none-any.whl"
    about = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "VALUE = 7\n")
        for part, text in about.items():
            archive.writestr(f"{name}-1.0.dist-info/{part}", text)
    return file


def test_the_script_installs_what_arrives_and_joins_the_halves(tmp_path: Path) -> None:
    """Pieces come one call at a time: after the second half the model's wheel is there, and preftune is."""
    kit, place = tmp_path / "kit", tmp_path / "place"
    model = wheel(tmp_path, "tiny_model")
    make_kit.halve(model, (kit / "model-1", tmp_path / "later"))
    (kit / "wheels").mkdir()
    make_kit.download(kit / "wheels", [make_kit.BUILD])
    install = [str(KIT / "install.sh"), str(kit), str(place)]
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    first = subprocess.run(install, env=environment, capture_output=True, text=True, check=True)
    assert "the model is installed" not in first.stdout
    (kit / "model-1").rename(tmp_path / "gone")
    (tmp_path / "later").rename(kit / "model-2")
    second = subprocess.run(install, env=environment, capture_output=True, text=True, check=True)
    assert "the model is installed" in second.stdout
    code = "import tiny_model, preftune; print(tiny_model.VALUE, preftune.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(place / "site"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    value, installed = found.stdout.split()
    assert value == "7"
    assert Path(installed).is_relative_to(place / "site")
