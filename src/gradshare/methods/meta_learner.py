"""A meta-learner: a model, a chain of update rules, and an outer objective.

MAML, Meta-SGD and MAML++ are three ways of putting one together (see the files beside this one).
"""

from __future__ import annotations

import inspect
import reprlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from gradshare.errors import ConfigError, require_choice, require_count, require_flag
from gradshare.inner_loop import Adaptation, SumOverTasks, Tensors, UpdateRule, adapt
from gradshare.inner_loop.flat_memory import losses_with_gradients
from gradshare.inner_loop.rule import (
    require_rule,
    require_steps,
    start_of,
    sum_over_local_tasks,
    under,
    with_prefix,
)
from gradshare.methods.labels import IGNORED, require_classes
from gradshare.methods.multi_step_loss import MultiStepLoss
from gradshare.models import BatchNorm2d, BatchNormMode
from gradshare.tasks import TaskBatch

Precision = Literal["float32", "bfloat16"]
"""What the model computes in; see `MetaLearner`."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) of one task to a scalar."""

MODEL = "model"

# Of PyTorch's errors where `torch.vmap` does not bear what a model does: there is no batched form
# of an operation, or its values were asked for.
VMAP_CANNOT = ("vmap", "atching rule", "data pointer")


@dataclass(frozen=True)
class OuterStep:
    """The outer objective of one task batch.

    Attributes:
        losses: (T,) the outer loss of each task; their mean over all T is Eq. 5's objective.
        outputs: (T, queries, …) the model's outputs for the queries after the last inner step,
            detached.
        state: the rules' new state, detached, to be kept if the outer step is taken.
    """

    losses: Tensor
    outputs: Tensor
    state: Tensors


