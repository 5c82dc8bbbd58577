"""UNICORN-MAML (Ye & Chao, 2022), with or without gradient sharing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradshare.errors import ConfigError
from gradshare.inner_loop import SGD, Tensors, UpdateRule
from gradshare.methods.head import AnyWays, members
from gradshare.methods.learner import ABSENT
from gradshare.methods.maml import Sharing, chain
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
    """UNICORN-MAML (Ye & Chao, 2022): MAML whose head has one learned row for all classes.

    So one trained model serves any number of classes in any order. With the learned row w, the head
    of a task of C classes starts from

        W_c = w   for c = 1, …, C

    and is then adapted with the rest of the network. If the head has a bias, all classes start from
    one learned bias too. The paper recommends more inner steps than MAML's 5.

    Args:
        model: any module with a linear head, which may have any number of outputs.
        head: the name of the head; None for the last linear layer of the model.
        steps: K, the number of inner steps.
        inner_lr: α.
        sharing: see `maml`.
        rule: see `maml`.
        **options: of `MetaLearner`, such as `loss` and `second_order`.

    Raises:
        ConfigError: the model has no such linear layer; or sharing has a norm for each tensor.
    """
    mixes = getattr(sharing, "rule", sharing)  # of `Held`
    if getattr(mixes, "norm", None) == "per-tensor":
        # All classes' rows start equal, so the first gradient of the body is zero but for rounding.
        raise ConfigError(
            "UNICORN-MAML's first gradient of its body is rounding noise, which a norm of each "
            'tensor makes as large as any gradient; use norm="global" (--sharing-norm global)'
        )
    rules = chain(sharing, rule, sgd=SGD(inner_lr))
    return UnicornMAML(model, rules, head=head, steps=steps, **options)
