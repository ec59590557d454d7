"""The chunked head gives what all logits at once would give."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from preftune.models import head as head_module
from preftune.models.head import response_token_collisions, response_token_logps


@pytest.fixture
def inputs() -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    """A biased head over 11 tokens, and 10 hidden states with their targets."""
    torch.manual_seed(0)
    head = nn.Linear(6, 11, dtype=torch.float64)
    return head, torch.randn(10, 6, dtype=torch.float64, requires_grad=True), torch.randint(11, (10,))


CONFIGURATIONS = {
    "plain": ({}, lambda logits: logits),
    "capped": ({"final_logit_softcapping": 0.7}, lambda logits: 0.7 * torch.tanh(logits / 0.7)),
    "divided": ({"logits_scaling": 3.0}, lambda logits: logits / 3),
    "multiplied": ({"logit_scale": 0.5}, lambda logits: logits * 0.5),
}


class _Unplain(nn.Linear):
    """A head that is not exactly a Linear, as under LoRA."""


@pytest.mark.parametrize("kind", [nn.Linear, _Unplain])
@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
def test_chunks_change_nothing(
    inputs, chunk: int, name: str, kind: type[nn.Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any chunk size, kind of head and change of its logits gives the log-softmax of all, with gradients."""
    head, hidden, targets = inputs
    head.__class__ = kind
    monkeypatch.setattr(head_module, "LOGITS_PER_CHUNK", 11 * chunk)
    keys, transform = CONFIGURATIONS[name]
    logps = response_token_logps(head, LlamaConfig(vocab_size=11, **keys), hidden, targets)
    (logps * torch.arange(10)).sum().backward()
    found = hidden.grad, head.weight.grad, head.bias.grad
    hidden.grad = head.weight.grad = head.bias.grad = None
    expected = transform(head(hidden)).log_softmax(-1)[torch.arange(10), targets]
    (expected * torch.arange(10)).sum().backward()
    torch.testing.assert_close(logps, expected.float())
    for gradient, other in zip(found, (hidden.grad, head.weight.grad, head.bias.grad), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-6)


def test_uniform_logits_give_the_logarithm_of_the_vocabulary() -> None:
    """A head of zeros over 8 tokens: every token has log p = -log 8 = -2.0794."""
    head = nn.Linear(2, 8, bias=False)
    nn.init.zeros_(head.weight)
    logps = response_token_logps(head, LlamaConfig(), torch.ones(3, 2), torch.tensor([0, 4, 7]))
    assert logps.tolist() == pytest.approx([-2.0794415] * 3)


@pytest.mark.parametrize("kind", [nn.Linear, _Unplain])
@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_collisions_are_of_the_whole_vocabulary(
    inputs, chunk: int, name: str, kind: type[nn.Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log sum_v p(v)^2 of every token, whatever the chunks, without gradient."""
    head, hidden, _ = inputs
    head.__class__ = kind
    monkeypatch.setattr(head_module, "LOGITS_PER_CHUNK", 11 * chunk)
    monkeypatch.setattr(head_module, "LOGITS_PER_STRIP", 11 * 2)
    keys, transform = CONFIGURATIONS[name]
    found = response_token_collisions(head, LlamaConfig(vocab_size=11, **keys), hidden)
    expected = (transform(head(hidden)).softmax(-1) ** 2).sum(-1).log()
    torch.testing.assert_close(found, expected.float())
    assert not found.requires_grad


def test_the_chance_of_the_same_token_twice() -> None:
    """A head of zeros over 8 tokens: 1/8, whose logarithm is -2.0794; and 0 where one token is sure."""
    head = nn.Linear(2, 8, bias=False)
    nn.init.zeros_(head.weight)
    config = LlamaConfig()
    assert response_token_collisions(head, config, torch.ones(1, 2)).tolist() == pytest.approx([-2.0794415])
    head.weight.data[3] = 1000.0
    assert response_token_collisions(head, config, torch.ones(1, 2)).tolist() == [0.0]


def test_hooks_on_the_head_are_called(inputs) -> None:
    """Whoever watches the head forward or backward sees it at work."""
    head, hidden, targets = inputs
    calls: list[str] = []
    for kind in ("forward_pre", "forward", "full_backward_pre", "full_backward"):
        hook = getattr(head, f"register_{kind}_hook")(lambda *_, kind=kind: calls.append(kind))
        response_token_logps(head, LlamaConfig(), hidden, targets).sum().backward()
        hook.remove()
    assert set(calls) == {"forward_pre", "forward", "full_backward_pre", "full_backward"}


def test_frozen_head_gets_no_gradient(inputs) -> None:
    """As under LoRA: the hidden states learn, the head does not."""
    head, hidden, targets = inputs
    head.requires_grad_(False)
    response_token_logps(head, LlamaConfig(), hidden, targets).sum().backward()
    assert head.weight.grad is None
    assert hidden.grad.abs().max() > 0


def test_bf16_logits_are_reduced_in_float32(inputs) -> None:
    """Under autocast the result is float32, and the error that of the product alone."""
    head, hidden, targets = inputs
    head, hidden = head.float(), hidden.detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        logps = response_token_logps(head, LlamaConfig(), hidden, targets)
    expected = head(hidden).log_softmax(-1)[torch.arange(10), targets]
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, expected, rtol=0.02, atol=0.02)
