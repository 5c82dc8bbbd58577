"""Controls for gradient sharing: each holds, leaves out or replaces one part of it, so that what is
left of its gain is owed to the rest.

They are update rules that stand where `GradientSharing` stands, before the rule that makes steps of
what they return.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch

from gradshare.errors import ConfigError, require_choice, require_count
from gradshare.inner_loop.rule import (
    SumOverTasks,
    Tensors,
    UpdateRule,
    require_rule,
    start_of,
    step_of,
)
from gradshare.inner_loop.sharing import GradientSharing, Norm, interpolate, normalized


class _Gated(ABC):
    """A learned gate between each task's gradient and something that is made of that task alone.

    Learned: `lambda` (K,), started at 0. No state.

    Args:
        steps: K, the number of inner steps.

    Raises:
        ConfigError: no steps.
    """

    def __init__(self, steps: int) -> None:
        require_count("steps", steps)
        self.steps = steps

    @abstractmethod
    def in_the_place_of_g_hat(self, gradients: Tensors) -> Tensors:
        """What Eq. 4 interpolates towards, broadcast over the (T, …) gradients."""

    def init(self, params: Tensors) -> tuple[Tensors, Tensors]:
        """λ = 0."""
        return {"lambda": next(iter(params.values())).new_zeros(self.steps)}, {}

    def update(
        self,
        gradients: Tensors,
        learned: Tensors,
        state: Tensors,
        step: int,
        sum_over_tasks: SumOverTasks | None,
    ) -> tuple[Tensors, Tensors]:
        """Eq. 4, with something else in the place of ĝ_k."""
        gate = torch.sigmoid(learned["lambda"][..., step])
        end = self.in_the_place_of_g_hat(gradients)
        return {n: interpolate(own, end[n], gate) for n, own in gradients.items()}, state


class RateControl(_Gated):
    """The control for gradient sharing: the same learned gate with ĝ ≡ 0, Δ = (1 - σ(λ_k)) ∇.

    It changes everything that sharing changes except sharing: with λ started at 0 it halves the
    task's own gradient, and learning λ learns one rate for each step. What sharing gains over the
    original, but not over this, is not owed to sharing.

    Learned: `lambda` (K,), started at 0. No state.

    Args:
        steps: K, the number of inner steps.
    """

    def in_the_place_of_g_hat(self, gradients: Tensors) -> Tensors:
        """Nothing: every task's gradient is scaled by 1 - σ(λ_k)."""
        return {name: own.new_zeros(()) for name, own in gradients.items()}


class LearnedRates:
    """The original with one learned rate for each inner step: Δ = r_k ∇.

    Unlike `RateControl` it begins with the whole gradient, and may exceed it.

    Learned: `rate` (K,), started at 1, a multiple of the inner rate.

    Args:
        steps: K, the number of inner steps.

    Raises:
        ConfigError: no steps.
    """

    def __init__(self, steps: int) -> None:
        require_count("steps", steps)
        self.steps = steps

    def init(self, params: Tensors) -> tuple[Tensors, Tensors]:
        """r = 1."""
        return {"rate": next(iter(params.values())).new_ones(self.steps)}, {}

    def update(
        self,
        gradients: Tensors,
        learned: Tensors,
        state: Tensors,
        step: int,
        sum_over_tasks: SumOverTasks | None,
    ) -> tuple[Tensors, Tensors]:
        """Scale every task's gradient by r_k."""
        return {name: learned["rate"][step] * own for name, own in gradients.items()}, state


class OwnGradient(_Gated):
    """Sharing without anybody to share with: in the place of ĝ_k stands the task's own gradient,
    normalised as Eq. 1 normalises the sum.

    It adds what sharing adds of a bounded, unit-norm term, and nothing of other tasks.

    Learned: `lambda` (K,), started at 0. No state.

    Args:
        steps: K, the number of inner steps.
        norm: see `GradientSharing`.

    Raises:
        ConfigError: another norm.
    """

    def __init__(self, steps: int, *, norm: Norm = "global") -> None:
        require_choice("norm", norm, Norm)
        super().__init__(steps)
        self.norm = norm

    def in_the_place_of_g_hat(self, gradients: Tensors) -> Tensors:
        """Each task's own direction."""
        return torch.vmap(lambda own: normalized(own, self.norm))(dict(gradients))


