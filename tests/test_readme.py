"""The README's Python runs as it is written."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_objective_example_runs() -> None:
    """The example's gradient is -beta (1 - sigma(u)) on chosen and delta times its negative on rejected."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    # The other one is run with a model, in tests/docs.
    (code,) = [block for block in blocks if "ScoredResponses" in block]
    names: dict[str, torch.Tensor] = {}
    exec(code, names)  # the README's own text
    # h_w = 1, h_l = -1, delta = 0.5: u = 0.1 * (1 + 0.5) = 0.15, and 1 - sigma(0.15) = 0.46257.
    assert names["logps"].grad is not None
    assert names["logps"].grad.tolist() == pytest.approx([-0.046257, 0.5 * 0.046257], rel=1e-4)


def test_every_linked_file_exists() -> None:
    """No link of the README leads nowhere."""
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("http")]
    assert local
    assert [link for link in local if not (README.parent / link).exists()] == []
