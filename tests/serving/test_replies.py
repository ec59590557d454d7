"""The file of replies: what is paid for is never lost and never asked for twice."""

from pathlib import Path

import pytest

from preftune.serving.replies import Reply, ReplyCache


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_a_kill_cut_is_passed_over(tmp_path: Path, cut: int) -> None:
    """The replies before it are there, and what is added after it is read back whole."""
    path = tmp_path / "replies.jsonl"
    cache = ReplyCache(path)
    cache.add("first", Reply("ünï", "stop", [{"token": "ü"}], 3, 4, 0.5))
    cache.add("second", Reply("lost"))
    path.write_bytes(path.read_bytes()[:-cut])
    again = ReplyCache(path)
    # Without its line break alone, a line is whole.
    assert ("second" in again) == (cut == 1)
    again.add("third", Reply("kept"))
    read = ReplyCache(path)
    assert read["first"] == Reply("ünï", "stop", [{"token": "ü"}], 3, 4, 0.5)
    assert read["third"] == Reply("kept")


def test_two_runs_share_a_file(tmp_path: Path) -> None:
    """Each adds lines of its own, and a third finds all of them."""
    one, other = ReplyCache(tmp_path / "replies.jsonl"), ReplyCache(tmp_path / "replies.jsonl")
    one.add("a", Reply("1"))
    other.add("b", Reply("2"))
    one.add("c", Reply("3"))
    read = ReplyCache(tmp_path / "replies.jsonl")
    assert [read[key].text for key in "abc"] == ["1", "2", "3"]


def test_half_an_emoji_can_be_kept(tmp_path: Path) -> None:
    """A reply that was cut inside a surrogate pair is written and read."""
    ReplyCache(tmp_path / "replies.jsonl").add("a", Reply("cut \ud83d"))
    assert ReplyCache(tmp_path / "replies.jsonl")["a"].text.startswith("cut ")
