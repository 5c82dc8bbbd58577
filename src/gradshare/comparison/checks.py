"""What is checked of a comparison before anything is written: each arm is made and tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradshare.comparison.collecting import is_finished
from gradshare.comparison.plan import Plan
from gradshare.errors import ConfigError
from gradshare.methods import Learner
from gradshare.training.checks import initial_state
from gradshare.training.device import choose_device
from gradshare.training.distributed import OneProcess
from gradshare.training.fit import fit_in, prepare_run
from gradshare.training.layout import Layout, Memory, Tasks
from gradshare.training.metrics import Metric
from gradshare.training.randomness import generators_kept

Starts = dict[str, Mapping[str, Tensor]]
"""The meta-parameters of each arm before any training."""


@dataclass(frozen=True)
class Checked:
    """A plan whose arms were tried.

    Attributes:
        plan: with the layout of its largest arm for all.
        metrics: by name.
        score: the metric that decides.
        identities: what makes the runs of each arm what they are, but for the seed.
        notes: for the reader.
    """

    plan: Plan
    metrics: dict[str, Metric]
    score: str
    identities: dict[str, Mapping[str, Any]]
    notes: tuple[str, ...]

    def finished(self, folder: Path) -> list[tuple[str, int]]:
        """The runs in a folder that have nothing left to do.

        Raises:
            RunError: an arm is not what it was when they were trained.
        """
        plan = self.plan
        found = [
            (arm, seed)
            for arm, seed in plan.runs
            if is_finished(plan.place(folder, arm, seed), {**self.identities[arm], "seed": seed})
        ]
        for arm, seed in dict(found).items():  # one of each arm tells whether it changed
            place = plan.place(folder, arm, seed)
            learner, options = plan.learner(arm, seed), plan.options_of(seed)
            fit_in(OneProcess(), learner, plan.sources, options, place, resume=True)
        return found


def checked(plan: Plan) -> Checked:
    """Make each arm and try a step of it.

    Raises:
        ConfigError, DataError: an arm cannot be made or trained, or the arms cannot be compared.
    """
    learners = {arm: plan.learner(arm, plan.seeds[0]) for arm in plan.arms}
    others = {arm: plan.learner(arm, plan.seeds[-1]) for arm in plan.arms}
    made: dict[int, str] = {}
    for arm in plan.arms:
        if made.setdefault(id(learners[arm]), arm) != arm or learners[arm] is others[arm]:
            raise ConfigError(
                f"the arm {arm!r} returns an object that was returned before; make the model and "
                "the learner within its function"
            )
    device = choose_device(plan.options.device)
    tried = {}
    for arm, learner in learners.items():
        with generators_kept(device):
            try:
                tried[arm] = prepare_run(learner, plan.sources, plan.options, device, None)
            except ConfigError as error:
                raise ConfigError(f"the arm {arm!r}: {error}") from error
    first, (_, metrics, score, _) = next(iter(tried.items()))
    for arm, (_, theirs, _, _) in tried.items():
        if theirs.keys() != metrics.keys() or _name(theirs[score]) != _name(metrics[score]):
            raise ConfigError(
                f"the arm {arm!r} is measured by {_names(theirs)}, and {first!r} by "
                f"{_names(metrics)}; give metrics=… that all arms can be measured by"
            )
    layouts = [Layout(**contents["layout"]) for *_, contents in tried.values()]
    # One for all arms, so that their times can be compared: what the largest of them needs.
    tasks: Tasks = "loop" if any(one.tasks == "loop" for one in layouts if one.bytes) else "vmap"
    lean = any(one.memory == "recompute" for one in layouts)
    memory: Memory = "recompute" if lean else "keep"
    starts: Starts = {arm: state.meta for arm, (state, *_) in tried.items()}
    return Checked(
        replace(plan, options=replace(plan.options, tasks=tasks, memory=memory)),
        metrics,
        score,
        {arm: contents["identity"] for arm, (*_, contents) in tried.items()},
        (*_other_starts(starts), *(_same_starts(starts, others) if len(plan.seeds) > 1 else ())),
    )


def _other_starts(starts: Starts) -> Iterator[str]:
    """Notes on tensors that two arms share by name and that start differently."""
    known: dict[str, tuple[str, Tensor]] = {}
    for arm, tensors in starts.items():
        differ: dict[str, list[str]] = {}
        for name, tensor in tensors.items():
            first, value = known.setdefault(name, (arm, tensor))
            if value.shape == tensor.shape and not torch.equal(value, tensor):
                differ.setdefault(first, []).append(name)
        for first, names in differ.items():
            yield f"{arm} starts with another {', '.join(names[:3])} than {first}."


def _same_starts(starts: Starts, others: Mapping[str, Learner]) -> Iterator[str]:
    """Notes on arms that start the same with another seed, such as from one model for all."""
    for arm, learner in others.items():
        meta, _ = initial_state(learner)
        if all(torch.equal(meta[name].to(t.device), t) for name, t in starts[arm].items()):
            yield f"{arm} starts from the same parameters with each seed."


def _name(metric: Metric) -> str:
    function = metric.function
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _names(metrics: Mapping[str, Metric]) -> str:
    return ", ".join(f"{name} ({_name(metric)})" for name, metric in metrics.items())
