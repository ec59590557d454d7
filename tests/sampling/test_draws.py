"""What a seed's uniform numbers pick."""

import pytest
import torch

from preftune.errors import InputError
from preftune.sampling.draws import draw, keep_nucleus, sample_seed, uniforms
from preftune.sampling.settings import SamplingSettings


def test_logits_that_are_no_numbers_stop():
    """A policy that has diverged is an error that says so, not a token out of the vocabulary."""
    logits = torch.zeros(2, 300)
    logits[1, 7] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        draw(logits, torch.full((2, 2), 0.5), 1.0)


def test_the_numbers_pick_by_hand():
    """With weights 1, 3 on one shelf and 4 on the next: half the first numbers go to each shelf.

    On the first shelf a quarter of the second numbers go to token 0. Limits belong to the token behind them,
    and a number rounded up to 1 to the last token that can be drawn. The probabilities are 1/8, 3/8 and 1/2.
    """
    logits = torch.full((1, 300), -torch.inf)
    logits[0, [0, 5, 260]] = torch.tensor([1.0, 3.0, 4.0]).log()
    picks = {
        (0.0, 0.0): 0,
        (0.49, 0.24): 0,
        (0.49, 0.26): 5,
        (0.0, 1.0): 5,
        (0.51, 0.0): 260,
        (1.0, 1.0): 260,
    }
    for numbers, token in picks.items():
        drawn, logp = draw(logits.clone(), torch.tensor([numbers]), temperature=1.0)
        assert drawn.item() == token
        assert logp.exp().item() == pytest.approx({0: 1 / 8, 5: 3 / 8, 260: 1 / 2}[token])


def test_the_nucleus_by_hand():
    """Of 0.5, 0.3, 0.15, 0.05 a nucleus of 0.8 has the first two, and one of 0.81 the third as well."""
    for top_p, kept in ((0.4, 1), (0.79, 2), (0.81, 3), (1.0, 4)):
        weights = torch.tensor([[0.05, 0.5, 0.15, 0.3]])
        keep_nucleus(weights, top_p)
        assert (weights > 0).tolist() == [[kept > 3, kept > 0, kept > 2, kept > 1]]


def test_few_tokens_change_with_the_models_rounding():
    """Errors of 1e-3 in the logits of 50000 tokens change at most 5 of 200 draws.

    One number for the whole vocabulary changes 15 to 27 of them (six seeds), shelves 1 to 3.
    """
    torch.manual_seed(0)
    logits = torch.randn(200, 50_000)
    numbers = torch.rand(200, 2)
    near = logits + 1e-3 * torch.randn_like(logits)
    assert (draw(logits, numbers, 1.0)[0] != draw(near, numbers, 1.0)[0]).sum() <= 5


def test_more_steps_begin_with_those_of_fewer():
    """A seed's numbers do not depend on how many are asked for, and lie in [0, 1]."""
    seed = sample_seed(SamplingSettings(seed=1), (3, 4), 0, 2)
    assert torch.equal(uniforms(seed, 40)[:7], uniforms(seed, 7))
    many = uniforms(seed, 5000)
    assert many.min() >= 0
    assert many.max() <= 1
    assert abs(many.mean() - 0.5) < 0.01


def test_everything_that_names_a_response_is_in_its_seed():
    """Another seed, prompt, repeat or number gives another one; other settings do not."""
    settings = SamplingSettings()
    seeds = {
        sample_seed(SamplingSettings(seed=seed), prompt, repeat, sample)
        for seed in (0, 1)
        for prompt in ((1, 2), (12,))
        for repeat in (0, 1)
        for sample in (0, 1)
    }
    assert len(seeds) == 16
    assert sample_seed(SamplingSettings(n=3, top_p=0.5), (1,), 0, 0) == sample_seed(settings, (1,), 0, 0)
