"""The convolution's derivatives against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gradshare.models.convolution import Geometry, convolution
from tests.models.derivatives import assert_equal, second_derivatives, third_derivatives

GEOMETRIES = pytest.mark.parametrize(
    "geometry",
    [
        Geometry((1, 1), (1, 1), (1, 1), 1),
        Geometry((2, 1), (0, 2), (1, 2), 1),
        Geometry((1, 2), (1, 0), (1, 1), 2),
    ],
    ids=str,
)


def problem(geometry: Geometry, *, tasks: tuple[int, ...] = ()) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4, 7, 6), (6, 4 // geometry.groups, 3, 3), (6,))
    return [
        torch.randn(*tasks, *shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def literal(x: Tensor, W: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    return F.conv2d(x, W, bias, g.stride, g.padding, g.dilation, g.groups)


@GEOMETRIES
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_three_derivatives_equal_those_of_pytorch(
    geometry: Geometry, channels_last: bool, with_bias: bool
) -> None:
    inputs = problem(geometry)[: 2 + with_bias]
    x, W, *rest = inputs
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    bias = rest[0] if rest else None
    ours, theirs = convolution(x, W, bias, geometry), literal(x, W, bias, geometry)
    assert torch.equal(ours, theirs)
    assert_equal(second_derivatives(ours, inputs), second_derivatives(theirs, inputs))
    assert_equal(third_derivatives(ours, inputs), third_derivatives(theirs, inputs))


@pytest.mark.parametrize("wanted", [[0], [1], [2], [0, 1], [0, 2], [1, 2]], ids=str)
def test_it_can_be_differentiated_by_some_of_its_inputs(wanted: list[int]) -> None:
    geometry = Geometry((2, 1), (0, 2), (1, 2), 1)
    tensors = problem(geometry)
    for index, tensor in enumerate(tensors):
        tensor.requires_grad_(index in wanted)
    inputs = [tensors[index] for index in wanted]
    x, W, bias = tensors
    ours, theirs = convolution(x, W, bias, geometry), literal(x, W, bias, geometry)
    assert_equal(second_derivatives(ours, inputs), second_derivatives(theirs, inputs))


@GEOMETRIES
@pytest.mark.parametrize("own", ["all", "images", "filters"])
def test_under_vmap_each_task_is_as_by_itself(geometry: Geometry, own: str) -> None:
    inputs = problem(geometry, tasks=(3,))
    batched = {"all": [True] * 3, "images": [True, False, False], "filters": [False, True, True]}
    dims = [0 if has_tasks else None for has_tasks in batched[own]]
    for index, dim in enumerate(dims):
        if dim is None:
            inputs[index] = inputs[index][0].detach().requires_grad_()

    def of_task(t: int) -> Tensor:
        x, W, bias = (i if dim is None else i[t] for i, dim in zip(inputs, dims, strict=True))
        return literal(x, W, bias, geometry)

    def call(x: Tensor, W: Tensor, bias: Tensor) -> Tensor:
        return convolution(x, W, bias, geometry)

    ours = torch.vmap(call, in_dims=tuple(dims))(*inputs)
    theirs = torch.stack([of_task(t) for t in range(3)])
    assert torch.allclose(ours, theirs, rtol=1e-12)
    assert_equal(second_derivatives(ours, inputs), second_derivatives(theirs, inputs))


def test_first_and_second_derivatives_are_finite_differences() -> None:
    geometry = Geometry((2, 1), (1, 1), (1, 1), 2)
    inputs = problem(geometry)

    def call(x: Tensor, W: Tensor, bias: Tensor) -> Tensor:
        return convolution(x, W, bias, geometry)

    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)
