"""Two ways to free a pass's graph, so that memory grows neither with the number of inner steps nor
with the number of tasks.

Ordinary reverse-mode differentiation keeps the activations of each inner step of each task. Between
two steps there are only tensors of the size of the parameters, so:

- `recomputed` computes a function, such as an inner step with its gradients, without a graph, and
  computes it again, with one, in the backward pass. torch's generators draw the same numbers again,
  and autocast is as it was. Other hidden state, such as a counter in the model, changes the
  recomputed loss, and in a rule the recomputed parameters, which raises an error.
- `losses_with_gradients` computes each query loss together with its gradient, and keeps the
  gradient instead of the graph. The outer objective is linear in these losses, so the backward pass
  only scales the gradients. Nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from gradshare.errors import ConfigError
from gradshare.inner_loop.rule import Tensors

LossesOfChunk = Callable[[Tensors, Tensors, slice], Tensor]
"""The losses (t,) of some tasks of a batch, from their (t, …) parameters, the tensors that all
tasks share, and which tasks they are."""

LossesAndOutputs = Callable[[Tensors, Tensors, slice], tuple[Tensor, Tensor]]
"""Likewise, with the model's outputs (t, …)."""

Groups = Mapping[str, Tensors]
"""Groups of named tensors, such as the parameters, the carried tensors and the losses."""

LOSSES = "losses"
"""The group of the losses."""

# What is compared when it is computed again: first the losses, and then what follows from them.
COMPARED = {
    LOSSES: "the model computed a loss",
    "params": "the rule moved a parameter to a norm",
}


def recomputed(
    function: Callable[[Groups], Groups], inputs: Groups
) -> dict[str, dict[str, Tensor]]:
    """`function(inputs)`, whose graph is freed now and built again in the backward pass.

    Args:
        function: depends on no tensors that require gradients except its inputs.
        inputs: its argument.

    Raises:
        ConfigError: the losses depend on another tensor that requires gradients; or the backward
            pass computes other losses than the forward pass.
    """
    call = _Call(function, inputs)
    given = [tensor for part in inputs.values() for tensor in part.values()]
    new = iter(_Recomputed.apply(call, *given))  # type: ignore[no-untyped-call]
    # An input that is returned as it is stays the same tensor. As an output of `_Recomputed` even a
    # constant would require gradients.
    return {
        group: {n: next(new) if place is None else given[place] for n, place in places.items()}
        for group, places in call.returned.items()
    }


def losses_with_gradients(
    losses: LossesAndOutputs, params: Tensors, shared: Tensors, chunks: Sequence[slice]
) -> tuple[Tensor, Tensor]:
    """The (T,) losses, differentiable once, and the outputs (T, …), constants.

    Args:
        losses: depends on no tensors that require gradients except its arguments.
        params: (T, …) the tasks' own parameters.
        shared: everything else that the losses depend on.
        chunks: the tasks that are computed together, one chunk after the other.

    Raises:
        ConfigError: the losses depend on another tensor that requires gradients.
    """
    tasks = len(next(iter(params.values())))
    # Each task has a copy of each shared tensor, since its loss may get another weight.
    learned = {name: t for name, t in shared.items() if t.requires_grad}
    constants = {name: t for name, t in shared.items() if name not in learned}
    copies = {name: t.expand(tasks, *t.shape) for name, t in learned.items()}
    inputs = {name: t.detach() for name, t in {**params, **copies}.items()}
    # The gradients outlive each pass, so they are allocated before it begins. Between its
    # activations they would leave free pieces of memory that are too small for the next pass.
    # For the same reason a pass is a function: its variables are freed before the next begins.
    gradients = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in inputs.values()]

    def query_pass(chunk: slice) -> tuple[Tensor, Tensor]:
        own = {name: t[chunk].requires_grad_() for name, t in inputs.items()}
        with torch.enable_grad():
            values, outputs = losses(own, constants, chunk)
            if chunk == chunks[0]:  # the others compute the same function
                _require_no_other_leaves(values, list(own.values()))
            found = gradients_of_chunk(values, own, create_graph=False)
        for gradient, part in zip(gradients, found, strict=True):
            gradient[chunk] = part
        return values.detach().clone(), outputs.detach().clone()

    with torch.no_grad():
        passes = [query_pass(chunk) for chunk in chunks]
        values, outputs = (torch.cat(parts) for parts in zip(*passes, strict=True))
    differentiable: Tensor = _KnownGradients.apply(  # type: ignore[no-untyped-call]
        values, gradients, *params.values(), *learned.values()
    )
    return differentiable, outputs


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
    if not losses.requires_grad:
        return [torch.zeros_like(t) for t in params.values()]
    return list(
        torch.autograd.grad(
            losses.sum(),
            list(params.values()),
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    )


class _Call:
    """A function of groups of tensors, called with a list of tensors.

    Attributes:
        returned: by group and name, the place in that list of each tensor that the function has
            returned; None for one that it has made.
    """

    def __init__(self, function: Callable[[Groups], Groups], inputs: Groups) -> None:
        self.function = function
        self.names = {group: tuple(part) for group, part in inputs.items()}
        self.returned: dict[str, dict[str, int | None]] = {}

    def __call__(self, tensors: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
        """The tensors that the function makes, each with its group."""
        row = iter(tensors)
        inputs = {g: {name: next(row) for name in names} for g, names in self.names.items()}
        places = {id(tensor): place for place, tensor in enumerate(tensors)}
        returned = self.function(inputs)
        self.returned = {
            group: {name: places.get(id(tensor)) for name, tensor in part.items()}
            for group, part in returned.items()
        }
        return [
            (group, tensor)
            for group, part in returned.items()
            for tensor in part.values()
            if id(tensor) not in places
        ]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.device = tensors[0].device
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.random_state = random_state(ctx.device)
        ctx.autocast = _autocast_state(ctx.device)
        results = call([tensor.detach() for tensor in tensors])
        ctx.compared = _compared(results)
        ctx.mark_non_differentiable(*(t for _, t in results if not t.is_floating_point()))
        return tuple(t for _, t in results)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        _refuse_more_derivatives()
        leaves = [
            tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        ]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        with torch.enable_grad(), _replayed(ctx.random_state, ctx.autocast, ctx.device):
            results = ctx.call(leaves)
        for group, tensor in results:
            if group == LOSSES:
                _require_no_other_leaves(tensor, wanted)
        for (group, value), (_, first) in zip(_compared(results), ctx.compared, strict=True):
            _require_same(COMPARED[group], value, first)
        pairs = [
            (result, v)
            for (_, result), v in zip(results, cotangents, strict=True)
            if v is not None and result.requires_grad
        ]
        if not pairs:
            return None, *(None for _ in leaves)
        outputs, grad_outputs = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outputs, wanted, grad_outputs, allow_unused=True))
        return None, *(next(found) if leaf.requires_grad else None for leaf in leaves)


