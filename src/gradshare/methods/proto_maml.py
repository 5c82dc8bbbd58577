"""ProtoMAML (Triantafillou et al., 2020), with or without gradient sharing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradshare.errors import ConfigError
from gradshare.inner_loop import SGD, Chain, Tensors, UpdateRule
from gradshare.inner_loop.memory_order import for_all_tasks
from gradshare.inner_loop.rule import with_prefix
from gradshare.methods.head import AnyWays, linear_head, members
from gradshare.methods.learner import ABSENT
from gradshare.methods.maml import Sharing, sharing_rule
from gradshare.methods.meta_learner import MODEL
from gradshare.methods.network import Network, call_module
from gradshare.tasks.batch import TaskBatch


class ProtoMAML(AnyWays):
    """A meta-learner whose head starts from the class means of each task; see `proto_maml`."""

    def __init__(
        self, model: nn.Module, rule: UpdateRule, *, head: str | None = None, **options: Any
    ) -> None:
        super().__init__(model, rule, head=head, **options)
        if len(self.head) == 1:
            raise ConfigError(
                f"the head of {self.head[0]!r} has no bias for the inner loop to adapt, and the "
                "bias starts from the class means too; make it with bias=True"
            )
        body = _HeadInputs(model, linear_head(model, head))
        self.body = Network(body, precision=self.network.precision)

    def init(self) -> tuple[dict[str, Tensor], Tensors]:
        """The meta-parameters without the head, which is not learned; see `Learner`."""
        meta, carried = super().init()
        for name in self.head:
            del meta[f"{MODEL}.{name}"], self._shapes[0][f"{MODEL}.{name}"]
        return meta, carried

    def start(self, meta: Tensors, tasks: TaskBatch, *, training: bool) -> dict[str, Tensor]:
        """The learned body, and the head that a task's class means give."""
        learned = (name for name in self.adapted if name not in self.head)
        theta = {name: meta[f"{MODEL}.{name}"] for name in learned}
        theta = {name: for_all_tasks(t, len(tasks)) for name, t in theta.items()}
        means, present = self._class_means(theta, meta, tasks, training=training)
        biases = torch.where(present, -means.square().sum(2), ABSENT)
        start = {**theta, **dict(zip(self.head, (2 * means, biases), strict=True))}
        return {name: start[name] for name in self.adapted}

    def _class_means(
        self, theta: Tensors, meta: Tensors, tasks: TaskBatch, *, training: bool
    ) -> tuple[Tensor, Tensor]:
        """The mean head input (T, ways, D) of the support examples of each class, and whether there
        is one, (T, ways).
        """
        shared = with_prefix("model", self.shared_parameters(meta, 0))
        parts = [
            self.body(
                with_prefix("model", {name: t[chunk] for name, t in theta.items()}),
                shared,
                tasks[chunk].support_x,
                sizes=tasks[chunk].support_n,
                training=training,
                together=self.tasks_at_a_time != 1,
            )
            for chunk in self.chunks(tasks)
        ]
        inputs, belongs = torch.cat(parts), members(tasks)
        counts = belongs.sum(1)
        sums = belongs.to(inputs.dtype).transpose(1, 2) @ inputs
        return sums / counts.clamp(min=1)[..., None], counts > 0


class _HeadInputs(nn.Module):
    """A model that returns what its head is given."""

    def __init__(self, model: nn.Module, head: str) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        found: list[Tensor] = []
        head = self.model.get_submodule(self.head)
        hook = head.register_forward_pre_hook(lambda _, given: found.append(given[0]))
        try:
            call_module(self.model, inputs or named)
        finally:
            hook.remove()
        return found[-1]


def proto_maml(
    model: nn.Module,
    *,
    head: str | None = None,
    steps: int = 5,
    inner_lr: float = 0.1,
    sharing: Sharing = False,
    rule: UpdateRule | None = None,
    **options: Any,
) -> ProtoMAML:
    """MAML whose head starts as the prototypical network's, so that one trained model serves any
    number of classes.

    With the means μ_c of the head's inputs over the support examples of each class c, the head of a
    task starts from

        W_c = 2 μ_c,   b_c = -‖μ_c‖²

    and is then adapted with the rest of the network. The outer gradient goes through the means, in
    first order too; the task gradients by W and b do not, and those by the body leave the path
    through the means out. The reference code does the same. It normalises the queries by the
    support set's statistics unless told otherwise, as here, and takes 10
    steps.

    Args:
        model: see `AnyWays`.
        head: see `AnyWays`.
        steps: K, the number of inner steps.
        inner_lr: α.
        sharing: see `maml`.
        rule: see `maml`.
        **options: of `MetaLearner`.
    """
    chain = Chain(sharing=sharing_rule(sharing), rule=rule, sgd=SGD(inner_lr))
    return ProtoMAML(model, chain, head=head, steps=steps, **options)
