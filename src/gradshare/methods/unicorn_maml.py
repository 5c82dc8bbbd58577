"""UNICORN-MAML (Ye & Chao, 2022): MAML whose head starts with one learned vector for all classes,
so that one trained model serves any number of classes in any order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradshare.errors import ConfigError
from gradshare.inner_loop import Tensors, UpdateRule
from gradshare.methods.head import AnyWays, members
from gradshare.methods.learner import ABSENT
from gradshare.methods.maml import Sharing, descent
from gradshare.methods.meta_learner import MODEL
from gradshare.tasks.batch import TaskBatch


class UnicornMAML(AnyWays):
    """A meta-learner that repeats one learned row of its head for each class of a task."""

    def start(self, meta: Tensors, tasks: TaskBatch, *, training: bool) -> dict[str, Tensor]:
        """The initialisation, with the head's row repeated for each class of the tasks."""
        present = members(tasks).any(1)
        if len(self.head) == 1 and not present[:, -1].all():
            raise ConfigError(
                f"the head of {self.head[0]!r} has no bias, by which classes that smaller tasks "
                "lack are left out; make it with bias=True, or give one number of ways"
            )
        rows = {f"{MODEL}.{name}": meta[f"{MODEL}.{name}"] for name in self.head}
        repeated = {n: row.expand(present.shape[1], *row.shape[1:]) for n, row in rows.items()}
        theta = super().start({**meta, **repeated}, tasks, training=training)
        return theta | {n: torch.where(present, theta[n], ABSENT) for n in self.head[1:]}  # biases


def unicorn_maml(
    model: nn.Module,
    *,
    head: str | None = None,
    steps: int = 5,
    inner_lr: float = 0.1,
    sharing: Sharing = False,
    rule: UpdateRule | None = None,
    **options: Any,
) -> UnicornMAML:
    """MAML with one learned head vector, repeated for each class.

    Args:
        model: any module with a linear head, which may have any number of outputs.
        head: the name of the head; None for the last linear layer of the model.
        steps: K, the number of inner steps.
        inner_lr: α, the inner learning rate.
        sharing: see `maml`.
        rule: see `maml`.
        **options: options of `MetaLearner`, such as `loss` and `second_order`.
    """
    chain = descent(inner_lr, sharing, rule)
    return UnicornMAML(model, chain, head=head, steps=steps, **options)
