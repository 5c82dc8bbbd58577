"""A few-shot classifier with scikit-learn's interface."""

from __future__ import annotations

import reprlib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from gradshare.classifier.calibration import (
    CALIBRATION_TASKS,
    Calibration,
    answers_to,
    of_size,
    probabilities,
)
from gradshare.classifier.export import export
from gradshare.classifier.inputs import labels_of
from gradshare.classifier.trained import Fitted, Trained, opened
from gradshare.errors import ConfigError, DataError, require_count
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.arrays import labels
from gradshare.tasks.batch import Tree, first_leaf, leaves, tree_map
from gradshare.training.checks import require_source
from gradshare.training.randomness import isolated
from gradshare.training.run import Run, encoded

Labels = npt.NDArray[Any]
Targets = npt.ArrayLike | Tensor


class FewShotClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Learns new classes from a few examples of each, with the best checkpoints of a trained run.

    It is a scikit-learn classifier: it can be cloned, cross-validated, searched over, pickled, and
    be the last step of a pipeline.

    A run on images takes n paths, PIL images, arrays or tensors, of any sizes and colour modes: see
    `gradshare.classifier.inputs.as_images`. Other runs take inputs as their source gives them,
    before its `prepare`: an array, a tensor, a data frame of rows, or a tuple or dictionary of
    them, with the examples as first dimension.

    A run of a method with any number of classes, such as UNICORN-MAML, learns any number. Others
    learn at most as many as they were trained for: outputs beyond those of the support set are
    left out.

    With transductive batch norm, as in the paper, the examples of one `predict` call influence each
    other's predictions. A warning says when they are fewer than the classes, or all get one class.

    Args:
        run: a run whose targets are classes, from `fit` or `open_run`, or its folder. Give the
            folder to classifiers that are pickled: a pickle of a run holds its source.
        ensemble: how many of its best checkpoints are averaged; None for all that it kept.
        calibration: the source of the tasks that probabilities are calibrated on; None for the
            run's validation tasks.
        calibration_tasks: how many of them; 0 for probabilities that are not calibrated.
        device: where it runs, if `run` is a folder; as in `fit`.

    Attributes:
        classes_: the classes of which `fit` and `partial_fit` were given examples, sorted.
        transductive_: whether a prediction depends on the other examples of the call; True for
            a learner that does not say.
    """

    def __init__(
        self,
        run: Run | str | Path | Trained,
        *,
        ensemble: int | None = None,
        calibration: TaskSource | None = None,
        calibration_tasks: int = CALIBRATION_TASKS,
        device: str = "auto",
    ) -> None:
        self.run = run
        self.ensemble = ensemble
        self.calibration = calibration
        self.calibration_tasks = calibration_tasks
        self.device = device

    def __sklearn_clone__(self) -> FewShotClassifier:
        """A clone that is not fitted. It shares the run, which nothing changes."""
        return type(self)(**self.get_params(deep=False))

    def fit(self, X: Any, y: Targets) -> FewShotClassifier:
        """Adapt each checkpoint to a support set.

        Args:
            X: n inputs, in any order.
            y: (n,) their classes: whole numbers, texts or booleans, in a list, array or Series.

        Raises:
            RunError: there is no such run, or no checkpoint of it can be read.
            ConfigError: the run lacks its learner or its source, has targets that are not classes,
                or has kept fewer checkpoints.
            DataError: inputs that the run does not take, an image that cannot be read, more classes
                than it can learn, or labels that are missing, mixed, or not one for each input.
        """
        trained = opened(self.run, self.ensemble, self.device)
        inputs = trained.read(X)
        return self._adapt(trained, inputs, labels_of(first_leaf(inputs), y))

    def partial_fit(self, X: Any, y: Targets, classes: Any = None) -> FewShotClassifier:
        """Add examples, of the same classes or of new ones, to the support set, and adapt to all.

        Args:
            X: n inputs, as in `fit`.
            y: (n,) their classes.
            classes: all that y may name, which scikit-learn asks for on the first call; None for
                any. A class joins `classes_`, and is predicted, once it has an example.

        Raises:
            GradshareError: as in `fit`, or y has a label that `classes` lacks. Nothing has changed.
        """
        if classes is not None:
            announced = labels(classes, "classes").tolist()
            if unknown := [label for label in labels(y).tolist() if label not in announced]:
                raise DataError(
                    f"the label {unknown[0]!r} is none of the classes {reprlib.repr(announced)}; "
                    "add it to `classes`, or leave `classes` out"
                )
        if not hasattr(self, "classes_"):
            return self.fit(X, y)
        new = self._read(X)
        held = tree_map(lambda t: t[0].cpu(), self._fitted.support.support_x)
        for (path, one), (_, other) in zip(leaves(new, "X"), leaves(held), strict=True):
            if one.shape[1:] != other.shape[1:]:
                raise DataError(
                    f"{path} has examples of shape {tuple(one.shape[1:])}, and those before have "
                    f"{tuple(other.shape[1:])}; give all the same shape"
                )
        parts = iter(leaf for _, leaf in leaves(held))
        together = tree_map(lambda t: torch.cat([next(parts), t]), new)
        codes = self._fitted.support.support_y[0].cpu().numpy()
        both = [*self.classes_[codes].tolist(), *labels_of(first_leaf(new), y).tolist()]
        return self._adapt(self._fitted.trained, together, labels(both))

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """The probability of each of `classes_`, (n, classes).

        The first call after `fit` calibrates them on `calibration_tasks` tasks with as many classes
        and examples as the support set has.

        Args:
            X: n inputs, as in `fit`.

        Raises:
            sklearn.exceptions.NotFittedError: `fit` was not called.
            DataError: inputs that the run does not take, or an image that cannot be read.
            RunError: the inner steps of each checkpoint overflowed on the support set.
        """
        return probabilities(self._logits(self._read(X)), self._temperature())

    def predict_proba_by_step(self, X: Any) -> npt.NDArray[np.float64]:
        """The probabilities after 0, 1, …, K inner steps, (K + 1, n, classes).

        The last ones are those of `predict_proba`. A learner without inner steps has no others.

        Args:
            X: n inputs, as in `fit`.

        Raises:
            sklearn.exceptions.NotFittedError: `fit` was not called.
            GradshareError: as in `predict_proba`.
        """
        inputs, fitted = self._read(X), self._fitted
        trained, taken = fitted.trained, range(getattr(fitted.trained.learner, "steps", 0))
        with trained.preparing(fitted.support, "support set") as task:
            earlier = [replace(fitted, adapted=trained.adapt(task, steps)) for steps in taken]
        logits = [self._outputs(inputs, after) for after in (*earlier, fitted)]
        return np.stack([probabilities(each, self._temperature()) for each in logits])

    def predict(self, X: Any, *, reject: float | None = None) -> Labels:
        """The most probable class of each input.

        Args:
            X: n inputs, as in `fit`.
            reject: answer None where an input looks like none of the classes. This is the share, in
                (0, 1), of inputs of the known classes that may be lost to it; it holds for classes
                like those of the calibration with 95 % confidence.

        Raises:
            sklearn.exceptions.NotFittedError: `fit` was not called.
            GradshareError: as in `predict_proba`; or `reject` is given without a calibration.
        """
        inputs = self._read(X)
        chosen: Labels = self.classes_[self._logits(inputs).argmax(-1)]
        if reject is not None:
            distances = self._fitted.distances(inputs).double().cpu().numpy()
            chosen = chosen.astype(object)
            chosen[self._calibrated().rejected(distances, reject)] = None
        return chosen

    def predict_set(self, X: Any, *, coverage: float = 0.9) -> list[list[Any]]:
        """For each input the classes that it may be of, the most probable first.

        The sets hold the true class of at least a share `coverage` of inputs. This holds with 95 %
        confidence for classes like those of the calibration.

        Args:
            X: n inputs, as in `fit`.
            coverage: in (0, 1).

        Raises:
            sklearn.exceptions.NotFittedError: `fit` was not called.
            GradshareError: as in `predict_proba`; or there is no calibration.
        """
        logits = self._logits(self._read(X))
        sets = self._calibrated().sets(logits, coverage)
        order = np.argsort(-logits, axis=1, kind="stable")
        names = self.classes_.tolist()
        return [
            [names[code] for code in codes if chosen[code]]
            for codes, chosen in zip(order, sets, strict=True)
        ]

    def score(self, X: Any, y: Targets) -> float:
        """The share of inputs that are predicted right, in [0, 1].

        Args:
            X: n inputs, as in `fit`.
            y: (n,) the true classes, as `fit` was given them.

        Raises:
            sklearn.exceptions.NotFittedError: `fit` was not called.
            GradshareError: as by `predict`; another number of labels, or none of a class that `fit`
                was given.
        """
        predicted = self.predict(X)
        given = labels_of(predicted, y)
        if set(given.tolist()).isdisjoint(self.classes_.tolist()):
            raise DataError(
                f"none of the labels {reprlib.repr(given.tolist())} is one of the classes "
                f"{reprlib.repr(self.classes_.tolist())}; give them as `fit` was given them"
            )
        return float((predicted == given).mean())

    def export(self, path: str | Path) -> None:
        """Write the fitted classifier, with its backbone if it has one, as one file.

        The file runs without gradshare, an ONNX file without torch too. It maps images, uint8
        (n, H, W, C), or rows to the probabilities of `predict_proba`, which is checked before it is
        written. Its metadata has the names of the classes.

        Args:
            path: of the new file, which ends in .onnx or .pt2 (`torch.export`).

        Raises:
            sklearn.exceptions.NotFittedError: `fit` was not called.
            ConfigError: another ending, transductive batch norm, or a network that cannot be
                exported.
            RunError: the file cannot be written.
        """
        check_is_fitted(self, "classes_")
        calibration = self._calibrated() if self.calibration_tasks else None
        names = self.classes_.tolist()
        export(Path(path).expanduser(), self._fitted, names, calibration, self.predict_proba)

    def _adapt(self, trained: Trained, inputs: Tree, y: Labels) -> FewShotClassifier:
        with isolated(trained.device):
            targets, classes = encoded(y, trained.source)
            assert classes is not None
            one = tree_map(lambda t: t[None].clone(), inputs)  # the caller may reuse the memory
            support = TaskBatch(one, targets[None], one, targets[None]).to(trained.device)
        self._fitted = trained.fit(support)
        self._calibration: Calibration | None = None
        self.classes_: Labels = np.array(classes)
        self.transductive_ = trained.transductive
        return self

    def _read(self, X: Any) -> Tree:
        check_is_fitted(self, "classes_")
        return self._fitted.trained.read(X)

    def _logits(self, inputs: Tree) -> npt.NDArray[np.float64]:
        count, ways = len(first_leaf(inputs)), len(self.classes_)
        outputs = self._outputs(inputs, self._fitted)
        found = len(set(outputs.argmax(1).tolist()))
        if self.transductive_ and (count < ways or found == 1):
            warnings.warn(
                "this run has transductive batch norm, which needs many examples at once, of all "
                f"{ways} classes. It got {count} and predicts {found} of the classes; train with "
                "--batch-norm inductive to predict few examples, or those of one class",
                stacklevel=3,
            )
        return outputs

    def _outputs(self, inputs: Tree, fitted: Fitted) -> npt.NDArray[np.float64]:
        return fitted.outputs(inputs)[:, : len(self.classes_)].double().cpu().numpy()

    def _temperature(self) -> float:
        return self._calibrated().temperature if self.calibration_tasks else 1.0

    def _calibrated(self) -> Calibration:
        """The calibration for this support set, measured when it is first needed."""
        if self._calibration is None:
            trained = self._fitted.trained
            source = trained.validation
            if self.calibration is not None:
                source = self.calibration
                require_source("calibration", source, range(2))
            if source is None:
                raise ConfigError(
                    "the run was opened without its validation tasks, on which probabilities are "
                    "calibrated, or its dataset is not on this machine; give a source, "
                    "FewShotClassifier(run, calibration=source), or calibration_tasks=0 for "
                    "probabilities that are not calibrated"
                )
            require_count("calibration_tasks", self.calibration_tasks, least=20)
            ways = len(self.classes_)
            shots = max(1, round(self._fitted.support.support_y.shape[1] / ways))
            known = trained.calibrations if self.calibration is None else {}
            key = (ways, shots, self.calibration_tasks)
            if key not in known:
                sized = of_size(source, ways, shots)
                known[key] = Calibration.on(answers_to(trained, sized, self.calibration_tasks))
            self._calibration = known[key]
        return self._calibration
