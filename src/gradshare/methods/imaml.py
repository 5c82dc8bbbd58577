"""iMAML (Rajeswaran et al., 2019): MAML with the implicit gradient of a proximal inner problem."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.errors import ConfigError, require_count
from gradshare.inner_loop import (
    SGD,
    Chain,
    Proximal,
    SumOverTasks,
    Tensors,
    UpdateRule,
    sum_over_local_tasks,
    task_gradients,
)
from gradshare.methods.learner import Adapted, Loss, OuterStep
from gradshare.methods.meta_learner import MetaLearner
from gradshare.methods.network import Precision
from gradshare.models import BatchNormMode
from gradshare.tasks.batch import TaskBatch


class ImplicitMAML(MetaLearner):
    """A meta-learner whose outer gradient depends on where the inner loop ends, and not on the way;
    see `imaml`.
    """

    def __init__(
        self, model: nn.Module, rule: UpdateRule, *, shift: float, cg_steps: int, **options: Any
    ) -> None:
        super().__init__(model, rule, **options)
        require_count("cg_steps", cg_steps)
        self.shift = shift  # λ + δ
        self.cg_steps = cg_steps

    def outer_step(
        self,
        meta: Tensors,
        carried: Tensors,
        tasks: TaskBatch,
        *,
        iteration: int,
        sum_over_tasks: SumOverTasks = sum_over_local_tasks,
    ) -> OuterStep:
        """The query losses, with the implicit gradient as theirs; see `Learner`."""
        adaptation = self._adapt(
            meta,
            carried,
            tasks,
            steps=self.steps,
            second_order=False,
            sum_over_tasks=sum_over_tasks,
        )
        phi = {n: t.detach().requires_grad_() for n, t in adaptation.params[self.steps].items()}

        def support_losses(params: Tensors, shared: Tensors, chunk: slice) -> Tensor:
            return self.support_losses(params, shared, tasks[chunk], training=True)

        with torch.enable_grad():
            losses, outputs = self._query_losses(meta, Adapted(phi, self.steps), tasks)
            slopes, _ = task_gradients(
                support_losses,
                phi,
                self.shared_parameters(meta, self.steps - 1),
                self.chunks(tasks),
                second_order=True,
                recompute=False,
            )

            def matrix(vector: Tensors) -> dict[str, Tensor]:
                """(I + ∇² L_support(φ) / (λ + δ)) times a vector."""
                products = torch.autograd.grad(
                    list(slopes.values()),
                    list(phi.values()),
                    list(vector.values()),
                    retain_graph=True,
                    materialize_grads=True,
                )
                return {
                    name: v + product / self.shift
                    for (name, v), product in zip(vector.items(), products, strict=True)
                }

            found = torch.autograd.grad(
                losses.sum(), list(phi.values()), retain_graph=True, materialize_grads=True
            )
            b = dict(zip(phi, found, strict=True))
            solution = conjugate_gradients(matrix, b, self.cg_steps)
            # These terms add their gradient alone: their values are subtracted again.
            start = self.start(meta, tasks, training=True)
            mixed = inner_products(solution, slopes) / self.shift
            terms = inner_products(solution, start) - mixed
            objective = losses + terms - terms.detach()
        return OuterStep(objective, losses.detach(), outputs.detach(), adaptation.carried)


def conjugate_gradients(
    matrix: Callable[[Tensors], Tensors], b: Tensors, steps: int
) -> dict[str, Tensor]:
    """The x of A x = b for each task, from x = 0 by some steps of conjugate gradients.

    A task that has converged, or meets a direction of negative curvature, keeps the x it has.

    Args:
        matrix: maps (T, …) tensors v to A v, with a symmetric A of each task.
        b: (T, …).
        steps: how many.
    """
    x = {name: torch.zeros_like(t) for name, t in b.items()}
    residual = direction = b
    first = left = inner_products(b, b)
    for _ in range(steps):
        product = matrix(direction)
        curvature = inner_products(direction, product)
        going = (curvature > 0) & (left > torch.finfo(left.dtype).eps ** 2 * first)
        length = torch.where(going, left / torch.where(going, curvature, 1.0), 0.0)
        x = _added(x, direction, length)
        residual = _added(residual, product, -length)
        before, left = left, inner_products(residual, residual)
        ratio = torch.where(going, left / torch.where(going, before, 1.0), 0.0)
        direction = _added(residual, direction, ratio)
    return x


def inner_products(a: Tensors, b: Tensors) -> Tensor:
    """The inner product (T,) of each task's (T, …) tensors."""
    products = [(t * b[name]).reshape(len(t), -1).sum(1) for name, t in a.items()]
    return torch.stack(products).sum(0)


