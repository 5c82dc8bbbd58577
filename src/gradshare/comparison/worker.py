"""What is done of a comparison where its runs are trained: its arms are tried, its runs trained."""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cloudpickle
import torch
from torch import Tensor

from gradshare.comparison.plan import Plan
from gradshare.comparison.results import MetricFacts
from gradshare.errors import ConfigError, GradshareError, RunError
from gradshare.methods import Learner
from gradshare.tasks.source import notes_of
from gradshare.training.checks import initial_state
from gradshare.training.device import choose_device
from gradshare.training.distributed import OneProcess
from gradshare.training.fit import fit_in
from gradshare.training.folder import RunFolder
from gradshare.training.interruption import RunStoppedError
from gradshare.training.launch import threads
from gradshare.training.layout import Layout, Memory, Tasks
from gradshare.training.lock import is_locked
from gradshare.training.loop import is_complete
from gradshare.training.machine import keep_freed_memory
from gradshare.training.metrics import Metric
from gradshare.training.options import Progress
from gradshare.training.prepare import prepare_run
from gradshare.training.progress import ProgressFile
from gradshare.training.randomness import isolated
from gradshare.training.state import RunStatus

ERRORS = "errors.txt"
TRIAL = "arms"  # the trial writes its progress to ".arms.json"
POLL_SECONDS = 0.5
# A worker whose program was killed saves and ends, and may need this long.
LEAVE_SECONDS = 60

LIVE: dict[str, Plan] = {}
"""Plans of comparisons whose workers are threads of this process, by path."""

Key = tuple[str, int]  # a run: its arm and seed
Starts = dict[str, Mapping[str, Tensor]]  # the meta-parameters of each arm before any training

Ending = tuple[Literal["done", "stopped", "failed"], Any]
"""What became of a call, and its result or the reason: errors do not travel well."""


@dataclass(frozen=True)
class Trial:
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


def ending_of(call: Callable[..., Any]) -> Callable[..., Ending]:
    """Let a function return its ending. Its first argument is the path of the plan."""

    @functools.wraps(call)
    def called(path: str, *args: Any) -> Ending:
        try:
            return "done", call(path, *args)
        except RunStoppedError as error:
            return "stopped", str(error)
        except GradshareError as error:
            return "failed", str(error)
        except Exception as error:
            errors = Path(path).with_name(ERRORS)
            with contextlib.suppress(OSError), errors.open("a", encoding="utf-8") as file:
                traceback.print_exc(file=file)
            return "failed", f"{type(error).__name__}: {error} (see {errors})"

    return called


@ending_of
def try_arms(path: str) -> tuple[Trial, list[Key]]:
    """Try the arms of a comparison on this machine, and find the runs that are not finished."""
    plan, folder = _plan(path), Path(path).parent
    tell, count = ProgressFile(folder / TRIAL), len(plan.arms)
    tell(Progress("try", 0, count, epoch=0, score=None))
    found = tried_here(plan)
    tell(Progress("try", count, count, epoch=0, score=None))
    return found, unfinished(plan, folder)


@ending_of
def train_run(path: str, arm: str, seed: int) -> None:
    """Train a run of a comparison from where its folder was saved last, and test it. It stops when
    the plan is removed.
    """
    plan, processes = _plan(path), _Worker(path)
    place = plan.place(Path(path).parent, arm, seed)
    settings = plan.settings.get(arm)
    _await_the_last(place, processes)
    with threads(plan.threads or torch.get_num_threads()), _without_notes_on_models():
        fit_in(
            processes,
            plan.learner(arm, seed),
            plan.sources,
            plan.options_of(arm, seed),
            place,
            resume=True,
            watch=ProgressFile(place),
            settings=settings and {**settings, "seed": seed},
        )


@contextlib.contextmanager
def _without_notes_on_models() -> Iterator[None]:
    """Don't log again what was logged when the arms were tried."""
    logger = logging.getLogger("gradshare.methods.network")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _plan(path: str) -> Plan:
    if path in LIVE:
        return LIVE[path]
    keep_freed_memory()
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise RunError(
            f"the machine {socket.gethostname()} cannot read {path} ({error.strerror}); compare in "
            "a folder that all machines share"
        ) from error
    plan: Plan = cloudpickle.loads(data)
    return plan


def _await_the_last(place: Path, processes: OneProcess) -> None:
    """Wait for a worker of a program that was killed, which stops when its plan is removed."""
    end = time.monotonic() + LEAVE_SECONDS
    while is_locked(place) and time.monotonic() < end and processes.asked is None:
        time.sleep(POLL_SECONDS)
    if processes.asked is not None:
        raise RunStoppedError("stopped before it began", processes.asked)


class _Worker(OneProcess):
    """The one process of a run, which is also asked to stop by the removal of the plan."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._looked = 0.0

    @property
    def asked(self) -> int | None:
        if self.stop.signal is None and time.monotonic() - self._looked > POLL_SECONDS:
            self._looked = time.monotonic()
            with contextlib.suppress(OSError):  # a disk that does not answer now may answer later
                if self._path not in LIVE and not Path(self._path).exists():
                    self.stop.signal = signal.SIGTERM
        return self.stop.signal


def _again(*args: Any) -> Any:
    from submitit.helpers import DelayedSubmission  # noqa: PLC0415

    return DelayedSubmission(train_run, *args)


# Where submitit looks for what it queues again when the time of a job is up.
train_run.checkpoint = _again  # type: ignore[attr-defined]


def tried_here(plan: Plan) -> Trial:
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
    return Trial(
        "loop" if any(one.tasks == "loop" for one in layouts if one.bytes) else "vmap",
        "recompute" if any(one.memory == "recompute" for one in layouts) else "keep",
        {name: MetricFacts.model_validate(m, from_attributes=True) for name, m in metrics.items()},
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
