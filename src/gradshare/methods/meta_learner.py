"""A meta-learner: a model, an update rule and an outer objective, as MAML and its kin are."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.errors import ConfigError, require_choice, require_count
from gradshare.inner_loop import SumOverTasks, Tensors, UpdateRule, sum_over_local_tasks
from gradshare.inner_loop.adapt import Adaptation, adapt, joined_tasks, split_by_task
from gradshare.inner_loop.flat_memory import losses_with_gradients
from gradshare.inner_loop.memory_order import for_all_tasks
from gradshare.inner_loop.rule import checked_init, refuse_to_sum, require_rule, with_prefix
from gradshare.methods.learner import (
    Adapted,
    Loss,
    OuterStep,
    joined,
    require_labels,
    require_state,
)
from gradshare.methods.multi_step_loss import multi_step_weights
from gradshare.methods.network import Network, Precision, batch_norm_parameters, is_inductive
from gradshare.methods.task_losses import TaskLosses
from gradshare.models import BatchNormMode
from gradshare.tasks.batch import TaskBatch

MODEL = "model"


class MetaLearner:
    """Learns an initialisation, and whatever its rule learns, from which K steps solve a task.

    The meta-parameters are one flat dictionary: `model.NAME` for the model's parameters, and the
    rule's own names. The user's module is never changed: private copies of it are called.

    Args:
        model: any module whose `forward` returns one tensor. Inputs that are a tuple are its
            positional arguments, those that are a dictionary its keyword arguments. For the
            inductive mode `forward(x, support)` takes the inputs that supply the batch statistics.
        rule: turns task gradients into updates.
        steps: K, the number of inner steps.
        loss: the inner and outer loss of one task.
        second_order: whether the outer gradient goes through the task gradients.
        first_order_iterations: how many outer iterations are first order before the others
            (MAML++'s derivative-order annealing).
        multi_step_iterations: for how many outer iterations the query losses of all inner steps
            count, with weights that are annealed to the last one (MAML++).
        per_step_batch_norm: learn one γ and β for each inner step, (K, C) (MAML++). Those that the
            inner loop adapts stay single.
        batch_norm: which inputs supply the batch statistics of the queries: "transductive", all
            queries of the task; "inductive", its support set; "auto", the support set if the
            model's `forward` takes `support`, and else the queries.
        adapts: which named parameters the inner loop adapts. Default: all but batch norm's γ and
            β, as in the reference MAML++ code. The others are learned by the outer loop alone.
            Parameters that do not require gradients are left out of both.
        tasks_at_a_time: the tasks that one forward pass takes, by `torch.vmap` if more than one;
            None for all.
        recompute: free each step's graph and build it again in the backward pass, so that memory
            grows neither with K nor with the number of tasks. It costs one more forward and
            backward pass for each step.
        precision: "bfloat16" computes convolutions and matrix products in it, by torch.autocast.

    Raises:
        ConfigError: an argument of another kind, a model without parameters to adapt, or one
            without the inductive mode.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: UpdateRule,
        *,
        steps: int = 5,
        loss: Loss = F.cross_entropy,
        second_order: bool = True,
        first_order_iterations: int = 0,
        multi_step_iterations: int = 0,
        per_step_batch_norm: bool = False,
        batch_norm: BatchNormMode = "auto",
        adapts: Callable[[str], bool] | None = None,
        tasks_at_a_time: int | None = 1,
        recompute: bool = False,
        precision: Precision = "float32",
    ) -> None:
        for name, function in (("loss", loss), ("adapts", adapts)):
            if function is not None and (isinstance(function, type) or not callable(function)):
                raise ConfigError(f"{name} is {function!r}; give a function")
        require_choice("batch_norm", batch_norm, BatchNormMode)
        require_choice("precision", precision, Precision)
        require_choice("second_order", second_order, Literal[True, False])
        require_count("first_order_iterations", first_order_iterations, least=0)
        require_count("multi_step_iterations", multi_step_iterations, least=0)
        require_count("steps", steps)
        self.network = Network(model, precision=precision)
        self.model = model
        self._shapes: list[dict[str, torch.Size]] = []  # of what `init` has returned
        self.rule = require_rule("rule", rule)
        self.steps = steps
        self.loss = loss
        self.losses = TaskLosses(loss)
        self.second_order = second_order
        self.first_order_iterations = first_order_iterations
        self.multi_step_iterations = multi_step_iterations
        self.tasks_at_a_time = tasks_at_a_time
        self.recompute = recompute
        self.separate = False
        self.starts: Tensors = {}  # other than those of the model and the rule, by name
        in_norms = batch_norm_parameters(model)
        adapts = adapts or (lambda name: name not in in_norms)
        trainable = [name for name, p in model.named_parameters() if p.requires_grad]
        self.adapted = tuple(name for name in trainable if adapts(name))
        self.shared = tuple(name for name in trainable if not adapts(name))
        if not self.adapted:
            found = f"those are {reprlib.repr(trainable)}" if trainable else "it has none"
            raise ConfigError(
                f"{type(model).__name__} has no parameters to adapt; give it some that require "
                f"gradients ({found}), and let `adapts` choose at least one"
            )
        of_batch = self.network.uses_batch_statistics
        self.per_step = in_norms.intersection(self.shared if per_step_batch_norm else ())
        # Without batch statistics a prediction depends on no other query in any mode.
        self.inductive = of_batch and is_inductive(model, batch_norm)

    def laid_out(
        self, *, tasks_at_a_time: int | None, recompute: bool, separate: bool = False
    ) -> Self:
        """The same learner with another layout, which changes results by rounding only.

        Args:
            tasks_at_a_time, recompute: as for the class.
            separate: take these tasks through all inner steps, and in `fit` through the backward
                pass, before the next ones. Only for rules that share nothing between tasks.
        """
        other = copy.copy(self)
        other.tasks_at_a_time, other.recompute = tasks_at_a_time, recompute
        other.separate = separate
        return other

    def parts(self, tasks: TaskBatch) -> list[slice]:
        """The parts of a batch whose outer steps can be taken and differentiated one by one."""
        return self.chunks(tasks) if self.separate else [slice(None)]

    def init(self) -> tuple[dict[str, Tensor], Tensors]:
        """The meta-parameters and the carried tensors before any training; see `Learner`.

        Raises:
            ConfigError: the rule's `init` returns what cannot be learned.
        """
        for part in vars(self).values():
            if isinstance(part, Network):
                part.copy_model()  # weights may have been loaded since
        theta = self.initial_parameters()
        adapted = {name: theta[name] for name in self.adapted}
        learned, carried = checked_init(self.rule, adapted, self.steps)
        for name, tensor in learned.items():
            if name.startswith(f"{MODEL}.") or not tensor.is_floating_point():
                raise ConfigError(
                    f"{type(self.rule).__name__}.init learns {name!r} of {tensor.dtype}; what a "
                    f"rule learns must be floating-point and not begin with '{MODEL}.'"
                )
        for name in self.per_step:
            theta[name] = theta[name].expand(self.steps, *theta[name].shape)
        outer = {**with_prefix(MODEL, theta), **learned, **self.starts}
        self._shapes = [{n: t.shape for n, t in part.items()} for part in (outer, carried)]
        return {name: t.detach().clone().requires_grad_() for name, t in outer.items()}, carried

    def is_model_parameter(self, name: str) -> bool:
        """Whether a meta-parameter is the model's and not learned by a rule."""
        return name.startswith(f"{MODEL}.")

    def initial_parameters(self) -> dict[str, Tensor]:
        """The model's present parameters, the adapted ones first."""
        parameters = dict(self.model.named_parameters())
        return {name: parameters[name].detach() for name in (*self.adapted, *self.shared)}

    def start(self, meta: Tensors, tasks: TaskBatch, *, training: bool) -> dict[str, Tensor]:
        """The (T, …) adapted parameters from which tasks start: the initialisation.

        Args:
            meta: the meta-parameters.
            tasks: a subclass may use their support sets.
            training: whether this is meta-training.
        """
        return {n: for_all_tasks(meta[f"{MODEL}.{n}"], len(tasks)) for n in self.adapted}

    def outer_step(
        self,
        meta: Tensors,
        carried: Tensors,
        tasks: TaskBatch,
        *,
        iteration: int,
        sum_over_tasks: SumOverTasks = sum_over_local_tasks,
    ) -> OuterStep:
        """The differentiable outer losses of a task batch (the loops of Algorithm 1).

        Args:
            meta: the meta-parameters.
            carried: the rule's carried tensors.
            tasks: prepared tasks.
            iteration: how many outer steps were taken before this one, for the schedules.
            sum_over_tasks: sums over the whole batch when `tasks` is only a part of it.

        Raises:
            ConfigError: `iteration` is not a whole number, the state is that of another learner,
                or the loss or the model returns something of another kind.
            DataError: cross entropy ignores all support labels of a task.
        """
        require_count("iteration", iteration, least=0)
        second_order = self.second_order and iteration >= self.first_order_iterations
        # Losses that depend on nothing learned are constants and can't be differentiated.
        second_order = second_order and any(t.requires_grad for t in meta.values())
        weights = self.query_weights(iteration)

        def of_part(tasks: TaskBatch) -> OuterStep:
            adaptation = self._adapt(
                meta,
                carried,
                tasks,
                steps=self.steps,
                second_order=second_order,
                sum_over_tasks=refuse_to_sum if self.separate else sum_over_tasks,
                each_step=any(weights[:-1]),
            )
            terms = []
            for updates, weight in enumerate(weights, start=1):
                if weight:
                    adapted = Adapted(adaptation.params[updates], updates)
                    query_losses, outputs = self._query_losses(meta, adapted, tasks)
                    terms.append(weight * query_losses)
            losses = torch.stack(terms).sum(0)
            return OuterStep(losses, losses.detach(), outputs.detach(), adaptation.carried)

        return joined([of_part(tasks[part]) for part in self.parts(tasks)])

    def query_weights(self, iteration: int) -> list[float]:
        """The weight of each inner step's query loss at an outer iteration (from 0)."""
        return multi_step_weights(self.steps, iteration, self.multi_step_iterations)

    @torch.no_grad()
    def adapt(
        self, meta: Tensors, carried: Tensors, tasks: TaskBatch, *, steps: int | None = None
    ) -> Adapted:
        """Adapt to the support sets of tasks, each independently of the others (Algorithm 2).

        Args:
            meta: the meta-parameters.
            carried: the rule's carried tensors; they do not change.
            tasks: prepared tasks.
            steps: inner steps; None for K. Steps beyond K use what the K-th has learned.
        """
        steps = self.steps if steps is None else steps
        require_count("steps", steps, least=0)
        adaptation = self._adapt(
            meta, carried, tasks, steps=steps, second_order=False, sum_over_tasks=None
        )
        return Adapted(adaptation.params[steps], steps)

    def predict(self, meta: Tensors, adapted: Adapted, tasks: TaskBatch) -> Tensor:
        """The model's outputs for the queries, (T, queries, …).

        With per-step batch norm the pass after update k uses the k-th γ and β, as in the reference
        code.

        Args:
            meta: the meta-parameters.
            adapted: the tasks as `adapt` returned them.
            tasks: prepared tasks.
        """
        shared = self.shared_parameters(meta, adapted.updates - 1)
        return self.outputs(adapted.params, shared, tasks, queries=True, training=False)

    def module(self, meta: Tensors, adapted: Adapted) -> nn.Module:
        """The user's model with the parameters of the first adapted task, in evaluation mode."""
        own = {name: tensor[0] for name, tensor in adapted.params.items()}
        return self.network.module({**self.shared_parameters(meta, adapted.updates - 1), **own})

    def report(self, meta: Tensors) -> dict[str, list[float]]:
        """The quantities that the rule reports, with a value for each inner step."""
        return self.rule.report(meta)

    def shared_parameters(self, meta: Tensors, step: int) -> dict[str, Tensor]:
        """The model's parameters at an inner step that the inner loop does not adapt."""
        step = min(max(step, 0), self.steps - 1)
        shared = {name: meta[f"{MODEL}.{name}"] for name in self.shared}
        return shared | {name: shared[name][step] for name in self.per_step}

    def chunks(self, tasks: TaskBatch) -> list[slice]:
        """The tasks that one forward pass takes."""
        T, size = len(tasks), self.tasks_at_a_time or len(tasks)
        return [slice(start, min(start + size, T)) for start in range(0, T, size)]

    def support_losses(
        self, params: Tensors, shared: Tensors, tasks: TaskBatch, *, training: bool
    ) -> Tensor:
        """The (T,) losses of the support sets at some parameters (T, …)."""
        outputs = self.outputs(params, shared, tasks, queries=False, training=training)
        return self.losses(outputs, tasks.support_y, tasks.support_n)

    def _query_losses(
        self, meta: Tensors, adapted: Adapted, tasks: TaskBatch
    ) -> tuple[Tensor, Tensor]:
        """The query losses (T,) and outputs of a training batch."""

        def losses(params: Tensors, shared: Tensors, chunk: slice) -> tuple[Tensor, Tensor]:
            part = tasks[chunk]
            outputs = self.outputs(params, shared, part, queries=True, training=True)
            return self.losses(outputs, part.query_y, part.query_n), outputs

        shared = self.shared_parameters(meta, adapted.updates - 1)
        chunks = self.chunks(tasks)
        if self.recompute and torch.is_grad_enabled():
            return losses_with_gradients(losses, adapted.params, shared, chunks)
        parts = [
            losses(params, shared, chunk)
            for chunk, params in zip(chunks, split_by_task(adapted.params, chunks), strict=True)
        ]
        values, outputs = zip(*parts, strict=True)
        return joined_tasks(values), joined_tasks(outputs)

    def outputs(
        self,
        params: Tensors,
        shared: Tensors,
        tasks: TaskBatch,
        *,
        queries: bool,
        training: bool,
        network: Network | None = None,
    ) -> Tensor:
        """The model's outputs for the queries of tasks or for their support sets, (T, n, …).

        Args:
            params: (T, …) the parameters of each task.
            shared: the parameters that the tasks share.
            tasks: prepared tasks.
            queries: whether to compute those of the queries.
            training: whether this is meta-training.
            network: another network of the same parameters, such as `head.body`.
        """
        chunks = self.chunks(tasks)
        if len(chunks) > 1:
            how: dict[str, Any] = {"queries": queries, "training": training, "network": network}
            apart = zip(chunks, split_by_task(params, chunks), strict=True)
            return joined_tasks([self.outputs(p, shared, tasks[c], **how) for c, p in apart])
        by_support = queries and self.inductive
        return (network or self.network)(
            params,
            shared,
            tasks.query_x if queries else tasks.support_x,
            support=tasks.support_x if by_support else None,
            sizes=tasks.query_n if queries else tasks.support_n,
            support_sizes=tasks.support_n if by_support else None,
            training=training,
            together=self.tasks_at_a_time != 1,
        )

    def _adapt(
        self,
        meta: Tensors,
        carried: Tensors,
        tasks: TaskBatch,
        *,
        steps: int,
        second_order: bool,
        sum_over_tasks: SumOverTasks | None,
        each_step: bool = False,
    ) -> Adaptation:
        training = sum_over_tasks is not None
        chunks = self.chunks(tasks)
        parts = {chunk.start: tasks[chunk] for chunk in chunks}  # once for all steps

        def support_losses(params: Tensors, shared: Tensors, chunk: slice) -> Tensor:
            return self.support_losses(params, shared, parts[chunk.start], training=training)

        require_state(self._shapes, meta, carried)
        require_labels(self.loss, tasks)
        return adapt(
            support_losses,
            self.start(meta, tasks, training=training),
            self.rule,
            {name: t for name, t in meta.items() if not name.startswith(f"{MODEL}.")},
            carried,
            steps=steps,
            trained_steps=self.steps,
            second_order=second_order,
            sum_over_tasks=sum_over_tasks,
            shared=lambda step: self.shared_parameters(meta, step),
            chunks=chunks,
            recompute=self.recompute,
            each_step=each_step,
        )
