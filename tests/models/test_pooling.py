"""Max pooling against PyTorch's, to the bit, also where values are equal or are not numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import gradshare as gs
from tests.models.derivatives import second_derivatives, third_derivatives

LAYERS = [
    nn.MaxPool1d(4),
    nn.MaxPool1d(3, stride=2, padding=1, dilation=2, ceil_mode=True),
    nn.MaxPool1d((2,)),
    nn.MaxPool2d(2),
    nn.MaxPool2d((3, 2), stride=(2, 1), padding=1, dilation=(1, 2)),
    nn.MaxPool2d(3, stride=2, ceil_mode=True),
]
SHAPE = {nn.MaxPool1d: (2, 9, 13), nn.MaxPool2d: (2, 9, 8, 7)}


def values(layer: nn.Module, *, tasks: tuple[int, ...] = (), channels: int = 9) -> Tensor:
    """Small whole numbers, so that a window may have several greatest ones, and some NaN."""
    batch, _, *sides = SHAPE[type(layer)]  # type: ignore[index]
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-2, 3, (*tasks, batch, channels, *sides), generator=generator).double()
    x[..., 0, 0, 0] = torch.nan
    return x


def alike(mine: list[Tensor], other: list[Tensor]) -> bool:
    return all(
        torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(mine, other, strict=True)
    )


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("channels", [1, 9])
@pytest.mark.parametrize("last", [False, True])
def test_the_output_and_three_derivatives_are_those_of_pytorch(
    layer: nn.Module, channels: int, last: bool
) -> None:
    x = values(layer, channels=channels)
    if last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    fast = gs.accelerate(layer)
    assert type(fast) is not type(layer)
    y, expected = fast(x), layer(x)
    assert alike([y], [expected])
    assert y.stride() == expected.stride()
    assert alike(second_derivatives(y, [x]), second_derivatives(expected, [x]))
    assert alike(third_derivatives(y, [x]), third_derivatives(expected, [x]))
    with torch.no_grad():
        assert alike([fast(x)], [expected])


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_tasks_at_once_are_tasks_one_after_the_other(layer: nn.Module) -> None:
    x = values(layer, tasks=(3,)).requires_grad_()
    y = torch.vmap(gs.accelerate(layer))(x)
    expected = torch.stack([layer(task) for task in x])
    assert alike([y], [expected])
    assert alike(second_derivatives(y, [x]), second_derivatives(expected, [x]))


@pytest.mark.parametrize("layer", LAYERS[:1] + LAYERS[3:4], ids=str)
def test_what_it_does_not_take_goes_to_pytorch(layer: nn.Module) -> None:
    fast = gs.accelerate(layer)
    x = values(layer)
    assert alike([fast(x[0])], [layer(x[0])])  # no batch
    assert torch.equal(fast(x[:0]), layer(x[:0]))
    gradients = [torch.func.grad(lambda x, f=f: f(x).nansum())(x) for f in (fast, layer)]
    assert alike(gradients[:1], gradients[1:])
    with_indices = type(layer)(2, return_indices=True)
    found, expected = gs.accelerate(with_indices)(x), with_indices(x)
    assert alike(list(found), list(expected))
