"""The accuracy to expect, and whether a simple classifier has more of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

import gradshare as gs
from gradshare import Check, FewShotClassifier
from gradshare.classifier.checking import THIS_RUN
from gradshare.errors import DataError
from gradshare.training.statistics import student95
from tests.classifier.conftest import rows

MEAN, REGRESSION = "nearest class mean on the inputs", "logistic regression on the inputs"


@pytest.fixture
def classifier(rows_run: gs.Run) -> FewShotClassifier:
    return FewShotClassifier(rows_run, calibration_tasks=0)


def checked(groups: Any = None, **right: list[int]) -> Check:
    found = {name.replace("_", " "): np.array(values, bool) for name, values in right.items()}
    count = len(next(iter(found.values())))
    return Check(found, np.arange(count) if groups is None else np.array(groups), 3, 5)


def test_a_run_is_cross_validated_beside_its_yardsticks(classifier: FewShotClassifier) -> None:
    x, y = rows(5, 7, seed=3)
    found = gs.check(classifier, x, y)
    assert set(found.right) == {THIS_RUN, MEAN, REGRESSION}
    for name in found.right:
        mean, low, high = found.accuracy(name)
        assert 0.6 < mean <= 1 and 0 < low < mean and low < high <= 1
    assert (found.folds, found.classes) == (5, 5)
    assert str(found).startswith("Accuracy to expect: ")
    assert str(found).endswith(found.verdict)
    again = gs.check(classifier, x.tolist(), y.tolist())
    assert all((again.right[name] == found.right[name]).all() for name in found.right)
    assert not hasattr(classifier, "classes_")  # it is as it was


def test_examples_of_one_group_are_never_on_both_sides(
    classifier: FewShotClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[float], set[float]]] = []

    def spy(support: Tensor, labels: Tensor, queries: Tensor) -> dict[str, Tensor]:
        seen.append(({*support[:, 0].tolist()}, {*queries[:, 0].tolist()}))
        return {"guess": labels[:1].expand(len(queries))}

    monkeypatch.setattr("gradshare.classifier.checking.guessed", spy)
    x, y = rows(3, 16)
    groups = np.arange(48) // 2
    x[:, 0] = groups
    apart = gs.check(classifier, x, y, groups=[f"walk {group}" for group in groups], folds=4)
    assert len(seen) == 4
    assert not any(support & queries for support, queries in seen)
    assert set.union(*(queries for _, queries in seen)) == {*groups.tolist()}
    assert " in 24 groups" in str(apart)


def test_the_interval_is_wilsons_and_wider_where_examples_come_in_groups() -> None:
    right = [1] * 8 + [0] * 2
    mean, low, high = checked(this_run=right).accuracy()
    assert (mean, low, high) == pytest.approx((0.8, 0.49016, 0.94332), abs=1e-5)
    in_pairs = checked([0, 0, 1, 1, 2, 2, 3, 3, 4, 4], this_run=right).accuracy()
    assert in_pairs[1] < low < high < in_pairs[2]
    # With all right, there is no spread, and the groups are what is counted.
    whole = checked([0, 0, 0, 1, 1, 1], this_run=[1] * 6).accuracy()
    assert whole == pytest.approx(checked(this_run=[1] * 2).accuracy())


def test_it_says_plainly_when_a_yardstick_is_better() -> None:
    def verdict(own: list[int], other: list[int]) -> str:
        return checked(this_run=own, nearest_class_mean=other, zero=[0] * 20).verdict

    half = [0, 1] * 10
    assert verdict(half, [1] * 20).startswith("Nearest class mean is better here, by 50.0% ± 24.0%")
    assert verdict(half, [1, 1] + [0, 1] * 9).startswith("Nearest class mean may be better here,")
    assert verdict([1] * 20, half) == (
        "This run is better here than nearest class mean, the best of the others, by 50.0% ± 24.0%."
    )
    assert verdict(half, half).startswith("This run is not clearly better here than nearest class")
    found = checked(this_run=half, other=[1] * 20)
    assert found.difference("other") == student95([half[i] - 1 for i in range(20)])


def test_too_few_examples_are_named(classifier: FewShotClassifier) -> None:
    x, y = rows(3, 2)
    assert gs.check(classifier, x, y).folds == 2
    with pytest.raises(DataError, match="class class 2 has 1 examples, and there are 3 classes;"):
        gs.check(classifier, x[:5], y[:5])
    with pytest.raises(DataError, match="class class 0 has 2 examples, and there are 1 classes;"):
        gs.check(classifier, x[:2], y[:2])
    with pytest.raises(DataError, match="class class 1 has 1 groups"):
        gs.check(classifier, x, y, groups=[0, 1, 2, 2, 3, 4])
    with pytest.raises(DataError, match="6 examples, but groups has 2 entries; give one for each"):
        gs.check(classifier, x, y, groups=[0, 1])
    with pytest.raises(DataError, match=r"groups\[1\] is None: 5 of 6 entries are missing"):
        gs.check(classifier, x, y, groups=["a"] + [None] * 5)
