"""The routers' loss as a term of any objective."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from preftune.objectives import METHODS, ScoredResponses, build, count_units, resolve

from .spread_tokens import with_tokens

SETTINGS = {"method": "dpo", "beta": 0.1, "router_loss_weight": 0.5}


def responses(router_loss: float, lengths: list[int]) -> ScoredResponses:
    """Pairs whose policy is the reference, so that the preference term is log 2."""
    pairs = torch.arange(len(lengths) // 2)
    logps = -torch.tensor(lengths, dtype=torch.float32)
    scored = ScoredResponses(
        logps=logps,
        lengths=torch.tensor(lengths),
        chosen=2 * pairs,
        rejected=2 * pairs + 1,
        reference_logps=logps,
        router_loss=torch.tensor(router_loss, requires_grad=True),
        labels=torch.arange(len(lengths)) % 2 == 0,
        divergence=torch.tensor(0.0),
        auxiliary=torch.zeros(len(lengths)),
        values=torch.zeros(len(lengths)),
        scores=logps,
        prior_gap=torch.ones(len(pairs)),
        prior_reward=torch.ones(len(lengths)),
        groups=pairs.repeat_interleave(2),
    )
    return with_tokens(scored)


@pytest.mark.parametrize("method", METHODS)
def test_the_term_is_weight_times_loss(method: str) -> None:
    """0.5 * 1.5 = 0.75 is added to any method's loss, and 0.5 is the gradient of the routers' loss."""
    batch = responses(1.5, [2, 4, 3, 1])
    counts = count_units(batch.lengths, batch.chosen, batch.groups)
    with_router = build({"method": method, "router_loss_weight": 0.5})(batch)
    without = build({"method": method})(batch)
    total = with_router.total(counts)
    assert (total - without.total(counts)).item() == pytest.approx(0.75)
    total.backward()
    assert batch.router_loss is not None
    assert batch.router_loss.grad == 0.5
    assert with_router.metrics["loss/router"].tolist() == [1.5] * 4


def test_micro_batches_weigh_by_response_tokens() -> None:
    """Losses of 1 on 2 tokens and 2 on 6 make (1 * 2 + 2 * 6) / 8 = 1.75 for the step, and not 1.5."""
    batches = [responses(1.0, [1, 1]), responses(2.0, [4, 2])]
    own = [count_units(batch.lengths, batch.chosen) for batch in batches]
    step = {unit: own[0][unit] + own[1][unit] for unit in own[0]}
    total = torch.stack([build(SETTINGS)(batch).total(step) for batch in batches]).sum()
    assert total.item() == pytest.approx(torch.tensor(2.0).log().item() + 0.5 * 1.75)


def test_only_a_weight_asks_for_the_loss() -> None:
    """Without a weight, or with 0, the objective is the plain one and needs no routers."""
    assert build(SETTINGS).needs == {"pairs", "reference", "router_loss"}
    for weight in ({}, {"router_loss_weight": None}, {"router_loss_weight": 0}):
        assert build({"method": "dpo", **weight}) == build({"method": "dpo"})
    assert resolve({"router_loss_weight": 0})["router_loss_weight"] == 0.0
    assert "router_loss_weight" not in resolve({})
    assert resolve(resolve(SETTINGS)) == resolve(SETTINGS)


def test_a_batch_without_the_loss_is_refused() -> None:
    """The message names the field."""
    with pytest.raises(ValueError, match="router_loss is None"):
        build(SETTINGS)(replace(responses(1.0, [1, 1]), router_loss=None))


@pytest.mark.parametrize("value", [-0.1, float("inf"), "0.1", True])
def test_a_weight_must_be_a_number_of_at_least_zero(value: Any) -> None:
    """The message says what it must be."""
    with pytest.raises(ValueError, match=r"router_loss_weight = .* must be a finite number >= 0"):
        build({**SETTINGS, "router_loss_weight": value})
