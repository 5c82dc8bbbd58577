"""Prototypical networks (Snell et al., 2017): a yardstick without an inner loop."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from gradshare.inner_loop import SGD, SumOverTasks, Tensors, sum_over_local_tasks
from gradshare.methods.learner import Adapted, Loss, OuterStep
from gradshare.methods.network import Precision
from gradshare.methods.proto_maml import ProtoMAML
from gradshare.models import BatchNormMode
from gradshare.tasks.batch import TaskBatch


class ProtoNet(ProtoMAML):
    """A prototypical network: ProtoMAML without inner steps; see `protonet`."""

    def outer_step(
        self,
        meta: Tensors,
        carried: Tensors,
        tasks: TaskBatch,
        *,
        iteration: int,
        sum_over_tasks: SumOverTasks = sum_over_local_tasks,
    ) -> OuterStep:
        """The differentiable query losses of a task batch; see `Learner`."""
        adapted = Adapted(self.start(meta, tasks, training=True), 0)
        losses, outputs = self._query_losses(meta, adapted, tasks)
        return OuterStep(losses, losses.detach(), outputs.detach(), carried)

    @torch.no_grad()
    def adapt(
        self,
        meta: Tensors,
        carried: Tensors,
        tasks: TaskBatch,
        *,
        steps: int | None = None,
    ) -> Adapted:
        """The class means of tasks, whatever `steps` is; see `Learner`."""
        return Adapted(self.start(meta, tasks, training=False), 0)


def protonet(
    model: nn.Module,
    *,
    head: str | None = None,
    loss: Loss = F.cross_entropy,
    batch_norm: BatchNormMode = "auto",
    precision: Precision = "float32",
) -> ProtoNet:
    """A prototypical network (Snell et al., 2017): the nearest class mean in a learned space.

    It serves any number of classes. With the network f up to its head, and the means μ_c of f(x)
    over the support examples of each class c, the probability of a class is

        p(c | x) = softmax_c(-‖f(x) - μ_c‖²)

    The outputs are 2 μ_c·f(x) - ‖μ_c‖², which differ from these distances by the same number for
    all classes. The reference code normalises the support set and the queries together, in one
    batch; here each is normalised by itself, or the queries as the support set (`batch_norm`).

    Args:
        model: any module with a linear head, which may have any number of outputs.
        head: the name of the head, which the class means replace; None for the last linear layer.
        loss: the outer loss of one task.
        batch_norm: see `MetaLearner`.
        precision: see `MetaLearner`.
    """
    # There is no inner step, so that neither the rule nor the number of steps changes anything.
    return ProtoNet(
        model,
        SGD(0.0),
        head=head,
        steps=1,
        loss=loss,
        batch_norm=batch_norm,
        precision=precision,
    )
