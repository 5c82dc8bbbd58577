"""What the functions with hand-written derivatives share.

The backward pass of each function is a second function, and the backward pass of that one is the
second derivative. Under `torch.vmap` one call serves all tasks (`call`). Under other transforms of
`torch.func`, and in forward-mode differentiation, the layers take functions of PyTorch instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import TransformType, _add_batch_dim, _unwrap_batched
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.autograd import forward_ad


def by_hand() -> bool:
    """Whether hand-written derivatives can be used: under no transform, or one `torch.vmap`."""
    transforms = torch._C._functorch.get_interpreter_stack() or []
    kinds = [transform.key() for transform in transforms]
    return kinds in ([], [TransformType.Vmap]) and forward_ad._current_level < 0


def call(function: Any, *arguments: Any) -> Tensor:
    """The first output of an autograd function, where `by_hand()`.

    Under `torch.vmap` it is computed by the function's `of_tasks`. That takes the number of tasks,
    the dimension of the tasks in each argument (None if it is the same for all), and the arguments.
    It returns the output and the dimension of its tasks. PyTorch's own way, a static method `vmap`,
    takes up to 0.3 ms longer, for each layer and inner step.
    """
    if not torch._C._are_functorch_transforms_active():
        output = function.apply(*arguments)
        first: Tensor = output[0] if isinstance(output, tuple) else output
        return first
    vmap: Any = retrieve_current_functorch_interpreter()
    level = vmap.level()
    pairs = [_unwrap_batched(a, level) if isinstance(a, Tensor) else (a, None) for a in arguments]
    arguments, dims = zip(*pairs, strict=True)
    with vmap.lower():
        if all(dim is None for dim in dims):
            return call(function, *arguments)
        output, dim = function.of_tasks(vmap.batch_size(), dims, *arguments)
    batched: Tensor = _add_batch_dim(output, dim, level)
    return batched


def under_autocast(device: torch.device) -> bool:
    """Whether `torch.autocast` is on for a device."""
    available = torch.amp.is_autocast_available(device.type)
    return available and torch.is_autocast_enabled(device.type)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module does more than its `forward`."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def second_derivative(
    function: Callable[..., Tensor],
    gradient: Tensor,
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """The derivative of a function's backward pass, in operations that have derivatives.

    For the third and higher derivatives, which are rare: it computes the function again.

    Args:
        function: of the inputs.
        gradient: of the function's output.
        inputs: at which it is differentiated.
        cotangents: of the inputs' gradients; None for zero.

    Returns:
        The gradients of `gradient` and of each input.
    """

    def backward(gradient: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        gradients: tuple[Tensor, ...] = torch.func.vjp(function, *inputs)[1](gradient)
        return gradients

    filled = tuple(
        torch.zeros_like(x) if c is None else c for x, c in zip(inputs, cotangents, strict=True)
    )
    found: tuple[Tensor, ...] = torch.func.vjp(backward, gradient, *inputs)[1](filled)
    return found


def tasks_first(T: int, dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that `of_tasks` is given, each with its tasks as leading dimension."""
    return [
        t.expand(T, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(tensors, dims, strict=False)
    ]


def tasks_to_channels(x: Tensor) -> Tensor:
    """(T, N, C, …) to (N, T · C, …)."""
    return x.movedim(0, 1).flatten(1, 2)


def like(g: Tensor, x: Tensor) -> Tensor:
    """g in the memory layout of x; with another layout the native kernels are slow."""
    layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return g.contiguous(memory_format=layout)


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of images are last in memory."""
    return (
        x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    )
