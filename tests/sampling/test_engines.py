"""The engines: a real OpenAI-compatible server on loopback, transformers, and a stand-in for vLLM."""

import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from preftune.cli import sample as command
from preftune.errors import InputError
from preftune.sampling.engine import Generated
from preftune.sampling.engines import ENGINES, build_engine
from preftune.sampling.settings import SamplingSettings

from ..conftest import serving

CommandLine = Callable[..., tuple[int, str]]
CHAT = [{"role": "user", "content": "Hello?"}]
SETTINGS = SamplingSettings(n=3, max_new_tokens=5, temperature=0.7, top_p=0.9, seed=4)


class Endpoint(ThreadingHTTPServer):
    """Answers completions and chat completions with a text that names the prompt and the seed.

    Attributes:
        asked: path and body of each request, in order of arrival.
        keys: what came as authorization.
        fails_after: requests that are answered before all others are refused.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.keys: set[str | None] = set()
        self.fails_after = 1_000_000


class Handler(BaseHTTPRequestHandler):
    """The two paths of OpenAI's API, and vLLM's /version."""

    server: Endpoint

    def do_GET(self) -> None:
        """Reply with the server's version."""
        found = self.path == "/version"
        self._send(200 if found else 404, {"version": "9.8.7"} if found else {})

    def do_POST(self) -> None:
        """Reply to one request."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.keys.add(self.headers["Authorization"])
        if len(self.server.asked) >= self.server.fails_after:
            self._send(400, {"error": {"message": "the model is gone"}})
            return
        self.server.asked.append((self.path, body))
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length" if body["seed"] % 2 else "stop"}
        if self.path == "/v1/chat/completions":
            said = f"{body['messages'][-1]['content']} {body['seed']}"
            choice["message"] = {"role": "assistant", "content": said}
        else:
            choice["text"] = f"{body['prompt']} {body['seed']}"
        usage = {"prompt_tokens": 1, "completion_tokens": body["seed"] % 5, "total_tokens": 1}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
        self._send(200, {**answer, "choices": [choice], "usage": usage})

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A running server that the environment names."""
    server = Endpoint()
    with serving(server, monkeypatch):
        yield server


def sample(engine: str, model: str, prompts: list[Any], repeats: list[int], **changes: Any) -> Any:
    """Sample with SETTINGS, or some of them changed."""
    settings = SamplingSettings(**{**vars(SETTINGS), **changes})
    with build_engine(engine, model, rows=8).ready() as ready:
        return ready(prompts, repeats, settings)


def test_a_server_is_asked_once_for_every_response(endpoint: Endpoint) -> None:
    """Text goes to completions, messages to chat, each request with the settings and a seed of its own.

    Answers come back in order, with the server's count of tokens and its finish reason.
    """
    groups = sample("server", "tuned", ["Once", CHAT], [0, 0])
    by_path: dict[str, list[dict[str, Any]]] = {}
    for path, body in endpoint.asked:
        by_path.setdefault(path, []).append(body)
    common = {"model": "tuned", "n": 1, "max_tokens": 5, "temperature": 0.7, "top_p": 0.9}
    texts, chats = by_path["/v1/completions"], by_path["/v1/chat/completions"]
    seeds = {body.pop("seed") for body in texts + chats}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert texts == [{"prompt": "Once", **common}] * 3
    assert chats == [{"messages": CHAT, **common}] * 3
    for start, group in zip(("Once", "Hello?"), groups, strict=True):
        for response in group:
            said, seed = response.text.split()
            expected = Generated(f"{start} {seed}", int(seed) % 5, "length" if int(seed) % 2 else "stop")
            assert (said, response) == (start, expected)
    assert endpoint.keys == {"Bearer of-the-test"}


def test_a_servers_seeds_name_prompt_repeat_and_number(endpoint: Endpoint) -> None:
    """More responses begin with the same seeds, a prompt's repeat and another seed have others.

    The order of a message's keys is no part of the prompt.
    """
    two = sample("server", "tuned", [CHAT], [0], n=2)
    turned = [dict(reversed(message.items())) for message in CHAT]
    assert sample("server", "tuned", [turned], [0], n=4)[0][:2] == two[0]
    others = [
        sample("server", "tuned", [CHAT], [1], n=2)[0],
        sample("server", "tuned", [CHAT], [0], n=2, seed=5)[0],
    ]
    assert len({response.text for group in (*two, *others) for response in group}) == 6


def test_a_server_that_fails_is_named_with_its_reason(endpoint: Endpoint) -> None:
    """The server's own words are in the error."""
    endpoint.fails_after = 2
    with pytest.raises(InputError, match=r"engine=server, model=tuned at .*the model is gone.*start again"):
        sample("server", "tuned", ["Once"], [0])


