"""Two autograd functions that free each pass's graph: memory grows neither with the number of inner
steps nor with the number of tasks.

Ordinary reverse-mode differentiation keeps the activations of each inner step of each task. Between
two steps there are only tensors of the size of the parameters, so each step and each query pass is
one autograd function here:

- `recomputed_gradients` keeps only θ and φ of an inner step, where φ is everything besides θ that
  the loss L depends on. For cotangents v of the task gradients G(θ, φ) = ∇_θ L(θ, φ) and u of L,
  its backward pass computes L and G again and differentiates v·G + u·L by θ and φ. This costs one
  more forward and backward pass for each step. torch's generators draw the same numbers again, and
  autocast is as it was. Other hidden state, such as a counter in the model, changes the recomputed
  loss, which raises an error.
- `losses_with_gradients` computes each query loss together with its gradient, and keeps the
  gradient instead of the graph. The outer objective is linear in these losses, so the backward pass
  only scales the gradients.
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
"""The losses (t,) of some tasks of a batch, from their (t, …) parameters, the tensors that all
tasks share, and which tasks they are."""

LossesAndOutputs = Callable[[Tensors, Tensors, slice], tuple[Tensor, Tensor]]
"""Likewise, with the model's outputs (t, …)."""

# A recomputed loss is the same but for rounding.
SAME_LOSS = {torch.float64: 1e-9}
SAME_FLOAT32_LOSS = 1e-5


def recomputed_gradients(
    losses: TaskLosses, params: Tensors, shared: Tensors, chunks: Sequence[slice]
) -> tuple[dict[str, Tensor], Tensor]:
    """The (T, …) gradients of the tasks' losses and the losses (T,), differentiable once more.

    Args:
        losses: depends on no tensors that require gradients except its arguments.
        params: (T, …) the parameters that the gradients are taken by.
        shared: everything else that the losses depend on.
        chunks: the tasks that are computed together, one chunk after the other.

    Raises:
        ConfigError: the losses depend on another tensor that requires gradients; or the backward
            pass computes other losses than the forward pass.
    """
    inputs = _Inputs(losses, tuple(params), tuple(shared), chunks)
    *gradients, values = _RecomputedGradients.apply(  # type: ignore[no-untyped-call]
        inputs, *params.values(), *shared.values()
    )
    return dict(zip(params, gradients, strict=True)), values


def losses_with_gradients(
    losses: LossesAndOutputs, params: Tensors, shared: Tensors, chunks: Sequence[slice]
) -> tuple[Tensor, Tensor]:
    """The (T,) losses, differentiable once, and the outputs (T, …), constants.

    Arguments and errors as for `recomputed_gradients`; nothing is computed twice.
    """
    inputs = _Inputs(losses, tuple(params), tuple(shared), chunks)
    values: tuple[Tensor, Tensor] = _LossesWithGradients.apply(  # type: ignore[no-untyped-call]
        inputs, *params.values(), *shared.values()
    )
    return values


def gradients_of_chunk(losses: Tensor, params: Tensors, *, create_graph: bool) -> list[Tensor]:
    """The gradients of tasks' losses by their parameters; zero for an unused parameter.

    Each task's loss depends on its own slice of `params` only, so the gradient of their sum is
    the stack of the tasks' gradients.

    Raises:
        ConfigError: there is not one loss for each task.
    """
    expected = next(iter(params.values())).shape[:1]
    if losses.shape != expected:
        # The sum over any other shape would have a multiple of the gradients.
        raise ConfigError(
            f"the losses are of shape {tuple(losses.shape)}; give one for each task, "
            f"{tuple(expected)}"
        )
    return _gradients_or_zero(losses.sum(), params, create_graph=create_graph)


