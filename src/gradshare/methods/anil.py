"""ANIL (Raghu et al., 2020), with or without gradient sharing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.errors import ConfigError
from gradshare.inner_loop import SGD, Adaptation, Tensors, UpdateRule
from gradshare.methods.head import body, weight_and_bias
from gradshare.methods.maml import Sharing, chain
from gradshare.methods.meta_learner import MetaLearner
from gradshare.tasks.batch import TaskBatch


class ANIL(MetaLearner):
    """A meta-learner whose inner loop adapts the head alone; see `anil`."""

    def __init__(
        self, model: nn.Module, rule: UpdateRule, *, head: str | None, **options: Any
    ) -> None:
        names = weight_and_bias(model, head)
        super().__init__(model, rule, adapts=lambda name: name in names, **options)
        if self.per_step:
            raise ConfigError(
                "per_step_batch_norm learns γ and β for each inner step, but ANIL's body sees the "
                "support set once; leave it out"
            )
        self.body = body(self, head)
        self._head_is_last = False  # as far as is known

    def support_losses(
        self, params: Tensors, shared: Tensors, tasks: TaskBatch, *, training: bool
    ) -> Tensor:
        """The (T,) losses of the support sets, whose inputs are those of the head."""
        outputs = self._head_outputs(params, tasks.support_x)
        return self.losses(outputs, tasks.support_y, tasks.support_n)

    def _adapt(self, meta: Tensors, carried: Tensors, tasks: TaskBatch, **how: Any) -> Adaptation:
        if not self._head_is_last:
            self._require_head_last(meta, tasks[:1])
            self._head_is_last = True
        training = how["sum_over_tasks"] is not None
        shared = self.shared_parameters(meta, 0)
        inputs = self.outputs(
            {}, shared, tasks, queries=False, training=training, network=self.body
        )
        # The head's passes are too small to be taken one by one, or again.
        together = self.laid_out(tasks_at_a_time=None, recompute=False, separate=self.separate)
        seen = replace(tasks, support_x=inputs)
        return super(ANIL, together)._adapt(meta, carried, seen, **how)

    def _head_outputs(self, params: Tensors, inputs: Tensor) -> Tensor:
        head = [params[name] for name in self.adapted]  # the weight, and the bias if there is one
        outputs: Tensor = torch.vmap(F.linear)(inputs, *head)
        return outputs

    @torch.no_grad()
    def _require_head_last(self, meta: Tensors, task: TaskBatch) -> None:
        """Raise ConfigError unless a task's outputs are those of the head."""
        params = self.start(meta, task, training=False)
        shared, sizes = self.shared_parameters(meta, 0), task.support_n
        how: dict[str, Any] = {"queries": False, "training": False}
        inputs = self.outputs({}, shared, task, network=self.body, **how)
        outputs = self.outputs(params, shared, task, **how)
        real = slice(None if sizes is None else sizes[0])
        found, expected = self._head_outputs(params, inputs)[:, real], outputs[:, real]
        same = found.shape == expected.shape
        tolerance = 1e-2 * float(expected.abs().max())  # bfloat16 has few digits
        if not same or not torch.allclose(found, expected, atol=tolerance, equal_nan=True):
            raise ConfigError(
                f"{type(self.model).__name__} changes the outputs of its head {self.adapted[0]!r}; "
                "name the layer that makes them, or use gradshare.maml(model, adapts=…)"
            )


def anil(
    model: nn.Module,
    *,
    head: str | None = None,
    steps: int = 5,
    inner_lr: float = 0.5,
    sharing: Sharing = False,
    rule: UpdateRule | None = None,
    **options: Any,
) -> ANIL:
    """ANIL (Raghu et al., 2020): MAML whose inner loop adapts the head alone.

    The name stands for "almost no inner loop". The outer loop learns the weights φ of the body and
    w of the head. Its loss is the mean over tasks of L_t^query(φ, w_{t,K}), where

        w_{t,0} = w,   w_{t,k} = w_{t,k-1} - α ∇_w L_t^support(φ, w_{t,k-1})

    The inner steps do not change the body, so that it sees the support set once, with dropout too.

    Args:
        model: any module whose outputs are those of a linear head.
        head: the name of the head; None for the last linear layer of the model.
        steps: K, the number of inner steps.
        inner_lr: α.
        sharing: see `maml`.
        rule: see `maml`.
        **options: of `MetaLearner`, such as `loss`; not `adapts`.

    Raises:
        ConfigError: the model has no such linear layer, or `per_step_batch_norm` is given.
    """
    rules = chain(sharing, rule, sgd=SGD(inner_lr))
    return ANIL(model, rules, head=head, steps=steps, **options)
