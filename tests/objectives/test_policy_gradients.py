"""Policy gradients of a prompt's own samples: by hand, against the papers' formulas, and against TRL."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from preftune.objectives import Losses, ScoredResponses, build, count_units

from .test_trl_parity import make_model, make_tokenizer

Run = tuple[Losses, Tensor]


def samples(
    rewards: list[float], groups: list[int], *, seed: int = 0, lengths: list[int] | None = None
) -> ScoredResponses:
    """Responses with random log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    count, none = len(rewards), torch.empty(0, dtype=torch.int64)
    return ScoredResponses(
        logps=(torch.randn(count, generator=generator, dtype=torch.float64) - 5).requires_grad_(),
        lengths=torch.tensor(lengths or [3] * count),
        chosen=none,
        rejected=none,
        reference_logps=torch.randn(count, generator=generator, dtype=torch.float64) - 5,
        prior_reward=torch.tensor(rewards, dtype=torch.float64),
        groups=torch.tensor(groups),
    )


def run(settings: dict[str, Any], responses: ScoredResponses) -> Run:
    """Losses, and the gradient of their total with respect to the log-probabilities."""
    losses = build(settings)(responses)
    total = losses.total(count_units(responses.lengths, responses.chosen, responses.groups))
    (gradient,) = torch.autograd.grad(total, responses.logps)
    return losses, gradient


THREE = ([1.0, 0.5, 0.0], [0, 0, 0])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # The others' means are 0.25, 0.5 and 0.75.
        ({"method": "rloo", "beta": 0.0}, [0.75, 0.0, -0.75]),
        # Pairs: 1 * (0.5 + 1), then 0.5 - 0.5 * 0.5, then -1 * 1 - 0.5 * 0.5, each over 2.
        ({"method": "rloo", "beta": 0.0, "prior": "reward_gap"}, [0.75, 0.125, -0.625]),
        ({"method": "grpo", "scale_rewards": False}, [0.5, 0.0, -0.5]),
        ({"method": "grpo", "scale_rewards": False, "prior": "reward_gap"}, [0.5, 0.25 / 3, -1.25 / 3]),
        # The standard deviation is 0.5, to which 0.0001 is added.
        ({"method": "grpo"}, [0.5 / 0.5001, 0.0, -0.5 / 0.5001]),
    ],
)
def test_advantages_by_hand(settings: dict[str, Any], expected: list[float]) -> None:
    """Rewards 1, 0.5 and 0 of one prompt, with and without the prior."""
    losses, gradient = run(settings, samples(*THREE))
    advantage = losses.metrics["policy/advantage"]
    torch.testing.assert_close(advantage, torch.tensor(expected), rtol=1e-6, atol=1e-7)
    tokens = 3 if settings["method"] == "grpo" else 1
    torch.testing.assert_close(
        gradient, -torch.tensor(expected, dtype=torch.float64) / 3 / tokens, rtol=1e-7, atol=1e-9
    )
    torch.testing.assert_close(losses.metrics["loss/preference"], -advantage)


@pytest.mark.parametrize("seed", range(3))
def test_leave_one_out_is_its_papers_formula(seed: int) -> None:
    """In float64: -(R - the others' mean) / responses, with R = r - beta h, to 1e-10; prompts of any size."""
    generator = torch.Generator().manual_seed(seed)
    groups = [0, 0, 1, 2, 2, 2, 2]
    responses = samples(torch.rand(7, generator=generator).tolist(), groups, seed=seed)
    _, gradient = run({"method": "rloo", "beta": 0.3}, responses)
    assert responses.logps is not None
    ratio = responses.logps.detach() - responses.reference_logps
    reward = responses.prior_reward - 0.3 * ratio
    for place, group in enumerate(groups):
        others = [reward[other] for other in range(7) if groups[other] == group and other != place]
        advantage = reward[place] - torch.stack(others).mean() if others else torch.zeros(())
        assert gradient[place].item() == pytest.approx(-advantage.item() / 7, abs=1e-10)


