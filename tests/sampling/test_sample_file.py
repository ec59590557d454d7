"""`sample_file`: what it writes, and that it survives being killed, shared and damaged."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preftune.data import Asked, load_groups
from preftune.errors import InputError
from preftune.sampling import sample_file as module
from preftune.sampling import transformers_engine
from preftune.sampling.sample_file import sample_file
from preftune.storage import shards
from preftune.storage.processes import Processes

SETTINGS: dict[str, Any] = {"n": 2, "max_new_tokens": 6, "temperature": 1.0, "seed": 0, "rows": 4}
CHAT = [{"role": "user", "content": "Say 2"}]
PROMPTS = ["Say 0", "Say 1", CHAT, "Say 0", "Say 4"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rows, one a chat and one a repetition, with columns about themselves and about old responses."""
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [
        {"prompt": prompt, "id": number, "scores": [1.0, 0.0], "chosen": "old", "sampler": {"engine": "old"}}
        for number, prompt in enumerate(PROMPTS)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


Sampled = Callable[..., str]


@pytest.fixture
def sampled(tiny_model_dir: Path, prompts: Path, tmp_path: Path) -> Sampled:
    """Sample the prompts into a file of a name; what stands in it."""

    def run(name: str, **changes: Any) -> str:
        output = tmp_path / name
        assert sample_file(str(tiny_model_dir), prompts, output, **{**SETTINGS, **changes}) == 5
        return output.read_text(encoding="utf-8")

    return run


@pytest.fixture(scope="module")
def whole(tiny_model_dir: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What an uninterrupted call writes, with all prompts in one chunk."""
    output = tmp_path_factory.mktemp("whole") / "whole.jsonl"
    sample_file(str(tiny_model_dir), prompts, output, **SETTINGS)
    return output.read_text(encoding="utf-8")


def in_two_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three prompts, then two."""
    monkeypatch.setattr(module, "PROMPTS_PER_CHUNK", 3)
    monkeypatch.setattr(module, "CHUNKS", 2)


def texts(file: str) -> list[list[str]]:
    """The responses of each line."""
    return [json.loads(line)["responses"] for line in file.splitlines()]


def test_rows_say_what_was_sampled_and_how(tiny_model_dir: Path, prompts: Path, tmp_path: Path) -> None:
    """Beside each response stand its number of tokens and why it ended, beside all engine and settings.

    Half the vocabulary ends a response of this model: fewer tokens than allowed mean that it was stopped, and
    one that was cut has all of them. Columns about other responses are gone, the row's own ones stay.
    """
    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    ends = {"eos_token_id": list(range(25_000))}
    (model / "generation_config.json").write_text(json.dumps(ends), encoding="utf-8")
    output = tmp_path / "out.jsonl"
    sample_file(str(model), prompts, output, **SETTINGS | {"n": 4, "max_new_tokens": 3})
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == PROMPTS
    assert [row["id"] for row in rows] == list(range(5))
    columns = ["prompt", "id", "responses", "response_tokens", "finish_reasons", "sampler"]
    assert all(list(row) == columns for row in rows)
    assert all(len(row[column]) == 4 for row in rows for column in columns[2:5])
    ended = {pair for row in rows for pair in zip(row["finish_reasons"], row["response_tokens"], strict=True)}
    assert ended == {("stop", 1), ("stop", 2), ("stop", 3), ("length", 3)}
    engine = transformers_engine.TransformersEngine(str(model), rows=4)
    settings = {"n": 4, "max_new_tokens": 3, "temperature": 1.0, "top_p": 1.0, "seed": 0}
    assert [row["sampler"] for row in rows] == [engine.description | settings] * 5


def test_scored_samples_are_read_as_groups(whole: str, tmp_path: Path) -> None:
    """With scores added, the file is groups of n responses, and what else it says is no column of theirs."""
    rows = [
        json.loads(line) | {"scores": [0.25 * place for place in range(2)]} for line in whole.splitlines()
    ]
    scored = tmp_path / "scored.jsonl"
    scored.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    loaded = load_groups(str(scored), asked=Asked(needs_prior=True, needs_pairs=False))
    found = [[response.score for response in group.responses] for group in loaded.groups]
    assert found == [[0.0, 0.25]] * 5
    assert set(loaded.unused_columns) == {"id", "response_tokens", "finish_reasons", "sampler"}


def test_neither_place_nor_chunk_nor_n_decides_a_response(
    sampled: Sampled, whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of three prompts give the file of one, and the first responses are those of a smaller n.

    A prompt that comes again, in another chunk, gets other responses.
    """
    in_two_chunks(monkeypatch)
    assert sampled("shards.jsonl") == whole
    assert texts(whole)[0] != texts(whole)[3]
    assert [group[:2] for group in texts(sampled("more.jsonl", n=3))] == texts(whole)
    assert texts(sampled("other.jsonl", seed=1)) != texts(whole)


def killed_at_the_second_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's second call never returns."""
    sample = transformers_engine.sample_responses
    calls = []

    def interrupted(*arguments: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(*arguments, **settings)

    monkeypatch.setattr(transformers_engine, "sample_responses", interrupted)


def test_a_killed_call_continues(
    sampled: Sampled, whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finished chunk stands beside the output and is not sampled again; other settings never read it.

    The file is then the uninterrupted one, and nothing else is left.
    """
    in_two_chunks(monkeypatch)
    with monkeypatch.context() as patch:
        killed_at_the_second_chunk(patch)
        with pytest.raises(KeyboardInterrupt):
            sampled("killed.jsonl")
    (part,) = tmp_path.glob("killed.jsonl.*.part")
    kept = [json.loads(line.partition(" ")[2]) for line in part.read_text(encoding="utf-8").splitlines()]
    assert kept == [[place, json.loads(whole.splitlines()[place])] for place in range(3)]
    with monkeypatch.context() as patch:
        # Only one call is left to make.
        killed_at_the_second_chunk(patch)
        assert sampled("killed.jsonl") == whole
    assert list(tmp_path.glob("killed.jsonl*")) == [tmp_path / "killed.jsonl"]


def test_a_damaged_row_is_sampled_again(
    sampled: Sampled,
    whole: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A cut row, and one with a word changed in a file that is still JSON, are found and made anew."""
    in_two_chunks(monkeypatch)
    for damage in (lambda text: text[:-9], lambda text: text.replace("Say", "Sat")):
        with monkeypatch.context() as patch:
            killed_at_the_second_chunk(patch)
            with pytest.raises(KeyboardInterrupt):
                sampled("damaged.jsonl")
        (part,) = tmp_path.glob("damaged.jsonl.*.part")
        part.write_text(damage(part.read_text(encoding="utf-8")), encoding="utf-8")
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert sampled("damaged.jsonl") == whole
        assert f"{part} is damaged" in caplog.text
        (tmp_path / "damaged.jsonl").unlink()


def test_a_full_disk_keeps_what_is_finished(
    sampled: Sampled, whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the file and the reason; with room again the call continues behind what is kept."""
    in_two_chunks(monkeypatch)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_whole", full)
        with pytest.raises(InputError, match=r"full.jsonl.*No space left on device.*Finished work is kept"):
            sampled("full.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(transformers_engine, "sample_responses", full)
        assert sampled("full.jsonl") == whole
    assert list(tmp_path.glob("full.jsonl*")) == [tmp_path / "full.jsonl"]


def test_a_kill_behind_the_output_leaves_nothing_for_good(
    sampled: Sampled, whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the output was written and its shards were not yet removed, the next call removes them.

    Shards that are no part of an output stay: the call that they are of may go on.
    """
    in_two_chunks(monkeypatch)

    def killed(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards.Shards, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            sampled("out.jsonl")
    other = tmp_path / "out.jsonl.0123456789ab.0.part"
    other.touch()
    assert len(list(tmp_path.glob("out.jsonl.*"))) == 3
    for changes in ({}, {"seed": 1}):
        with pytest.raises(InputError, match=r"out.jsonl exists"):
            sampled("out.jsonl", **changes)
        assert list(tmp_path.glob("out.jsonl.*")) == [other]
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == whole


def test_two_processes_write_the_file_of_one(
    whole: str, tiny_model_dir: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process samples its chunks and the first joins them in order, whoever is done first."""
    in_two_chunks(monkeypatch)
    output = tmp_path / "shared.jsonl"
    for rank in (1, 0):
        monkeypatch.setattr(shards, "launched_processes", lambda rank=rank: Processes(rank, 2))
        sample_file(str(tiny_model_dir), prompts, output, **SETTINGS)
        assert output.exists() == (rank == 0)
    assert output.read_text(encoding="utf-8") == whole
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.slow
def test_torchrun_shares_the_chunks(whole: str, tiny_model_dir: Path, prompts: Path, tmp_path: Path) -> None:
    """`torchrun --nproc_per_node 2 -m -- preftune sample` writes the file of one process, to the byte."""
    options = ["--n", "2", "--max-new-tokens", "6", "--rows", "4", "--output", str(tmp_path / "shared.jsonl")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "-m", "--", "preftune", "sample", str(tiny_model_dir), str(prompts), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "shared.jsonl").read_text(encoding="utf-8") == whole


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ('{"question": "?"}', {}, "row 0 has no `prompt`"),
        ('{"prompt": 5}', {}, "row 0 has no `prompt`"),
        ('{"prompt": [{"role": "user"}]}', {}, "row 0 has no `prompt`"),
        ("", {}, "has no rows"),
        ('{"prompt": "?"}', {"temperature": float("nan")}, "temperature=nan"),
        ('{"prompt": "?"}', {"top_p": 0.0}, "top_p=0.0"),
        ('{"prompt": "?"}', {"rows": 0}, "rows=0"),
        ('{"prompt": "?"}', {"engine": "vlm"}, "engine=vlm must be one of"),
    ],
)
def test_what_cannot_be_sampled_is_refused(
    row: str, changes: dict[str, Any], message: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """The error names the row or the setting, and nothing is written."""
    file = tmp_path / "prompts.jsonl"
    file.write_text(row + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        sample_file(str(tiny_model_dir), file, tmp_path / "out.jsonl", **{**SETTINGS, **changes})
    assert list(tmp_path.iterdir()) == [file]


def test_an_output_is_never_written_over(sampled: Sampled, tmp_path: Path) -> None:
    """A file that is there is refused, before anything is sampled."""
    (tmp_path / "out.jsonl").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"out.jsonl exists"):
        sampled("out.jsonl")
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == "mine"
