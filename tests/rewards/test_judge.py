"""`judge:` asks a real OpenAI-compatible server on loopback."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from preftune.rewards.judge import parse_rating

from ..conftest import Endpoint, by_length, response_in

CommandLine = Callable[..., tuple[int, str]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two pairs, one of them a chat."""
    chat = {
        "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}],
        "chosen": [{"role": "assistant", "content": "Hello!"}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    rows = [{"prompt": "2+2?", "chosen": "4, surely", "rejected": "5"}, chat]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def scores(path: Path) -> list[tuple[float, float]]:
    """Chosen and rejected of each row."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [(row["score_chosen"], row["score_rejected"]) for row in rows]


def test_ratings_become_scores(endpoint: Endpoint, data: Path, preftune: CommandLine, tmp_path: Path) -> None:
    """Each response is asked about once, with its prompt and key; a busy server is asked again."""
    endpoint.busy = 2
    scored = tmp_path / "scored.jsonl"
    code, errors = preftune("score", str(data), "--prior", "judge:some-model", "--output", str(scored))
    assert code == 0, errors
    assert scores(scored) == [(9.0, 1.0), (6.0, 3.0)]
    assert endpoint.keys == {"Bearer of-the-test"}
    assert len(endpoint.asked) == 4
    assert {(body["model"], body["temperature"]) for body in endpoint.asked} == {("some-model", 0)}
    (greeting,) = (b["messages"][0]["content"] for b in endpoint.asked if "Hello!" in str(b["messages"]))
    assert "<prompt>\nsystem: Be kind.\n\nuser: Hello?\n</prompt>" in greeting
    assert response_in(greeting) == "Hello!"


def test_what_comes_again_is_asked_once(endpoint: Endpoint, preftune: CommandLine, tmp_path: Path) -> None:
    """A response that stands in two pairs of a prompt costs one call."""
    rows = [{"prompt": "2+2?", "chosen": "4, surely", "rejected": text} for text in ("5", "six")]
    data, scored = tmp_path / "data.jsonl", tmp_path / "scored.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    code, errors = preftune("score", str(data), "--prior", "judge:some-model", "--output", str(scored))
    assert code == 0, errors
    assert scores(scored) == [(9.0, 1.0), (9.0, 3.0)]
    assert len(endpoint.asked) == 3


def test_ratings_are_kept_when_the_judge_fails(
    endpoint: Endpoint, data: Path, preftune: CommandLine, tmp_path: Path
) -> None:
    """A judge without a rating stops the call with the row and its reply; the next call asks for the rest."""
    scored = tmp_path / "scored.jsonl"
    arguments = ["score", str(data), "--prior", "judge:m:workers=1,temperature=null", "--output", str(scored)]
    endpoint.reply = lambda message: by_length(message) if "Hello?" not in message else "I would rather not."
    code, errors = preftune(*arguments)
    assert code == 2
    assert "row 1, response 0" in errors
    assert "I would rather not." in errors
    assert not scored.exists()
    assert len(endpoint.asked) == 2 + 3
    assert "temperature" not in endpoint.asked[0]
    endpoint.asked.clear()
    endpoint.reply = by_length
    code, errors = preftune(*arguments)
    assert code == 0, errors
    assert len(endpoint.asked) == 2
    assert scores(scored) == [(9.0, 1.0), (6.0, 3.0)]


def test_ratings_under_way_are_kept(
    endpoint: Endpoint, data: Path, preftune: CommandLine, tmp_path: Path
) -> None:
    """Where one of several requests at the same time fails, the others' ratings are not asked for again."""
    scored = tmp_path / "scored.jsonl"
    arguments = ["score", str(data), "--prior", "judge:m:workers=4", "--output", str(scored)]
    failed, attempts = threading.Event(), []

    def reply(message: str) -> str:
        if "Hello!" not in message:
            assert failed.wait(timeout=60)
            return by_length(message)
        attempts.append(message)
        if len(attempts) == 3:
            failed.set()
        return "No."

    endpoint.reply = reply
    assert preftune(*arguments)[0] == 2
    endpoint.asked.clear()
    endpoint.reply = by_length
    assert preftune(*arguments)[0] == 0
    assert [response_in(body["messages"][0]["content"]) for body in endpoint.asked] == ["Hello!"]


def test_an_endpoint_that_refuses_is_named(
    endpoint: Endpoint, data: Path, preftune: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the endpoint says is the message, also while other requests wait for their turn."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{endpoint.server_port}/v2")
    output = str(tmp_path / "scored.jsonl")
    code, errors = preftune("score", str(data), "--prior", "judge:m:workers=2", "--output", output)
    assert code == 2
    assert "judge:m at http://127.0.0.1" in errors
    assert "no such path" in errors


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Rating: 7", 7.0),
        ("rating: 10.", 10.0),
        ("A 9? No.\n**Rating:** 8/10", 8.0),
        ("Rating: 3\nOn reflection:\nRating: 4.5", 4.5),
        ("Rating: 11", None),
        ("Rating: 0", None),
        ("Seven of ten", None),
        ("", None),
        # The scale is not the rating.
        ("Rating (1-10): 7", 7.0),
        ("Rating (1\u201310): 10", 10.0),
        ("**Rating (1 to 10):** 7", 7.0),
        ("Rating [1-10]: 7", 7.0),
        ("Rating 1-10: 7", 7.0),
        ("Rating from 1 to 10: 7", 7.0),
        ("Rating on a scale of 1 to 10: 7", 7.0),
        ("Rating (on a scale of 1-10) is 7", 7.0),
        ("Rating (out of 10): 7", 7.0),
        ("Rating (1 = worst, 10 = best): 7", 7.0),
        ("Rating (overall): 7", 7.0),
        ("Rating out of 10: 7", 7.0),
        ("Rating: 7/10", 7.0),
        ("Rating: 7 / 10.", 7.0),
        ("Rating: 7 out of 10", 7.0),
        ("Rating: **7**/10", 7.0),
        ("Rating: 10/10", 10.0),
        ("Rating: 1/10", 1.0),
        ("Rating: 7 on a scale of 1 to 10", 7.0),
        ("Rating: 7 (on a scale of 1-10)", 7.0),
        # Another scale, or no number by itself.
        ("Rating: 1-10", None),
        ("Rating (1-5): 4", None),
        ("Rating (0-100): 7", None),
        ("Rating (out of 5): 4", None),
        ("Rating: 4/5", None),
        ("Rating: 4 out of 5", None),
        ("Rating: 4 stars out of 5", None),
        ("Rating: 4 on a scale of 1 to 5", None),
        ("Rating: 7/100", None),
        ("Rating: 7%", None),
        ("Rating: 7-8", None),
        ("Rating: 7 - 8", None),
        ("Rating: 7\u20138", None),
        ("Rating: **7**-**8**", None),
        ("Rating: 7 to 8", None),
        ("Rating: 7 or 8", None),
        ("Rating: 7/10 or 8/10", None),
        ("Rating: 6/10 - 7/10", None),
        ("Rating: 7+", None),
        ("Rating: 7.5.1", None),
        ("Rating: 7, 8", None),
        ("Rating: 1,000", None),
        ("Rating: 7th", None),
        # A sign is part of the number; a dash between spaces, or before an item of a list, is not.
        ("Rating: -5", None),
        ("Rating: \u22125", None),
        ("Rating: - 5", None),
        ("Rating -5", None),
        ("Rating: -0.5", None),
        ("Score: -0.5", None),
        ("Rating: +5", 5.0),
        ("Rating - 7", 7.0),
        ("Rating — 7", 7.0),
        ("Rating:\n- 7", 7.0),
        ("Rating: 7 - a good answer", 7.0),
        ("Rating: 7\n- 2 errors", 7.0),
        # However it is written.
        ("**Rating**: 8.5", 8.5),
        ("Rating: [[7]]", 7.0),
        ("[[Rating: 7]]", 7.0),
        ("Rating: 7,5", 7.5),
        ('{"rating": 7}', 7.0),
        ('{"rating": "7"}', 7.0),
        ("<rating>7</rating>", 7.0),
        ("## Rating\n\n7", 7.0),
        ("Rating:\u00a07", 7.0),
        ("__Rating:__ 7", 7.0),
        ("__Rating: 7__", 7.0),
        ('{"rating": 7, "errors": 2}', 7.0),
        ("Rating = 7", 7.0),
        ("The rating is 7.", 7.0),
        ("I give it a rating of 3", 3.0),
        ("I rate it 7. Rating: 8", 8.0),
        ("Rating: 0.5", None),
        ("Rating: 10.5", None),
        ("Rating: 110", None),
        ("Operating: 7", None),
        # The last statement decides, readable or not; the word alone is no statement.
        ("Rating: 8\nRating: 7-8", None),
        ("Rating: 8\nRating: 11", None),
        ("Rating: 8. This rating takes 2 errors into account.", 8.0),
        ("Rating: 8\nReason for the rating: it is right.", 8.0),
        ("Rating: N, so Rating: 6", 6.0),
        ("Rating: 8\nRating: N/A", None),
        ("Rating: 6\nA previous rating of 3 was harsh.", 6.0),
    ],
)
def test_parse_rating(reply: str, rating: float | None) -> None:
    """The last rating counts; what is not one number from 1 to 10, on a scale up to 10, is none."""
    assert parse_rating(reply) == rating


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Rating: 7/10", 7.0),
        ("Rating: **7** / 10", 7.0),
        ("Rating: 10/10", 10.0),
        ("Rating: 7 out of 10", 7.0),
        ("Rating: 7 on a scale of 1 to 10", 7.0),
        ("Rating: 4/5", None),
        ("Rating: 4 stars out of 5", None),
        ("Rating: 7 out of 100", None),
        ("Rating (1-10): 7", 7.0),
        ("Rating 1-10: 7", 7.0),
        ("**Rating (1\u201310)**: 7", 7.0),
        ("Rating on a scale from 1 to 10: 7", 7.0),
        ("Rating (1 = bad, 10 = good): 7", 7.0),
        ("Rating (out of 10): 7", 7.0),
        ("Rating: (1-10) 7", 7.0),
        ("Rating (1-5): 4", None),
        ("Rating (out of 5): 4", None),
        ("Rating (1-100): 7", None),
        ("Rating: 1-10", None),
    ],
)
def test_a_scale_is_no_rating(reply: str, rating: float | None) -> None:
    """The scale that a judge writes beside its rating is not read as it; of another scale there is none."""
    assert parse_rating(reply) == rating