def _added(a: Tensors, b: Tensors, factors: Tensor) -> dict[str, Tensor]:
    """a + f b, with one factor (T,) for each task."""
    return {
        name: t + factors.to(t.dtype).view(-1, *(1,) * (t.ndim - 1)) * b[name]
        for name, t in a.items()
    }


def imaml(
    model: nn.Module,
    *,
    steps: int = 16,
    inner_lr: float = 0.1,
    strength: float = 0.5,
    damping: float = 10.0,
    cg_steps: int = 5,
    rule: UpdateRule | None = None,
    loss: Loss = F.cross_entropy,
    batch_norm: BatchNormMode = "auto",
    precision: Precision = "float32",
) -> ImplicitMAML:
    """iMAML (Rajeswaran et al., 2019): MAML with the implicit gradient of the inner loop's minimum.

    The inner loop minimises L_support(φ) + λ/2 ‖φ - θ‖². At its minimum,

        dL_query/dθ = (I + ∇² L_support(φ) / λ)⁻¹ ∇ L_query(φ).

    The gradient here is x, the solution of the same system with the damping δ,

        (I + ∇² L_support(φ) / (λ + δ)) x = ∇ L_query(φ),

    by conjugate gradients. With δ = 0 it is that of the minimum. But the inner loop ends where
    ∇² L_support has negative eigenvalues. Where one is near -λ, the system without damping is
    almost singular, and x is far too long. The larger δ, the closer x is to the gradient of
    first-order MAML with the same inner loop.

    The gradient does not depend on the way to φ. So memory does not grow with K, and any rule may
    take the inner steps, but tasks cannot share gradients. It is right only as far as the inner
    loop converges. For parameters ω that the inner loop does not adapt, such as γ and β, the same
    theorem gives ∂L_query/∂ω - ∂/∂ω (∇L_support(φ, ω) · x) / (λ + δ).

    The reference code takes its K steps without the proximal term and one step with it alone at the
    end. So its λ = 2 pulls φ back by a fifth; here λ = 2 would hold φ close to θ. The system of the
    reference code is (1 + 1) I + ∇² L_support / (λ + 10). With its λ = 2 that is δ = 22 here, but
    for the factor 2.

    Args:
        model: see `maml`.
        steps: K, the number of inner steps. (The paper: 16 on Omniglot.)
        inner_lr: α. It must be below 2 / λ.
        strength: λ. (The paper: 2 on Omniglot, 0.5 on mini-ImageNet.)
        damping: δ, at least 0.
        cg_steps: of the conjugate gradients.
        rule: your own rule, between the proximal term and the multiplication by α.
        loss: the inner and outer loss of one task.
        batch_norm: see `MetaLearner`.
        precision: see `MetaLearner`.

    Raises:
        ConfigError: strength is not above 0; damping is below 0; or plain steps would diverge,
            since inner_lr is 2 / λ or more.
    """
    if not 0 < strength < math.inf:
        raise ConfigError(f"strength is {strength!r}; give a finite number above 0")
    if not 0 <= damping < math.inf:
        raise ConfigError(f"damping is {damping!r}; give a finite number, at least 0")
    if rule is None and inner_lr * strength >= 2:
        raise ConfigError(
            f"inner_lr {inner_lr} times strength {strength} is 2 or more, with which the proximal "
            "term makes the inner steps diverge; lower one of them"
        )
    return ImplicitMAML(
        model,
        Chain(proximal=Proximal(strength), rule=rule, sgd=SGD(inner_lr)),
        shift=strength + damping,
        cg_steps=cg_steps,
        steps=steps,
        loss=loss,
        batch_norm=batch_norm,
        precision=precision,
    )
