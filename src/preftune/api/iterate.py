"""`preftune.iterate`: online rounds of sample, score, pair, train and measure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from preftune.models import load_language_model, load_tokenizer
from preftune.online.configuration import IterateConfig, check_iterate_config, read_iterate_config
from preftune.online.plan import Plan, make_plan
from preftune.online.rounds import run_rounds
from preftune.online.view import View
from preftune.report import PAGES
from preftune.storage.files import MODEL_FOLDER, REPORT_FILE

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
) -> Plan:
    """Check everything about rounds that can be checked without weights; see `iterate`."""
    if isinstance(config, str | Path):
        config = read_iterate_config(Path(config), list(overrides))
    elif not isinstance(config, IterateConfig):
        config = check_iterate_config(dict(config))
    return make_plan(config, overwrite=overwrite)


def iterate(
    config: IterateConfig | Mapping[str, Any] | str | Path,
    overrides: Sequence[str] = (),
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> Rounds:
    """Sample, score, pair, train and measure, round after round.

    The same call resumes where an earlier one was stopped or killed.

    Args:
        config: a YAML file, or what one holds as a mapping: `model`, `prompts`, `held_out`, `reward`,
            `rounds` and what `docs/iterate.md` lists.
        overrides: `key=value` for any key of the file.
        overwrite: go on in a folder of another configuration; what that does not change is kept.
        progress: show how far the rounds are, on stderr.

    Raises:
        InputError: something is wrong with the configuration, a source, the reward or the folder.
    """
    plan = plan_rounds(config, overrides, overwrite=overwrite)
    console = Console(stderr=True, quiet=not progress)
    outcome = run_rounds(plan, View(plan.config.rounds, plan.config.update_every, console), PAGES)
    summary = json.loads((plan.output / "summary.json").read_text(encoding="utf-8"))
    return Rounds(plan.output, summary, outcome.last_good, outcome.stopped)