class MetaLearner:
    """Learns an initialisation, and whatever its rules learn, from which K steps solve a task.

    The outer parameters are one flat dictionary: `model.NAME` for the model's parameters and
    `RULE.NAME` for those of each rule. Neither they nor the rules' state are kept here: both are
    passed and returned, so that a checkpoint, an optimiser or a test holds everything there is.
    Several threads may use a learner at once: one of them at a time is in its model.

    Args:
        model: any module whose `forward` returns one tensor, in the mode it is in: dropout, if it
            has any, is the caller's to switch. Its batch norm must use batch statistics, or be in
            evaluation mode with those that it has, as in a pretrained backbone. For the inductive
            mode its `forward(x, support)` must take the images that supply them.
        rule: turns task gradients into updates.
        steps: K, the number of inner steps.
        loss: the inner and outer loss of one task.
        second_order: whether the outer gradient goes through the task gradients.
        first_order_iterations: so many outer iterations are first-order whatever `second_order`
            says (MAML++'s derivative-order annealing).
        multi_step_loss: MAML++'s outer loss over every inner step; None for the last one only.
        per_step_batch_norm: learn one γ and β for each inner step, (K, C) (MAML++); of those that
            the inner loop adapts there is one.
        batch_norm: where the queries' batch statistics come from; see
            `gradshare.models.batch_norm`.
        adapts: which named parameters the inner loop adapts. Default: all but batch norm's γ and
            β, as in the reference MAML++ code. The others are learned by the outer loop alone.
            Parameters that do not require gradients are left out of both.
        tasks_at_a_time: how many tasks of a batch one forward pass takes, by `torch.vmap` if more
            than one, which the model must allow; None for all. With several, `ConvBlock` has
            less to launch: a third less time on small images.
        recompute: keep no step's graph but build it again in the backward pass, so that memory
            does not grow with K nor with the number of chunks of `tasks_at_a_time` tasks. It
            costs one more forward and backward pass a step, which finds the model's buffers,
            autocast and torch's own random numbers as the first one did, but no `torch.Generator`
            and no attributes of the model's own; see `gradshare.inner_loop.flat_memory`.
        precision: "bfloat16" is mixed precision: the model's convolutions and matrix products
            compute in bfloat16, by `torch.autocast`; parameters, gradients, rules, losses and the
            outer loop stay float32.

    Raises:
        ConfigError: the model is none, keeps running statistics in a norm, has nothing to adapt or
            cannot do the inductive mode; the rule is none, or it or the multi-step loss is made for
            another number of inner steps; or an option has a value that it does not take.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: UpdateRule,
        *,
        steps: int,
        loss: Loss = F.cross_entropy,
        second_order: bool = True,
        first_order_iterations: int = 0,
        multi_step_loss: MultiStepLoss | None = None,
        per_step_batch_norm: bool = False,
        batch_norm: BatchNormMode = "transductive",
        adapts: Callable[[str], bool] | None = None,
        tasks_at_a_time: int | None = 1,
        recompute: bool = False,
        precision: Precision = "float32",
    ) -> None:
        if not isinstance(model, nn.Module):
            kind = f"class {model.__name__}" if isinstance(model, type) else type(model).__name__
            raise ConfigError(f"the model is a {kind}; give an object of a torch.nn.Module")
        _require_function("loss", loss)
        if adapts is not None:
            _require_function("adapts", adapts)
        require_choice("batch_norm", batch_norm, BatchNormMode)
        require_choice("precision", precision, Precision)
        require_flag("second_order", second_order)
        require_flag("recompute", recompute)
        require_flag("per_step_batch_norm", per_step_batch_norm)
        require_count("first_order_iterations", first_order_iterations, least=0)
        require_count("steps", steps)
        if tasks_at_a_time is not None:
            require_count("tasks_at_a_time", tasks_at_a_time)
        require_rule("rule", rule)
        for part in (rule, multi_step_loss):
            require_steps(part, steps)
        _require_fixed_statistics(model)
        norms = _batch_norms(model)
        norm_parameters = {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in norms.items()
            for name, _ in module.named_parameters()
        }
        adapts = adapts or (lambda name: name not in norm_parameters)
        trainable = [name for name, p in model.named_parameters() if p.requires_grad]
        self.adapted = tuple(name for name in trainable if adapts(name))
        self.shared = tuple(name for name in trainable if not adapts(name))
        if not self.adapted:
            found = f"those are {reprlib.repr(trainable)}" if trainable else "it has none"
            raise ConfigError(
                f"{type(model).__name__} has no parameters to adapt; give it some that require "
                f"gradients ({found}), and let `adapts` choose at least one"
            )
        of_a_batch = any(not _keeps_statistics(module) for module in norms.values())
        if of_a_batch and batch_norm == "inductive" and not _takes_support(model):
            raise ConfigError(
                f"inductive batch norm needs {type(model).__name__}.forward(x, support), where the "
                "support images supply the statistics; put them in front of x, pass their number "
                "to every gradshare.models.BatchNorm2d as `statistics_from` (see Conv4), or choose "
                "the transductive mode"
            )
        self.per_step = norm_parameters.intersection(self.shared if per_step_batch_norm else ())
        self.model = model
        self.rule = rule
        self.steps = steps
        self.loss = loss
        self.second_order = second_order
        self.first_order_iterations = first_order_iterations
        self.multi_step_loss = multi_step_loss
        # Without batch norm a query's prediction depends on no other query anyway.
        self.inductive = batch_norm == "inductive" and of_a_batch
        self.tasks_at_a_time = tasks_at_a_time
        self.recompute = recompute
        self.precision = precision
        self._in_use = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """All but the lock, which can be neither pickled nor copied."""
        return {name: value for name, value in self.__dict__.items() if name != "_in_use"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With a lock of its own."""
        self.__dict__.update(state)
        self._in_use = threading.RLock()

    def init(self) -> tuple[dict[str, Tensor], Tensors]:
        """The outer parameters, leaves that require gradients, and the rules' state, before any
        training. The model's own parameters are where they start and are never changed.

        Raises:
            ConfigError: the rule's `init` returns something else than it is to, or a name that is
                the model's.
        """
        with self._in_use:
            parameters = dict(self.model.named_parameters())
        adapted = {name: parameters[name].detach() for name in self.adapted}
        learned, state = start_of(self.rule, adapted)
        if taken := sorted(under(MODEL, learned)):
            raise ConfigError(
                f"a rule learns '{MODEL}.{taken[0]}', and names that begin with '{MODEL}.' are the "
                "model's; give what it learns another one, as its name in a Chain"
            )
        start = {name: parameters[name].detach() for name in (*self.adapted, *self.shared)}
        for name in self.per_step:
            start[name] = start[name].expand(self.steps, *start[name].shape)
        outer = {**with_prefix(MODEL, start), **learned}
        # A rule may start with what is a leaf already, and the copy of a leaf is none.
        return {name: t.detach().clone().requires_grad_() for name, t in outer.items()}, state

    def outer_step(
        self,
        learned: Tensors,
        state: Tensors,
        tasks: TaskBatch,
        *,
        iteration: int,
        sum_over_tasks: SumOverTasks = sum_over_local_tasks,
    ) -> OuterStep:
        """The outer losses of a task batch (the loops of Algorithm 1), differentiable in every
        outer parameter that requires gradients.

        Args:
            learned: the outer parameters.
            state: the rules' state.
            tasks: normalised images, (T, …).
            iteration: how many outer steps were taken before this one, for the schedules.
            sum_over_tasks: sums over the whole batch when `tasks` is only a share of it.

        Raises:
            ConfigError: some of the outer parameters or of the state are missing, or are of
                another learner; the loss of a task or what the model returns is none; or under
                `torch.inference_mode`.
            DataError: labels that cross entropy cannot take; see `require_classes`.
        """
        second_order = self.second_order and iteration >= self.first_order_iterations
        # Where nothing is learned the losses are constants, and fail to be differentiated.
        second_order = second_order and any(t.requires_grad for t in learned.values())
        adaptation = self._adapt(
            learned, state, tasks, second_order=second_order, sum_over_tasks=sum_over_tasks
        )
        losses: Tensor | float = 0.0
        for updates, weight in enumerate(self.query_weights(iteration), start=1):
            if weight:
                query_losses, outputs = self._query_losses(
                    learned, adaptation.params[updates], tasks, updates
                )
                losses = losses + weight * query_losses
        assert isinstance(losses, Tensor)
        return OuterStep(losses, outputs.detach(), adaptation.state)

    def query_weights(self, iteration: int) -> list[float]:
        """What the query losses after update 1, …, K count at an outer iteration (from 0)."""
        if self.multi_step_loss is None:
            return [0.0] * (self.steps - 1) + [1.0]
        return self.multi_step_loss.weights(iteration)

    @torch.no_grad()
    def adapt(self, learned: Tensors, state: Tensors, tasks: TaskBatch) -> Adaptation:
        """Adapt to the support sets of tasks that know nothing of each other (Algorithm 2).

        Args:
            learned: the outer parameters.
            state: the rules' state, left as it is.
            tasks: normalised images, (T, …).
        """
        return self._adapt(learned, state, tasks, second_order=False, sum_over_tasks=None)

    def predict(
        self, learned: Tensors, params: Tensors, tasks: TaskBatch, *, updates: int
    ) -> Tensor:
        """The model's outputs for the queries.

        Args:
            learned: the outer parameters.
            params: (T, …) the tasks' parameters after `updates` inner steps.
            tasks: normalised images, (T, …).
            updates: how many inner steps were taken. With per-step batch norm the pass after
                update k uses the k-th γ and β, as in the reference code.

        Returns:
            (T, queries, …).
        """
        shared = self._shared(learned, max(updates - 1, 0))

        def outputs(params: Tensors, chunk: slice) -> Tensor:
            return self._query_outputs(params, shared, tasks, chunk)

        return self._in_chunks(outputs, params, tasks)

    def predict_support(
        self, learned: Tensors, params: Tensors, tasks: TaskBatch, *, updates: int
    ) -> Tensor:
        """Likewise for the support set: (T, ways·shots, …)."""
        shared = self._shared(learned, min(updates, self.steps - 1))

        def outputs(params: Tensors, chunk: slice) -> Tensor:
            return self._outputs(params, shared, tasks.support_x[chunk])

        return self._in_chunks(outputs, params, tasks)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each task: (T, n, …) outputs and targets to (T,).

        Raises:
            ConfigError: the loss of a task is no scalar.
            DataError: labels that cross entropy cannot take; see `require_classes`.
        """
        if self.loss is F.cross_entropy or isinstance(self.loss, nn.CrossEntropyLoss):
            require_classes(outputs, targets, getattr(self.loss, "ignore_index", IGNORED))
        return torch.stack([self._loss(o, t) for o, t in zip(outputs, targets, strict=True)])

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of one task."""
        loss = self.loss(outputs, targets)
        if not isinstance(loss, Tensor) or loss.ndim:
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ConfigError(
                "the loss of a task must be a tensor of shape (), and "
                f"{getattr(self.loss, '__name__', type(self.loss).__name__)} returned {found}; "
                "give one that takes the mean (reduction='mean')"
            )
        return loss

    def _adapt(
        self,
        learned: Tensors,
        state: Tensors,
        tasks: TaskBatch,
        *,
        second_order: bool,
        sum_over_tasks: SumOverTasks | None,
    ) -> Adaptation:
        def support_losses(params: Tensors, shared: Tensors, chunk: slice) -> Tensor:
            outputs = self._outputs(params, shared, tasks.support_x[chunk])
            return self.losses(outputs, tasks.support_y[chunk])

        self._require_own(learned, state)
        theta = under(MODEL, learned)
        return adapt(
            support_losses,
            {name: theta[name].expand(len(tasks), *theta[name].shape) for name in self.adapted},
            self.rule,
            learned,
            state,
            steps=self.steps,
            second_order=second_order,
            sum_over_tasks=sum_over_tasks,
            shared=lambda step: self._shared(learned, step),
            chunks=self.chunks(tasks),
            recompute=self.recompute,
            buffers=self._buffers,
        )

    @cached_property
    def _start(self) -> tuple[dict[str, torch.Size], list[str]]:
        """The shapes of the outer parameters, and the names of the rules' state, as they start."""
        with torch.random.fork_rng(devices=[]):  # a rule may draw where it starts
            learned, state = self.init()
        return {name: tensor.shape for name, tensor in learned.items()}, list(state)

    def _require_own(self, learned: Tensors, state: Tensors) -> None:
        """Refuse tensors of another learner, which lack some of this one's or learned in other
        shapes, and a model whose mode was changed to one that a learner does not take.
        """
        _require_fixed_statistics(self.model)
        remedy = (
            "give what this learner's `init` or `outer_step` returned, or a checkpoint of the same "
            "method, rules and model"
        )
        shapes, names = self._start
        for kind, own, given in (
            ("outer parameter", list(shapes), learned),
            ("rules' state", names, state),
        ):
            missing = [name for name in own if name not in given]
            if missing:
                raise ConfigError(
                    f"the {kind} {missing[0]!r} is missing ({len(missing)} of {len(own)} are); "
                    f"{remedy}"
                )
        for name, shape in shapes.items():
            found = learned[name].shape
            # What a rule learns may have the tasks in front: a task-conditioned m or λ is (T, K).
            of_tasks = not name.startswith(f"{MODEL}.") and found[1:] == shape
            if found != shape and not of_tasks:
                raise ConfigError(
                    f"the outer parameter {name!r} is of shape {tuple(found)}, and this learner's "
                    f"of {tuple(shape)}; {remedy}"
                )

    def _buffers(self) -> dict[str, Tensor]:
        """Copies of the model's buffers, which a forward pass may change."""
        with self._in_use:
            return {name: buffer.clone() for name, buffer in self.model.named_buffers()}

    def _query_losses(
        self, learned: Tensors, params: Tensors, tasks: TaskBatch, updates: int
    ) -> tuple[Tensor, Tensor]:
        """The query losses (T,) and outputs of the tasks after so many updates."""

        def losses(params: Tensors, shared: Tensors, chunk: slice) -> tuple[Tensor, Tensor]:
            outputs = self._query_outputs(params, shared, tasks, chunk)
            return self.losses(outputs, tasks.query_y[chunk]), outputs

        if self.recompute:
            shared = self._shared(learned, updates - 1)
            return losses_with_gradients(losses, params, shared, self.chunks(tasks))
        outputs = self.predict(learned, params, tasks, updates=updates)
        return self.losses(outputs, tasks.query_y), outputs

    def _query_outputs(
        self, params: Tensors, shared: Tensors, tasks: TaskBatch, chunk: slice
    ) -> Tensor:
        images = [tasks.query_x[chunk], *([tasks.support_x[chunk]] if self.inductive else [])]
        return self._outputs(params, shared, *images)

    def _shared(self, learned: Tensors, step: int) -> dict[str, Tensor]:
        """What the inner loop does not adapt of the model, such as the γ and β of an inner step."""
        shared = {}
        for name in self.shared:
            tensor = learned[f"{MODEL}.{name}"]
            shared[name] = tensor[step] if name in self.per_step else tensor
        return shared

    def chunks(self, tasks: TaskBatch) -> list[slice]:
        """The tasks that are computed together."""
        T, size = len(tasks), self.tasks_at_a_time or len(tasks)
        return [slice(start, min(start + size, T)) for start in range(0, T, size)]

    def _in_chunks(
        self, outputs: Callable[[Tensors, slice], Tensor], params: Tensors, tasks: TaskBatch
    ) -> Tensor:
        """The outputs of all tasks."""
        return torch.cat(
            [
                outputs({name: t[chunk] for name, t in params.items()}, chunk)
                for chunk in self.chunks(tasks)
            ]
        )

    def _outputs(self, params: Tensors, shared: Tensors, *images: Tensor) -> Tensor:
        """The model's outputs for some tasks' images (t, n, C, H, W), and the support set if it
        supplies the statistics. A tensor of `shared` is every task's, one of `params` (t, …).
        """

        def forward(params: Tensors, *images: Tensor) -> Tensor:
            # While it runs the model holds a task's parameters, and another thread's forward pass
            # would take them, and put them back as the model's own.
            with self._in_use:
                outputs = functional_call(self.model, {**shared, **params}, images)
            if not isinstance(outputs, Tensor):
                raise ConfigError(
                    f"{type(self.model).__name__}.forward must return one tensor, but returns a "
                    f"{type(outputs).__name__}; wrap it in a module that returns its outputs alone"
                )
            return outputs

        if self.precision == "bfloat16":
            forward = _narrow(forward, images[0].device)

        if len(images[0]) > 1:
            try:
                return torch.vmap(forward, randomness="different")(params, *images)
            except RuntimeError as error:
                if not any(words in str(error) for words in VMAP_CANNOT):
                    raise
                raise ConfigError(
                    f"{type(self.model).__name__} cannot take several tasks at a time "
                    f"({str(error).splitlines()[0]:.200}); make the learner with tasks_at_a_time=1"
                ) from error
        task = {name: tensor[0] for name, tensor in params.items()}
        return forward(task, *(tensor[0] for tensor in images))[None]


