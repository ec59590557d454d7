"""`preftune.iterate`: online rounds of sample, score, pair, train and measure."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from preftune.api.keywords import loaded_tokenizer
from preftune.api.sample import as_prompt_rows
from preftune.errors import InputError
from preftune.models import load_language_model, load_tokenizer
from preftune.online.configuration import IterateConfig, check_iterate_config
from preftune.online.plan import Plan, make_plan
from preftune.online.rounds import run_rounds
from preftune.online.view import View
from preftune.report import PAGES
from preftune.rewards.functions import function_name
from preftune.storage.files import MODEL_FOLDER, REPORT_FILE, as_lines
from preftune.training.configuration import read_tree

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rounds:
    """Finished rounds: their folder, and what is in it.

    Attributes:
        folder: of the rounds.
        summary: what its `summary.json` holds.
        last_good: the last round that no guard has stopped; 0 is none.
        stopped: the round in which a guard has stopped the rest, and why.
    """

    folder: Path
    summary: dict[str, Any]
    last_good: int
    stopped: Mapping[str, Any] | None

    @cached_property
    def model(self) -> "PreTrainedModel":
        """The policy of the last good round."""
        return load_language_model(str(self.folder / MODEL_FOLDER), "auto")

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer."""
        return load_tokenizer(str(self.folder / MODEL_FOLDER))

    @property
    def report(self) -> Path:
        """The rounds' page."""
        return self.folder / REPORT_FILE


def plan_rounds(
    config: IterateConfig | Mapping[str, Any] | str | Path,
    overrides: Sequence[str] = (),
    *,
    overwrite: bool = False,
    reward: Callable[..., Any] | None = None,
) -> Plan:
    """Check everything about rounds that can be checked without weights; see `iterate`."""
    if not isinstance(config, IterateConfig):
        config = check_iterate_config(_tree(config, overrides))
    return make_plan(config, overwrite=overwrite, reward=reward)


def iterate(
    config: IterateConfig | Mapping[str, Any] | str | Path,
    overrides: Sequence[str] = (),
    *,
    model: "PreTrainedModel | None" = None,
    processing_class: "PreTrainedTokenizerBase | None" = None,
    prompts: Any = None,
    held_out: Any = None,
    reward: Callable[..., Any] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Rounds:
    """Sample, score, pair, train and measure, round after round.

    The same call resumes where an earlier one was stopped or killed. A loaded model and rows are written
    beside the rounds, to OUTPUT.given, so that every stage can find them.

    Args:
        config: a YAML file, or what one holds as a mapping: `model`, `prompts`, `held_out`, `reward`,
            `rounds` and what `docs/iterate.md` lists.
        overrides: `key=value` for any key of the file.
        model: a loaded model in place of the configuration's; it stays as it is.
        processing_class: its tokenizer; the one it was loaded with unless given.
        prompts: texts, chats or rows in place of the configuration's.
        held_out: likewise.
        reward: a function in place of the configuration's: prompts, completions and columns to numbers.
        overwrite: go on in a folder of another configuration; what that does not change is kept.
        progress: show how far the rounds are, on stderr.

    Raises:
        InputError: something is wrong with the configuration, a source, the reward or the folder.
    """
    tree = _tree(config, overrides)
    if reward is not None:
        tree["reward"] = function_name(reward)
        if tree.get("launch"):
            raise InputError(
                f"reward is a function, and launch={tree['launch']} starts other processes, which cannot see "
                "it: name it as module:function"
            )
    given = Path(f"{tree.get('output', IterateConfig.model_fields['output'].default)}.given")
    if model is not None:
        tree["model"] = _saved_model(model, processing_class, given)
    for name, rows in (("prompts", prompts), ("held_out", held_out)):
        if rows is not None:
            tree[name] = _saved_rows(name, rows, given)
    plan = plan_rounds(tree, overwrite=overwrite, reward=reward)
    console = Console(stderr=True, quiet=not progress)
    outcome = run_rounds(plan, View(plan.config.rounds, plan.config.update_every, console), PAGES)
    summary = json.loads((plan.output / "summary.json").read_text(encoding="utf-8"))
    return Rounds(plan.output, summary, outcome.last_good, outcome.stopped)


def _tree(config: IterateConfig | Mapping[str, Any] | str | Path, overrides: Sequence[str]) -> dict[str, Any]:
    if isinstance(config, str | Path):
        return read_tree(Path(config), list(overrides))
    return config.model_dump(exclude_unset=True) if isinstance(config, IterateConfig) else dict(config)


def _saved_model(
    model: "PreTrainedModel", processing_class: "PreTrainedTokenizerBase | None", given: Path
) -> str:
    tokenizer = loaded_tokenizer(model, processing_class)
    folder = given / MODEL_FOLDER
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _saved_rows(name: str, rows: Any, given: Path) -> str:
    if isinstance(rows, str | Path):
        return str(rows)
    given.mkdir(parents=True, exist_ok=True)
    file = given / f"{name}.jsonl"
    file.write_text(as_lines(as_prompt_rows(rows)), encoding="utf-8")
    return str(file)
