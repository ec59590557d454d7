"""Threads that wait for one another sleep, unless the user has said how they wait."""

import os

import pytest

from preftune.cli.waiting import let_threads_sleep

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable is set; whatever a test sets is forgotten."""
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_threads_spin_briefly_and_then_sleep() -> None:
    """Both kinds of OpenMP are told, through the environment, which child processes inherit."""
    let_threads_sleep()
    assert [os.environ.get(name) for name in NAMES] == [None, "10000", "0"]


@pytest.mark.parametrize("name", NAMES)
def test_what_the_user_has_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One variable of the user's own decides for all of them."""
    monkeypatch.setenv(name, "7")
    let_threads_sleep()
    assert {other: os.environ[other] for other in NAMES if other in os.environ} == {name: "7"}
