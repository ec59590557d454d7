"""What `make same-as` calls a difference, and what it lets pass."""

import importlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def parts() -> Iterator[dict[str, Any]]:
    """The script's modules."""
    sys.path.insert(0, str(BENCHMARKS))
    names = ("allowances", "comparing", "runs", "server", "__main__")
    yield {name: importlib.import_module(f"same_as.{name}") for name in names}
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def compare(parts: dict[str, Any]) -> Any:
    """Differences between two contents of a file, as text."""

    def run(file: str, base: bytes, new: bytes, *volatile: str) -> list[str]:
        return [str(one) for one in parts["comparing"].compare_files(file, base, new, volatile)]

    return run


def test_a_json_difference_is_named_by_its_path(compare: Any) -> None:
    """Nested keys, a key of one side alone, and a type are differences; what is volatile is none."""
    base = b'{"a": {"b": [1, 2]}, "old": 0, "n": 1, "seconds": 3.5}'
    new = b'{"a": {"b": [1, 3]}, "n": 1.0, "seconds": 4.5}'
    assert compare("x.json", base, new, "*seconds") == [
        "x.json a.b[1]: 2 -> 3",
        "x.json old: 0 -> (missing)",
        "x.json n: 1 -> 1.0",
    ]


def test_the_same_values_written_otherwise_differ(compare: Any) -> None:
    """Another order of keys and another spacing are seen, though no value differs."""
    assert compare("x.json", b'{"a": 1, "b": 2}', b'{"b": 2, "a": 1}') == ["x.json (key order): a, b -> b, a"]
    assert compare("x.json", b'{"a": 1}', b'{"a":1}') == ["x.json (bytes): 8 bytes -> 7 bytes"]
    assert compare("x.jsonl", b'{"a": NaN}\n', b'{"a": NaN}\n') == []


def test_tensors_are_compared_to_the_bit(compare: Any) -> None:
    """One weight's last bit, and a shape, name their tensor; equal ones are passed over."""
    one = {"w": torch.tensor([1.0, 2.0]), "v": torch.zeros(2, 1), "u": torch.ones(1)}
    other = {"w": torch.nextafter(one["w"], torch.tensor(9.0)), "v": torch.zeros(1, 2), "u": torch.ones(1)}
    found = compare("m.safetensors", save(one), save(other))
    assert sorted(line.split(":")[0] for line in found) == ["m.safetensors v", "m.safetensors w"]


def test_containers_of_torch_count_by_content(compare: Any) -> None:
    """Two files of one state are the same, whatever name torch put into them; another step is named."""

    def written(step: int, name: str) -> bytes:
        content = {"state": {0: {"step": torch.tensor(step), "exp_avg": torch.ones(2)}}, "groups": [0.1]}
        if name == "old":
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=False)
            return file.getvalue()
        file = io.BytesIO()
        torch.save(content, file)
        return file.getvalue()

    assert written(1, "old") != written(1, "new")
    assert compare("optimizer.pt", written(1, "old"), written(1, "new")) == []
    (found,) = compare("optimizer.pt", written(1, "new"), written(2, "new"))
    assert found.startswith("optimizer.pt state.0.step: torch.int64 () [1] -> ")


def test_a_page_is_compared_by_rows(compare: Any) -> None:
    """A volatile row of a table is let pass by its name, and any other line is named by its number."""
    page = '<p>{}</p>\n<tr><th scope="row">Training time</th><td>{} s</td></tr>\n'
    base, new = page.format(1, 2).encode(), page.format(1, 3).encode()
    assert compare("report.html", base, new, "*row Training time") == []
    assert [line.split(":")[0] for line in compare("report.html", base, new)] == [
        "report.html line 2, row Training time"
    ]


def test_folders_are_compared_file_by_file(parts: dict[str, Any]) -> None:
    """A file of one side alone is named; one that is renamed, or volatile as a whole, is none."""
    allowances = parts["allowances"]
    tables = allowances.Allowances(
        volatile=(allowances.Rule(file="*.lock", reason="empty"),),
        keys={"train.beta": "beta"},
        files={r"^round-(\d)/scored": r"round-\1/rated"},
        fields={r"^(\[\d\])\.reward$": r"\1.score"},
    )
    base = {
        "a.lock": b"1",
        "round-1/scored.jsonl": b'{"reward": 1}\n',
        "config.yaml": b"train: {beta: 1}\n",
        "b.txt": b"",
    }
    new = {"round-1/rated.jsonl": b'{"score": 1}\n', "config.yaml": b"beta: 1\n", "c.txt": b""}
    found = parts["comparing"].compare_folders("r", base, new, tables)
    assert [str(one) for one in found] == [
        "b.txt (missing): there -> not there",
        "c.txt (missing): not there -> there",
    ]


def test_wanted_differences_are_used_or_told(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule takes the keys that its globs fit, in the runs that it names, and no others."""
    file = tmp_path / "allowances.toml"
    file.write_text(
        '[[wanted]]\nrun = "kto*"\nfile = "out/metrics.jsonl"\nkey = "*.kl"\nreason = "over all"\n',
        encoding="utf-8",
    )
    tables = parts["allowances"].read_allowances(file)
    main = parts["__main__"]
    outcome = main.Outcome(tmp_path, "/x", "", ())
    sides = [main.Side("one", tmp_path, tmp_path, None), main.Side("two", tmp_path, tmp_path, None)]
    contents = [{"out/metrics.jsonl": json.dumps({"kl": kl, "loss": kl}).encode()} for kl in (1, 2)]
    for run, differing in (("kto", ["[0].loss"]), ("dpo", ["[0].kl", "[0].loss"])):
        queue = iter(contents)
        monkeypatch.setattr(main, "files_of", lambda _, queue=queue: next(queue))
        verdict = main._verdict(run, sides, [outcome, outcome], tables)
        assert [one.key for one in verdict.differences] == differing
        assert verdict.used == frozenset(tables.wanted if run == "kto" else ())


def test_a_run_is_said_in_new_names(parts: dict[str, Any]) -> None:
    """Flags, overrides and keys of configurations are renamed for the working tree; the rest stays."""
    runs = parts["runs"]
    command = runs.Command(("-m", "preftune", "--questions", "a", "objective.beta=0.1,0.3"))
    run = runs.Run((command,), {"run.yaml": {"objective": {"beta": 0.1, "method": "dpo"}, "model": "m"}})
    said = runs.renamed(run, {"--questions": "--prompts"}, {"objective.beta": "loss.beta", "cache": "kept"})
    assert said.commands[0].words == ("-m", "preftune", "--prompts", "a", "loss.beta=0.1,0.3")
    assert said.configs["run.yaml"] == {"objective": {"method": "dpo"}, "model": "m", "loss": {"beta": 0.1}}


def test_replies_follow_from_the_request(parts: dict[str, Any]) -> None:
    """The same request gets the same reply, another may get another, each in the form that was asked for."""
    completion = parts["server"].completion

    def said(text: str) -> str:
        body = {"model": "m", "messages": [{"role": "user", "content": text}]}
        content: str = completion("/v1/chat/completions", body)["choices"][0]["message"]["content"]
        return content

    assert said("Rating: N") == said("Rating: N")
    assert len({said(f"m or M, {number}?") for number in range(20)}) == 2
    assert {said(f"Grade it {number}")[:2] for number in range(5)} == {"[["}
