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

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax, stdtrit

from gradshare.classifier.trained import Trained
from gradshare.errors import ConfigError, DataError, GradshareError, RunError
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.arrays import Array
from gradshare.tasks.batch import task_of, tree_map
from gradshare.training.checks import explain_misfit
from gradshare.training.distributed import OneProcess
from gradshare.training.evaluation import Values, on_all_tasks
from gradshare.training.metrics import Metric, accuracy
from gradshare.training.randomness import isolated
from gradshare.training.statistics import Interval, confidence95

Floats = npt.NDArray[np.float64]

SURE = 0.95
"""How sure it is that a new class keeps to a threshold."""

CALIBRATION_TASKS = 100
"""The number of tasks that a classifier is calibrated on by default."""

HOTTEST = 100.0
"""The largest temperature that is tried, and one over the smallest."""

SHARE = Metric(accuracy, unit="%")
BINS = 10
COVERAGES = (0.8, 0.9, 0.95)
REJECTED = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Answers:
    """The answers to the n queries of some tasks.

    Attributes:
        logits: (n, classes); minus infinity for classes that a query's task does not have.
        targets: (n,) the number of each query's class.
        tasks: (n,) the number of each query's task.
        units: (n,) the name of each query's class, or of its task if classes have no names.
        distances: (n,) of each query from the nearest class; see `Trained.distances`.
    """

    logits: Floats
    targets: Array
    tasks: Array
    units: Array
    distances: Floats


@dataclass(frozen=True)
class Calibration:
    """What the answers to some tasks say about the answers to others of the same kind.

    Attributes:
        temperature: by which logits are divided.
        misses: (n,) for each query of all tasks, 1 - the probability of its class.
        distances: (n,) see `Answers`.
        units: (n,) see `Answers`.
    """

    temperature: float
    misses: Floats
    distances: Floats
    units: Array

    @classmethod
    def on(cls, answers: Answers) -> Calibration:
        """The calibration that some answers suggest."""

        def loss(log_temperature: float) -> float:
            logs = log_softmax(answers.logits * math.exp(-log_temperature), 1)
            return -float(_means(_of_targets(logs, answers), answers.tasks).mean())

        end = math.log(HOTTEST)
        temperature = math.exp(minimize_scalar(loss, bounds=(-end, end), method="bounded").x)
        misses = 1 - _of_targets(probabilities(answers.logits, temperature), answers)
        return cls(temperature, misses, answers.distances, answers.units)

    def sets(self, logits: Floats, coverage: float) -> npt.NDArray[np.bool_]:
        """Which classes (n, classes) are in the prediction set of each query.

        The most probable one always is.
        """
        found = probabilities(logits, self.temperature)
        chosen = 1 - found <= threshold(self.misses, self.units, coverage)
        chosen[np.arange(len(found)), found.argmax(1)] = True
        return np.asarray(chosen)

    def rejected(self, distances: Floats, share: float) -> npt.NDArray[np.bool_]:
        """Which queries (n,) are of no known class, if at most a share of those that are of one may
        be rejected.
        """
        return distances > threshold(self.distances, self.units, 1 - share)


def probabilities(logits: Floats, temperature: float = 1.0) -> Floats:
    """The probabilities (n, classes) of logits (n, classes)."""
    return np.asarray(softmax(logits / temperature, 1))


def threshold(scores: Floats, units: Array, share: float) -> float:
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
    margin = stdtrit(len(names) - 1, SURE) / math.sqrt(len(names))

    def lower_bound(score: float) -> float:
        below = _means(scores <= score, codes)
        return float(below.mean() - margin * below.std(ddof=1))

    candidates = np.unique(scores)
    return float(candidates[bisect_left(candidates, share, key=lower_bound)])


