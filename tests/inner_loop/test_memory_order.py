"""Passes in the order of memory give what passes in any order give."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradshare.inner_loop.memory_order import (
    for_all_tasks,
    in_order_of,
    inner_product,
    sum_over_first,
)

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@st.composite
def tensors(draw: st.DrawFn, count: int = 1) -> list[Tensor]:
    """Tensors of one shape, each in a memory order of its own."""
    shape = draw(SHAPES)
    found = []
    for seed in range(count):
        order = draw(st.permutations(range(len(shape))))
        generator = torch.Generator().manual_seed(seed)
        lying = torch.randn([shape[dim] for dim in order], generator=generator).double()
        found.append(lying.permute(sorted(range(len(shape)), key=order.__getitem__)))
    return found


@given(tensors())
def test_the_sum_over_tasks_and_its_derivative(given_: list[Tensor]) -> None:
    tensor = given_[0].requires_grad_()
    assert torch.allclose(sum_over_first(tensor), tensor.sum(0), rtol=1e-12)
    weights = torch.randn(tensor.shape[1:], dtype=tensor.dtype)
    (found,) = torch.autograd.grad((sum_over_first(tensor) * weights).sum(), tensor)
    assert torch.equal(found, weights.expand_as(tensor))


@given(tensors(2))
def test_the_inner_product(given_: list[Tensor]) -> None:
    a, b = given_
    assert torch.allclose(inner_product(a, b), (a * b).sum(), rtol=1e-12, atol=1e-12)


@given(tensors(), st.integers(1, 3))
def test_one_tensor_for_all_tasks_takes_the_order_of_theirs(
    given_: list[Tensor], count: int
) -> None:
    one = given_[0].detach().requires_grad_()
    like = torch.randn(count, *reversed(one.shape)).double()
    like = like.permute(0, *range(like.ndim - 1, 0, -1))
    ordered = in_order_of(for_all_tasks(one, count), like)
    assert torch.equal(ordered, one.expand(count, *one.shape))
    if count > 1:
        long = [dim for dim in range(1, like.ndim) if like.shape[dim] > 1]  # others have any stride
        assert [ordered.stride(dim) for dim in long] == [like.stride(dim) for dim in long]
    weights = torch.randn(like.shape).double()
    (found,) = torch.autograd.grad((ordered * weights).sum(), one)
    assert torch.allclose(found, weights.sum(0), rtol=1e-12)


def test_a_tensor_of_each_tasks_own_values_is_returned_as_it_is() -> None:
    own = torch.randn(3, 4, 5)
    assert in_order_of(own, torch.randn(3, 5, 4).mT) is own
