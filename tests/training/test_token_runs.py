"""Objectives that look at tokens: what reaches them, what is kept for them, and that they train."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from preftune.data import Pair, TokenizedGroup
from preftune.data.packing import pack
from preftune.models import Policy, ReferenceCache, with_reference
from preftune.objectives import build, count_units

from .test_equivalences import OBJECTIVES, metrics

Train = Callable[..., Path]
NAMES = ["ld_dpo", "wpo", "token_prior"]


@pytest.fixture
def masked_groups(token_groups: list[TokenizedGroup]) -> list[TokenizedGroup]:
    """The groups, where the first one's responses have tokens in their middle that are not trained."""
    masks = tuple(np.ones(len(tokens), dtype=bool) for tokens in token_groups[0].responses)
    masks[0][2:5] = masks[1][4:9] = False
    return [replace(token_groups[0], trained=masks), *token_groups[1:]]


def test_tokens_reach_the_objective(tiny_model_dir: Path, masked_groups: list[TokenizedGroup]) -> None:
    """Packed or padded, trained tokens alone have numbers: those of the model's own logits, with gradients.

    The first group has responses of 7, 11 and 3 tokens, of which 4, 6 and 3 are trained.
    """
    batch = pack(masked_groups)
    gradients, scored = {}, {}
    for share in (True, False):
        policy = Policy(AutoModelForCausalLM.from_pretrained(tiny_model_dir), share, collisions=True)
        scored[share] = policy(batch)
        assert scored[share].lengths.tolist() == [4, 6, 3, 1, 5, 7, 12]
        (scored[share].token_logps * torch.linspace(-1, 1, 38)).sum().backward()
        gradients[share] = policy.causal_lm().get_input_embeddings().weight.grad
    for name in ("logps", "token_logps", "collision_logps"):
        torch.testing.assert_close(getattr(scored[True], name), getattr(scored[False], name))
    torch.testing.assert_close(gradients[True], gradients[False], rtol=1e-4, atol=1e-5)

    group = masked_groups[0]
    ids = torch.from_numpy(np.concatenate((group.prompt, group.responses[0])).astype(np.int64))
    logps = AutoModelForCausalLM.from_pretrained(tiny_model_dir)(ids[None]).logits[0].log_softmax(-1)
    predictors = torch.tensor([8, 9, 13, 14])
    own = logps[predictors, ids[predictors + 1]]
    torch.testing.assert_close(scored[True].token_logps[:4], own, rtol=1e-4, atol=1e-5)
    collisions = (logps[predictors].exp() ** 2).sum(-1).log().sum()
    torch.testing.assert_close(scored[True].collision_logps[0], collisions, rtol=1e-4, atol=1e-5)
    assert not scored[True].collision_logps.requires_grad


def test_the_reference_keeps_tokens_that_add_up(
    tiny_model_dir: Path, masked_groups: list[TokenizedGroup], tmp_path: Path
) -> None:
    """Read back from the file, each response has its trained tokens' numbers, the same as without a file."""
    policy = Policy(AutoModelForCausalLM.from_pretrained(tiny_model_dir))
    first = ReferenceCache(tmp_path, "id", tokens=True).fill(policy, masked_groups)
    again = ReferenceCache(tmp_path, "id", tokens=True)
    again._compute = lambda *a: pytest.fail("computed again")  # type: ignore[method-assign]
    for filled in (first, again.fill(policy, masked_groups)):
        batch = pack(filled)
        tokens = batch.numbers["reference_token_logps"]
        torch.testing.assert_close(tokens, policy(pack(masked_groups)).token_logps.detach())
        sums = torch.segment_reduce(tokens, "sum", lengths=batch.lengths)
        torch.testing.assert_close(sums, batch.numbers["reference_logps"])
    with torch.no_grad():
        kept_nowhere = with_reference(policy, masked_groups, torch.no_grad(), tokens=True)
    assert torch.equal(pack(kept_nowhere).numbers["reference_token_logps"], tokens)


def test_an_unpaired_response_has_no_tokens(
    tiny_model_dir: Path, token_groups: list[TokenizedGroup], tmp_path: Path
) -> None:
    """Only what is packed has numbers: the responses of 7 and 3 tokens, not the one between them."""
    group = replace(token_groups[0], pairs=(Pair(0, 2),))
    policy = Policy(AutoModelForCausalLM.from_pretrained(tiny_model_dir))
    (filled,) = ReferenceCache(tmp_path, "id", tokens=True).fill(policy, [group])
    assert [len(tokens) for tokens in filled.per_token["reference_token_logps"]] == [7, 0, 3]
    assert len(pack([filled]).numbers["reference_token_logps"]) == 10


