"""What an objective is given is checked when it is put together."""

from typing import Any

import pytest
import torch
from torch import Tensor

from preftune.objectives import ScoredResponses, build, count_units


def one_pair(**changes: Any) -> ScoredResponses:
    """Two responses of 2 and 3 tokens, the first preferred; every field is given and fits."""
    fields: dict[str, Any] = {
        "logps": torch.tensor([-4.0, -6.0]),
        "lengths": torch.tensor([2, 3]),
        "chosen": torch.tensor([0]),
        "rejected": torch.tensor([1]),
        "reference_logps": torch.tensor([-5.0, -5.0]),
        "prior_gap": torch.tensor([0.5]),
        "router_loss": torch.tensor(1.0),
        "labels": torch.tensor([True, False]),
        "divergence": torch.tensor(0.0),
        "auxiliary": torch.tensor([0.0, 1.0]),
        "values": torch.tensor([0.5, 0.5]),
        "scores": torch.tensor([1.0, -1.0]),
        "margins": torch.tensor([0.5]),
        "weights": torch.tensor([1.0]),
        "prior_reward": torch.tensor([0.75, 0.25]),
        "groups": torch.tensor([0, 0]),
    }
    return ScoredResponses(**{**fields, **changes})


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("lengths", torch.tensor([[2, 3]]), "one dimension"),
        ("lengths", torch.tensor([2, 3, 4]), r"logps has shape \(2,\), and must have \(3,\)"),
        ("chosen", torch.tensor(0), "one dimension"),
        ("rejected", torch.tensor([1, 1]), r"\(2,\), and must have \(1,\): give one number for each pair"),
        ("prior_gap", torch.tensor([0.5, 0.5]), r"\(2,\), and must have \(1,\)"),
        ("margins", torch.tensor(0.5), r"\(\), and must have \(1,\)"),
        ("logps", torch.tensor([-4.0]), "one number for each response"),
        ("reference_logps", torch.tensor([[-5.0, -5.0]]), r"\(1, 2\), and must have \(2,\)"),
        ("labels", torch.tensor([True]), "one number for each response"),
        ("auxiliary", torch.tensor([0.0, 1.0, 2.0]), "one number for each response"),
        ("values", torch.tensor(0.5), "one number for each response"),
        ("scores", torch.tensor([1.0]), "one number for each response"),
        ("router_loss", torch.tensor([1.0]), "a single number"),
        ("divergence", torch.tensor([0.0, 0.0]), "a single number"),
        ("chosen", torch.tensor([0.0]), "torch.int64"),
        ("chosen", torch.tensor([True]), "torch.int64"),
        ("lengths", torch.tensor([2.0, 3.0]), "torch.int64"),
        ("labels", torch.tensor([1, 0]), "torch.bool"),
        ("logps", torch.tensor([-4, -6]), "floating-point"),
        ("lengths", None, "must be a tensor"),
        ("logps", [-4.0, -6.0], "must be a tensor"),
        ("lengths", torch.tensor([2, -3]), r"lengths\[1\] = -3 must be a number of tokens >= 0"),
        ("chosen", torch.tensor([2]), r"chosen\[0\] = 2 must be an index of one of the 2 responses"),
        ("rejected", torch.tensor([-1]), r"rejected\[0\] = -1 must be an index of one of the 2 responses"),
        ("prior_gap", torch.tensor([1.5]), r"prior_gap\[0\] = 1.5 must be a gap in \[0, 1\]"),
        ("prior_gap", torch.tensor([-0.5]), r"must be a gap in \[0, 1\]"),
        ("prior_gap", torch.tensor([torch.nan]), r"must be a gap in \[0, 1\]"),
        ("prior_reward", torch.tensor([0.5, 1.5]), r"prior_reward\[1\] = 1.5 must be a reward in \[0, 1\]"),
        ("groups", torch.tensor([0]), "one number for each response"),
        ("groups", torch.tensor([0.0, 0.0]), "torch.int64"),
        (
            "groups",
            torch.tensor([0, 2]),
            r"groups\[1\] = 2 must be a prompt's number from 0 to 1",
        ),
        ("groups", torch.tensor([-1, 0]), r"groups\[0\] = -1 must be a prompt's number"),
        ("divergence", torch.tensor(-1.0), "divergence = -1 must be an estimate >= 0"),
        ("weights", torch.tensor([1.0, 1.0]), r"\(2,\), and must have \(1,\): give one number for each pair"),
        ("weights", torch.tensor([-0.5]), r"weights\[0\] = -0.5 must be a finite number >= 0"),
        ("weights", torch.tensor([torch.inf]), r"weights\[0\] = inf must be a finite number >= 0"),
        ("weights", torch.tensor([torch.nan]), "must be a finite number >= 0"),
    ],
)
def test_what_does_not_fit_is_refused(field: str, value: Any, rule: str) -> None:
    """A shape, dtype or value that does not fit the other fields is an error that names field and rule."""
    with pytest.raises(ValueError, match=rule) as error:
        one_pair(**{field: value})
    assert field in str(error.value) or field == "lengths"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_fits_is_taken(device: str) -> None:
    """An empty response, int32 indices, half precision, no pairs, and the NaN of a policy that diverged."""
    nan = torch.tensor([torch.nan, -6.0], dtype=torch.bfloat16, device=device)
    none = torch.tensor([], dtype=torch.int32, device=device)
    fields = {"prior_gap": None, "margins": None, "weights": None, "chosen": none, "rejected": none}
    taken = one_pair(logps=nan, lengths=torch.tensor([0, 3], device=device), **fields)
    assert taken.chosen.dtype == torch.int32


def test_values_on_another_device_are_not_read() -> None:
    """Where reading a value would wait for a device, shapes alone are checked."""
    unreadable = torch.tensor([7, -1], device="meta")
    assert one_pair(lengths=unreadable, chosen=unreadable[:1], rejected=unreadable[1:]).lengths is unreadable
    with pytest.raises(ValueError, match="one number for each response"):
        one_pair(lengths=torch.tensor([7, -1, 2], device="meta"))


def test_the_loss_is_as_before() -> None:
    """What is checked is not changed: -log sigma(0.1 * (1 + 0.5)) = 0.6210 with a gap of 0.5."""
    responses = one_pair()
    counts = count_units(responses.lengths, responses.chosen)
    total: Tensor = build({"method": "dpo", "prior": "reward_gap"})(responses).total(counts)
    assert total.item() == pytest.approx(0.6209575, abs=1e-6)
