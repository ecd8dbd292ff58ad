"""Dropout on a CPU: as torch's, but faster."""

import pytest
import torch

from asr_lora.model.adapter import Dropout


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_a_share_p_of_the_elements_is_zero_and_the_others_keep_the_mean(p: float) -> None:
    out = Dropout(p)(torch.ones(1000, 1001))  # not a multiple of the four that share a draw

    assert out.eq(0).float().mean() == pytest.approx(p, abs=0.002)  # six standard deviations at p = 0.5: 0.003
    assert out.mean() == pytest.approx(1, abs=0.005)
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - p)])


def test_neighbors_are_dropped_independently() -> None:
    dropped = Dropout(0.5)(torch.ones(1_000_000)).eq(0).float() - 0.5

    for distance in (1, 2, 3, 4, 1000):
        assert (dropped[:-distance] * dropped[distance:]).mean() == pytest.approx(0, abs=0.002)


def test_the_gradient_is_dropped_where_the_value_is() -> None:
    x = torch.ones(5, 7, requires_grad=True)
    out = Dropout(0.5)(x)
    out.sum().backward()  # type: ignore[no-untyped-call]

    assert x.grad is not None
    assert torch.equal(x.grad, out.detach())


def test_nothing_is_dropped_in_evaluation_or_at_p_zero() -> None:
    x = torch.randn(3, 4)

    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_torchs_seed_determines_the_mask_and_the_dtype_stays() -> None:
    x = torch.ones(64, 64, dtype=torch.bfloat16)
    torch.manual_seed(3)
    first = Dropout(0.2)(x)
    torch.manual_seed(3)

    assert torch.equal(first, Dropout(0.2)(x))
    assert not torch.equal(first, Dropout(0.2)(x))
    assert first.dtype == torch.bfloat16
