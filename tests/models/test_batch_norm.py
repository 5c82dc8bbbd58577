"""Batch norm by the statistics of the images at hand, and its hand-written derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from gradshare.models import BatchNorm2d
from gradshare.models.batch_norm import batch_norm
from tests.models.derivatives import assert_equal, second_derivatives, third_derivatives

EPS = 1e-5

# torch 2.13.0 warns of its own code when it first differentiates forwards.
FORWARDS = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


def problem(*, tasks: tuple[int, ...] = ()) -> list[Tensor]:
    """x, γ with a zero and a negative value, and β."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*tasks, 3, 4, 5, 3, generator=generator, dtype=torch.float64) * 2 + 1
    gamma = torch.tensor([0.0, -0.7, 1.3, 2.0], dtype=torch.float64).expand(*tasks, 4)
    beta = torch.tensor([0.1, 0.0, -0.3, 0.5], dtype=torch.float64).expand(*tasks, 4)
    return [t.clone().requires_grad_() for t in (x, gamma, beta)]


def module() -> tuple[BatchNorm2d, Tensor]:
    x, gamma, beta = problem()
    norm = BatchNorm2d(4).double()
    norm.load_state_dict({"weight": gamma, "bias": beta})
    return norm, x.detach()


def ours(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return batch_norm(x, gamma, beta, EPS)


def literal(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = (x - mean).square().mean((0, 2, 3), keepdim=True)
    normal = (x - mean) / torch.sqrt(variance + EPS)
    return gamma[:, None, None] * normal + beta[:, None, None]


@pytest.mark.parametrize("channels_last", [False, True])
def test_three_derivatives_equal_those_of_its_definition(channels_last: bool) -> None:
    inputs = problem()
    x, gamma, beta = inputs
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    mine, other = ours(x, gamma, beta), literal(x, gamma, beta)
    assert torch.allclose(mine, other, rtol=1e-12)
    assert_equal(second_derivatives(mine, inputs), second_derivatives(other, inputs))
    assert_equal(third_derivatives(mine, inputs), third_derivatives(other, inputs))


@pytest.mark.parametrize("wanted", [[0], [1], [0, 1], [0, 2], [1, 2]], ids=str)
def test_it_can_be_differentiated_by_some_of_its_inputs(wanted: list[int]) -> None:
    tensors = problem()
    for index, tensor in enumerate(tensors):
        tensor.requires_grad_(index in wanted)
    inputs = [tensors[index] for index in wanted]
    mine, other = ours(*tensors), literal(*tensors)
    assert_equal(second_derivatives(mine, inputs), second_derivatives(other, inputs))


def test_first_and_second_derivatives_are_finite_differences() -> None:
    assert torch.autograd.gradcheck(ours, problem())
    assert torch.autograd.gradgradcheck(ours, problem())


def test_under_vmap_each_task_is_as_by_itself() -> None:
    inputs = problem(tasks=(2,))
    mine = torch.vmap(ours)(*inputs)
    other = torch.stack([literal(*(t[task] for t in inputs)) for task in range(2)])
    assert torch.allclose(mine, other, rtol=1e-12)
    assert_equal(second_derivatives(mine, inputs), second_derivatives(other, inputs))


@FORWARDS
@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.func.grad(lambda x: f(x).sin().sum())(x),
        lambda f, x: torch.func.hessian(lambda x: f(x).sin().sum())(x),
        lambda f, x: torch.func.jvp(f, (x,), (x.cos(),))[1],
        lambda f, x: torch.vmap(torch.func.grad(lambda x: f(x).sin().sum()))(x[None])[0],
    ],
    ids=["grad", "hessian", "jvp", "grad under vmap"],
)
def test_transforms_of_torch_give_what_they_give_for_its_definition(
    transform: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor],
) -> None:
    x, gamma, beta = (t.detach() for t in problem())
    mine = transform(lambda x: ours(x, gamma, beta), x)
    other = transform(lambda x: literal(x, gamma, beta), x)
    assert torch.allclose(mine, other, rtol=1e-9, atol=1e-12)


@FORWARDS
def test_forward_mode_differentiation_is_that_of_its_definition() -> None:
    x, gamma, beta = (t.detach() for t in problem())
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x.cos())  # type: ignore[no-untyped-call]
        mine, other = (
            forward_ad.unpack_dual(f(dual, gamma, beta)).tangent  # type: ignore[no-untyped-call]
            for f in (ours, literal)
        )
    assert torch.allclose(mine, other, rtol=1e-9, atol=1e-12)


def test_one_value_a_channel_is_refused_as_by_pytorch() -> None:
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        BatchNorm2d(4)(torch.ones(1, 4, 1, 1))


def test_the_module_is_the_batch_norm_of_pytorch() -> None:
    norm, x = module()
    expected = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
    assert torch.allclose(norm(x), expected, rtol=1e-12)


def test_statistics_from_the_support_make_queries_independent() -> None:
    norm, x = module()
    y = norm(x, statistics_from=2)
    z = norm(torch.cat([x[:2], x[2:] * 5, x[:1]]), statistics_from=2)
    assert torch.allclose(y[:2], z[:2], rtol=1e-12)
    assert torch.allclose(norm(x[:2]), y[:2], rtol=1e-12)
    assert torch.allclose(norm(torch.cat([x[:2], x[2:], x[2:]]), 2)[2:3], y[2:], rtol=1e-12)


def test_statistics_from_all_images_are_its_own() -> None:
    norm, x = module()
    assert torch.allclose(norm(x, statistics_from=3), norm(x), rtol=1e-12)
