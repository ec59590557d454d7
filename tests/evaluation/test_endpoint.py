"""Asking an endpoint: what it does wrong is survived, or stops with the reason and everything kept."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import InputError
from preftune.serving.asking import Interview, Request
from preftune.serving.endpoint import Endpoint, Limits
from preftune.serving.prices import Budget, Price
from preftune.serving.replies import ReplyCache


def requests(count: int, **changed: Any) -> list[Request]:
    """Questions that differ."""
    return [
        Request(f"question {number}", ({"role": "user", "content": f"{number}?"},), 8, 0.0, **changed)
        for number in range(count)
    ]


def interview(folder: Path, endpoint: Endpoint | None = None, **limits: Any) -> Interview:
    """Asks a model named `m`, one request at a time unless said otherwise."""
    endpoint = endpoint or Endpoint("m", Limits(**{"concurrency": 1, "retries": 2, "timeout": 20.0} | limits))
    return Interview(endpoint, ReplyCache(folder / "replies.jsonl"), "test 1")


def asked(server: Any) -> list[str]:
    """Contents of the questions that arrived."""
    return [body["messages"][-1]["content"] for body in server.asked]


def test_a_reply_is_what_the_server_says(server: Any, tmp_path: Path) -> None:
    """Parameters go out as asked for; text, log-probabilities and token counts come back."""
    server.reply = lambda body: f"to {body['messages'][0]['content']}"
    server.log_probs = lambda body: {"a": -0.5, "b": -1.5}
    (reply,) = interview(tmp_path).ask(requests(1, top_log_probs=2), "test")
    body = server.asked[0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 8, 0.0)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    assert reply.text == "to 0?"
    assert reply.log_probs is not None
    weights = {one["token"]: one["logprob"] for one in reply.log_probs[0]["top_logprobs"]}
    assert weights == {"a": -0.5, "b": -1.5}
    assert (reply.prompt_tokens, reply.completion_tokens) == (100, 10)


@pytest.mark.parametrize("fault", ["429", "500", "empty", "html", "no choices", "parts", "dies"])
def test_a_fault_that_passes_is_survived(server: Any, tmp_path: Path, fault: str) -> None:
    """A busy, failing or dying server, and what is no completion, is asked again until it replies."""
    server.script = [fault, fault]
    assert [reply.text for reply in interview(tmp_path).ask(requests(2), "test")] == ["fine", "fine"]
    assert asked(server) == ["0?", "0?", "0?", "1?"]


def test_half_a_character_is_kept_as_text(server: Any, tmp_path: Path) -> None:
    """A cut emoji, which no file can hold, is replaced when it comes, so that the reply can be written."""
    server.reply = lambda body: "so \ud83d"
    (reply,) = interview(tmp_path).ask(requests(1), "test")
    assert reply.text == "so ?"


def test_a_hanging_server_is_given_up_and_asked_again(server: Any, tmp_path: Path) -> None:
    """After the timeout the request is sent again."""
    server.script = ["hang"]
    assert interview(tmp_path, timeout=1.0).ask(requests(1), "test")[0].text == "fine"
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("500", "not now"),
        ("429", "not now"),
        ("empty", "no JSON"),
        ("html", "busy"),
        ("no choices", "no chat completion"),
        ("dies", "onnection"),
        ("hang", "timed out"),
    ],
)
def test_a_fault_that_stays_stops_with_the_reason(server: Any, tmp_path: Path, fault: str, says: str) -> None:
    """The error names model, question and reason; afterwards only what is unknown is asked."""
    server.script = ["", *[fault] * 10]
    with pytest.raises(InputError, match=says) as stopped:
        interview(tmp_path, timeout=1.0, retries=1).ask(requests(3), "test")
    assert "m at http://127.0.0.1" in str(stopped.value)
    assert "question 1" in str(stopped.value)
    server.script.clear()
    server.asked.clear()
    assert len(interview(tmp_path).ask(requests(3), "test")) == 3
    assert asked(server) == ["1?", "2?"]
    server.asked.clear()
    interview(tmp_path).ask(requests(3), "test")
    assert server.asked == []


def test_replies_under_way_are_kept_when_one_fails(server: Any, tmp_path: Path) -> None:
    """Where one is refused, nothing more is sent, and what was under way beside it is not asked again."""
    server.script = ["", "400"]
    server.delay = 0.05
    with pytest.raises(InputError, match="not now"):
        interview(tmp_path, concurrency=3).ask(requests(50), "test")
    known = len(server.asked) - 1
    assert 1 <= known < 49
    server.asked.clear()
    interview(tmp_path, concurrency=3).ask(requests(50), "test")
    assert len(server.asked) == 50 - known


def test_the_key_is_nowhere(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a server that repeats the key in its refusal nor a password in its address gives it away."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://user:secret@127.0.0.1:{server.server_port}/v1")
    server.script = ["", "401"]
    with pytest.raises(InputError, match="refused with") as stopped:
        interview(tmp_path).ask(requests(2), "test")
    written = (tmp_path / "replies.jsonl").read_text(encoding="utf-8")
    for secret in ("sk-of-the-test", "secret"):
        assert secret not in str(stopped.value)
        assert secret not in written


def test_no_more_requests_at_a_time_than_allowed(server: Any, tmp_path: Path) -> None:
    """Four are at work together whenever there are so many, and never more."""
    together = threading.Barrier(4)
    server.reply = lambda body: str(together.wait(timeout=60))
    interview(tmp_path, concurrency=4).ask(requests(12), "test")
    assert server.most == 4


def test_requests_keep_to_the_rate(server: Any, tmp_path: Path) -> None:
    """At 600 a minute the sixth starts half a second after the first, whoever is free to send it."""
    started = time.monotonic()
    interview(tmp_path, concurrency=6, requests_per_minute=600.0).ask(requests(6), "test")
    assert max(server.times) - started >= 0.5


def priced(max_cost: float, concurrency: int = 2) -> Endpoint:
    """A million tokens of prompts cost 1, of replies 10."""
    return Endpoint("m", Limits(concurrency=concurrency), price=Price(1.0, 10.0), budget=Budget(max_cost))


def test_the_limit_is_never_passed(server: Any, tmp_path: Path) -> None:
    """A request is sent only where its worst case fits.

    A reply costs 50 * 1 + 5 * 10 = 100 millionths. A request costs at most 2 bytes + 64 of prompt and 8
    tokens of reply: 66 + 80 = 146. Of 500 four are sent: the fifth might make 400 + 146.
    """
    server.usage = (50, 5)
    endpoint = priced(500e-6, concurrency=1)
    with pytest.raises(InputError, match=r"--max-cost 0\.0005"):
        interview(tmp_path, endpoint).ask(requests(9), "test")
    assert len(server.asked) == 4
    assert endpoint.budget.spent == pytest.approx(400e-6)
    assert (endpoint.usage.prompt_tokens, endpoint.usage.completion_tokens) == (200, 20)
    server.asked.clear()
    interview(tmp_path, priced(1.0)).ask(requests(9), "test")
    assert sorted(asked(server)) == ["4?", "5?", "6?", "7?", "8?"]


def test_what_is_under_way_is_reserved(server: Any, tmp_path: Path) -> None:
    """Money for two requests' worst case (292) lets no third go out beside them, however many may."""
    server.delay = 0.1
    server.usage = (10, 1)
    interview(tmp_path, priced(300e-6, concurrency=8)).ask(requests(6), "test")
    assert server.most <= 2
    assert len(server.asked) == 6


