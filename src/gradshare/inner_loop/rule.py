"""What an inner-loop update rule is, and how rules chain.

A rule is a pair of pure functions over parameter trees, in the style of optax:

    learned, state = rule.init(params)
    updates, state = rule.update(gradients, learned, state, step, sum_over_tasks)

`learned` is what the outer loop trains (m, λ, α), `state` what is carried from one outer iteration
to the next without being trained (ĝ). Both are flat dictionaries of named tensors, so that a
checkpoint, an optimiser and a test can name each tensor. The inner loop *subtracts* the updates.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Protocol

from torch import Tensor

from gradshare.errors import ConfigError

Tensors = Mapping[str, Tensor]
"""Named tensors. A task batch's parameters or gradients have the tasks as leading dimension."""

SumOverTasks = Callable[[Tensors], Tensors]
"""Sums every (T, …) tensor over the tasks of the whole batch, differentiably, to (…)."""


def sum_over_local_tasks(tensors: Tensors) -> Tensors:
    """The sum over tasks when one process holds the whole task batch."""
    return {name: tensor.sum(0) for name, tensor in tensors.items()}


class UpdateRule(Protocol):
    """Turns the task gradients of inner step k into parameter updates.

    A rule that is made for a number of inner steps has it as `steps`, and one that is made of rules
    has them as `parts`, so that `require_steps` can tell what does not fit.
    """

    def init(self, params: Tensors) -> tuple[Tensors, Tensors]:
        """The rule's tensors for parameters like these, without a task dimension.

        Returns:
            `learned` and `state`, as before any training.
        """
        ...

    def update(
        self,
        gradients: Tensors,
        learned: Tensors,
        state: Tensors,
        step: int,
        sum_over_tasks: SumOverTasks | None,
    ) -> tuple[Tensors, Tensors]:
        """One inner step of all tasks of a batch.

        Args:
            gradients: (T, …) each task's own gradient at this step.
            learned: the rule's outer parameters.
            state: the rule's state; never modified in place.
            step: which inner step, from 0 (the paper's k - 1).
            sum_over_tasks: how to sum over the batch while meta-training. None while meta-testing:
                tasks must not see each other, and the state stays as it is.

        Returns:
            The (T, …) updates, to be subtracted from the parameters, and the new state. Within an
            outer iteration it may have a graph; `adapt` detaches what is carried to the next one.
        """
        ...


class SGD:
    """Gradient descent with one fixed rate: the update of MAML, and the end of its chain.

    Args:
        lr: the inner learning rate α.

    Raises:
        ConfigError: a rate below zero, or not finite.
    """

    def __init__(self, lr: float) -> None:
        require_rate(lr)
        self.lr = lr

    def init(self, params: Tensors) -> tuple[Tensors, Tensors]:
        """Nothing is learned and nothing is kept."""
        return {}, {}

    def update(
        self,
        gradients: Tensors,
        learned: Tensors,
        state: Tensors,
        step: int,
        sum_over_tasks: SumOverTasks | None,
    ) -> tuple[Tensors, Tensors]:
        """Scale by the rate."""
        return {name: self.lr * gradient for name, gradient in gradients.items()}, state


class Chain:
    """Rules applied one after the other, each to what the one before it returned.

    The name given to a rule prefixes its tensors: `Chain(sharing=GradientSharing(5), sgd=SGD(0.1))`
    learns `sharing.m` and `sharing.lambda`.

    Args:
        **rules: the rules by name, the first to see the task gradients first; None for one that
            is left out.

    Raises:
        ConfigError: one of them is no rule, or there is none.
    """

    def __init__(self, **rules: UpdateRule | None) -> None:
        for name, rule in rules.items():
            if rule is not None:
                require_rule(name, rule)
        self.rules = {name: rule for name, rule in rules.items() if rule is not None}
        if not self.rules:
            raise ConfigError("a chain has no rule; give one, such as sgd=SGD(0.1)")
        self.parts = tuple(self.rules.values())

    def init(self, params: Tensors) -> tuple[Tensors, Tensors]:
        """The tensors of all rules, each under its rule's name."""
        learned: dict[str, Tensor] = {}
        state: dict[str, Tensor] = {}
        for name, rule in self.rules.items():
            rule_learned, rule_state = start_of(rule, params)
            learned |= with_prefix(name, rule_learned)
            state |= with_prefix(name, rule_state)
        return learned, state

    def update(
        self,
        gradients: Tensors,
        learned: Tensors,
        state: Tensors,
        step: int,
        sum_over_tasks: SumOverTasks | None,
    ) -> tuple[Tensors, Tensors]:
        """Pass the gradients through every rule."""
        new_state = dict(state)  # what is no rule's, of another learner, stays
        for name, rule in self.rules.items():
            gradients, rule_state = step_of(
                rule, gradients, under(name, learned), under(name, state), step, sum_over_tasks
            )
            new_state |= with_prefix(name, rule_state)
        return gradients, new_state