@pytest.mark.parametrize(
    "reply",
    [
        *("Rating: -5", "Rating: \u22125", "Rating -7", "Score: -0.5", "Rating: 0.5", "Rating: .5"),
        *("Rating: 7-8", "Rating: 7 \u2013 8", "Rating: 7 to 8", "Rating: 7 or 8", "Rating: between 7 and 8"),
        *(
            "Rating: 7, 8",
            "Rating: 7 and a half",
            "Rating: 7\u00bd",
            "Rating: 7 1/2",
            "Rating: 7+",
            "Rating: 7%",
        ),
        *("Rating: >7", "Rating: about 7", "Rating: 7.5.1", "Rating: 1,000", "Rating: 7e1"),
        *("Rating:\n1. It is clear.\n2. It is long.", "This is my rating\n\n1. It is clear."),
        *(
            "It does not deserve a rating of 10.",
            "A rating of 4, or a rating of 5.",
            "Depth score: 8. Wit score: 6",
        ),
    ],
)
def test_what_can_be_read_in_two_ways_is_no_rating(reply: str) -> None:
    """Signs, ranges, fractions, lists and several numbers are not cut down to a number in them."""
    assert parse_rating(reply) is None


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        *(
            ("**Rating**: 8.5", 8.5),
            ("Rating: __6__", 6.0),
            ("Rating: [[7]]", 7.0),
            ("Rating: \\boxed{7}", 7.0),
        ),
        *(
            ("Rating:\n7", 7.0),
            ("### Rating\n7", 7.0),
            ("Rating - 7", 7.0),
            ("Rating: +7", 7.0),
            ("RATING:7", 7.0),
        ),
        *(("<rating>7</rating>", 7.0), ('{"rating": 7, "why": 3}', 7.0), ("| Rating | 7 |", 7.0)),
        *(("Rating: 7,5", 7.5), ("Rating: 7 \u2013 good", 7.0), ("Rating: 7\n- 2 strong points", 7.0)),
        *(("I give it a rating of 3.", 3.0), ("My rating would be 6.5.", 6.5), ("Score: 8/10", 8.0)),
        *(("Score: 3\nRating: 7", 7.0), ("Rating: 7 because 2 facts are wrong", 7.0)),
    ],
)
def test_a_rating_may_be_written_in_many_ways(reply: str, rating: float) -> None:
    """Markup, signs and words around the number change nothing."""
    assert parse_rating(reply) == rating
