"""Two models in both orders: wins, losses, and how much the order decided."""

import pytest

from preftune.errors import InputError
from preftune.evaluation.head_to_head.figures import aggregate_head_to_head, first_shown_rate
from preftune.evaluation.verdicts import Comparison, Recording


def both(
    question: str, model_first: float | None, baseline_first: float | None, length: int = 10
) -> list[Comparison]:
    """The preference for the model, when it was shown first and when it was not."""
    return [
        Comparison(question, preference, first, model_length=length, baseline_length=10)
        for first, preference in ((True, model_first), (False, baseline_first))
    ]


def recording(*pairs: list[Comparison]) -> Recording:
    """Of all verdicts."""
    return Recording("ours", "theirs", [verdict for pair in pairs for verdict in pair])


def test_figures_by_hand() -> None:
    """Won twice, won and drawn, won by whoever is first, lost twice, and one verdict that cannot be read.

    Means by prompt are 1, 0.75, 0.5, 0 and, of the one that can be read, 1: wins a, b, e; tie c; loss d. The
    nine verdicts sum to 2 + 1.5 + 1 + 0 + 1 = 5.5. Of the four prompts read in both orders a and d are
    consistent. Decided verdicts for who was first: a yes and no, b yes, c yes and yes, d no and yes, e yes: 6
    of 8. Three wins of four decided prompts are as likely as (4 + 1) * 2 / 16 under a fair coin.
    """
    results = aggregate_head_to_head(
        recording(
            both("a", 1.0, 1.0),
            both("b", 1.0, 0.5),
            both("c", 1.0, 0.0),
            both("d", 0.0, 0.0),
            both("e", 1.0, None),
        )
    )
    assert (results["n"], results["wins"], results["ties"], results["losses"]) == (5, 3, 1, 1)
    assert results["win_rate"] == pytest.approx(100 * 5.5 / 9)
    assert results["position_consistency"] == 0.5
    assert results["first_shown_wins"] == 6 / 8
    assert results["sign_test_p"] == pytest.approx(10 / 16)
    assert results["invalid_rate"] == 0.1
    low, high = results["interval"]
    assert 0 <= low < results["win_rate"] < high <= 100


def test_equal_lengths_leave_nothing_to_control() -> None:
    """The length-controlled rate is absent, and the results say why."""
    results = aggregate_head_to_head(recording(*(both(str(n), 1.0, 0.0) for n in range(6))))
    assert results["length_controlled_win_rate"] is None
    assert any("lengths" in warning for warning in results["warnings"])


def test_length_is_controlled_for() -> None:
    """A judge that follows length alone: whoever is longer wins, and at equal length nobody.

    Of the model's answers 80 are 60 characters longer and win with 0.9, 40 are 60 shorter and win with 0.1.
    """
    longer = [both(f"l{n}", 0.9, 0.9, length=70) for n in range(80)]
    shorter = [both(f"s{n}", 0.1, 0.1, length=-50) for n in range(40)]
    results = aggregate_head_to_head(recording(*longer, *shorter))
    assert results["win_rate"] == pytest.approx(100 * (80 * 0.9 + 40 * 0.1) / 120)
    # logit P = b1 tanh(d / std) + b3 with d of both signs and equal size meets 0.9 and 0.1 with b3 = 0.
    assert results["length_controlled_win_rate"] == pytest.approx(50, abs=0.01)


def test_nothing_readable_is_an_error() -> None:
    """There is nothing to average."""
    with pytest.raises(InputError, match="no verdict"):
        aggregate_head_to_head(recording(both("a", None, None)))


def test_first_shown_needs_decided_verdicts() -> None:
    """Draws say nothing of the order."""
    assert first_shown_rate(both("a", 0.5, 0.5)) is None
