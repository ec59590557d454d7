"""Servers on loopback: llama.cpp, and `transformers serve`."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from preftune.demo.model import _gguf_file

from ..scripted_server import name_endpoint


@pytest.fixture
def llama_cpp(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of llama.cpp's server with SmolLM2-135M, which the environment names."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(_gguf_file())
    parameters.n_ctx = 8192
    parameters.n_parallel = 2
    parameters.warmup = False
    parameters.cpuparams.n_threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    running = xllamacpp.Server(parameters)
    name_endpoint(monkeypatch, f"{running.listening_address}/v1")
    yield running.listening_address
    del running


@pytest.fixture
def transformers_serve(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name, at `transformers serve`, of a random Llama; the environment names the server."""
    from transformers.cli.serve import Serve

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = Serve(
        str(tiny_model_dir), device="cpu", dtype="float32", host="127.0.0.1", port=port, non_blocking=True
    )
    while not running.server.started:
        time.sleep(0.05)
    name_endpoint(monkeypatch, f"http://127.0.0.1:{port}/v1")
    yield str(tiny_model_dir)
    running.kill_server()