class _KnownGradients(torch.autograd.Function):
    """(T,) values, and their gradients by the tensors of each task and by those of all tasks."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, gradients: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.of_tasks = [
            t.ndim == gradient.ndim for t, gradient in zip(tensors, gradients, strict=True)
        ]
        return values.clone()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_more_derivatives()
        found = [
            gradient * v.view(-1, *(1,) * (gradient.ndim - 1))
            if of_task
            else torch.tensordot(v.to(gradient.dtype), gradient, 1)
            for gradient, of_task in zip(ctx.saved_tensors, ctx.of_tasks, strict=True)
        ]
        return None, None, *found


def _refuse_more_derivatives() -> None:
    """Raise ConfigError if the outer gradient is computed with `create_graph=True`."""
    if torch.is_grad_enabled():
        raise ConfigError(
            "the outer gradient can't be differentiated with memory='recompute', as for a "
            "Hessian-vector product; use memory='keep' (recompute=False)"
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


def _compared(results: Sequence[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """The losses, and the norm of each parameter, by which a rule's hidden state is noticed.

    None on a GPU, since a comparison would wait for it.
    """
    return [
        (group, t.detach().clone() if group == LOSSES else t.detach().norm()[None])
        for group in COMPARED
        for found, t in results
        if found == group and t.device.type == "cpu"
    ]


def _require_same(what: str, values: Tensor, first: Tensor) -> None:
    """Raise ConfigError if recomputed values differ from the first ones."""
    tolerance = 1e-9 if values.dtype == torch.float64 else 1e-5  # for rounding
    if not torch.allclose(values, first, rtol=tolerance, atol=tolerance / 10, equal_nan=True):
        raise ConfigError(
            f"{what} of {float(values[0]):.6g} where it computed {float(first[0]):.6g} before: it "
            "has hidden state, such as a counter, a generator of its own or numpy's random "
            "numbers; use memory='keep', or torch's global generator"
        )


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The state of torch's generators of the CPU and of a device.

    While a CUDA graph is captured the device's can't be read: the graph keeps track of it.
    """
    readable = device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if readable else None


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Put the generators back into a state that `random_state` returned."""
    on_cpu, on_device = state
    torch.set_rng_state(on_cpu)
    if on_device is not None:
        torch.cuda.set_rng_state(on_device, device)


@contextmanager
def _replayed(
    random: tuple[Tensor, Tensor | None], autocast: list[dict[str, Any]], device: torch.device
) -> Iterator[None]:
    """Set torch's generators and autocast as they were, and put them back afterwards."""
    with ExitStack() as stack:
        devices = [device] if device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=devices))
        set_random_state(random, device)
        for arguments in autocast:
            stack.enter_context(torch.autocast(**arguments))
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