@dataclass(frozen=True)
class _Inputs:
    """The arguments of the two functions below that are not tensors."""

    losses: Callable[..., Any]
    params: tuple[str, ...]
    shared: tuple[str, ...]
    chunks: Sequence[slice]

    def leaves(
        self, tensors: Sequence[Tensor], chunk: slice
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The parameters of a chunk's tasks and the shared tensors, as new leaves."""
        params = dict(zip(self.params, tensors, strict=False))
        shared = dict(zip(self.shared, tensors[len(params) :], strict=True))
        return (
            {name: t[chunk].detach().requires_grad_() for name, t in params.items()},
            {name: t.detach().requires_grad_(t.requires_grad) for name, t in shared.items()},
        )


# The gradients of a pass outlive it, so they are allocated before it begins. Between its
# activations they would leave free pieces of memory that are too small for the next pass. For the
# same reason each pass is a function: its variables are freed before the next one begins. With
# K = 20 instead of 1, a step then takes 7 % more memory instead of 16 %.


class _RecomputedGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: _Inputs, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.inputs = inputs
        ctx.save_for_backward(*tensors)
        ctx.random_state = random_state(tensors[0].device)
        ctx.autocast = _autocast_state(tensors[0].device)
        gradients = _empty_like(tensors[: len(inputs.params)])

        def support_pass(chunk: slice) -> Tensor:
            params, shared = inputs.leaves(tensors, chunk)
            with torch.enable_grad():
                losses: Tensor = inputs.losses(params, shared, chunk)
                if chunk == inputs.chunks[0]:
                    _require_no_other_leaves(losses, [*params.values(), *shared.values()])
                _put(gradients, chunk, gradients_of_chunk(losses, params, create_graph=False))
            return losses.detach()

        ctx.losses = torch.cat([support_pass(chunk) for chunk in inputs.chunks])
        return *gradients, ctx.losses.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        *of_gradients, of_losses = cotangents
        inputs, tensors = ctx.inputs, ctx.saved_tensors
        by_task = _empty_like(tensors[: len(inputs.params)])
        # Without these, γ and β would learn from the query passes alone.
        by_all = {
            name: torch.zeros_like(t)
            for name, t in zip(inputs.shared, tensors[len(by_task) :], strict=True)
            if t.requires_grad
        }

        def support_pass(chunk: slice) -> None:
            params, shared = inputs.leaves(tensors, chunk)
            with _autocast_as(ctx.autocast):
                losses = inputs.losses(params, shared, chunk)
                gradients = gradients_of_chunk(losses, params, create_graph=True)
            _require_same(losses.detach(), ctx.losses[chunk])
            product = (losses * of_losses[chunk]).sum()
            for gradient, v in zip(gradients, of_gradients, strict=True):
                product = product + (gradient * v[chunk]).sum()
            wanted = {**params, **{name: shared[name] for name in by_all}}
            found = dict(zip(wanted, _gradients_or_zero(product, wanted), strict=True))
            _put(by_task, chunk, [found[name] for name in params])
            for name in by_all:
                by_all[name] += found[name]

        with torch.enable_grad(), _replayed(ctx.random_state, tensors[0].device):
            for chunk in inputs.chunks:
                support_pass(chunk)
        return None, *by_task, *(by_all.get(name) for name in inputs.shared)


class _LossesWithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: _Inputs, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        of_tasks = tensors[: len(inputs.params)]
        # Each task has a copy of each shared tensor, since its loss may get another weight.
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
    """Uninitialised tensors of the same shapes; unlike `torch.empty_like` never expanded ones."""
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in tensors]


def _put(results: Sequence[Tensor], chunk: slice, values: Sequence[Tensor]) -> None:
    for result, value in zip(results, values, strict=True):
        result[chunk] = value


def _gradients_or_zero(
    value: Tensor, tensors: Tensors, *, create_graph: bool = False
) -> list[Tensor]:
    """∂value/∂tensors; zero where the value does not depend on a tensor."""
    if not value.requires_grad:
        return [torch.zeros_like(t) for t in tensors.values()]
    return list(
        torch.autograd.grad(
            value,
            list(tensors.values()),
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    )


def _require_no_other_leaves(losses: Tensor, leaves: Sequence[Tensor]) -> None:
    """Raise if the losses depend on a parameter that would get no gradient."""
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
                "gradients and is not a parameter of the model: with memory='recompute' it would "
                "get none; make it a parameter of the model, or use memory='keep'"
            )


def _require_same(losses: Tensor, first: Tensor) -> None:
    """Raise ConfigError if recomputed losses differ from the first ones. Losses on a GPU are not
    compared, since that would wait for the GPU.
    """
    if losses.device.type != "cpu":
        return
    tolerance = SAME_LOSS.get(losses.dtype, SAME_FLOAT32_LOSS)
    if not torch.allclose(losses, first, rtol=tolerance, atol=tolerance / 10, equal_nan=True):
        raise ConfigError(
            f"the model computed a loss of {float(losses[0]):.6g} where it computed "
            f"{float(first[0]):.6g} before: it has hidden state, such as a counter, a generator of "
            "its own or numpy's random numbers; use memory='keep', or torch's global generator"
        )


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The state of torch's generators of the CPU and of a device."""
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_device


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Put the generators back into a state that `random_state` returned."""
    on_cpu, on_device = state
    torch.set_rng_state(on_cpu)
    if on_device is not None:
        torch.cuda.set_rng_state(on_device, device)


@contextmanager
def _replayed(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Set torch's generators to a state, and put them back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        set_random_state(state, device)
        yield


def _autocast_state(device: torch.device) -> list[dict[str, Any]]:
    """The state of `torch.autocast` for the CPU and the device, as its arguments."""
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