def start_of(rule: UpdateRule, params: Tensors) -> tuple[Tensors, Tensors]:
    """`rule.init`, for whoever calls a rule that may be somebody's own.

    Raises:
        ConfigError: it returned something else than it is to.
    """
    learned, state = _two_trees(rule, "init", "what it learns and its state", rule.init(params))
    for name, tensor in learned.items():
        if not tensor.is_floating_point():
            raise ConfigError(
                f"{type(rule).__name__}.init returned {name!r} of {tensor.dtype} to be learned, "
                "which has no gradients; make it floating-point, or put it into the state"
            )
    return learned, state


def step_of(
    rule: UpdateRule,
    gradients: Tensors,
    learned: Tensors,
    state: Tensors,
    step: int,
    sum_over_tasks: SumOverTasks | None,
) -> tuple[Tensors, Tensors]:
    """`rule.update`, likewise.

    An update of another shape would be broadcast over the parameters where it can be, which makes
    wrong steps and no error.

    Raises:
        ConfigError: it returned something else than it is to; or its updates are not those of the
            gradients, by name and shape, or its state not what it was given, by name.
    """
    returned = rule.update(gradients, learned, state, step, sum_over_tasks)
    updates, new_state = _two_trees(rule, "update", "the updates and its state", returned)
    kind = type(rule).__name__
    for what, found, given, remedy in (
        ("updates", updates, gradients, "one for each of its gradients"),
        ("a state", new_state, state, "all of the state that it was given"),
    ):
        if odd := found.keys() ^ given.keys():
            name = min(odd, key=str)  # the same one in every process
            raise ConfigError(
                f"{kind}.update returned {what} {'with' if name in found else 'without'} {name!r}; "
                f"it must return {remedy}, and no more"
            )
    for name, gradient in gradients.items():
        if updates[name].shape != gradient.shape:
            raise ConfigError(
                f"{kind}.update returned an update of {name!r} of shape "
                f"{tuple(updates[name].shape)}; it must have the gradient's, "
                f"{tuple(gradient.shape)}, the tasks first"
            )
    return updates, new_state


def _two_trees(
    rule: UpdateRule, method: str, what: str, returned: object
) -> tuple[Tensors, Tensors]:
    """What a rule's method returned."""
    match returned:
        case (Mapping() as first, Mapping() as second):
            pass
        case _:
            raise ConfigError(
                f"{type(rule).__name__}.{method} returned {reprlib.repr(returned)}; it must return "
                f"a pair of dictionaries: {what}"
            )
    for name, value in (*first.items(), *second.items()):
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"{type(rule).__name__}.{method} returned {reprlib.repr(value)} as {name!r}; it "
                "must be a tensor"
            )
    return first, second


def require_rule(name: str, rule: object) -> None:
    """Refuse what stands in a rule's place and is none.

    Args:
        name: of the place.
        rule: what stands there.

    Raises:
        ConfigError: it has no `init` and `update`, or is a class instead of one of its objects.
    """
    if isinstance(rule, type):
        raise ConfigError(
            f"{name} is the class {rule.__name__}; give an object of it, {rule.__name__}(…)"
        )
    if not all(callable(getattr(rule, method, None)) for method in ("init", "update")):
        raise ConfigError(
            f"{name} is {rule!r}, which is no update rule: it has no `init` and `update`; give "
            "one, such as GradientSharing(5)"
        )


def require_steps(part: object, steps: int) -> None:
    """Refuse a rule, or another part of a learner, that is made for other inner steps.

    Args:
        part: may have `steps` or `parts`; see `UpdateRule`.
        steps: K, the inner steps that are taken.

    Raises:
        ConfigError: the part, or one of its own, is made for more or fewer.
    """
    for inner in getattr(part, "parts", ()):
        require_steps(inner, steps)
    own = getattr(part, "steps", steps)
    if own != steps:
        raise ConfigError(
            f"{type(part).__name__} is made for {own} inner steps, the learner takes {steps}; give "
            "both the same number"
        )


def require_rate(lr: float) -> None:
    """Refuse an inner learning rate that would climb, or make every parameter infinite.

    Args:
        lr: the rate, or where learned ones start.

    Raises:
        ConfigError: it is below zero, or not finite.
    """
    if not isinstance(lr, Real | Tensor) or not 0 <= lr < math.inf:
        raise ConfigError(f"the inner learning rate is {lr!r}; give a finite number, not below 0")


def with_prefix(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """The same tensors, named `prefix.name`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors named `prefix.name`, without the prefix."""
    return {
        name.removeprefix(f"{prefix}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}.")
    }
