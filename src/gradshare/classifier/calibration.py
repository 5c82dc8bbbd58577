"""How sure a classifier may be, as measured on tasks that the run was not trained on.

The logits of new tasks are divided by one temperature (Guo et al., 2017, On calibration of modern
neural networks). Prediction sets and the rejection of queries of no known class have thresholds by
split conformal prediction. The queries of a class are not independent, so classes are counted and
not queries (compare Lee, Barber and Willett, 2023, Distribution-free inference with hierarchical
data). Queries that are far from the nearest class mean, in what the adapted head is given, are
rejected. On features of traffic signs, this caught about twice as many queries of a new class as
the energy of the logits did (Liu et al., 2020, Energy-based out-of-distribution detection).
"""

from __future__ import annotations

import contextlib
import math
import warnings
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax, stdtrit

from gradshare.classifier.trained import Trained
from gradshare.errors import ConfigError, DataError, GradshareError, RunError
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.batch import each_task, tree_map
from gradshare.training.checks import explain_misfit
from gradshare.training.distributed import OneProcess
from gradshare.training.evaluation import Values, on_all_tasks
from gradshare.training.randomness import isolated
from gradshare.training.statistics import Interval, confidence95

Floats = npt.NDArray[np.float64]
SURE = 0.95
"""How sure it is that a new class keeps to a threshold."""

CALIBRATION_TASKS = 100
"""The number of tasks that a classifier is calibrated on by default."""

HOTTEST = 100.0
"""The largest temperature that is tried, and one over the smallest."""

BINS = 10
COVERAGES = (0.8, 0.9, 0.95)
REJECTED = (0.05, 0.1, 0.2)


class Answer(NamedTuple):
    """The answer to one task.

    Attributes:
        logits: (q, classes).
        targets: (q,) the number of each query's class.
        units: (q,) the name of each query's class, or of the task if classes have no names.
        doubts: (q,) the distance of each query from the nearest class; see `Trained.distances`.
    """

    logits: Floats
    targets: npt.NDArray[np.int64]
    units: npt.NDArray[np.generic]
    doubts: Floats


Answers = Sequence[Answer]


@dataclass(frozen=True)
class Calibration:
    """What the answers to some tasks say about the answers to others of the same kind.

    Attributes:
        temperature: by which logits are divided.
        misses: (n,) for each query of all tasks, 1 - the probability of its class.
        doubts: (n,) see `Answer`.
        units: (n,) see `Answer`.
    """

    temperature: float
    misses: Floats
    doubts: Floats
    units: npt.NDArray[np.generic]

    @classmethod
    def on(cls, answers: Answers) -> Calibration:
        """The calibration that some answers suggest."""

        def loss(log_temperature: float) -> float:
            scale = math.exp(-log_temperature)
            return -float(
                np.mean([_of_targets(log_softmax(z * scale, 1), y).mean() for z, y, *_ in answers])
            )

        end = math.log(HOTTEST)
        temperature = math.exp(minimize_scalar(loss, bounds=(-end, end), method="bounded").x)
        misses = [1 - _of_targets(probabilities(z, temperature), y) for z, y, *_ in answers]
        return cls(
            temperature,
            np.concatenate(misses),
            np.concatenate([answer.doubts for answer in answers]),
            np.concatenate([answer.units for answer in answers]),
        )

    def sets(self, logits: Floats, coverage: float) -> npt.NDArray[np.bool_]:
        """Which classes (n, classes) are in the prediction set of each query.

        The most probable one always is.
        """
        limit = threshold(self.misses, self.units, coverage)
        return _likely(probabilities(logits, self.temperature), limit)

    def rejected(self, doubts: Floats, share: float) -> npt.NDArray[np.bool_]:
        """Which queries (n,) are of no known class, if at most a share of those that are of one may
        be rejected.
        """
        return doubts > threshold(self.doubts, self.units, 1 - share)


def probabilities(logits: Floats, temperature: float = 1.0) -> Floats:
    """The probabilities (n, classes) of logits (n, classes)."""
    return np.asarray(softmax(logits / temperature, 1))