def test_a_server_that_does_not_count_is_taken_at_its_worst(server: Any, tmp_path: Path) -> None:
    """Without token counts a reply costs what it can at most: 146 millionths each, so three of 500."""
    server.usage = None
    with pytest.raises(InputError, match="--max-cost"):
        interview(tmp_path, priced(500e-6)).ask(requests(9), "test")
    assert len(server.asked) == 3


def test_missing_log_probabilities_stop_at_once(server: Any, tmp_path: Path) -> None:
    """A server that leaves them out silently is found out by its first reply, and the way on is named."""
    with pytest.raises(InputError, match="--without-log-probs"):
        interview(tmp_path).ask(requests(5, top_log_probs=5), "test")
    assert len(server.asked) == 1


def test_options_go_over_the_protocols(server: Any, tmp_path: Path) -> None:
    """A parameter can be added, or left out by null; other options are other replies."""
    endpoint = Endpoint("m", Limits(), {"max_tokens": None, "max_completion_tokens": 9})
    interview(tmp_path, endpoint).ask(requests(1), "test")
    assert "max_tokens" not in server.asked[0]
    assert server.asked[0]["max_completion_tokens"] == 9
    interview(tmp_path).ask(requests(1), "test")
    assert len(server.asked) == 2


def test_a_key_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one nothing is asked, and the variable is named."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        Endpoint("m")


@pytest.mark.parametrize("given", ["1", "a,b", "-1,2", "nan,1", "1,inf"])
def test_prices_are_two_numbers(given: str) -> None:
    """Anything else is refused with the flag that it was given by."""
    with pytest.raises(InputError, match="--price"):
        Price.parse("--price", given)


def test_a_limit_needs_a_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """Money cannot be counted without one."""
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with pytest.raises(InputError, match="price of m"):
        Endpoint("m", budget=Budget(1.0))


def test_changed_requests_are_asked_anew(server: Any, tmp_path: Path) -> None:
    """Model, messages, temperature, length and version decide a reply; a request's name does not."""
    (request,) = requests(1)
    variants = [
        replace(request, temperature=0.5),
        replace(request, max_tokens=9),
        replace(request, messages=({"role": "user", "content": "other"},)),
    ]
    interview(tmp_path).ask([request], "test")
    interview(tmp_path).ask([replace(request, name="renamed")], "test")
    assert len(server.asked) == 1
    interview(tmp_path).ask(variants, "test")
    interview(tmp_path, Endpoint("other")).ask([request], "test")
    replace(interview(tmp_path), version="test 2").ask([request], "test")
    assert len(server.asked) == 1 + 3 + 1 + 1
