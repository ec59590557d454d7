"""A configuration that is written is the one that was read."""

from pathlib import Path

import pytest
import yaml

from preftune.errors import InputError
from preftune.training.configuration import dump_yaml, read_run_config

VALUES = ["1e5", "no", "true", "1.5", "07", "null", "-3e2", "2026-01-01", "a: b", 1e-6, 3, True, None]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_written_values_are_read_back(value: object, tmp_path: Path) -> None:
    """Text that looks like something else stays text, for this reader and for any other of YAML."""
    tree = {
        "model": "m",
        "data": {"train": "t"},
        "rewards": {"regex": {"pattern": value}},
    }
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(tree), encoding="utf-8")
    assert read_run_config(file, []).rewards["regex"]["pattern"] == value
    assert yaml.safe_load(file.read_text(encoding="utf-8")) == tree


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("model=m", "'model=m' stands where the YAML file of the run belongs"),
        ("pairs.jsonl.gz", "pairs.jsonl.gz is a data file: .* then data.train=pairs.jsonl.gz"),
        ("run.yaml", "cannot read the configuration run.yaml: No such file"),
    ],
)
def test_the_first_argument_is_the_file_of_the_run(
    first: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An override or a data file in its place is answered with what belongs there."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        read_run_config(Path(first), [])