def threshold(scores: Floats, units: npt.NDArray[np.generic], share: float) -> float:
    """The smallest score that at least a share of the scores of a new unit will not exceed.

    It is the smallest one at which the mean over units of the share of scores that do not exceed
    it, less its one-sided 95 % margin of error (Student's t), is at least `share`.

    Args:
        scores: (n,).
        units: (n,) the class, or task, of each.
        share: between 0 and 1.
    """
    if not 0 < share < 1:
        raise ConfigError(f"coverage, or 1 - reject, is {share!r}; give a number between 0 and 1")
    names, codes = np.unique(units, return_inverse=True)
    sizes = np.bincount(codes)
    margins = stdtrit(len(names) - 1, SURE) / math.sqrt(len(names))

    def lower_bound(score: float) -> float:
        below = np.bincount(codes, weights=scores <= score) / sizes
        return float(below.mean() - margins * below.std(ddof=1))

    candidates = np.unique(scores)
    return float(candidates[bisect_left(candidates, share, key=lower_bound)])


def answers_to(
    trained: Trained, source: TaskSource, tasks: int, *, new_class: bool = False
) -> Answers:
    """The answers of a run's checkpoints to tasks 0, …, n - 1 of a source.

    Args:
        trained: the checkpoints.
        source: of the tasks.
        tasks: n.
        new_class: leave the last class of each task out of its support set. Its queries then have
            a class that no output stands for.

    Raises:
        RunError: the checkpoints overflowed on each task.
    """

    def measure(batch: TaskBatch) -> dict[str, Values]:
        classes = int(batch.support_y.max()) + (0 if new_class else 1)
        known = batch.support_y < classes
        if new_class:
            batch = replace(
                batch,
                support_x=tree_map(
                    lambda t: t[known].reshape(len(batch), -1, *t.shape[2:]), batch.support_x
                ),
                support_y=batch.support_y[known].reshape(len(batch), -1),
            )
        with explain_misfit(trained.learner, trained.models[0][0], "calibration", batch):
            adapted = [trained.learner.adapt(*model, batch) for model in trained.models]
            outputs = trained.on_prepared(batch, adapted)[..., :classes].double().cpu()
            doubts = trained.distances(batch, adapted).double().cpu()
        answers = each_task(
            lambda z, rest: (z.numpy(), *(t.cpu().numpy() for t in rest)),
            outputs,
            (batch.query_y, doubts),
            batch.query_n,
        )
        return {"": {"answers": answers}}

    with isolated(trained.device):
        found = on_all_tasks(OneProcess(), source, tasks, trained.device, measure)[""]["answers"]
    names = None if hasattr(source, "encode") else getattr(source, "classes_of", None)
    answers = []
    for task, (logits, targets, doubts) in enumerate(found):
        units = np.full(len(targets), task) if names is None else np.array(names(task))[targets]
        answers.append(Answer(logits, targets, units, doubts))
    finite = [answer for answer in answers if np.isfinite(answer.logits).all()]
    if len(finite) < 2:  # a spread needs two
        raise RunError(
            "probabilities cannot be calibrated: the inner steps overflowed on all validation "
            "tasks; the run's inner rate is too high"
        )
    return finite


def of_size(source: TaskSource, ways: int, shots: int) -> TaskSource:
    """The source with tasks of another size, or as it is, with a warning, if it has none such.

    Its tasks have a single query of each class where its classes are too small for more.
    """
    if not hasattr(source, "replace"):
        return source
    sizes = {"shots": shots} if hasattr(source, "encode") else {"ways": ways, "shots": shots}
    for fewer in ({}, {"queries": 1}):
        try:
            resized: TaskSource = source.replace(**sizes, **fewer)
        except GradshareError as error:
            cause = error
        else:
            return resized
    warnings.warn(
        f"the classifier is calibrated on validation tasks as they are, and not on such of {ways} "
        f"classes and {shots} examples of each: {cause}",
        stacklevel=2,
    )
    return source


