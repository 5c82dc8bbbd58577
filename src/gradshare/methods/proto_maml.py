"""ProtoMAML (Triantafillou et al., 2020), with or without gradient sharing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradshare.errors import ConfigError
from gradshare.inner_loop import SGD, Tensors, UpdateRule
from gradshare.inner_loop.memory_order import for_all_tasks
from gradshare.methods.head import AnyWays, body, members
from gradshare.methods.learner import ABSENT
from gradshare.methods.maml import Sharing, chain
from gradshare.methods.meta_learner import MODEL
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
        self.body = body(self, head)

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
        shared = self.shared_parameters(meta, 0)
        inputs = self.outputs(
            theta, shared, tasks, queries=False, training=training, network=self.body
        )
        belongs = members(tasks)
        counts = belongs.sum(1)
        sums = belongs.to(inputs.dtype).transpose(1, 2) @ inputs
        means = sums / counts.clamp(min=1)[..., None]
        biases = torch.where(counts > 0, -means.square().sum(2), ABSENT)
        start = {**theta, **dict(zip(self.head, (2 * means, biases), strict=True))}
        return {name: start[name] for name in self.adapted}


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
    """ProtoMAML (Triantafillou et al., 2020): MAML whose head starts from the class means.

    So one trained model serves any number of classes. With the means μ_c of the head's inputs over
    the support examples of each class c, the head of a task starts as a prototypical network's:

        W_c = 2 μ_c,   b_c = -‖μ_c‖²

    and is then adapted with the rest of the network. The outer gradient goes through the means, in
    first order too. The task gradient by the body leaves the path through the means out. The
    reference code does the same. It normalises the queries by the support set's statistics unless
    told otherwise, as here.

    Args:
        model: any module with a linear head, which may have any number of outputs.
        head: the name of the head; None for the last linear layer of the model.
        steps: K, the number of inner steps.
        inner_lr: α.
        sharing: see `maml`.
        rule: see `maml`.
        **options: of `MetaLearner`, such as `loss` and `second_order`.

    Raises:
        ConfigError: the model has no such linear layer, or it has no bias.
    """
    rules = chain(sharing, rule, sgd=SGD(inner_lr))
    return ProtoMAML(model, rules, head=head, steps=steps, **options)
