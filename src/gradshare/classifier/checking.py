"""What accuracy to expect of a run on examples of your own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from gradshare.classifier.estimator import FewShotClassifier
from gradshare.classifier.inputs import labels_of
from gradshare.classifier.trained import opened
from gradshare.errors import DataError, require_count
from gradshare.tasks.arrays import Array
from gradshare.tasks.batch import first_leaf, tree_map
from gradshare.training.statistics import Z95, Interval, student95
from gradshare.training.yardsticks import guessed

THIS_RUN = "this run"
DRAWS = 100
"""How often folds are drawn anew because one would leave a class without an example."""


@dataclass(frozen=True)
class Check:
    """The result of `check`: what was right in a cross-validation.

    Attributes:
        right: (n,) which examples were predicted right, by the classifier's name: "this run", and
            the yardsticks if the inputs are one tensor of numbers.
        groups: (n,) the group of each example; each its own if none were given.
        classes: their number.
        folds: the number of folds.
    """

    right: Mapping[str, npt.NDArray[np.bool_]]
    groups: Array
    classes: int
    folds: int

    def accuracy(self, name: str = THIS_RUN) -> tuple[float, float, float]:
        """The accuracy of a classifier, in [0, 1], with the ends of its 95 % interval (Wilson's).

        With groups, the interval is that of as many independent examples as have the same spread.
        """
        right = self.right[name]
        count, mean = float(len(right)), float(right.mean())
        values = self._by_group(right - mean)
        if len(values) < len(right):
            variance = len(values) / (len(values) - 1) * float((values**2).sum()) / count**2
            count = min(count, mean * (1 - mean) / variance) if variance else len(values)
        centre = (mean + Z95**2 / (2 * count)) / (1 + Z95**2 / count)
        half = Z95 * math.sqrt(mean * (1 - mean) / count + Z95**2 / (4 * count**2))
        half /= 1 + Z95**2 / count
        return mean, centre - half, centre + half

    def difference(self, name: str) -> Interval:
        """The accuracy of this run minus that of a yardstick, paired by example or group."""
        gain = self.right[THIS_RUN].astype(float) - self.right[name]
        values = self._by_group(gain) * len(np.unique(self.groups)) / len(gain)
        return student95(values.tolist())

    @property
    def verdict(self) -> str:
        """Whether a yardstick is better."""
        names = [name for name in self.right if name != THIS_RUN]
        if not names:
            return "There are no yardsticks for inputs of several parts."
        best = max(names, key=lambda name: self.right[name].mean())
        gap = self.difference(best)
        size = f"{abs(gap.mean):.1%} ± {gap.ci95 or 0:.1%}"
        if gap.mean < 0:
            sure = "is" if -gap.mean > (gap.ci95 or 0) else "may be"
            end = "use it instead" if sure == "is" else "the difference can be chance"
            return f"{best.capitalize()} {sure} better here, by {size}: {end}."
        if gap.mean > (gap.ci95 or 0):
            return f"This run is better here than {best}, the best of the others, by {size}."
        return f"This run is not clearly better here than {best}: the difference is {size}."

    def __str__(self) -> str:
        """The accuracy to expect, a line for each yardstick, and the verdict."""
        mean, low, high = self.accuracy()
        groups = len(np.unique(self.groups))
        apart = f" in {groups} groups" if groups < len(self.groups) else ""
        lines = [
            f"Accuracy to expect: {mean:.1%} (95 % interval {low:.1%} to {high:.1%}), chance "
            f"{1 / self.classes:.1%}",
            f"{len(self.groups)} examples of {self.classes} classes{apart}, each predicted by "
            f"{self.folds - 1} of {self.folds} parts of the others",
        ]
        for name in self.right:
            mean, low, high = self.accuracy(name)
            lines.append(f"  {name:<32} {mean:>6.1%}  ({low:.1%} to {high:.1%})")
        return "\n".join([*lines, self.verdict])

    def _by_group(self, values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        _, codes = np.unique(self.groups, return_inverse=True)
        return np.asarray(np.bincount(codes, weights=values))


def check(
    classifier: FewShotClassifier,
    X: Any,
    y: Any,
    *,
    groups: Sequence[Any] | None = None,
    folds: int = 5,
) -> Check:
    """Cross-validate a classifier on examples of your own, beside simple classifiers that need no
    meta-training: the nearest class mean, and logistic regression.

    Args:
        classifier: need not be fitted, and stays as it is.
        X: n inputs, as `FewShotClassifier.fit` takes them.
        y: (n,) their classes.
        groups: (n,) such as the recording, patient or track of each. Examples of one group are
            never in both the support set and the queries.
        folds: parts that the examples are dealt to; fewer if a class has fewer examples or groups.

    Raises:
        DataError: a class has one example or group; or as in `FewShotClassifier.fit`.
    """
    require_count("folds", folds, least=2)
    trained = opened(classifier.run, classifier.ensemble, classifier.device)
    inputs = trained.read(X)
    first = first_leaf(inputs)
    labels = labels_of(first, y)
    classes, codes = np.unique(labels, return_inverse=True)
    units = np.arange(len(codes)) if groups is None else labels_of(first, groups, "groups")
    counts = [len(np.unique(units[codes == code])) for code in range(len(classes))]
    if len(classes) < 2 or min(counts) < 2:
        what = "example" if groups is None else "group"
        raise DataError(
            f"class {classes[np.argmin(counts)]!s} has {min(counts)} {what}s, and there are "
            f"{len(classes)} classes; give at least 2 classes with 2 {what}s each, one to learn "
            "from and one to predict"
        )
    folds = min(folds, *counts)
    right = {THIS_RUN: np.zeros(len(codes), dtype=bool)}
    seen = {
        name: part.flatten(1).float() for name, part in trained.yardstick_inputs(X, inputs).items()
    }
    known = torch.from_numpy(codes)
    for fit, test in _folds(codes, units, folds):
        part = FewShotClassifier(trained).fit(tree_map(itemgetter(fit), inputs), labels[fit])
        queries = tree_map(itemgetter(test), inputs)
        right[THIS_RUN][test] = part.predict(queries) == labels[test]
        for what, rows in seen.items():
            for name, guesses in guessed(rows[fit], known[fit], rows[test]).items():
                named = f"{name} on {what}"
                right.setdefault(named, np.zeros(len(codes), dtype=bool))
                right[named][test] = guesses.numpy() == codes[test]
    return Check(right, units, len(classes), folds)


def _folds(codes: Array, units: Array, folds: int) -> list[tuple[Array, Array]]:
    """Rows to learn from and rows to predict, where each class is learned in each fold."""
    for seed in range(DRAWS):
        if len(np.unique(units)) == len(units):
            dealt = StratifiedKFold(folds, shuffle=True, random_state=seed).split(codes, codes)
        else:
            grouped = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
            dealt = grouped.split(codes, codes, units)
        found = list(dealt)
        if all(len(np.unique(codes[fit])) == len(np.unique(codes)) for fit, _ in found):
            return found
    raise DataError(
        f"the groups cannot be dealt to {folds} folds so that each class is in all of them; give "
        "more groups of each class"
    )
