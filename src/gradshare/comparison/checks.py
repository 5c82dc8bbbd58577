"""What is checked of a comparison before anything is written: each arm is made and tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gradshare.comparison.plan import Plan
from gradshare.comparison.results import MetricFacts
from gradshare.errors import ConfigError
from gradshare.methods import Learner
from gradshare.tasks.source import notes_of
from gradshare.training.checks import initial_state
from gradshare.training.device import choose_device
from gradshare.training.distributed import OneProcess
from gradshare.training.fit import fit_in
from gradshare.training.folder import RunFolder
from gradshare.training.layout import Layout, Memory, Tasks
from gradshare.training.loop import is_complete
from gradshare.training.metrics import Metric
from gradshare.training.prepare import prepare_run
from gradshare.training.randomness import isolated
from gradshare.training.state import RunStatus

Key = tuple[str, int]  # a run: its arm and seed
Starts = dict[str, Mapping[str, Tensor]]  # the meta-parameters of each arm before any training


@dataclass(frozen=True)
class Tried:
    """What was found when the arms were tried. It can be sent to another process.

    Attributes:
        tasks, memory: the layout of all arms; see `Layout`.
        metrics: by name.
        score: the metric that decides.
        notes: for the reader.
    """

    tasks: Tasks
    memory: Memory
    metrics: dict[str, MetricFacts]
    score: str
    notes: tuple[str, ...]


def tried(plan: Plan) -> Tried:
    """Make each arm and try a step of it, on the device of the runs."""
    learners, others = learners_of(plan)
    device = choose_device(plan.options.device)
    found = {}
    for arm, learner in learners.items():
        with isolated(device):
            try:
                options = plan.options_of(arm, plan.seeds[0])
                found[arm] = prepare_run(learner, plan.sources, options, device)
            except ConfigError as error:
                raise ConfigError(f"the arm {arm!r}: {error}") from error
    first, (_, metrics, score, _) = next(iter(found.items()))
    for arm, (_, theirs, _, _) in found.items():
        if theirs.keys() != metrics.keys() or _name(theirs[score]) != _name(metrics[score]):
            raise ConfigError(
                f"the arm {arm!r} is measured by {_names(theirs)}, and {first!r} by "
                f"{_names(metrics)}; give metrics=… that all arms can be measured by"
            )
    layouts = [Layout(**contents["layout"]) for *_, contents in found.values()]
    starts: Starts = {arm: state.meta for arm, (state, *_) in found.items()}
    notes = [*notes_of(plan.train, plan.test), *_other_starts(starts, plan.baseline)]
    if len(plan.seeds) > 1:
        notes += _same_starts(starts, others)
    # One layout for all arms, so that their times can be compared: the one that needs the least
    # memory and that all models can be computed in.
    return Tried(
        "loop" if any(one.tasks == "loop" for one in layouts if one.bytes) else "vmap",
        "recompute" if any(one.memory == "recompute" for one in layouts) else "keep",
        {
            name: MetricFacts(best=m.best, unit=m.unit, chance=m.chance)
            for name, m in metrics.items()
        },
        score,
        tuple(notes),
    )


def learners_of(plan: Plan) -> tuple[dict[str, Learner], dict[str, Learner]]:
    """The learners of all arms with the first and the last seed. Each must be another object."""
    learners = {arm: plan.learner(arm, plan.seeds[0]) for arm in plan.arms}
    others = {arm: plan.learner(arm, plan.seeds[-1]) for arm in plan.arms}
    made: dict[int, str] = {}
    for arm in plan.arms:
        if made.setdefault(id(learners[arm]), arm) != arm or learners[arm] is others[arm]:
            raise ConfigError(
                f"the arm {arm!r} returns an object that was returned before; make the model and "
                "the learner within its function"
            )
    return learners, others


def unfinished(plan: Plan, folder: Path) -> list[Key]:
    """The runs that are not finished in a comparison's folder; RunError if an arm is not what it
    was when its finished runs were trained.
    """
    left, finished = [], {}
    for arm, seed in plan.runs:
        run = RunFolder(plan.place(folder, arm, seed))
        saved = run.load_latest() if run.started else None
        if saved and is_complete(plan.options_of(arm, seed), RunStatus.of(saved), plan.test):
            finished[arm] = seed
        else:
            left.append((arm, seed))
    for arm, seed in finished.items():  # one run of each arm tells whether the arm has changed
        learner, place = plan.learner(arm, seed), plan.place(folder, arm, seed)
        options = plan.options_of(arm, seed)
        fit_in(OneProcess(), learner, plan.sources, options, place, resume=True)
    return left


def _other_starts(starts: Starts, baseline: str) -> Iterator[str]:
    """Notes on arms with tensors that the baseline has too and that start differently."""
    known = starts[baseline]
    for arm, tensors in starts.items():
        alike = [n for n, t in tensors.items() if n in known and known[n].shape == t.shape]
        names = [name for name in alike if not torch.equal(known[name], tensors[name])]
        if names:
            yield f"{arm} starts with another {', '.join(names[:3])} than {baseline}."


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
