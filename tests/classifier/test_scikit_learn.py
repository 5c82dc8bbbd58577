"""The classifier as scikit-learn uses it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import gradshare as gs
from gradshare import FewShotClassifier
from gradshare.errors import DataError
from tests.classifier.conftest import rows

X, Y = rows(5, 6, seed=3)
NEW, TRUE = rows(5, 20, seed=3, noise=0.6)


@pytest.fixture
def classifier(rows_run: gs.Run) -> FewShotClassifier:
    return FewShotClassifier(rows_run, calibration_tasks=0)


def test_parameters_are_got_set_and_cloned_without_what_was_learned(
    classifier: FewShotClassifier, rows_run: gs.Run
) -> None:
    assert is_classifier(classifier)
    assert classifier.get_params() == {
        "run": rows_run,
        "ensemble": None,
        "calibration": None,
        "calibration_tasks": 0,
        "device": "auto",
    }
    copy = clone(classifier.fit(X, Y).set_params(ensemble=1))
    assert copy.get_params() == classifier.get_params()
    with pytest.raises(NotFittedError, match="This FewShotClassifier instance is not fitted yet"):
        copy.predict(NEW)
    with pytest.raises(ValueError, match="Invalid parameter 'ensembles'"):
        copy.set_params(ensembles=2)
    assert "ensemble=1" in repr(copy)


def test_cross_validation_and_searches(classifier: FewShotClassifier) -> None:
    scores = cross_val_score(classifier, X, Y, cv=3)
    assert scores.mean() > 0.6
    assert cross_val_score(classifier, X.tolist(), Y.tolist(), cv=3).tolist() == scores.tolist()
    tensor = torch.from_numpy(X)
    assert cross_val_score(classifier, tensor, pd.Series(Y), cv=3).tolist() == scores.tolist()
    assert cross_val_predict(classifier, X, Y, cv=3, method="predict_proba").shape == (30, 5)
    search = GridSearchCV(classifier, {"ensemble": [1, 2]}, cv=3, error_score="raise").fit(X, Y)
    assert search.best_score_ == max(search.cv_results_["mean_test_score"])
    assert search.score(NEW, TRUE) > 0.6


def test_what_is_no_number_is_named(classifier: FewShotClassifier) -> None:
    holes = np.where(np.arange(len(X))[:, None] == 2, np.nan, X)
    with pytest.raises(DataError, match=r"support_x of task 1 holds a value that is not finite"):
        classifier.fit(holes, Y).predict(X)
    with pytest.raises(DataError, match=r"query_x of task 1 holds a value that is not finite"):
        classifier.fit(X, Y).predict(holes)
    with pytest.raises(DataError, match=r"the inputs are not numbers \(.*\); make them floats"):
        classifier.fit(pd.DataFrame(X).astype(object), Y)


def test_a_pipeline_ends_in_it(classifier: FewShotClassifier) -> None:
    scaled = make_pipeline(StandardScaler(), classifier).fit(X, Y)
    by_hand = StandardScaler().fit(X)
    expected = clone(classifier).fit(by_hand.transform(X), Y)
    proba = expected.predict_proba(by_hand.transform(NEW))
    assert scaled.predict_proba(NEW).tolist() == proba.tolist()
    named = make_pipeline(FunctionTransformer(lambda frame: frame * 1.0), classifier)
    assert named.fit(pd.DataFrame(X), Y).score(pd.DataFrame(NEW), TRUE) > 0.6


def test_pickles_predict_the_same(classifier: FewShotClassifier, tmp_path: Path) -> None:
    expected = classifier.fit(X, Y).predict_proba(NEW)
    again = pickle.loads(pickle.dumps(classifier))
    joblib.dump(classifier, tmp_path / "classifier")
    for copy in (again, joblib.load(tmp_path / "classifier")):
        assert copy.predict_proba(NEW).tolist() == expected.tolist()
        assert copy.partial_fit(X[:2] + 5, ["other", "other"]).predict(NEW).shape == (100,)


def test_examples_and_classes_are_added_later(classifier: FewShotClassifier) -> None:
    parts = clone(classifier).partial_fit(X[:12], Y[:12])  # two classes
    assert parts.classes_.tolist() == ["class 0", "class 1"]
    parts.partial_fit(X[12:20], Y[12:20])
    assert parts.classes_.tolist() == ["class 0", "class 1", "class 2", "class 3"]
    parts.partial_fit(X[20:], Y[20:])
    whole = classifier.fit(X, Y)
    assert np.allclose(parts.predict_proba(NEW), whole.predict_proba(NEW))
    before = parts.predict_proba(NEW)
    bad: Any
    for bad in ((X[:1, :3], ["class 0"]), (X[:1], [None]), (X[:1], [3]), (X[:2], ["class 0"])):
        with pytest.raises(DataError):
            parts.partial_fit(*bad)
    assert parts.predict_proba(NEW).tolist() == before.tolist()


def test_classes_that_are_announced_are_predicted_once_they_have_examples(
    classifier: FewShotClassifier,
) -> None:
    announced = np.unique(Y)
    classifier.partial_fit(X[:12], Y[:12], announced)
    assert classifier.classes_.tolist() == ["class 0", "class 1"]
    assert set(classifier.predict(NEW)) == {"class 0", "class 1"}
    classifier.partial_fit(X[12:], Y[12:], classes=announced.tolist())
    assert np.array_equal(classifier.classes_, announced)
    with pytest.raises(DataError) as error:
        classifier.partial_fit(X[:2], ["class 0", "clas 1"], classes=announced)
    assert str(error.value).startswith(
        "the label 'clas 1' is none of the classes ['class 0', 'class 1', 'class 2', "
    )
    assert str(error.value).endswith("; add it to `classes`, or leave `classes` out")
    assert np.array_equal(classifier.classes_, announced)


def test_labels_of_any_kind(classifier: FewShotClassifier) -> None:
    numbers = np.array([int(name[-1]) for name in Y])
    for labels in (numbers, numbers.tolist(), pd.Series(numbers, index=range(50, 80))):
        assert classifier.fit(X, labels).classes_.tolist() == [0, 1, 2, 3, 4]
    for names in (Y, pd.Series(Y), pd.Series(Y, dtype="category")):
        assert classifier.fit(X, names).predict(X[:1])[0] == "class 0"
    assert classifier.fit(X, Y == "class 0").predict(X).dtype == bool
    for bad, message in (
        ([*Y[1:].tolist(), None], r"y\[29\] is None: 1 of 30 entries are missing"),
        (pd.Series([pd.NA, *Y[1:]], dtype="string"), r"y\[0\] is <NA>: 1 of 30 entries are mis"),
        ([*Y[1:].tolist(), 3], "y holds 'class 4' and 3; give labels of one type"),
        (numbers + 0.5, "y holds 0.5, which is not a class label"),
        (numbers[:, None], r"y has the shape \(30, 1\); give one label for each example"),
        (Y[:4], "30 examples, but y has 4 entries; give one for each"),
    ):
        with pytest.raises(DataError, match=message):
            classifier.fit(X, bad)


def test_rows_may_be_a_view_and_are_not_changed_with_the_callers_array(
    classifier: FewShotClassifier,
) -> None:
    expected = classifier.fit(X, Y).partial_fit(X[:1], Y[:1]).predict_proba(NEW)
    found = classifier.fit(X[::-1], Y[::-1]).partial_fit(X[:1], Y[:1]).predict_proba(NEW)
    assert np.allclose(found, expected, atol=1e-5)
    buffer: Any
    for buffer in (X.astype(np.float32), torch.from_numpy(X).float()):
        classifier.fit(buffer, Y)
        buffer[:] = 0
        found = classifier.partial_fit(X[:1], Y[:1]).predict_proba(NEW)
        assert found.tolist() == expected.tolist()


def test_rows_of_another_width_are_refused(classifier: FewShotClassifier) -> None:
    classifier.fit(X, Y)
    for bad, shape in ((NEW[:, :4], "(100, 4)"), (NEW[0], "(6,)"), (NEW[None], "(1, 100, 6)")):
        with pytest.raises(DataError) as error:
            classifier.predict(bad)
        assert str(error.value) == (
            f"X has the shape {shape}; this run takes (n, 6), with the n examples first"
        )
    with pytest.raises(DataError, match="X is empty; give at least one example"):
        classifier.predict(NEW[:0])
