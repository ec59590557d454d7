"""Three finished rounds of a random two-layer model, which tests copy, damage and run again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.measuring.comparison import NO_PAGES, Pages
from preftune.online.configuration import read_iterate_config
from preftune.online.outcome import Outcome
from preftune.online.plan import make_plan
from preftune.online.rounds import run_rounds
from preftune.online.view import View
from preftune.report import PAGES

FILE = "rounds.yaml"
TIMED = ("seconds", "per_second", "runtime", "rss")
NOT_COMPARED = (".lock", "timing.jsonl", "report.html", "cache")
"""Seconds, what shows them, and a cache that may be filled in another order."""


def configuration(model: Path) -> dict[str, Any]:
    """Rounds of one step each."""
    return {
        "model": str(model),
        "prompts": "prompts.jsonl",
        "held_out": "held_out.jsonl",
        "reward": "reading_grade",
        "sampling": {"n": 3, "max_new_tokens": 6},
        "evaluation": {"n": 2},
        "train": {
            "prior": {"calibration": "minmax"},
            "training": {
                "learning_rate": 1e-2,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 1,
                "warmup_steps": 0,
                "save_strategy": "steps",
                "save_steps": 1,
                "use_cpu": True,
                "bf16": False,
            },
        },
        "output": "out",
    }


def write_prompts(path: Path, count: int, about: str) -> None:
    """Chats of one question each."""
    rows = [{"prompt": [{"role": "user", "content": f"Tell me {n} of {about}."}]} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_folder(folder: Path, model: Path, **keys: Any) -> Path:
    """A working folder with everything that rounds need; 13 prompts, of which one is left over."""
    folder.mkdir(parents=True, exist_ok=True)
    write_prompts(folder / "prompts.jsonl", 13, "bread")
    write_prompts(folder / "held_out.jsonl", 3, "rain")
    (folder / FILE).write_text(yaml.safe_dump(configuration(model) | keys), encoding="utf-8")
    return folder


def iterate(*overrides: str, overwrite: bool = False, pages: Pages = NO_PAGES) -> Outcome:
    """What `preftune iterate` does, in this process and the current folder; it draws no pages unless told."""
    config = read_iterate_config(Path(FILE), list(overrides))
    view = View(config.rounds, config.update_every)
    return run_rounds(make_plan(config, overwrite=overwrite), view, pages)


def artifacts(output: Path) -> dict[str, object]:
    """What rounds leave by its path: bytes, and where they hold seconds everything but those."""
    found: dict[str, object] = {}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output)
        if path.is_dir() or {name.parts[0], name.name} & set(NOT_COMPARED):
            continue
        found[str(name)] = path.read_bytes()
        if name.parent.name == "training" and name.name in ("metrics.jsonl", "summary.json"):
            text = path.read_text(encoding="utf-8")
            lines = map(json.loads, text.splitlines() if name.suffix == ".jsonl" else [text])
            # The line behind the last step averages over what one process has trained.
            found[str(name)] = [_without_times(line) for line in lines if "train_runtime" not in line]
    return found


def _without_times(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    return {
        key: _without_times(value) for key, value in content.items() if not any(word in key for word in TIMED)
    }


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A working folder in which three rounds have come to their end, uninterrupted."""
    folder = write_folder(tmp_path_factory.mktemp("rounds"), tiny_model_dir)
    # Pages take longer to draw than all else that these rounds do: those of the rounds are drawn once, here.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert iterate(pages=Pages(NO_PAGES.run, PAGES.comparison)).stopped is None
    return folder


@pytest.fixture
def output(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of finished rounds, in a copy of their working folder that is the current one."""
    work = tmp_path / "work"
    shutil.copytree(finished, work, symlinks=True)
    monkeypatch.chdir(work)
    return work / "out"


@pytest.fixture
def empty(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, the current one, in which nothing has run."""
    folder = write_folder(tmp_path / "empty", tiny_model_dir)
    monkeypatch.chdir(folder)
    return folder
