"""Task gradients and outer losses whose graphs are let go at once, so that memory grows neither
with the number of inner steps nor with the number of tasks.

Reverse-mode differentiation of the inner loop keeps the activations of every step of every task.
But between two steps there are only tensors of the size of the parameters. So each step, and each
query pass, is one function of autograd here, and its inside is computed again, or in advance:

- `recomputed_gradients`: the task gradients G(θ, φ) = ∇_θ L(θ, φ) of a step, φ being all else that
  the loss sees. Only θ and φ are kept. For a cotangent v of G the backward pass builds L and G once
  more and differentiates v·G, which gives the Hessian's part ∂(v·G)/∂θ and ∂(v·G)/∂φ alike; without
  the latter γ and β would learn, silently, from the query passes alone. It costs one more forward
  and backward pass a step.
  It is what it was the first time: torch's own generators draw the same numbers, autocast is as it
  was, and the losses are handed the buffers as they were. What else they remember is not replayed,
  such as a `torch.Generator` of a model's own or a number in one of its attributes.
- `losses_with_gradients`: the outer loss of a task enters the outer objective linearly, so its
  gradient is computed with it, kept in its place, and only scaled in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradshare.errors import ConfigError
from gradshare.inner_loop.rule import Tensors

TaskLosses = Callable[[Tensors, Tensors, slice], Tensor]
"""The losses (t,) of some tasks of a batch: of their (t, …) parameters, the tensors that all tasks
share, and which tasks they are."""

LossesAndOutputs = Callable[[Tensors, Tensors, slice], tuple[Tensor, Tensor]]
"""Likewise, with the model's outputs (t, …)."""


def recomputed_gradients(
    losses: TaskLosses,
    params: Tensors,
    shared: Tensors,
    chunks: Sequence[slice],
    buffers: Callable[[], Tensors],
) -> dict[str, Tensor]:
    """The (T, …) gradients of the tasks' losses, differentiable once more.

    Args:
        losses: may use nothing that requires gradients but what it is given.
        params: (T, …) what the gradients are taken of.
        shared: all else that the losses depend on.
        chunks: which tasks are computed together, one chunk after the other.
        buffers: copies of what the losses may change in place. The second pass is handed them
            among `shared`, to change those.

    Raises:
        ConfigError: the losses depend on another tensor that requires gradients.
    """
    inputs = _Inputs(losses, tuple(params), tuple(shared), chunks, buffers)
    gradients = _RecomputedGradients.apply(  # type: ignore[no-untyped-call]
        inputs, *params.values(), *shared.values()
    )
    return dict(zip(params, gradients, strict=True))


def losses_with_gradients(
    losses: LossesAndOutputs, params: Tensors, shared: Tensors, chunks: Sequence[slice]
) -> tuple[Tensor, Tensor]:
    """The (T,) losses, differentiable once, and the outputs (T, …), constants.

    Arguments and errors as of `recomputed_gradients`; there is no second pass.
    """
    inputs = _Inputs(losses, tuple(params), tuple(shared), chunks)
    values: tuple[Tensor, Tensor] = _LossesWithGradients.apply(  # type: ignore[no-untyped-call]
        inputs, *params.values(), *shared.values()
    )
    return values