def test_other_prompts_change_nothing() -> None:
    """A prompt's advantages are those that it has alone, in whatever order the batch comes."""
    settings = {"method": "grpo", "prior": "reward_gap"}
    alone = run(settings, samples(*THREE))[0].metrics["policy/advantage"]
    mixed, _ = run(settings, samples([1.0, 0.3, 0.5, 0.9, 0.0], [1, 0, 1, 0, 1]))
    torch.testing.assert_close(mixed.metrics["policy/advantage"][[0, 2, 4]], alone)


@pytest.mark.parametrize("settings", [{"method": "rloo"}, {"method": "grpo"}])
def test_equal_rewards_teach_nothing(settings: dict[str, Any]) -> None:
    """Advantages of 0 and a gradient of 0 without the divergence, and no division by a spread of 0."""
    settings = settings | ({"beta": 0.0} if settings["method"] == "rloo" else {})
    losses, gradient = run(settings, samples([0.5, 0.5], [0, 0]))
    assert losses.metrics["policy/advantage"].tolist() == [0.0, 0.0]
    assert gradient.tolist() == [0.0, 0.0]


def test_a_gap_of_one_is_the_plain_method() -> None:
    """With rewards of 1 and 0 alone every gap is 1, and the prior changes no bit."""
    responses = samples([1.0, 0.0, 0.0, 1.0], [0, 0, 0, 0])
    plain = run({"method": "rloo"}, responses)[1]
    assert torch.equal(run({"method": "rloo", "prior": "reward_gap"}, responses)[1], plain)


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_trl_has_the_same_gradient(name: str, tmp_path: Any) -> None:
    """On two prompts of three responses each, every weight's gradient is TRL's to 1e-5."""
    tokenizer = make_tokenizer()
    model = make_model(1)
    rewards, groups = [0.9, 0.2, 0.4, 0.1, 0.8, 0.6], [0, 0, 0, 1, 1, 1]
    lengths = [5, 2, 4, 1, 3, 5]
    generator = torch.Generator().manual_seed(0)
    completion = torch.randint(3, 20, (6, 5), generator=generator)
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).int()
    prompt = torch.randint(3, 20, (2, 4), generator=generator).repeat_interleave(3, dim=0)
    common: dict[str, Any] = {
        "output_dir": str(tmp_path),
        "num_generations": 3,
        "per_device_train_batch_size": 6,
        "report_to": "none",
        "use_cpu": True,
        "beta": 0.0,
        "bf16": False,
    }
    config = GRPOConfig(**common, loss_type="grpo") if name == "grpo" else RLOOConfig(**common)
    trainer_class = GRPOTrainer if name == "grpo" else RLOOTrainer
    trainer = trainer_class(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "name a fruit"}] * 2),
        processing_class=tokenizer,
    )
    model = trainer.model.eval()
    grouped = torch.tensor(rewards).view(2, 3)
    if name == "grpo":
        advantage = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
    else:
        advantage = grouped - (grouped.sum(1, keepdim=True) - grouped) / 2
    ids = torch.cat([prompt, completion * mask], dim=1)
    attention = torch.cat([torch.ones_like(prompt), mask], dim=1)

    def logps() -> Tensor:
        scores = model(ids, attention_mask=attention).logits[:, 3:-1].log_softmax(-1)
        return (scores.gather(-1, completion[..., None]).squeeze(-1) * mask).sum(1)

    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": completion * mask,
        "completion_mask": mask,
        "advantages": advantage.flatten(),
        "old_logps": logps().detach(),
        "num_items_in_batch": mask.sum(),
    }
    trainer._compute_loss(model, inputs).backward()
    expected = {key: weight.grad.clone() for key, weight in model.named_parameters()}
    model.zero_grad()
    none = torch.empty(0, dtype=torch.int64)
    responses = ScoredResponses(
        logps=logps(),
        lengths=torch.tensor(lengths),
        chosen=none,
        rejected=none,
        prior_reward=torch.tensor(rewards),
        groups=torch.tensor(groups),
    )
    settings: dict[str, Any] = {"method": name} | ({"beta": 0.0} if name == "rloo" else {})
    losses = build(settings)(responses)
    losses.total(count_units(responses.lengths, none, responses.groups)).backward()
    for key, weight in model.named_parameters():
        largest = expected[key].abs().max().item()
        torch.testing.assert_close(weight.grad, expected[key], rtol=1e-5, atol=1e-5 * largest)
