"""Which precision a processor is fast in."""

import pytest
import torch

from preftune.models import generation_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(("amx", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_processor_uses_bfloat16_where_it_has_amx(
    monkeypatch: pytest.MonkeyPatch, amx: bool, dtype: torch.dtype
) -> None:
    """A virtual machine that hides AMX still shows AVX512-BF16, and is twice as fast in float32."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert generation_dtype(CPU) == dtype


def test_an_accelerator_uses_bfloat16_whatever_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What computes decides."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert generation_dtype(torch.device("cuda")) == torch.bfloat16
