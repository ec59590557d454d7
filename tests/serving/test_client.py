"""The client against real servers: every fault ends in one clear error, and no secret is ever shown."""

import asyncio
import base64
import gzip
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import InputError
from preftune.rewards.judge import PROMPT
from preftune.serving import client
from preftune.serving.asking import Interview, Request
from preftune.serving.endpoint import Endpoint, Limits
from preftune.serving.replies import ReplyCache

from ..scripted_server import scripted_server

CommandLine = Callable[..., tuple[int, str]]
KEY = "sk-never-to-be-seen-0123456789"


def interview(folder: Path, **limits: Any) -> Interview:
    """Asks a model named `m`, one request at a time and each once, unless said otherwise."""
    endpoint = Endpoint("m", Limits(**{"concurrency": 1, "retries": 0, "timeout": 20.0} | limits))
    return Interview(endpoint, ReplyCache(folder / "replies.jsonl"), "test 1")


def requests(count: int = 1) -> list[Request]:
    """Questions that differ."""
    return [
        Request(f"question {number}", ({"role": "user", "content": f"{number}?"},), 8, 0.0)
        for number in range(count)
    ]


def replying(status: int, content: str, **headers: str) -> Callable[[Any], None]:
    """What replies with this."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.send(status, content.encode(), headers=named or None)


def completion(text: str | None, finish_reason: str = "stop") -> str:
    """A reply with this message."""
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]})


def failure(folder: Path, **limits: Any) -> str:
    """The error of asking one question, on one line and short."""
    with pytest.raises(InputError) as stopped:
        interview(folder, **limits).ask(requests(), "test")
    said = str(stopped.value)
    assert "\n" not in said
    assert len(said) < 900
    return said


# --- errors ---


@pytest.mark.parametrize(
    ("status", "content", "says"),
    [
        (
            401,
            '{"error": {"message": "no entry"}}',
            r"key is refused \(401\): 'no entry'. Set OPENAI_API_KEY",
        ),
        (
            404,
            '{"error": {"message": "no m"}}',
            r"no such model or address \(404\): 'no m'. Correct the model",
        ),
        (404, "<html>not here</html>", r"\(404\): '<html>not here</html>'. Correct .* OPENAI_BASE_URL"),
        (400, '{"error": "too long"}', r"request is refused \(400\): 'too long'"),
        (400, "[" * 5000 + "]" * 5000, r"request is refused \(400\): '?\[\[\["),
        (
            400,
            '{"error": {"code": "content_filter", "message": "no"}}',
            r"content filter refuses.*Leave the row",
        ),
        (
            429,
            '{"error": {"message": "quota"}}',
            r"busy or a quota is used up \(429\): 'quota'. Ask for less",
        ),
        (503, "", r"server fails \(503\): ''. See its log"),
        (200, "<html>hello</html>", r"not JSON: '<html>hello</html>'. See that OPENAI_BASE_URL"),
        (200, "[" * 200_000, r"not JSON: '\[\[\["),
        (200, '{"error": {"message": "overloaded"}}', r"no choices: .*overloaded.*OPENAI_BASE_URL"),
        (200, '{"choices": []}', r"no choices: "),
        (200, '{"choices": [{"index": 0}]}', r"choice has no text: "),
        (200, '{"choices": [3]}', r"choice has no text: "),
    ],
)
def test_what_a_server_says_is_told(
    server: Any, tmp_path: Path, status: int, content: str, says: str
) -> None:
    """The error names model, address, question, what came and what to do."""
    server.always = replying(status, content)
    said = failure(tmp_path)
    assert re.search(says, said), said
    assert said.startswith(f"m at http://127.0.0.1:{server.server_port}/v1: question 0: ")


def test_an_error_says_how_often_it_was_tried(server: Any, tmp_path: Path) -> None:
    """A server that is always busy is asked once and `retries` times more."""
    server.always = "429"
    assert "asked 4 times, it is busy" in failure(tmp_path, retries=3)
    assert len(server.asked) == 4


def test_a_refusal_is_not_repeated(server: Any, tmp_path: Path) -> None:
    """A key that is refused once is refused again."""
    server.always = "401"
    failure(tmp_path, retries=5)
    assert len(server.asked) == 1


def test_nobody_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port where no server listens is named with the reason and the variable to correct."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
    said = failure(tmp_path)
    assert f"m at http://127.0.0.1:{port}/v1: question 0: the connection failed" in said
    assert "Start the server, or correct OPENAI_BASE_URL" in said


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("localhost:8000/v1", "localhost:8000/v1"),
        ("http://", "http://"),
        ("http://localhost:port/v1", "http://localhost:port/v1"),
        ("name:secret@host/v1?key=secret", "host/v1"),
    ],
)
def test_an_address_that_is_none(url: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown without what may be secret, before anything is asked."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(InputError, match=re.escape(f"OPENAI_BASE_URL={shown}: it must be")) as stopped:
        Endpoint("m")
    assert "secret" not in str(stopped.value)


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY} {KEY}", f"{KEY}\u2026"])
def test_a_key_that_no_header_holds(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before anything is asked, and not shown."""
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match="OPENAI_API_KEY holds a blank") as stopped:
        Endpoint("m")
    assert KEY not in str(stopped.value)


