"""DropBlock against squares that are cleared one after the other."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradshare.errors import ConfigError
from gradshare.models import DropBlock

SIDES = st.integers(1, 9)


def drop_block_literally(x: Tensor, rate: float, block_size: int) -> Tensor:
    """As the published code is meant, with the same random numbers as the package."""
    N, C, H, W = x.shape
    size = min(block_size, H, W)
    chance = rate / size**2 * H / (H - size + 1) * W / (W - size + 1)
    mask = torch.ones_like(x)
    for n, c, i, j in (torch.rand(N, C, H - size + 1, W - size + 1) < chance).nonzero():
        mask[n, c, i : i + size, j : j + size] = 0
    return x * mask * (mask.numel() / max(float(mask.sum()), 1.0))


def dropped_by(layer: DropBlock, *shape: int) -> Tensor:
    y: Tensor = layer(torch.ones(shape))
    return y == 0


def are_whole_squares(dropped: Tensor, size: int) -> bool:
    """Whether every dropped pixel is in a square of dropped pixels."""
    whole = dropped.unfold(2, size, 1).unfold(3, size, 1).flatten(-2).all(-1)
    covered = torch.zeros_like(dropped)
    for n, c, i, j in whole.nonzero():
        covered[n, c, i : i + size, j : j + size] = True
    return torch.equal(covered, dropped)


@given(H=SIDES, W=SIDES, block_size=SIDES, rate=st.floats(0, 1), seed=st.integers(0, 99))
def test_it_equals_clearing_one_square_after_the_other(
    H: int, W: int, block_size: int, rate: float, seed: int
) -> None:
    x = torch.randn(2, 3, H, W, generator=torch.Generator().manual_seed(seed)).double()
    torch.manual_seed(seed)
    ours = DropBlock(rate, block_size)(x)
    torch.manual_seed(seed)
    assert torch.allclose(ours, drop_block_literally(x, rate, block_size), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("H", "W"), [(10, 10), (5, 5), (7, 12)])
def test_it_drops_whole_squares(H: int, W: int) -> None:
    torch.manual_seed(0)
    dropped = dropped_by(DropBlock(0.2, 5), 20, 5, H, W)
    assert 0.1 < dropped.float().mean() < 0.3
    assert are_whole_squares(dropped, 5)


@pytest.mark.parametrize(("H", "W", "block_size"), [(10, 10, 5), (5, 5, 5), (4, 6, 2), (6, 6, 1)])
def test_each_pixel_is_kept_as_often_as_no_square_covers_it(
    H: int, W: int, block_size: int
) -> None:
    rate, images = 0.1, 20_000
    torch.manual_seed(0)
    kept = 1 - dropped_by(DropBlock(rate, block_size), images, 1, H, W).double().mean((0, 1))
    rows, columns = H - block_size + 1, W - block_size + 1
    chance = rate / block_size**2 * H / rows * W / columns
    squares = torch.zeros(H, W, dtype=torch.float64)  # that can cover a pixel
    for i in range(rows):
        for j in range(columns):
            squares[i : i + block_size, j : j + block_size] += 1
    expected = (1 - chance) ** squares
    assert (kept - expected).abs().max() < 5 * (0.25 / images) ** 0.5
    assert abs(kept.mean() - (1 - rate)) < 0.01


@pytest.mark.parametrize(("H", "W", "size"), [(4, 4, 4), (1, 1, 1), (3, 8, 3)])
def test_on_a_map_smaller_than_the_block_the_squares_have_its_shorter_side(
    H: int, W: int, size: int
) -> None:
    torch.manual_seed(0)
    dropped = dropped_by(DropBlock(0.3, 5), 50, 8, H, W)
    assert 0.2 < dropped.float().mean() < 0.4
    assert are_whole_squares(dropped, size)


def test_if_everything_is_dropped_the_result_is_zero() -> None:
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y = DropBlock(1.0, 4)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.eq(0).all()
    assert gradient.eq(0).all()


def test_in_evaluation_mode_it_changes_nothing_and_draws_nothing() -> None:
    x = torch.randn(2, 3, 8, 8)
    before = torch.get_rng_state()
    assert torch.equal(DropBlock(0.5, 3).eval()(x), x)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_thousandth_call_drops_the_same_as_the_first() -> None:
    layer, x = DropBlock(0.3, 3), torch.randn(2, 3, 8, 8)
    torch.manual_seed(1)
    first = layer(x)
    for _ in range(998):
        layer(x[:1, :1])
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_floating_type_drops_the_same_squares(dtype: torch.dtype) -> None:
    layer, x = DropBlock(0.1, 5), torch.ones(40, 10, 20, 20)
    torch.manual_seed(0)
    expected = layer(x)
    torch.manual_seed(0)
    y = layer(x.to(dtype))
    assert y.dtype == dtype
    assert torch.equal(y == 0, expected == 0)
    assert torch.allclose(y.float(), expected, rtol=0.01)


def test_under_vmap_each_task_has_its_own_squares_and_its_own_scale() -> None:
    torch.manual_seed(0)
    tasks = torch.vmap(DropBlock(0.2, 3), randomness="different")(
        torch.ones(4, 5, 6, 9, 9).double()
    )
    for task, following in pairwise(tasks):
        assert not torch.equal(task == 0, following == 0)
    for task in tasks:
        assert are_whole_squares(task == 0, 3)
        assert task.mean().item() == pytest.approx(1, rel=1e-12)
        assert task.max() > 1


def test_it_can_be_differentiated_twice() -> None:
    layer = DropBlock(0.3, 2)

    def function(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        y: Tensor = layer(x.pow(3))
        return y

    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert 0 < function(x).eq(0).double().mean() < 1
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


@pytest.mark.parametrize("block_size", [0, 2.5])
def test_a_block_size_that_is_no_size(block_size: float) -> None:
    with pytest.raises(ConfigError) as error:
        DropBlock(0.1, block_size)  # type: ignore[arg-type]
    assert str(error.value) == f"block_size is {block_size}; give a whole number, at least 1"


def test_a_rate_in_percent() -> None:
    with pytest.raises(ValueError, match="between 0 and 1, but got 10"):
        DropBlock(10, 5)
