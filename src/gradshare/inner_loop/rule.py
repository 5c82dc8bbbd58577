"""Update rules: how the gradients of one inner step become an update of the parameters.

A rule is a set of pure functions over dictionaries of named tensors, in the style of optax. The
inner loop calls them like this and subtracts the updates from the parameters:

    meta, carried = rule.init(params, steps)              # once, before training
    task = rule.start(params)                             # for each batch of new tasks
    updates, carried, task = rule.update(gradients, meta, carried, task, step)   # K times
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradshare.errors import ConfigError
from gradshare.inner_loop.memory_order import sum_over_first

Tensors = Mapping[str, Tensor]
"""Named tensors."""

SumOverTasks = Callable[[Tensors], Tensors]
"""Sums each (T, …) tensor over the tasks of the whole batch, differentiably, to (…)."""


def sum_over_local_tasks(tensors: Tensors) -> Tensors:
    """Sum over the tasks when one process holds the whole batch."""
    return {name: sum_over_first(tensor) for name, tensor in tensors.items()}


def refuse_to_sum(_: Tensors) -> Tensors:
    """Raise ConfigError. Tasks that are taken apart have this as their `sum_over_tasks`."""
    raise ConfigError(
        "the rule called step.sum_over_tasks, and did not when it was tried on two tasks; call it "
        "in every outer iteration or in none"
    )


@dataclass(frozen=True)
class Step:
    """The values of inner step k that a rule can use besides its gradients.

    Attributes:
        k: the step, from 0. Steps beyond the trained ones have the number of the last trained one,
            so that `meta["beta"][step.k]` always exists.
        params: (T, …) the parameters before the step.
        own_gradients: (T, …) the gradients of each task's own loss, before any rule of a chain.
        losses: (T,) the support losses before the step.
        sum_over_tasks: sums over the task batch while meta-training; None while meta-testing, when
            tasks must not see each other.
    """

    k: int
    params: Tensors
    own_gradients: Tensors
    losses: Tensor
    sum_over_tasks: SumOverTasks | None

    @property
    def training(self) -> bool:
        """Whether this is meta-training (Algorithm 1) and not meta-testing (Algorithm 2)."""
        return self.sum_over_tasks is not None


class UpdateRule:
    """Base class of update rules. A subclass needs `update`; the other methods have defaults.

    Each tensor of `gradients`, `task`, `step` and the updates has the tasks as first dimension.
    `meta` and `carried` have no such dimension.
    """

    def init(self, params: Tensors, steps: int) -> tuple[Tensors, Tensors]:
        """Make the rule's own tensors, before any training.

        Args:
            params: the adapted parameters, without a task dimension.
            steps: K, the number of inner steps.

        Returns:
            `meta`, which the outer loop learns, and `carried`, which passes from one outer
            iteration to the next without being learned. Only these two are saved.
        """
        return {}, {}

    def start(self, params: Tensors) -> Tensors:
        """Make the state of new tasks, such as a momentum of zeros.

        Args:
            params: (T, …) the parameters from which the tasks start.
        """
        return {}

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        """Turn the gradients of one inner step into updates. Nothing is changed in place.

        Args:
            gradients: (T, …) of the tasks' losses, or what the rule before this one returned.
            meta: the rule's learned tensors.
            carried: from the iteration before, or from the step before in this iteration.
            task: the tasks' state.
            step: other values of this inner step.

        Returns:
            The (T, …) updates, named as the gradients are; `carried`, with the same names as
            before; and the tasks' state. `carried` must stay as it is unless `step.training`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `update`")

    def descend(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        """Call `update`, and subtract the updates from `step.params`. A subclass may do both in one
        pass over memory. Arguments as for `update`.

        Returns:
            The moved parameters, `carried` and the tasks' state.

        Raises:
            ConfigError: `update` returned other names or shapes than it should.
        """
        updates, carried, task = checked_update(self, gradients, meta, carried, task, step)
        return {name: t - updates[name] for name, t in step.params.items()}, carried, task

    def report(self, meta: Tensors) -> dict[str, list[float]]:
        """Learned quantities worth plotting over time, with one value for each inner step."""
        return {}


class Chain(UpdateRule):
    """Several rules in a row: each gets what the one before it returned.

    A rule's name prefixes its tensors: `Chain(sharing=GradientSharing(), sgd=SGD(0.1))` learns
    `sharing.m` and `sharing.lambda`.

    Args:
        **rules: the rules by name; None leaves one out.

    Raises:
        ConfigError: no rule was given, or something that is not an `UpdateRule`.
    """

    def __init__(self, **rules: UpdateRule | None) -> None:
        self.rules: dict[str, UpdateRule] = {}
        for name, rule in rules.items():
            if rule is not None:
                self.rules[name] = require_rule(name, rule)
        if not self.rules:
            raise ConfigError("a chain has no rule; give one, such as sgd=SGD(0.1)")

    def init(self, params: Tensors, steps: int) -> tuple[Tensors, Tensors]:
        """Join the tensors of all rules."""
        meta: dict[str, Tensor] = {}
        carried: dict[str, Tensor] = {}
        for name, rule in self.rules.items():
            own_meta, own_carried = checked_init(rule, params, steps)
            meta |= with_prefix(name, own_meta)
            carried |= with_prefix(name, own_carried)
        return meta, carried

    def start(self, params: Tensors) -> Tensors:
        """Join the states of all rules."""
        task: dict[str, Tensor] = {}
        for name, rule in self.rules.items():
            task |= with_prefix(name, rule.start(params))
        return task

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        """Pass the gradients through each rule."""
        return self._pass_through(checked_update, gradients, meta, carried, task, step)

    def descend(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        """Pass the gradients through each rule, and let the last one move the parameters."""
        return self._pass_through(
            lambda rule, *given: rule.descend(*given), gradients, meta, carried, task, step
        )

    def _pass_through(
        self, call_last: Callable[..., tuple[Tensors, Tensors, Tensors]], *given: Any
    ) -> tuple[Tensors, Tensors, Tensors]:
        """Call each rule with its own tensors, the last one by `call_last`."""
        gradients, meta, carried, task, step = given
        new_carried, new_task = dict(carried), dict(task)
        *_, last = self.rules
        for name, rule in self.rules.items():
            own = (under(name, tensors) for tensors in (meta, carried, task))
            call: Callable[..., Any] = call_last if name == last else checked_update
            gradients, own_carried, own_task = call(rule, gradients, *own, step)
            new_carried |= with_prefix(name, own_carried)
            new_task |= with_prefix(name, own_task)
        return gradients, new_carried, new_task

    def report(self, meta: Tensors) -> dict[str, list[float]]:
        """Join what the rules report, named `rule.quantity`."""
        return {
            f"{name}.{quantity}": values
            for name, rule in self.rules.items()
            for quantity, values in rule.report(under(name, meta)).items()
        }


def checked_init(rule: UpdateRule, params: Tensors, steps: int) -> tuple[Tensors, Tensors]:
    """Call `rule.init`, and check that it returns two dictionaries of tensors.

    Raises:
        ConfigError: it returns something else.
    """
    returned: Any = rule.init(params, steps)
    two = isinstance(returned, tuple) and len(returned) == 2
    if not two or not all(isinstance(part, Mapping) for part in returned):
        raise ConfigError(
            f"{type(rule).__name__}.init returned a {type(returned).__name__}; return two "
            "dictionaries of tensors: `meta`, which is learned, and `carried`"
        )
    meta, carried = returned
    for name, tensor in {**meta, **carried}.items():
        if not isinstance(tensor, Tensor):
            raise ConfigError(
                f"{type(rule).__name__}.init returned {name!r} as a {type(tensor).__name__}; make "
                "it a tensor: torch.tensor(0.1)"
            )
    return meta, carried


def checked_update(
    rule: UpdateRule,
    gradients: Tensors,
    meta: Tensors,
    carried: Tensors,
    task: Tensors,
    step: Step,
) -> tuple[Tensors, Tensors, Tensors]:
    """Call `rule.update`, and check the names and shapes that it returns. Without this, PyTorch
    would broadcast an update of another shape over the parameters: a wrong step, and no error.

    Raises:
        ConfigError: the updates have other names or shapes than the gradients, or the new `carried`
            than the old.
    """
    returned: Any = rule.update(gradients, meta, carried, task, step)
    kind = type(rule).__name__
    three = isinstance(returned, tuple) and len(returned) == 3
    if not three or not all(isinstance(part, Mapping) for part in returned):
        raise ConfigError(
            f"{kind}.update returned a {type(returned).__name__}; return three dictionaries: the "
            "updates, `carried` and `task`"
        )
    updates, new_carried, new_task = returned
    for what, found, like in (("updates", updates, gradients), ("carried", new_carried, carried)):
        if found.keys() != like.keys():
            raise ConfigError(
                f"{kind}.update must return {what} with the names it was given; "
                f"{min(found.keys() ^ like.keys())!r} is missing or new"
            )
        for name, tensor in like.items():
            shape = getattr(found[name], "shape", type(found[name]).__name__)
            if shape != tensor.shape:
                raise ConfigError(
                    f"{kind}.update returned {what} with {name!r} of shape {_shown(shape)}; it "
                    f"must be {_shown(tensor.shape)}"
                )
    return updates, new_carried, new_task


def require_rule(name: str, rule: object) -> UpdateRule:
    """Return `rule` if it is an UpdateRule.

    Args:
        name: of the argument, for the error.
        rule: what was given.

    Raises:
        ConfigError: it is a class, or something else.
    """
    if isinstance(rule, type) and issubclass(rule, UpdateRule):
        raise ConfigError(f"{name} is the class {rule.__name__}; call it: {rule.__name__}(…)")
    if not isinstance(rule, UpdateRule):
        raise ConfigError(
            f"{name} is {rule!r:.200}, not an update rule; give an object of a subclass of "
            "gradshare.UpdateRule, such as GradientSharing()"
        )
    return rule


def for_each_step(params: Tensors, steps: int, value: float) -> Tensor:
    """A number (K,) for each inner step, with the dtype of gates and the parameters' device."""
    like = next(iter(params.values()))
    return like.new_full((steps,), value, dtype=gate_dtype(params))


def gate_dtype(params: Tensors) -> torch.dtype:
    """The dtype of gates and rates: the widest of the parameters' dtypes, and at least float32."""
    dtype = torch.float32
    for tensor in params.values():
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


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


def _shown(shape: object) -> object:
    return tuple(shape) if isinstance(shape, torch.Size) else shape