# --- limits of time and size ---


def drip(handler: Any) -> None:
    """Send a byte of a body now and then, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    trickle(handler, b"x")


def drip_headers(handler: Any) -> None:
    """Send a header now and then, for ever."""
    handler.send_response(200)
    handler.flush_headers()
    trickle(handler, b"X-More: 1\r\n")


def trickle(handler: Any, piece: bytes) -> None:
    """Send it every 50 milliseconds, until the other side has gone."""
    for _ in range(100):
        try:
            handler.wfile.write(piece)
        except OSError:
            break
        time.sleep(0.05)
    handler.close_connection = True


def flood(handler: Any) -> None:
    """Send as fast as it goes, for ever."""
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"x" * 2**16)
    except OSError:
        handler.close_connection = True


@pytest.mark.parametrize("fault", [drip, drip_headers, "hang"])
def test_a_reply_must_be_whole_in_time(server: Any, tmp_path: Path, fault: Any) -> None:
    """The limit is for the whole reply: neither silence nor a byte now and then goes on beyond it."""
    server.always = fault
    started = time.monotonic()
    assert "no whole reply came within 0.5 seconds. Give it more time" in failure(tmp_path, timeout=0.5)
    assert time.monotonic() - started < 2


def test_a_reply_has_a_largest_size(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends without end is left as soon as there are more bytes, and is not asked again."""
    monkeypatch.setattr(client, "LARGEST_REPLY", 2**20)
    server.always = flood
    assert "the reply is longer than 1 MB. See what stands at OPENAI_BASE_URL" in failure(tmp_path, retries=5)
    assert len(server.asked) == 1


# --- waiting ---


def waited(server: Any, folder: Path, **headers: str) -> float:
    """Seconds between a refusal with these headers and the next request."""
    server.script = [replying(429, "{}", **headers)]
    interview(folder, retries=1).ask(requests(), "test")
    return float(server.times[1] - server.times[0])


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"Retry_After": "1"}, 1.0, 1.9),
        ({"Retry_After": "0.2"}, 0.2, 0.9),
        ({"Retry_After": "0"}, 0.0, 0.3),
        ({"Retry_After_Ms": "300"}, 0.3, 0.9),
        ({"Retry_After": "-5"}, 0.0, 0.3),
        # What cannot be read is as if it were not there: half a second, less up to a quarter.
        ({"Retry_After": "soon"}, 0.375, 0.9),
        ({"Retry_After": "nan"}, 0.375, 0.9),
    ],
)
def test_a_server_says_how_long_to_wait(
    server: Any, tmp_path: Path, headers: dict[str, str], least: float, most: float
) -> None:
    """Retry-After decides when the request is sent again."""
    assert least <= waited(server, tmp_path, **headers) < most


