"""A torch module as a pure function of its parameters.

The user's module is never changed and never called. Private copies of it are called instead:

- layers with running statistics use the statistics of the batch, since running ones would leak from
  one task into the next;
- convolutions and batch norms are differentiated twice in less time (`gradshare.accelerate`);
- buffers are constants: what `forward` writes to them is dropped;
- evaluation has a separate copy, in which dropout is off.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradshare.errors import ConfigError, is_out_of_memory
from gradshare.inner_loop import Tensors
from gradshare.inner_loop.attention import unfused_attention
from gradshare.inner_loop.flat_memory import random_state, set_random_state
from gradshare.models import BatchNorm2d, BatchNormMode
from gradshare.models.layers import use_fast_layers
from gradshare.tasks.batch import Tree, first_leaf, put_together, taken_apart, task_of

log = logging.getLogger(__name__)

Precision = Literal["float32", "bfloat16"]
"""What a model computes in: "bfloat16" is mixed precision, by `torch.autocast`."""

BATCH_NORMS = (BatchNorm2d, nn.modules.batchnorm._BatchNorm)
NORMS = (BatchNorm2d, nn.modules.batchnorm._NormBase)
ATTENTIVE = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


class Network:
    """A module as a function. Several threads may call it; they take turns.

    Args:
        model: the user's module. While meta-training it is used in its mode, train or eval.
        precision: "bfloat16" computes convolutions and matrix products in bfloat16; parameters,
            gradients and outputs stay as they are.
        up_to: the name of a layer whose inputs are the outputs of the network; None for all of it.

    Raises:
        ConfigError: the model is not a module, or one of a kind that can't be copied.
    """

    def __init__(
        self, model: nn.Module, *, precision: Precision = "float32", up_to: str | None = None
    ) -> None:
        require_usable(model)
        self.model = model
        self.precision = precision
        self.up_to = up_to
        self.vmaps = True
        self._lock = threading.RLock()
        self.copy_model()

    def copy_model(self) -> None:
        """Take the model's present frozen parameters, buffers and modes."""
        with self._lock:
            self._training, self._evaluation = (
                _Copy(use_fast_layers(_private(self.model, evaluation=evaluation)), self.up_to)
                for evaluation in (False, True)
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments alone, since the copies and the lock can't be pickled."""
        again = functools.partial(Network, precision=self.precision, up_to=self.up_to)
        return again, (self.model,)

    def __call__(
        self,
        params: Tensors,
        shared: Tensors,
        x: Tree,
        *,
        support: Tree | None = None,
        sizes: Sequence[int] | None = None,
        support_sizes: Sequence[int] | None = None,
        training: bool,
        together: bool = False,
    ) -> Tensor:
        """The outputs of some tasks.

        Args:
            params: (t, …) each task's own parameters.
            shared: (…) parameters that the tasks share.
            x: (t, n, …) inputs, a tree of tensors.
            support: (t, s, …) inputs that supply the batch statistics, for `forward(x, support)`.
            sizes: the number of real examples of each task; None if there is no padding.
            support_sizes: the same for `support`.
            training: whether dropout is on, if the model is in training mode.
            together: compute the tasks in one `torch.vmap`, if the module allows it and all tasks
                have the same size. Otherwise they are computed one after the other.

        Returns:
            (t, n, …); zero where an example is not real.

        Raises:
            ConfigError: the model does not return one tensor.
        """
        network = self._training if training else self._evaluation
        count = len(first_leaf(x))

        def forward(params: Tensors, x: Tree, support: Tree | None) -> Tensor:
            with self._lock, self._autocast(first_leaf(x)):
                return network({**shared, **params}, x, support)

        refusal = None
        if together and self.vmaps and count > 1 and sizes is None and support_sizes is None:
            device = first_leaf(x).device
            random = random_state(device)
            try:
                dims = (0, 0, None if support is None else 0)
                with unfused_attention():
                    all_at_once = torch.vmap(forward, dims, randomness="different")
                    return all_at_once(dict(params), x, support)
            except RuntimeError as error:  # perhaps the module's own, which the loop raises again
                if is_out_of_memory(error):
                    raise
                refusal = str(error).partition("\n")[0][:200]
            set_random_state(random, device)
        outputs = []
        apart = {name: taken_apart(tensor) for name, tensor in params.items()}
        for task in range(count):
            own = {name: tensors[task] for name, tensors in apart.items()}
            norm = None if support is None else task_of(support, task, support_sizes)
            outputs.append(forward(own, task_of(x, task, sizes), norm))
        if refusal is not None:
            self.vmaps = False
            log.warning(
                "%s can't be computed for all tasks at once; they are computed one after the other "
                "(torch.vmap: %s)",
                type(self.model).__name__,
                refusal,
            )
        if sizes is not None:
            n = first_leaf(x).shape[1]
            outputs = [torch.cat([y, y.new_zeros(n - len(y), *y.shape[1:])]) for y in outputs]
        return put_together(outputs)

    @contextmanager
    def _autocast(self, like: Tensor) -> Iterator[None]:
        if self.precision == "float32":
            yield
            return
        # The cache would give one pass the casts of another pass's graph.
        with torch.autocast(like.device.type, torch.bfloat16, cache_enabled=False):
            yield

    def module(self, params: Tensors) -> nn.Module:
        """A copy of the model with other parameters, in evaluation mode."""
        private = _Copy(_private(self.model, evaluation=True))
        for name, tensor in params.items():
            for owner, key in private.slots[name]:
                owner._parameters[key] = nn.Parameter(tensor.detach().clone(), requires_grad=False)
        return private.module.to(next(iter(params.values())).device)

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether an output depends on the other inputs of its batch, by batch norm."""
        return any(
            isinstance(module, BATCH_NORMS) and not getattr(module, "track_running_stats", False)
            for module in self._training.module.modules()
        )


class _Copy:
    """A private copy of a module, with the places of its parameters and buffers."""

    def __init__(self, module: nn.Module, up_to: str | None = None) -> None:
        self.module = module
        self.up_to = up_to
        self.seen: list[Tensor] = []  # the inputs of the layer `up_to`
        if up_to is not None:
            layer = module.get_submodule(up_to)
            layer.register_forward_pre_hook(lambda _, given: self.seen.append(given[0]))
        self.device: torch.device | None = None
        self.slots: dict[str, list[tuple[nn.Module, str]]] = {}
        names = {id(p): name for name, p in module.named_parameters()}
        for owner in module.modules():
            for key, parameter in owner._parameters.items():
                if parameter is not None:  # a tied parameter has one name and several slots
                    self.slots.setdefault(names[id(parameter)], []).append((owner, key))
        self.buffers: list[tuple[nn.Module, str, Tensor | None, Tensor | None, int]] = []
        self.names: list[tuple[nn.Module, frozenset[str]]] = []  # of the buffers

    def __call__(self, params: Tensors, x: Tree, support: Tree | None) -> Tensor:
        """The outputs for one task with other parameters."""
        device = first_leaf(x).device
        if device != self.device:
            self.module.to(device)
            self.device = device
            self._keep_buffers()
        before = [
            (owner, key, owner._parameters[key])
            for name in params
            for owner, key in self.slots[name]
        ]
        try:
            for name, tensor in params.items():
                for owner, key in self.slots[name]:
                    owner._parameters[key] = tensor  # type: ignore[assignment]
            outputs = call_module(self.module, x, support)
            if self.up_to is not None:
                outputs = self._last_seen()
        finally:
            self.seen.clear()
            for owner, key, parameter in before:
                owner._parameters[key] = parameter
            self._restore_buffers()
        if not isinstance(outputs, Tensor):
            raise ConfigError(
                f"{type(self.module).__name__}.forward returned a {type(outputs).__name__}; it "
                "must return one tensor: wrap it in a module that returns its outputs alone"
            )
        return outputs.float() if outputs.dtype == torch.bfloat16 else outputs

    def _last_seen(self) -> Tensor:
        if not self.seen:
            raise ConfigError(
                f"{type(self.module).__name__} does not use its layer {self.up_to!r}; name its head"
            )
        return self.seen[-1]

    def _keep_buffers(self) -> None:
        """Remember the buffers, and let `forward` write to copies of them."""
        self.buffers, self.names = [], []
        for owner in self.module.modules():
            self.names.append((owner, frozenset(owner._buffers)))
            for key, buffer in owner._buffers.items():
                self.buffers.append((owner, key, buffer, *_working(owner, key, buffer)))

    def _restore_buffers(self) -> None:
        """Replace the buffers that `forward` has written to, and drop those that it has made."""
        for index, (owner, key, buffer, working, version) in enumerate(self.buffers):
            current = owner._buffers.get(key)
            if current is not working or (current is not None and current._version != version):
                self.buffers[index] = (owner, key, buffer, *_working(owner, key, buffer))
        for owner, names in self.names:
            for key in owner._buffers.keys() - names:
                del owner._buffers[key]


def _working(owner: nn.Module, key: str, buffer: Tensor | None) -> tuple[Tensor | None, int]:
    """Let a module work with a copy of a buffer; the copy and its version."""
    copied = None if buffer is None else buffer.clone()
    owner._buffers[key] = copied
    return copied, 0 if copied is None else copied._version


def batch_norm_parameters(model: nn.Module) -> set[str]:
    """The names of γ and β of all batch-norm layers."""
    return {
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules()
        if isinstance(module, BATCH_NORMS)
        for name, _ in module.named_parameters()
    }


def is_inductive(model: nn.Module, mode: BatchNormMode) -> bool:
    """Whether the support set supplies the batch statistics of a model's queries.

    Raises:
        ConfigError: it is to do so, and the model has no way to take it.
    """
    takes_support = "support" in inspect.signature(model.forward).parameters
    if mode == "inductive" and not takes_support:
        raise ConfigError(
            f"inductive batch norm needs {type(model).__name__}.forward(x, support), where the "
            "support inputs supply the statistics; put them in front of x, pass their number "
            "to each gradshare.models.BatchNorm2d as `statistics_from` (see Conv4), or choose "
            "the transductive mode"
        )
    return takes_support and mode != "transductive"


def call_module(module: Callable[..., Any], x: Tree, support: Tree | None = None) -> Any:
    """Call a module with a tuple as positional arguments and a dictionary as keyword arguments."""
    extra = {} if support is None else {"support": support}
    if isinstance(x, Mapping):
        return module(**x, **extra)
    if isinstance(x, tuple):
        return module(*x, **extra)
    return module(x, **extra)


def _private(model: nn.Module, *, evaluation: bool) -> nn.Module:
    """A copy of a module that carries nothing from task to task."""
    # Computed tensors that are attributes, such as weight norm's, can't be copied otherwise.
    computed = {
        id(value): value.detach()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        private = copy.deepcopy(model, computed)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(
            f"{type(model).__name__} can't be copied ({error!s:.200}); make it a module that "
            "copy.deepcopy accepts"
        ) from error
    replaced = []
    for name, module in private.named_modules():
        norm = isinstance(module, NORMS)
        if norm and module.training and getattr(module, "track_running_stats", False):
            module.track_running_stats = False
            for key in list(module._buffers):
                module._buffers[key] = None
            replaced.append(name)
        # A module with buffers keeps its mode, which says how they are used.
        keeps_mode = norm or any(buffer is not None for buffer in module._buffers.values())
        if evaluation and not keeps_mode:
            module.training = False
        if isinstance(module, ATTENTIVE) and not module.training:
            # Their fast path in evaluation mode has no derivative under vmap.
            module.training = True
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
    if replaced and not evaluation:
        _say_once(type(model).__name__, replaced[0], len(replaced))
    return private


@functools.cache
def _say_once(model: str, first: str, count: int) -> None:
    if count == 1:
        layers = f"layer {first!r} of {model} has"
    else:
        layers = f"{count} layers of {model}, such as {first!r}, have"
    log.warning(
        "%s running statistics; those of the batch are used instead, since those of a task must "
        "not leak into the next",
        layers,
    )


def require_usable(model: object) -> None:
    """Raise ConfigError unless `model` is a module that can be called with other parameters."""
    if not isinstance(model, nn.Module):
        kind = f"class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise ConfigError(f"the model is a {kind}; give an object of a torch.nn.Module")
    name = type(model).__name__
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ConfigError(f"the model is a {name}; give the module inside it: model.module")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(f"the model is a {name}, compiled by TorchScript; give the module itself")
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ConfigError(
                f"{path} of {name} has no shape yet; call the model once on an example input"
            )
        if tensor.is_meta:
            raise ConfigError(f"{path} of {name} has no values; make the model on another device")
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise ConfigError(
                f"{path} of {name} has sparse gradients, which cannot be differentiated; make it "
                "with sparse=False"
            )