class UnnormalizedSharing(GradientSharing):
    """Sharing in which g_k is the mean of the task gradients, not divided by its norm."""

    def shared_gradient(self, gradients: Tensors, sum_over_tasks: SumOverTasks) -> Tensors:
        """The mean over all tasks."""
        first = next(iter(gradients.values()))
        sums = dict(sum_over_tasks({**gradients, "": first.new_ones(len(first))}))
        count = sums.pop("")
        return {name: total / count for name, total in sums.items()}


class DetachedSharing(GradientSharing):
    """Sharing whose g_k is a constant to the outer loop: no task's outer loss reaches the gradients
    of the others through it, and none its own.
    """

    def shared_gradient(self, gradients: Tensors, sum_over_tasks: SumOverTasks) -> Tensors:
        """g_k (Eq. 1), detached."""
        own = {name: gradient.detach() for name, gradient in gradients.items()}
        return super().shared_gradient(own, sum_over_tasks)


class ForgottenAtTest(GradientSharing):
    """Sharing that meets validation and test with ĝ = 0: λ is there as it was learned, what was
    shared is not.
    """

    def update(
        self,
        gradients: Tensors,
        learned: Tensors,
        state: Tensors,
        step: int,
        sum_over_tasks: SumOverTasks | None,
    ) -> tuple[Tensors, Tensors]:
        """Algorithm 1 while meta-training; Algorithm 2 without ĝ while testing."""
        if sum_over_tasks is not None:
            return super().update(gradients, learned, state, step, sum_over_tasks)
        forgotten = {
            name: tensor if name == "seen" else torch.zeros_like(tensor)
            for name, tensor in state.items()
        }
        deltas, _ = super().update(gradients, learned, forgotten, step, None)
        return deltas, state


class Held:
    """A rule some of whose (K,) gates are held instead of learned.

    Args:
        rule: the rule.
        gates: by the learned tensor's name, what its sigmoid is held at, from 0 to 1:
            `Held(GradientSharing(5), {"m": 1.0})` shares with concurrent tasks alone.

    Raises:
        ConfigError: a value outside [0, 1], or no rule.
    """

    def __init__(self, rule: UpdateRule, gates: Mapping[str, float]) -> None:
        require_rule("rule", rule)
        for name, gate in gates.items():
            if not 0 <= gate <= 1:
                raise ConfigError(f"the gate {name!r} is held at {gate}; give a value from 0 to 1")
        self.rule = rule
        self.parts = (rule,)
        self.gates = dict(gates)

    def init(self, params: Tensors) -> tuple[Tensors, Tensors]:
        """The rule's, without what is held.

        Raises:
            ConfigError: a gate that the rule does not learn.
        """
        learned, state = start_of(self.rule, params)
        for name in self.gates:
            if name not in learned:
                raise ConfigError(
                    f"{type(self.rule).__name__} does not learn {name!r}, which is to be held; it "
                    f"learns {' and '.join(map(repr, learned)) or 'nothing'}"
                )
        return {name: t for name, t in learned.items() if name not in self.gates}, state

    def update(
        self,
        gradients: Tensors,
        learned: Tensors,
        state: Tensors,
        step: int,
        sum_over_tasks: SumOverTasks | None,
    ) -> tuple[Tensors, Tensors]:
        """The rule's, with what is held."""
        like = next(iter(gradients.values()))
        held = {name: like.new_full((step + 1,), _logit(gate)) for name, gate in self.gates.items()}
        return step_of(self.rule, gradients, {**learned, **held}, state, step, sum_over_tasks)


def _logit(gate: float) -> float:
    """What the sigmoid makes this of; ±∞ for 1 and 0."""
    if gate in (0, 1):
        return math.inf if gate else -math.inf
    return math.log(gate / (1 - gate))