def test_a_servers_version_is_asked_for(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server says at /version is in the description; one that is not there has an unknown version."""
    assert build_engine("server", "tuned", 8).description == {
        "engine": "server",
        "version": "9.8.7",
        "model": "tuned",
    }
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert build_engine("server", "tuned", 8).description["version"] == "unknown"


def test_a_file_is_sampled_from_a_server(
    endpoint: Endpoint, preftune: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`preftune sample NAME FILE --engine server` writes answers, counts and reasons, and continues.

    A server that fails in the second shard leaves the first, which is not asked for again; the key is in no
    file.
    """
    monkeypatch.setattr("preftune.sampling.sample_file.PROMPTS_PER_CHUNK", 1)
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "Once"}\n{"prompt": "Twice"}\n', encoding="utf-8")
    call = ["sample", "tuned", str(prompts), "--output", str(output), "--engine", "server", "--n", "2"]
    endpoint.fails_after = 2
    code, errors = preftune(*call)
    assert code == 2
    assert "the model is gone" in errors
    endpoint.fails_after = 1_000_000
    assert preftune(*call)[0] == 0
    assert [body["prompt"] for _, body in endpoint.asked] == ["Once", "Once", "Twice", "Twice"]
    first, second = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    assert [text.split()[0] for text in first["responses"] + second["responses"]] == [
        *("Once", "Once"),
        *("Twice", "Twice"),
    ]
    seeds = [int(text.split()[1]) for text in first["responses"]]
    assert first["response_tokens"] == [seed % 5 for seed in seeds]
    assert first["finish_reasons"] == ["length" if seed % 2 else "stop" for seed in seeds]
    assert first["sampler"] == {
        "engine": "server",
        "version": "9.8.7",
        "model": "tuned",
        "n": 2,
        "max_new_tokens": 256,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": 0,
    }
    assert not any(b"of-the-test" in file.read_bytes() for file in tmp_path.iterdir())


def test_transformers_is_described_by_version_and_weights(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Other weights are another model, wherever they stand; the same ones elsewhere are the same."""
    engine = build_engine("transformers", str(tiny_model_dir), 8)
    assert engine.description["engine"] == "transformers"
    assert engine.description["version"] == transformers.__version__
    assert engine.description["precision"] in {"float32", "bfloat16"}
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    for file in tiny_model_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert build_engine("transformers", str(tmp_path), 8).identity == engine.identity
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path)
    changed = build_engine("transformers", str(tmp_path), 8)
    assert changed.description["model"] != engine.description["model"]
    assert changed.identity != engine.identity


class StandIn:
    """What `VllmEngine` uses of vLLM's LLM, after its documentation; it answers with what it is asked."""

    made: dict[str, Any]

    def __init__(self, **settings: Any) -> None:
        StandIn.made = settings

    def generate(self, prompts: list[Any], parameters: list[Any], use_tqdm: bool) -> list[Any]:
        """One request each, with its own parameters."""
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(
                        text=json.dumps([prompt["prompt_token_ids"], vars(parameter)]),
                        token_ids=[1, 2, 3],
                        finish_reason="stop",
                    )
                ]
            )
            for prompt, parameter in zip(prompts, parameters, strict=True)
        ]


def test_vllm_gets_our_tokens_and_a_seed_for_every_response(
    tiny_model_dir: Path, smollm2_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in, since vLLM needs a GPU: what is asked of it, and that answers keep their order."""
    vllm = ModuleType("vllm")
    vllm.LLM, vllm.SamplingParams = StandIn, SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    versions = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.1" if name == "vllm" else versions(name)
    )
    groups = sample("vllm", str(tiny_model_dir), ["Once", CHAT], [0, 0], n=2)
    assert StandIn.made == {
        "model": str(tiny_model_dir),
        "max_num_seqs": 8,
        "enable_prefix_caching": True,
    }
    told = [json.loads(response.text) for group in groups for response in group]
    chat = smollm2_tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    once, asked = smollm2_tokenizer("Once")["input_ids"], smollm2_tokenizer(chat)["input_ids"]
    assert [ids for ids, _ in told] == [once, once, asked, asked]
    assert len({parameters.pop("seed") for _, parameters in told}) == 4
    expected = {"n": 1, "max_tokens": 5, "temperature": 0.7, "top_p": 0.9}
    assert all(parameters == expected for _, parameters in told)
    assert all(
        (response.tokens, response.finish_reason) == (3, "stop") for group in groups for response in group
    )


@pytest.mark.parametrize(
    ("engine", "model", "environment", "message"),
    [
        ("transformer", "x", {}, r"engine=transformer must be one of .*did you mean 'transformers'"),
        ("transformers", "./nowhere", {}, "model=./nowhere"),
        ("vllm", "x", {}, "engine=vllm needs the package vllm"),
        ("server", "x", {"OPENAI_API_KEY": ""}, "engine=server, model=x needs OPENAI_API_KEY"),
    ],
)
def test_an_engine_that_cannot_be_used_says_why(
    engine: str, model: str, environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the engine and what to do, before anything is loaded."""
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(InputError, match=message):
        build_engine(engine, model, 8)


def test_the_command_line_names_every_engine(
    preftune: CommandLine, capfd: pytest.CaptureFixture[str]
) -> None:
    """The help of `--engine` has them all."""
    (option,) = command.__annotations__["engine"].__metadata__
    assert option.help == f"{', '.join(list(ENGINES)[:-1])} or {list(ENGINES)[-1]}."