def answers_to(
    trained: Trained, source: TaskSource, count: int, *, new_class: bool = False
) -> Answers:
    """The answers of a run's checkpoints to tasks 0, …, n - 1 of a source.

    Args:
        trained: the checkpoints.
        source: of the tasks.
        count: n.
        new_class: leave the last class of each task out of its support set. Its queries then have
            a class that no output stands for.

    Raises:
        RunError: the checkpoints overflowed on each task.
    """

    def measure(batch: TaskBatch) -> dict[str, Values]:
        classes = int(batch.support_y.max()) + 1
        if new_class:
            classes -= 1
            known = batch.support_y < classes
            x, y = (
                tree_map(lambda t: t[known].reshape(len(batch), -1, *t.shape[2:]), part)
                for part in (batch.support_x, batch.support_y)
            )
            batch = replace(batch, support_x=x, support_y=y)
        with explain_misfit(trained.learner, trained.models[0][0], "calibration", batch):
            adapted = trained.adapt(batch)
            outputs = trained.outputs(batch, adapted)[..., :classes].double().cpu()
            distances = trained.distances(batch, adapted).double().cpu()
        found = {"logits": outputs, "targets": batch.query_y.cpu(), "distances": distances}
        tasks = range(len(batch))
        return {
            "": {
                name: [task_of(tensor, task, batch.query_n).numpy() for task in tasks]
                for name, tensor in found.items()
            }
        }

    with isolated(trained.device):
        found = on_all_tasks(OneProcess(), source, count, trained.device, measure)[""]
    kept = [task for task, own in enumerate(found["logits"]) if np.isfinite(own).all()]
    if len(kept) < 2:  # a spread needs two
        raise RunError(
            "probabilities cannot be calibrated: the inner steps overflowed on all validation "
            "tasks; the run's inner rate is too high"
        )
    logits, targets, distances = ([found[name][task] for task in kept] for name in found)
    tasks = units = np.repeat(kept, [len(own) for own in targets])
    if not hasattr(source, "encode") and hasattr(source, "classes_of"):
        of_task = zip(kept, targets, strict=True)
        units = np.concatenate([np.array(source.classes_of(task))[own] for task, own in of_task])
    most = max(own.shape[1] for own in logits)
    padded = [
        np.pad(own, ((0, 0), (0, most - own.shape[1])), constant_values=-np.inf) for own in logits
    ]
    return Answers(
        np.concatenate(padded), np.concatenate(targets), tasks, units, np.concatenate(distances)
    )


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
        "the classifier is calibrated on tasks of the run's size, since the validation data has "
        f"none of {ways} classes and {shots} examples of each: {cause}",
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
    errors: tuple[float, ...]
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
                    f"Sets of stated coverage {stated:.0%}: measured {SHARE.show(found)}, with "
                    f"{size:.2f} classes on average"
                    for stated, found, size in self.coverage
                ),
                *(
                    f"Rejecting {stated:.0%} of known classes: measured {SHARE.show(known)}, and "
                    f"{SHARE.show(new)} of a new class"
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
    for stated in COVERAGES:
        sets = calibration.sets(answers.logits, stated)
        hits = _means(_of_targets(sets, answers), answers.tasks)
        size = float(_means(sets.sum(1), answers.tasks).mean())
        coverage.append((stated, confidence95(hits.tolist()), size))
    if with_new_class is not None:
        is_new = with_new_class.targets == with_new_class.logits.shape[1]
        for stated in REJECTED:
            rejected = calibration.rejected(with_new_class.distances, stated)
            known, new = (
                confidence95(_means(rejected[rows], with_new_class.tasks[rows]).tolist())
                for rows in (~is_new, is_new)
            )
            rejection.append((stated, known, new))
    errors = tuple(calibration_error(answers, t) for t in (1.0, calibration.temperature))
    tasks = len(np.unique(answers.tasks))
    return Measured(tasks, calibration.temperature, errors, coverage, rejection)


def calibration_error(answers: Answers, temperature: float) -> float:
    """The expected calibration error: how far the largest probability is from the share of right
    answers, on average over 10 bins of equal width.
    """
    found = probabilities(answers.logits, temperature)
    sure, right = found.max(1), found.argmax(1) == answers.targets
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(bins, sure - right)).sum() / len(sure))


def _of_targets(values: Array, answers: Answers) -> Floats:
    """The values (n,) of each query's class among those (n, classes) of all."""
    return np.asarray(values[np.arange(len(values)), answers.targets], dtype=np.float64)


def _means(values: Array, groups: Array) -> Floats:
    """The mean of the values (n,) of each group (n,), in the groups' order."""
    _, codes = np.unique(groups, return_inverse=True)
    return np.asarray(np.bincount(codes, values) / np.bincount(codes))