@dataclass(frozen=True)
class Measured:
    """How far the stated probabilities hold on tasks that they were not calibrated on.

    Attributes:
        tasks: how many were measured.
        temperature: of the calibration.
        errors: the expected calibration error before and after it.
        coverage: the stated coverage of prediction sets, the measured one, and the mean size.
        rejection: the stated share of queries of known classes that are rejected, the measured one,
            and the share of queries of a new class; empty if tasks with a new class were not had.
    """

    tasks: int
    temperature: float
    errors: tuple[float, float]
    coverage: Sequence[tuple[float, Interval, float]]
    rejection: Sequence[tuple[float, Interval, Interval]]

    def __str__(self) -> str:
        """A line for each stated number."""
        before, after = self.errors
        return "\n".join(
            [
                f"Calibration error on {self.tasks} tasks: {after:.1%} at temperature "
                f"{self.temperature:.2f}, {before:.1%} without",
                *(
                    f"Sets of stated coverage {stated:.0%}: measured {_shown(found)}, with "
                    f"{size:.2f} classes on average"
                    for stated, found, size in self.coverage
                ),
                *(
                    f"Rejecting {stated:.0%} of known classes: measured {_shown(known)}, and "
                    f"{_shown(new)} of a new class"
                    for stated, known, new in self.rejection
                ),
            ]
        )


def measured_on(
    trained: Trained, validation: TaskSource, source: TaskSource, tasks: int
) -> Measured:
    """How far a calibration on validation tasks holds on tasks 0, …, n - 1 of a source."""
    calibration = Calibration.on(answers_to(trained, validation, CALIBRATION_TASKS))
    ways = int(source.batch([0]).support_y.max()) + 1
    new = None
    if hasattr(source, "replace") and not hasattr(source, "encode"):
        with contextlib.suppress(DataError):  # it has no class more
            larger = source.replace(ways=ways + 1)
            new = answers_to(trained, larger, tasks, new_class=True)
    return measure(calibration, answers_to(trained, source, tasks), new)


def measure(
    calibration: Calibration, answers: Answers, with_new_class: Answers | None = None
) -> Measured:
    """How far a calibration holds on other tasks.

    Args:
        calibration: from validation tasks.
        answers: to test tasks.
        with_new_class: to test tasks whose last class is left out of the support set.
    """
    coverage, rejection = [], []
    warm = calibration.temperature
    for stated in COVERAGES:
        limit = threshold(calibration.misses, calibration.units, stated)
        sets = [_likely(probabilities(answer.logits, warm), limit) for answer in answers]
        hits = [_of_targets(s, a.targets).mean() for s, a in zip(sets, answers, strict=True)]
        size = float(np.mean([s.sum(1).mean() for s in sets]))
        coverage.append((stated, confidence95(hits), size))
    for stated in REJECTED if with_new_class else ():
        known, new = [], []
        for answer in with_new_class or ():
            rejected = calibration.rejected(answer.doubts, stated)
            is_new = answer.targets == answer.logits.shape[1]
            known.append(rejected[~is_new].mean())
            new.append(rejected[is_new].mean())
        rejection.append((stated, confidence95(known), confidence95(new)))
    errors = (calibration_error(answers, 1.0), calibration_error(answers, warm))
    return Measured(len(answers), warm, errors, coverage, rejection)


def calibration_error(answers: Answers, temperature: float) -> float:
    """The expected calibration error: how far the largest probability is from the share of right
    answers, on average over 10 bins of equal width.
    """
    sure = np.concatenate([probabilities(a.logits, temperature).max(1) for a in answers])
    right = np.concatenate([a.logits.argmax(1) == a.targets for a in answers])
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [abs((sure - right)[bins == b].sum()) for b in range(BINS)]
    return float(sum(gaps) / len(sure))


def _likely(found: Floats, limit: float) -> npt.NDArray[np.bool_]:
    """The classes whose probability is at least 1 - limit, and the most probable one."""
    likely = 1 - found <= limit
    likely[np.arange(len(found)), found.argmax(1)] = True
    return likely


def _of_targets(values: npt.NDArray[np.generic], targets: npt.NDArray[np.int64]) -> Floats:
    return np.asarray(values[np.arange(len(targets)), targets], dtype=np.float64)


def _shown(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} ± {100 * (interval.ci95 or 0):.1f} %"