def test_a_server_may_say_a_time(server: Any, tmp_path: Path) -> None:
    """Retry-After may be an HTTP date, which has whole seconds."""
    assert 0.9 < waited(server, tmp_path, Retry_After=formatdate(time.time() + 2, usegmt=True)) < 2.5


@pytest.mark.parametrize("given", ["3600", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_a_server_cannot_stop_a_run_for_hours(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """However long a server wants a pause, it is no longer than the longest."""
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.3)
    assert 0.3 <= waited(server, tmp_path, Retry_After=given) < 0.9


# --- redirects ---


def test_a_redirect_at_the_same_place_is_followed(server: Any, tmp_path: Path) -> None:
    """A 307 and a 308 to another path of the server get the same request there."""
    server.script = [replying(307, "", Location="/v2/chat"), replying(308, "", Location="?again=1")]
    assert interview(tmp_path).ask(requests(), "test")[0].text == "fine"
    assert [body["messages"][0]["content"] for body in server.asked] == ["0?"] * 3


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_elsewhere_is_refused(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Nothing goes to another origin, and both addresses are named, without what may be secret in them."""
    with pytest.MonkeyPatch.context() as other, scripted_server(other) as elsewhere:
        there = f"127.0.0.1:{elsewhere.server_port}/v1/chat"
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        server.always = replying(status, "", Location=f"http://user:secret@{there}?key=sk-of-the-test")
        said = failure(tmp_path, retries=3)
        assert (
            f"http://127.0.0.1:{server.server_port}/v1/chat/completions redirects to http://{there} " in said
        )
        assert "secret" not in said
        assert "sk-of-the-test" not in said
        assert elsewhere.asked == []
    assert len(server.asked) == 1


def test_a_redirect_in_circles_ends(server: Any, tmp_path: Path) -> None:
    """A server that redirects to itself is asked a few times only."""
    server.always = replying(307, "", Location="/v1/chat/completions")
    assert "redirects to" in failure(tmp_path)
    assert len(server.asked) == 4


# --- secrets ---


def echo(status: int, kind: str = "application/json") -> Callable[[Any], None]:
    """What replies with the key it was given, written in two ways."""

    def answer(handler: Any) -> None:
        given = handler.headers["Authorization"]
        if kind == "text/html":
            content = f"<html>{given}</html>"
        elif status == 200:
            content = completion(f"You are {given}").replace(KEY, KEY.replace("-", "\\u002d"))
        else:
            content = json.dumps({"error": given, given: [given]})
        handler.send(status, content.encode(), kind)

    return answer


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """One pair of texts."""
    row = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "fault",
    [echo(400), echo(401), echo(200, "text/html"), replying(307, "", Location=f"http://127.0.0.1:9/{KEY}")],
    ids=["400", "401", "html", "redirect"],
)
@pytest.mark.parametrize("verb", ["score", "sample"])
def test_a_key_that_a_server_repeats_is_never_shown(
    verb: str,
    fault: Any,
    server: Any,
    pairs: Path,
    preftune: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refusal, a page in place of JSON and a redirect are one message each, with the key masked."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.always = fault
    output = str(tmp_path / "out.jsonl")
    words = {
        "score": ("score", str(pairs), "--prior", "judge:any", "--output", output),
        "sample": ("sample", "any", str(pairs), "--engine", "server", "--output", output, "--n", "1"),
    }
    code, errors = preftune(*words[verb])
    assert code == 2, errors
    assert "Traceback" not in errors
    assert "***" in errors
    assert KEY not in errors
    assert not any(KEY in file.read_text(encoding="utf-8") for file in tmp_path.glob("*"))


def test_a_key_in_a_reply_is_masked_and_kept_so(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However a reply writes it, the key stands neither in the text nor in the file."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.always = echo(200)
    assert interview(tmp_path).ask(requests(), "test")[0].text == "You are Bearer ***"
    assert KEY not in (tmp_path / "replies.jsonl").read_text(encoding="utf-8")


def test_a_login_in_the_address_is_used_and_masked(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name and password of OPENAI_BASE_URL go out as basic authorization, and are shown in no form."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://me:open%20sesame@127.0.0.1:{server.server_port}/v1")
    told: list[str] = []

    def refuse(handler: Any) -> None:
        told.append(handler.headers["Authorization"])
        handler.send(400, f"{told[0]} is not open sesame".encode())

    server.always = refuse
    said = failure(tmp_path)
    assert told == ["Basic " + base64.b64encode(b"me:open sesame").decode()]
    assert "'Basic *** is not ***'" in said
    assert f"m at http://127.0.0.1:{server.server_port}/v1" in said


def test_nothing_is_told_about_this_machine(server: Any, tmp_path: Path) -> None:
    """Of the headers that openai adds, those that name system, architecture and interpreter stay here."""
    told: list[str] = []

    def refuse(handler: Any) -> None:
        told.extend(name.lower() for name in handler.headers)
        handler.send(400, b"no")

    server.always = refuse
    failure(tmp_path)
    assert "authorization" in told
    assert [name for name in told if name.startswith("x-stainless")] == []


def test_a_packed_reply_is_measured_unpacked(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply may come compressed, and its size is that of what it holds."""
    packed = gzip.compress(completion("a" * 2**20).encode())
    server.always = lambda handler: handler.send(200, packed, headers={"Content-Encoding": "gzip"})
    assert interview(tmp_path).ask(requests(), "test")[0].text == "a" * 2**20
    monkeypatch.setattr(client, "LARGEST_REPLY", 2**20)
    assert "the reply is longer than 1 MB" in failure(tmp_path / "again")


# --- what is odd, and is a reply all the same ---


@pytest.mark.parametrize(
    ("text", "finish_reason", "says"),
    [
        ("", "stop", "test: 1 of 2 new replies are empty"),
        (None, "length", "test: 1 of 2 new replies are empty, cut by max_tokens"),
        ("I ca", "content_filter", "test: 1 of 2 new replies are held back by the endpoint's content filter"),
    ],
)
def test_an_empty_reply_is_one_and_is_counted(
    server: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    text: str | None,
    finish_reason: str,
    says: str,
) -> None:
    """A model may say nothing; the log says how many did, and why."""
    server.script = [replying(200, completion(text, finish_reason))]
    replies = interview(tmp_path).ask(requests(2), "test")
    assert [reply.text for reply in replies] == [text or "", "fine"]
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [says]


def test_a_judge_that_says_nothing_is_told_why(
    server: Any, pairs: Path, preftune: CommandLine, tmp_path: Path
) -> None:
    """Where no reply has a rating, the message says that a filter held the last one back."""
    server.always = replying(200, completion("", "content_filter"))
    output = str(tmp_path / "out.jsonl")
    code, errors = preftune("score", str(pairs), "--prior", "judge:m:workers=1", "--output", output)
    assert code == 2
    assert "row 0, response 0: no reply of 3 has a rating from 1 to 10; the last is held back by" in errors


# --- who asks, and who stops it ---


def test_a_notebook_may_ask(server: Any, tmp_path: Path) -> None:
    """Where a loop runs already, as in a notebook, asking works as elsewhere."""

    async def cell() -> str:
        return interview(tmp_path).ask(requests(), "test")[0].text

    assert asyncio.run(cell()) == "fine"


def interrupted(server: Any, finished: int, call: Callable[[], Any]) -> float:
    """Press Ctrl-C once so many replies are there; seconds until the call has ended."""
    pressed: list[float] = []

    def press() -> None:
        while len(server.replied) < finished or len(server.asked) <= finished:
            time.sleep(0.01)
        time.sleep(0.2)
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        call()
    thread.join()
    return time.monotonic() - pressed[0]


@pytest.mark.parametrize("fault", ["hang", drip, replying(429, "{}", Retry_After="30")])
def test_ctrl_c_ends_at_once_and_keeps_what_is_finished(server: Any, tmp_path: Path, fault: Any) -> None:
    """Neither a silent server nor a wait holds it up; afterwards only the rest is asked for."""
    server.script, server.always = ["", "", ""], fault
    call = interview(tmp_path, concurrency=2, retries=5)
    assert interrupted(server, 3, lambda: call.ask(requests(8), "test")) < 10
    server.asked.clear()
    server.always = ""
    interview(tmp_path).ask(requests(8), "test")
    assert len(server.asked) == 5


def test_ctrl_c_keeps_responses_of_a_server(server: Any, tmp_path: Path) -> None:
    """Responses in the middle of a chunk are not asked for again, and nothing is left beside the output."""
    from preftune.api.sample import sample

    prompts, output = [{"prompt": [{"role": "user", "content": "Why?"}]}], tmp_path / "out.jsonl"
    server.reply = lambda body: f"seed {body['seed']}"
    expected = sample("m", prompts, n=6, engine="server", rows=1)

    def call() -> list[dict[str, Any]]:
        return sample("m", prompts, n=6, engine="server", rows=2, output=output)

    server.asked.clear()
    server.replied.clear()
    server.script, server.always = ["", "", ""], "hang"
    assert interrupted(server, 3, call) < 10
    server.asked.clear()
    server.always = ""
    assert call() == expected
    assert len(server.asked) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


# --- what may be spent ---


def test_a_judge_keeps_to_its_budget(server: Any, pairs: Path, preftune: CommandLine, tmp_path: Path) -> None:
    """What was rated before is kept under another budget, and is not paid for again.

    At a thousandth for a token a reply of 100 + 10 tokens costs 0.11, and a request at worst its bytes, 64
    and 8 tokens of reply. With 0.05 more than that, one goes out and the next does not.
    """
    most = (len(PROMPT.format(prompt="Why?", response="So.")) + 64 + 8) / 1000 + 0.05
    server.reply = lambda body: "Rating: 7"
    words = ["score", str(pairs), "--output", str(tmp_path / "out.jsonl"), "--prior"]
    judge = "judge:m:workers=1,max_tokens=8,price=1000,1000,max_cost="
    code, errors = preftune(*words, f"{judge}{most}")
    assert (code, len(server.asked)) == (2, 1)
    assert f"--max-cost {most:g}: 0.11 is spent and the next request to m may cost" in errors
    assert server.asked[0]["max_tokens"] == 8
    code, errors = preftune(*words, f"{judge}2")
    assert (code, len(server.asked)) == (0, 2), errors


def test_an_engine_keeps_to_its_budget(
    server: Any, pairs: Path, preftune: CommandLine, tmp_path: Path
) -> None:
    """Responses that were paid for are kept, and the rest is asked for with more money.

    A response of 100 + 10 tokens costs 0.11; at worst it is 4 + 64 + 8 tokens, 0.076: of 0.15 one goes out.
    """
    server.always = replying(200, json.dumps({"choices": [{"text": "So."}], "usage": {"prompt_tokens": 110}}))
    words = [
        "sample",
        "m",
        str(pairs),
        "--engine",
        "server",
        "--output",
        str(tmp_path / "out.jsonl"),
        "--n",
        "2",
    ]
    words += ["--max-new-tokens", "8", "--price", "1000,1000", "--rows", "1"]
    code, errors = preftune(*words, "--max-cost", "0.15")
    assert (code, len(server.asked)) == (2, 1)
    assert "--max-cost 0.15: 0.076 is spent" in errors
    code, errors = preftune(*words, "--max-cost", "1")
    assert (code, len(server.asked)) == (0, 2), errors


def test_a_model_in_this_process_has_no_price(preftune: CommandLine, pairs: Path, tmp_path: Path) -> None:
    """A budget without a server is refused, before a model is looked for."""
    words = ["sample", "./none", str(pairs), "--output", str(tmp_path / "out.jsonl"), "--max-cost", "1"]
    code, errors = preftune(*words)
    assert code == 2
    assert "max_cost: engine=transformers costs nothing" in errors
