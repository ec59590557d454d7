"""Which precision a processor is fast in."""

from collections.abc import Callable, Iterator

import pytest
import torch

from preftune.policy import generation_dtype, has_fast_bfloat16, loading

CPU = torch.device("cpu")


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A processor with or without instructions for bfloat16, whose products in it take so many seconds."""

    def become(seconds: float, avx512: bool = True, amx: bool = True) -> None:
        has_fast_bfloat16.cache_clear()
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        took = {torch.bfloat16: seconds, torch.float32: 1.0}
        monkeypatch.setattr(loading, "_product_seconds", took.__getitem__)

    yield become
    has_fast_bfloat16.cache_clear()


@pytest.mark.parametrize(("seconds", "dtype"), [(0.5, torch.bfloat16), (2.0, torch.float32)])
def test_instructions_for_bfloat16_are_used_where_they_save_time(
    processor: Callable[..., None], seconds: float, dtype: torch.dtype
) -> None:
    """A virtual machine that hides AMX has them, and is twice as fast in float32."""
    processor(seconds)
    assert generation_dtype(CPU) == dtype


def test_without_instructions_bfloat16_is_not_tried(
    processor: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product in it could take 80 times as long."""
    processor(0.5, avx512=False, amx=False)
    monkeypatch.setattr(loading, "_product_seconds", pytest.fail)
    assert not has_fast_bfloat16(CPU)


def test_an_accelerator_uses_bfloat16_whatever_the_processor(processor: Callable[..., None]) -> None:
    """Nothing is measured for it."""
    processor(2.0, avx512=False, amx=False)
    assert has_fast_bfloat16(torch.device("cuda"))


def test_measuring_leaves_threads_and_random_numbers_as_they_are(
    processor: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training reads both."""
    measure = loading._product_seconds
    processor(1.0)
    monkeypatch.setattr(loading, "_product_seconds", measure)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    has_fast_bfloat16(CPU)
    try:
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)
