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
    names = ("allowances", "comparing", "runs", "server", "sides", "starter", "__main__")
    yield {name: importlib.import_module(f"same_as.{name}") for name in names}
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def compare(parts: dict[str, Any]) -> Any:
    """Differences between two contents of a file, as text."""

    def run(file: str, base: bytes, new: bytes) -> list[str]:
        return [str(one) for one in parts["comparing"].compare_files(file, base, new)]

    return run


def test_a_json_difference_is_named_by_its_path(compare: Any) -> None:
    """Nested keys, a key of one side alone, and a type are differences."""
    base = b'{"a": {"b": [1, 2]}, "old": 0, "n": 1}'
    new = b'{"a": {"b": [1, 3]}, "n": 1.0}'
    assert compare("x.json", base, new) == [
        "x.json a.b[1]: 2 -> 3",
        "x.json old: 0 -> (missing)",
        "x.json n: 1 -> 1.0",
    ]


def test_the_same_values_written_otherwise_differ(compare: Any) -> None:
    """Another order of keys and another spacing are seen, though no value differs."""
    assert compare("x.json", b'{"a": 1, "b": 2}', b'{"b": 2, "a": 1}') == ["x.json (key order): a, b -> b, a"]
    assert compare("x.json", b'{"a": 1}', b'{"a":1}') == ["x.json (bytes): 8 bytes -> 7 bytes"]
    assert [
        line.split(":")[0] for line in compare("x.json", b'{"a": NaN, "b": 1}', b'{"a": NaN, "b": 2}')
    ] == ["x.json b"]


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
    """A row of a table has its name in the key, and any other line its number alone."""
    page = '<p>{}</p>\n<tr><th scope="row">Training time</th><td>{} s</td></tr>\n'
    base, new = page.format(1, 2).encode(), page.format(2, 3).encode()
    assert [line.split(":")[0] for line in compare("report.html", base, new)] == [
        "report.html line 1",
        "report.html line 2, row Training time",
    ]


def test_a_run_is_judged_by_rules(parts: dict[str, Any], tmp_path: Path) -> None:
    """A rule lets pass the keys that its globs fit in the runs that it names; wanted ones are counted."""
    for side, kl in (("base", 1), ("new", 2)):
        (tmp_path / side / "out").mkdir(parents=True)
        (tmp_path / side / "out" / "metrics.jsonl").write_text(json.dumps({"kl": kl, "seconds": kl}))
        (tmp_path / side / f"{side}.txt").touch()
        (tmp_path / side / "printed-1.txt").write_text(f"Scoring 100% 0:00:0{kl}")
        # The folder that a run was in stands in its files.
        (tmp_path / side / "out" / "config.yaml").write_text(f"output: {tmp_path / side}/out")
    rule = parts["allowances"].Rule
    wanted = rule("over all", ("out/*",), ("*.kl",), ("kto*",), since="abc")
    rules = [wanted, rule("time", ("*",), ("*seconds",))]
    both = [parts["sides"].Outcome(tmp_path / side, "", 1.0) for side in ("base", "new")]
    alone = ["base.txt (missing): there -> not there", "new.txt (missing): not there -> there"]
    judge = parts["__main__"].judge
    assert judge("kto_by_tokens", both, rules) == ("differs", alone, {wanted: 1})
    assert judge("dpo", both, rules) == ("differs", [*alone, "out/metrics.jsonl [0].kl: 1 -> 2"], {})
    every = rule("all", ("*",))
    assert judge("dpo", both, [wanted, every]) == ("identical", [], {})
    assert judge("kto", both, [wanted, every]) == ("as wanted", [], {wanted: 1})
    failed = parts["sides"].Outcome(tmp_path, "no such key", 1.0)
    assert judge("dpo", [both[0], failed], []) == ("failed", ["no such key"], {})


def test_a_wanted_difference_ends_with_its_commit(parts: dict[str, Any], tmp_path: Path) -> None:
    """Against a base that has the commit the rule is gone; a volatile key always passes."""
    file = tmp_path / "allowances.toml"
    file.write_text(
        '[[rule]]\nfiles = ["a"]\nsince = "old"\nreason = "x"\n'
        '[[rule]]\nfiles = ["b"]\nsince = "new"\nreason = "x"\nruns = ["kto", "dpo"]\n'
        '[[rule]]\nfiles = ["c"]\nreason = "time"\n',
        encoding="utf-8",
    )
    rules = parts["allowances"].read_rules(lambda commit: commit == "old", file)
    assert [(rule.files, rule.runs) for rule in rules] == [(("b",), ("kto", "dpo")), (("c",), ("*",))]


def test_every_rule_can_be_read(parts: dict[str, Any]) -> None:
    """Each rule of the project names runs that there are."""
    rules = parts["allowances"].read_rules(lambda _: False)
    names = {name for rule in rules for name in rule.runs}
    assert names - {"*"} <= {*parts["runs"].RUNS}


def test_a_command_runs_in_a_fork(parts: dict[str, Any], tmp_path: Path) -> None:
    """It sees its folder, environment and modules first; a failure, and a kill, give the status."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "import own\n"
        "print(os.getcwd(), os.environ.get('RANK'), own.__name__, *sys.argv[1:], flush=True)\n"
        "if 'die' in sys.argv: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if os.environ['RANK'] == '0': open('ready', 'w').close(); signal.pause()\n"
        "while not os.path.exists('ready'): time.sleep(0.01)\n"
        "sys.exit(3)\n"
    )
    (tmp_path / "own.py").touch()
    streams = (tmp_path / "printed.txt", tmp_path / "errors.txt")

    def status(*words: str, processes: int = 1) -> list[int]:
        environment = {"PYTHONPATH": str(tmp_path)}
        found: list[int] = parts["starter"].run(
            (str(script), *words), processes, tmp_path, environment, streams
        )
        return found

    assert status("die") == [-9]
    assert status("wait", processes=2) == [-9, 3]
    assert sorted(streams[0].read_text().splitlines()) == sorted(
        [f"{tmp_path} None own die", f"{tmp_path} 0 own wait", f"{tmp_path} 1 own wait"]
    )


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
