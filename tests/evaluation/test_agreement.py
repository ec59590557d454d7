"""Agreement between raters, against published examples."""

import pytest

from preftune.evaluation.human.agreement import cohen_kappa, fleiss_kappa, observed_agreement

FLEISS = """
0 0 0 0 14
0 2 6 4 2
0 0 3 5 6
0 3 9 2 0
2 2 8 1 1
7 7 0 0 0
3 2 6 3 0
2 5 3 2 2
6 5 2 1 0
0 2 2 3 7
"""
"""Widely printed example: 10 subjects (rows), 14 raters, 5 categories; how many raters chose each."""


def numbered(labels: str) -> dict[str, str]:
    """A rater who gives the items these labels, in order."""
    return {str(place): label for place, label in enumerate(labels)}


def test_cohen_of_two_readers_of_grant_proposals() -> None:
    """The usual example: 20 both yes, 5 only the first, 10 only the second, 15 both no.

    Same: 35/50 = 0.7. Yes by chance: 25/50 · 30/50 = 0.3, no: 25/50 · 20/50 = 0.2, together 0.5.
    (0.7 - 0.5) / (1 - 0.5) = 0.4.
    """
    first = numbered("y" * 25 + "n" * 25)
    second = numbered("y" * 20 + "n" * 5 + "y" * 10 + "n" * 15)
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert observed_agreement([first, second]) == pytest.approx(0.7)


def test_fleiss_of_fourteen_raters() -> None:
    """The published kappa is 0.210, from a mean agreement of 0.378 and 0.213 by chance.

    The first subject's agreement is 1 and the second's (2·1 + 6·5 + 4·3 + 2·1) / (14·13) = 0.253; the squared
    pooled rates are (20² + 28² + 39² + 21² + 32²) / 140² = 0.213.
    """
    table = [[int(count) for count in line.split()] for line in FLEISS.split("\n") if line]
    columns = ["".join(str(label) * count for label, count in enumerate(row)) for row in table]
    raters = [numbered("".join(column[rater] for column in columns)) for rater in range(14)]
    assert observed_agreement(raters) == pytest.approx(0.378, abs=5e-4)
    assert fleiss_kappa(raters) == pytest.approx(0.210, abs=5e-4)


def test_opposite_raters_are_below_chance() -> None:
    """Two raters who never agree on halves have kappa -1: (0 - 1/2) / (1 - 1/2)."""
    assert cohen_kappa(numbered("aabb"), numbered("bbaa")) == pytest.approx(-1)


def test_only_items_that_all_rated_count() -> None:
    """Two agree on items 0 and 1 and differ on 2, which the third left out: agreement is 1 for all three."""
    raters = [numbered("abb"), numbered("aba"), numbered("ab")]
    assert observed_agreement(raters) == 1
    assert fleiss_kappa(raters) == pytest.approx(1)
    assert observed_agreement(raters[:2]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("raters", [("aaa", "aaa"), ("", "ab")], ids=["one label", "nothing shared"])
def test_no_kappa_where_chance_explains_all(raters: tuple[str, str]) -> None:
    """With a single label throughout, or without a shared item, kappa is not defined."""
    first, second = map(numbered, raters)
    assert cohen_kappa(first, second) is None
    assert fleiss_kappa([first, second]) is None
