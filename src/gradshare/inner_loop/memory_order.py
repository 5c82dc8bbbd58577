"""Passes over tensors in the order in which their entries lie in memory.

PyTorch's gradient of a weight can lie transposed, most of all under `torch.vmap`. A pass over
tensors in different orders, and a sum over the tasks of transposed ones, then take three to fifteen
times as long as in one order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def for_all_tasks(tensor: Tensor, T: int) -> Tensor:
    """(…) to (T, …), the same for each task, without a copy."""
    expanded: Tensor = _ForAllTasks.apply(tensor, T)  # type: ignore[no-untyped-call]
    return expanded


def sum_over_first(tensor: Tensor) -> Tensor:
    """(T, …) to (…), in the tensor's order in memory."""
    order = [] if tensor.is_contiguous() else _order(tensor)
    if not order or order[0] != 0:
        return tensor.sum(0)
    total = tensor.permute(order).sum(0)
    return total.permute(_inverse([dim - 1 for dim in order[1:]]))


def in_order_of(tensor: Tensor, like: Tensor) -> Tensor:
    """The same values, lying in memory in the order of another tensor's.

    A tensor whose values differ between tasks is returned as it is, since its copy would cost more
    than it saves.

    Args:
        tensor: (…), or its expansion to (T, …).
        like: (T, …).
    """
    expanded = tensor.ndim == like.ndim and tensor.stride(0) == 0 and len(tensor) > 1
    one = tensor[0].detach() if expanded else tensor
    if one.ndim != like.ndim - 1 or one.stride() == like.stride()[1:]:
        return tensor
    ordered: Tensor = _InOrder.apply(tensor, one, _order(like[0]))  # type: ignore[no-untyped-call]
    return ordered


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """The sum of a · b, of two tensors of one shape."""
    if not b.is_contiguous():
        order = _order(b)
        a, b = a.permute(order), b.permute(order)
    return torch.dot(a.reshape(-1), b.reshape(-1))


class _ForAllTasks(torch.autograd.Function):
    """`Tensor.expand`, whose own derivative ignores the order in memory."""

    @staticmethod
    def forward(_: Any, tensor: Tensor, T: int) -> Tensor:
        return tensor.expand(T, *tensor.shape)

    @staticmethod
    def backward(_: Any, v: Tensor) -> tuple[Tensor, None]:
        return sum_over_first(v), None


class _InOrder(torch.autograd.Function):
    """A copy of `one`, expanded to the shape of `tensor`, whose values these are."""

    @staticmethod
    def forward(_: Any, tensor: Tensor, one: Tensor, order: list[int]) -> Tensor:
        return one.permute(order).contiguous().permute(_inverse(order)).expand_as(tensor)

    @staticmethod
    def backward(_: Any, v: Tensor) -> tuple[Tensor, None, None]:
        return v, None, None


def _order(tensor: Tensor) -> list[int]:
    """The dimensions by decreasing stride."""
    return sorted(range(tensor.ndim), key=tensor.stride, reverse=True)


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)
