"""Published figures, from the verdicts behind them, where those are at hand."""

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT.parent / "shared" / "fixtures" / "evaluation"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"other people's verdicts, no part of this project, are not in {FOLDER}"
)


@pytest.fixture(scope="module")
def verify() -> ModuleType:
    """The script behind `make verify-evaluation`."""
    specification = importlib.util.spec_from_file_location(
        "verify_evaluation", ROOT / "benchmarks" / "verify_evaluation.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def missed(checks: Iterable[Any]) -> list[str]:
    """What does not hold."""
    found = list(checks)
    assert found
    return [f"{check.figure}: {check.ours} for {check.published}" for check in found if not check.holds]


def test_alpaca_eval_win_rates_and_maximum_likelihood(verify: ModuleType) -> None:
    """Of 37 models: win rate and standard error to 1e-4, length-controlled to 0.12."""
    assert missed(verify.alpaca_eval_checks(FOLDER / "alpaca_eval", "maximum_likelihood")) == []


def test_alpaca_eval_official_mode(verify: ModuleType) -> None:
    """Of three models, length-controlled to 0.01."""
    assert missed(verify.alpaca_eval_checks(FOLDER / "alpaca_eval", "official", verify.NAMED)) == []


def test_alpaca_eval_order_and_weights(verify: ModuleType) -> None:
    """Each of 805 rows has the order that the rule draws; published weights give published figures."""
    assert missed(verify.order_checks(FOLDER / "alpaca_eval")) == []
    assert missed(verify.weight_checks(FOLDER / "alpaca_eval")) == []


def test_mt_bench(verify: ModuleType) -> None:
    """Both turns, the average and the pairs, exactly."""
    assert missed(verify.mt_bench_checks(FOLDER / "mt_bench")) == []


def test_arena_hard(verify: ModuleType) -> None:
    """Scores to 0.01 and upstream's intervals to 0.5."""
    assert missed(verify.arena_hard_checks(FOLDER / "arena_hard")) == []


def test_a_missing_row_misaligns_difficulties_by_position(verify: ModuleType) -> None:
    """The instructions tell which row of gpt35_turbo_instruct is missing: 14.97, and 17.73 as published."""
    folder = FOLDER / "alpaca_eval"
    settings = verify.RescoreOptions(
        difficulty=folder / "df_gamed_reconstructed.csv",
        instructions=folder / "baseline_gpt4_1106_preview.json",
        mode="official",
    )
    file = folder / "annotations_slim" / "gpt35_turbo_instruct.json"
    recordings = verify.read_recordings("alpaca_eval", [file], settings)
    [found] = verify.rescore_recordings("alpaca_eval", recordings, settings)
    assert found["length_control"]["difficulty_by"] == "length"
    assert found["length_controlled_win_rate"] == pytest.approx(14.97, abs=0.01)