def _require_function(name: str, value: object) -> None:
    """Refuse a class, or what cannot be called, where a function is to be."""
    if isinstance(value, type) or not callable(value):
        raise ConfigError(f"{name} is {value!r}; give a function, or an object that is called")


def _narrow(forward: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """A forward pass in mixed precision, of float32 outputs. Autograd casts the gradients back."""

    def narrow(*inputs: Any) -> Tensor:
        # Without the cache, which would hand a pass the casts of another one's graph.
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            outputs = forward(*inputs)
        return outputs.float() if outputs.dtype == torch.bfloat16 else outputs

    return narrow


def _require_fixed_statistics(model: nn.Module) -> None:
    """Refuse a model that would change running statistics."""
    for name, module in model.named_modules():
        if _keeps_statistics(module) and module.training:
            kind = type(module).__name__
            remedy = "build it with track_running_stats=False, or put it into evaluation mode"
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                remedy += ", or pass the model through torch.func.replace_all_batch_norm_modules_"
            raise ConfigError(
                f"{kind} {name!r} of {type(model).__name__} keeps running statistics, which would "
                f"leak from task to task; {remedy}"
            )


def _batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The batch-norm modules by name."""
    kinds = BatchNorm2d | nn.modules.batchnorm._BatchNorm
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def _keeps_statistics(module: nn.Module) -> bool:
    # Instance norm, which is no `_BatchNorm`, can keep them too.
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats


def _takes_support(model: nn.Module) -> bool:
    return "support" in inspect.signature(model.forward).parameters