def test_a_file_without_tokens_is_no_file_with_them(
    tiny_model_dir: Path, token_groups: list[TokenizedGroup], tmp_path: Path
) -> None:
    """Sums alone are found by who wants sums, computed again for who wants tokens, and equal bit for bit."""
    policy = Policy(AutoModelForCausalLM.from_pretrained(tiny_model_dir))
    plain = ReferenceCache(tmp_path, "id").fill(policy, token_groups)
    before = (tmp_path / "reference" / "id.safetensors").read_bytes()
    by_token = ReferenceCache(tmp_path, "id", tokens=True).fill(policy, token_groups)
    for one, other in zip(plain, by_token, strict=True):
        assert one.per_token == {}
        sums = (group.per_response["reference_logps"] for group in (one, other))
        np.testing.assert_array_equal(*sums)
    assert (tmp_path / "reference" / "id.safetensors").read_bytes() == before
    assert sorted(file.name for file in (tmp_path / "reference").iterdir()) == [
        "id-tokens.safetensors",
        "id.safetensors",
    ]


def test_what_is_trained_is_part_of_the_key(
    tiny_model_dir: Path,
    token_groups: list[TokenizedGroup],
    masked_groups: list[TokenizedGroup],
    tmp_path: Path,
) -> None:
    """The same tokens with others of them trained have other numbers, and a mask of all is no mask."""
    policy = Policy(AutoModelForCausalLM.from_pretrained(tiny_model_dir))
    (whole,) = ReferenceCache(tmp_path, "id").fill(policy, token_groups[:1])
    (masked,) = ReferenceCache(tmp_path, "id").fill(policy, masked_groups[:1])
    found = masked.per_response["reference_logps"]
    np.testing.assert_allclose(found, policy(pack(masked_groups[:1])).logps.tolist(), rtol=1e-5)
    changed = found != whole.per_response["reference_logps"]
    assert changed.tolist() == [True, True, False]


def test_micro_batches_add_up(tiny_model_dir: Path, masked_groups: list[TokenizedGroup]) -> None:
    """Losses of one row are those of a row for each group, for every objective of tokens."""
    policy = Policy(AutoModelForCausalLM.from_pretrained(tiny_model_dir), collisions=True)
    groups = with_reference(policy, masked_groups, torch.no_grad(), tokens=True)
    with torch.no_grad():
        policy.causal_lm().get_input_embeddings().weight.mul_(1.5)
    gapped = [replace(g, pairs=tuple(replace(pair, gap=0.4) for pair in g.pairs)) for g in groups]
    for name in NAMES:
        objective = build(OBJECTIVES[name]["objective"])
        whole = policy(pack(gapped))
        counts = count_units(whole.lengths, whole.chosen)
        rows = [objective(policy(pack([group]))).total(counts) for group in gapped]
        assert sum(row.item() for row in rows) == pytest.approx(
            objective(whole).total(counts).item(), rel=1e-5
        )


@pytest.mark.parametrize(("name", "lora"), [*((name, None) for name in NAMES), ("token_prior", {"rank": 4})])
def test_twenty_steps(
    name: str, lora: dict[str, int] | None, config: dict[str, Any], train: Train, tiny_model_dir: Path
) -> None:
    """The loss falls from that of equal policies, every figure is logged, and weights move.

    Policy and reference agree in the first step: the margin is 0, and credit is even.
    """
    config |= OBJECTIVES[name] | {"lora": lora}
    config["training"] |= {"max_steps": 20, "logging_steps": 1, "learning_rate": 5e-3}
    run = train(config)
    losses = [line["loss"] for line in metrics(run) if "loss" in line]
    assert len(losses) == 20
    assert sum(losses[-4:]) < 0.97 * sum(losses[:2]) * 2
    first, last = ([line for line in metrics(run) if "loss" in line][place] for place in (0, -1))
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-3)
    assert last["rewards/margins"] > 0
    if name == "token_prior":
        assert first["prior/token_share"] == pytest.approx(1, abs=1e-3)
        assert 0 < last["prior/token_share"] < 0.999
    if name == "wpo":
        assert first["weight/likelihood"] > 0
        assert first["loss"] == pytest.approx(np.log(2) * first["weight/likelihood"], rel=1e-3)
    kept = [file.name for file in (Path(config["cache"]) / "reference").iterdir()]
    assert any(name.endswith("-tokens.safetensors") for name in kept) == (name != "wpo")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert ("reference_tokens" in summary["needs"]) == (name != "wpo")
    if lora is None:
        trained, start = (load_file(path / "model.safetensors") for path in (run / "model", tiny_model_dir))
        assert any(not torch.equal(weight, start[key]) for key, weight in trained.items())
