"""Controls for gradient sharing. Each leaves out or replaces one part of it, so that a comparison
shows which part causes a gain. A control replaces `GradientSharing` in a chain.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from gradshare.errors import ConfigError, require_choice
from gradshare.inner_loop.rule import (
    Step,
    SumOverTasks,
    Tensors,
    UpdateRule,
    checked_init,
    for_each_step,
    require_rule,
)
from gradshare.inner_loop.sharing import GradientSharing, Norm, interpolate, normalized


class RateControl(UpdateRule):
    """The control for gradient sharing: the same learned gate with ĝ ≡ 0, Δ = (1 - σ(λ_k)) ∇.

    Like sharing, it halves the task's own gradient at first (λ starts at 0) and learns one factor
    for each step; but it shares nothing. If it gains as much over the original as sharing does,
    sharing is not the cause.

    Learned: `lambda` (K,), started at 0.
    """

    def init(self, params: Tensors, steps: int) -> tuple[Tensors, Tensors]:
        """λ = 0."""
        return {"lambda": for_each_step(params, steps, 0)}, {}

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        """Eq. 4 with `replacement` for ĝ_k."""
        gate = torch.sigmoid(meta["lambda"][step.k])
        other = self.replacement(gradients)
        return {n: interpolate(g, other[n], gate) for n, g in gradients.items()}, carried, task

    def replacement(self, gradients: Tensors) -> Tensors:
        """The tensors that replace ĝ_k: zeros."""
        return {name: own.new_zeros(()) for name, own in gradients.items()}

    def report(self, meta: Tensors) -> dict[str, list[float]]:
        """σ(λ_k)."""
        return {name: torch.sigmoid(gate).tolist() for name, gate in meta.items()}


class OwnGradient(RateControl):
    """The control in which the task's own gradient, normalised as in Eq. 1, replaces ĝ_k.

    Like sharing it adds a term of unit norm, but nothing from other tasks.

    Learned: `lambda` (K,), started at 0.

    Args:
        norm: see `GradientSharing`.

    Raises:
        ConfigError: another norm.
    """

    def __init__(self, *, norm: Norm = "global") -> None:
        require_choice("norm", norm, Norm)
        self.norm = norm

    def replacement(self, gradients: Tensors) -> Tensors:
        """Each task's own normalised gradient."""
        return torch.vmap(lambda own: normalized(own, self.norm))(dict(gradients))


class LearnedRates(UpdateRule):
    """The original with one learned rate for each inner step: Δ = r_k ∇.

    Unlike `RateControl` it begins with the whole gradient and can exceed it.

    Learned: `rate` (K,), started at 1, a multiple of the inner rate.
    """

    def init(self, params: Tensors, steps: int) -> tuple[Tensors, Tensors]:
        """r = 1."""
        return {"rate": for_each_step(params, steps, 1)}, {}

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        """Multiply each task's gradient by r_k."""
        rate = meta["rate"][step.k]
        return {n: rate.to(g.dtype) * g for n, g in gradients.items()}, carried, task

    def report(self, meta: Tensors) -> dict[str, list[float]]:
        """r_k."""
        return {"rate": meta["rate"].tolist()}


class UnnormalizedSharing(GradientSharing):
    """Sharing in which g_k is the mean of the task gradients, not divided by its norm."""

    def shared_gradient(self, gradients: Tensors, sum_over_tasks: SumOverTasks) -> Tensors:
        """The mean over all tasks."""
        first = next(iter(gradients.values()))
        sums = dict(sum_over_tasks({**gradients, "": first.new_ones(len(first))}))
        count = sums.pop("")
        return {name: total / count for name, total in sums.items()}


class DetachedSharing(GradientSharing):
    """Sharing whose g_k is a constant to the outer loop: no outer loss reaches a task gradient
    through it.
    """

    def shared_gradient(self, gradients: Tensors, sum_over_tasks: SumOverTasks) -> Tensors:
        """g_k (Eq. 1), detached."""
        own = {name: gradient.detach() for name, gradient in gradients.items()}
        return super().shared_gradient(own, sum_over_tasks)


class ForgottenAtTest(GradientSharing):
    """Sharing that is tested with ĝ = 0: λ acts, and the shared gradient does not."""

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        """Algorithm 1; with ĝ = 0, Algorithm 2."""
        if step.training:
            return super().update(gradients, meta, carried, task, step)
        zero = {n: torch.zeros_like(t) if t.is_floating_point() else t for n, t in carried.items()}
        deltas, _, _ = super().update(gradients, meta, zero, task, step)
        return deltas, carried, task


class Held(UpdateRule):
    """A rule with some of its learned gates fixed.

    Args:
        rule: the rule.
        gates: the value of σ of each fixed gate by name: {"lambda": 0.5}.

    Raises:
        ConfigError: a gate outside [0, 1], or one that the rule does not learn.
    """

    def __init__(self, rule: UpdateRule, gates: Mapping[str, float]) -> None:
        for name, gate in gates.items():
            if not 0 <= gate <= 1:
                raise ConfigError(f"the gate {name!r} is held at {gate}; give a value from 0 to 1")
        self.rule = require_rule("rule", rule)
        self.gates = dict(gates)

    def init(self, params: Tensors, steps: int) -> tuple[Tensors, Tensors]:
        """The rule's tensors without the fixed gates."""
        meta, carried = checked_init(self.rule, params, steps)
        for name in self.gates:
            if name not in meta:
                raise ConfigError(
                    f"{type(self.rule).__name__} does not learn {name!r}, which is to be held; it "
                    f"learns {' and '.join(map(repr, meta)) or 'nothing'}"
                )
        return {name: t for name, t in meta.items() if name not in self.gates}, carried

    def start(self, params: Tensors) -> Tensors:
        """The state that the rule gives new tasks."""
        return self.rule.start(params)

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        """The rule's update with the fixed gates added to `meta`."""
        steps = step.k + 1
        fixed = {n: for_each_step(gradients, steps, gate) for n, gate in self.gates.items()}
        logits = {n: torch.logit(gate) for n, gate in fixed.items()}  # ±∞ for 1 and 0
        return self.rule.update(gradients, {**meta, **logits}, carried, task, step)

    def report(self, meta: Tensors) -> dict[str, list[float]]:
        """The rule's report of the gates that it still learns."""
        return self.rule.report(meta)