def gradients_of_chunk(losses: Tensor, params: Tensors, *, create_graph: bool) -> list[Tensor]:
    """The gradients of tasks' losses by their parameters; zero for one that they do not use.

    Each task's loss depends on its own slice of `params` only, so the gradient of their sum is
    the stack of the tasks' gradients.

    Raises:
        ConfigError: there is not one loss for each task.
    """
    expected = next(iter(params.values())).shape[:1]
    if losses.shape != expected:
        # The sum of any other would be another multiple of the gradients.
        raise ConfigError(
            f"the losses are of shape {tuple(losses.shape)}; give one for each task, "
            f"{tuple(expected)}"
        )
    gradients = torch.autograd.grad(
        losses.sum(),
        list(params.values()),
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return list(gradients)


@dataclass(frozen=True)
class _Inputs:
    """What the two functions below are given besides tensors."""

    losses: Callable[..., Any]
    params: tuple[str, ...]
    shared: tuple[str, ...]
    chunks: Sequence[slice]
    buffers: Callable[[], Tensors] = dict

    def leaves(
        self, tensors: Sequence[Tensor], chunk: slice
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The parameters of a chunk's tasks and the shared tensors, cut off from their graphs."""
        params = dict(zip(self.params, tensors, strict=False))
        shared = dict(zip(self.shared, tensors[len(params) :], strict=True))
        return (
            {name: t[chunk].detach().requires_grad_() for name, t in params.items()},
            {name: t.detach().requires_grad_(t.requires_grad) for name, t in shared.items()},
        )


# What outlives a pass, its gradients, has its place before the pass begins. Made among the pass's
# activations it would part the memory that these leave, and what is left would be too small for
# those of the next pass. For the same reason each pass is a function, whose variables are gone when
# the next one begins. With K = 20 instead of 1, a step takes 7 % more in this way instead of 16 %.


class _RecomputedGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: _Inputs, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.inputs = inputs
        ctx.save_for_backward(*tensors)
        ctx.random_state = _random_state(tensors[0].device)
        ctx.autocast = _autocast_state(tensors[0].device)
        ctx.buffers = []  # as each chunk finds them
        gradients = _empty_like(tensors[: len(inputs.params)])

        def support_pass(chunk: slice) -> None:
            params, shared = inputs.leaves(tensors, chunk)
            ctx.buffers.append(inputs.buffers())
            with torch.enable_grad():
                losses = inputs.losses(params, shared, chunk)
                if chunk == inputs.chunks[0]:
                    _require_no_other_leaves(losses, [*params.values(), *shared.values()])
                _put(gradients, chunk, gradients_of_chunk(losses, params, create_graph=False))

        for chunk in inputs.chunks:
            support_pass(chunk)
        return tuple(gradients)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        inputs, tensors = ctx.inputs, ctx.saved_tensors
        by_task = _empty_like(tensors[: len(inputs.params)])
        by_all = {
            name: torch.zeros_like(t)
            for name, t in zip(inputs.shared, tensors[len(by_task) :], strict=True)
            if t.requires_grad
        }

        def support_pass(chunk: slice, buffers: Tensors) -> None:
            params, shared = inputs.leaves(tensors, chunk)
            # Copies, so that this can be done again if the graph is retained.
            as_before = {**shared, **{name: t.clone() for name, t in buffers.items()}}
            with _autocast_as(ctx.autocast):
                losses = inputs.losses(params, as_before, chunk)
                gradients = gradients_of_chunk(losses, params, create_graph=True)
            product = sum((g * v[chunk]).sum() for g, v in zip(gradients, cotangents, strict=True))
            wanted = {**params, **{name: shared[name] for name in by_all}}
            found = _gradients_or_zero(product, wanted)
            _put(by_task, chunk, [found[name] for name in params])
            for name in by_all:
                by_all[name] += found[name]

        # Dropout, or whatever else torch's own generators draw, is drawn as it was.
        with torch.enable_grad(), _replayed(ctx.random_state, tensors[0].device):
            for chunk, buffers in zip(inputs.chunks, ctx.buffers, strict=True):
                support_pass(chunk, buffers)
        return None, *by_task, *(by_all.get(name) for name in inputs.shared)


class _LossesWithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: _Inputs, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        of_tasks = tensors[: len(inputs.params)]
        # One copy of a shared tensor for each task, whose losses may be weighted differently.
        copies = {
            name: t.detach().expand(len(of_tasks[0]), *t.shape)
            for name, t in zip(inputs.shared, tensors[len(of_tasks) :], strict=True)
            if t.requires_grad
        }
        gradients = _empty_like([*of_tasks, *copies.values()])

        def query_pass(chunk: slice) -> tuple[Tensor, Tensor]:
            params, shared = inputs.leaves(tensors, chunk)
            wanted = {**params, **{n: t[chunk].requires_grad_() for n, t in copies.items()}}
            rest = {name: t for name, t in shared.items() if name not in copies}
            with torch.enable_grad():
                losses, outputs = inputs.losses(wanted, rest, chunk)
                if chunk == inputs.chunks[0]:
                    _require_no_other_leaves(losses, list(wanted.values()))
                _put(gradients, chunk, gradients_of_chunk(losses, wanted, create_graph=False))
            return losses.detach().clone(), outputs.detach().clone()

        passes = [query_pass(chunk) for chunk in inputs.chunks]
        ctx.save_for_backward(*gradients)
        ctx.names = [*inputs.params, *copies]
        ctx.inputs = inputs
        losses, outputs = (torch.cat(parts) for parts in zip(*passes, strict=True))
        ctx.mark_non_differentiable(outputs)
        return losses, outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        by_task = [
            gradients[name] * v.view(-1, *(1,) * (gradients[name].ndim - 1))
            for name in ctx.inputs.params
        ]
        by_all = [
            torch.tensordot(v, gradients[name], 1) if name in gradients else None
            for name in ctx.inputs.shared
        ]
        return None, *by_task, *by_all


def _empty_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Room for values of these shapes, each at a place of its own whatever is expanded."""
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in tensors]


def _put(rooms: Sequence[Tensor], chunk: slice, values: Sequence[Tensor]) -> None:
    for room, value in zip(rooms, values, strict=True):
        room[chunk] = value


def _gradients_or_zero(value: Tensor | int, tensors: Tensors) -> dict[str, Tensor]:
    """∂value/∂tensors, where the value may depend on none of them (a loss linear in them)."""
    if not isinstance(value, Tensor) or not value.requires_grad:
        return {name: torch.zeros_like(t) for name, t in tensors.items()}
    gradients = torch.autograd.grad(
        value, list(tensors.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(tensors, gradients, strict=True))


def _require_no_other_leaves(losses: Tensor, leaves: Sequence[Tensor]) -> None:
    """Refuse a loss with a parameter that would get no gradient."""
    known = {id(leaf) for leaf in leaves}
    seen: set[Any] = set()
    nodes = [losses.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            raise ConfigError(
                f"the loss depends on a tensor of shape {tuple(leaf.shape)} that requires "
                "gradients and that is no outer parameter: where memory is saved by recomputing, "
                "it would get none; make it a parameter of the model, or keep the graphs "
                "(recompute=False)"
            )


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_device


@contextmanager
def _replayed(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Draw torch's random numbers as from a state on, and leave the generators as they are."""
    on_cpu, on_device = state
    with torch.random.fork_rng(devices=[] if on_device is None else [device]):
        torch.set_rng_state(on_cpu)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)
        yield


def _autocast_state(device: torch.device) -> list[dict[str, Any]]:
    """What `torch.autocast` was told for the CPU and the device, as its arguments."""
    return [
        {
            "device_type": kind,
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
            "cache_enabled": torch.is_autocast_cache_enabled(),
        }
        for kind in dict.fromkeys(("cpu", device.type))
        if torch.amp.is_autocast_available(kind)
    ]


@contextmanager
def _autocast_as(state: Sequence[dict[str, Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for arguments in state:
            stack.enter_context(torch.autocast(**arguments))
        yield
