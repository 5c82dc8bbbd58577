"""Stated probabilities, coverage and rejections, against what is measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t
from torch import nn

import gradshare as gs
from gradshare import FewShotClassifier
from gradshare.classifier.calibration import (
    Answers,
    Calibration,
    answers_to,
    calibration_error,
    measure,
    of_size,
    probabilities,
    threshold,
)
from gradshare.classifier.trained import Trained
from gradshare.errors import ConfigError
from tests.classifier.conftest import WIDTH, rows, source


def simulated(tasks: int, seed: int, heat: float = 1.0) -> Answers:
    """Answers whose probabilities are true at a temperature, and tasks of unequal difficulty."""
    random = np.random.default_rng(seed)
    scale = np.repeat(random.exponential(2, size=tasks), 20)
    logits = scale[:, None] * random.normal(size=(20 * tasks, 5))
    targets = np.array([random.choice(5, p=p) for p in probabilities(logits)])
    of_task = np.repeat(np.arange(tasks), 20)
    return Answers(logits * heat, targets, of_task, of_task, random.exponential(size=20 * tasks))


@pytest.mark.parametrize("heat", [0.25, 1.0, 6.0])
def test_the_temperature_of_known_probabilities_is_found(heat: float) -> None:
    answers = simulated(400, 0, heat)
    calibration = Calibration.on(answers)
    assert calibration.temperature == pytest.approx(heat, rel=0.05)
    assert calibration_error(answers, calibration.temperature) < 0.02
    if heat == 6:
        assert calibration_error(answers, 1.0) > 0.1


def test_temperature_minimises_the_mean_loss_of_the_tasks() -> None:
    answers = simulated(30, 1, 3.0)

    def loss(temperature: float) -> float:
        found = probabilities(answers.logits, temperature)
        return -math.fsum(math.log(p[y]) for p, y in zip(found, answers.targets, strict=True))

    best = Calibration.on(answers).temperature
    assert loss(best) < min(loss(best * 1.02), loss(best / 1.02))


def test_sets_cover_at_least_what_they_state_on_1000_other_tasks() -> None:
    for seed in range(5):
        calibration = Calibration.on(simulated(100, seed))
        found = measure(calibration, simulated(1000, 100 + seed))
        sizes = []
        for stated, interval, size in found.coverage:
            assert interval.mean + (interval.ci95 or 0) >= stated
            assert interval.mean < stated + 0.07  # and not by giving all classes
            sizes.append(size)
        assert sizes == sorted(sizes)


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=6), min_size=2, max_size=12))
def test_the_threshold_is_the_smallest_score_that_is_sure_enough(tasks: list[list[float]]) -> None:
    scores = [np.array(task) for task in tasks]
    units = np.repeat(np.arange(len(tasks)), [len(task) for task in tasks])
    found = threshold(np.concatenate(scores), units, 0.8)
    assert found in np.concatenate(scores)
    covered = np.array([(task <= found).mean() for task in scores])
    margin = t.ppf(0.95, len(tasks) - 1) * covered.std(ddof=1) / math.sqrt(len(tasks))
    assert covered.mean() - margin >= 0.8 - 1e-9


def test_classes_that_are_known_by_name_are_counted_and_not_tasks(rows_run: gs.Run) -> None:
    tasks = source(2)
    answers = answers_to(Trained(rows_run, None, "cpu"), tasks, 30)
    for index in range(30):
        own = answers.tasks == index
        units = answers.units[own].tolist()
        assert set(units) == {*tasks.classes_of(index)}
        assert units == [tasks.classes_of(index)[y] for y in answers.targets[own]]
    calibration = Calibration.on(answers)
    of_class = [calibration.misses[calibration.units == name] for name in tasks.classes]
    limit = threshold(calibration.misses, calibration.units, 0.9)
    covered = np.array([(misses <= limit).mean() for misses in of_class if len(misses)])
    margin = t.ppf(0.95, len(covered) - 1) * covered.std(ddof=1) / math.sqrt(len(covered))
    assert 0.9 <= covered.mean() - margin < 0.95


def test_a_share_that_is_none_is_refused(rows_run: gs.Run) -> None:
    x, y = rows(4, 3)
    classifier = FewShotClassifier(rows_run, calibration_tasks=20).fit(x, y)
    for share in (0, 1, 90):
        for use in (
            lambda share=share: classifier.predict_set(x, coverage=share),
            lambda share=share: classifier.predict(x, reject=1 - share),
        ):
            with pytest.raises(ConfigError, match=f"1 - reject, is {share}; give a number"):
                use()


def test_a_class_that_was_never_shown_is_rejected_more_often(rows_run: gs.Run) -> None:
    trained = Trained(rows_run, None, "cpu")
    calibration = Calibration.on(answers_to(trained, source(2), 100))
    tests = source(5)
    new = answers_to(trained, tests.replace(ways=5), 100, new_class=True)
    assert new.logits.shape == (100 * 5 * 8, 4)
    assert np.unique(new.targets).tolist() == [0, 1, 2, 3, 4]
    found = measure(calibration, answers_to(trained, tests, 100), new)
    for stated, known, unknown in found.rejection:
        assert known.mean - (known.ci95 or 0) <= stated
        assert unknown.mean - (unknown.ci95 or 0) > known.mean + (known.ci95 or 0)
    text = str(found)
    assert "Sets of stated coverage 90%: measured" in text
    assert "Rejecting 5% of known classes: measured" in text


def test_probabilities_are_calibrated_on_tasks_of_the_support_sets_size(rows_run: gs.Run) -> None:
    x, y = rows(6, 2, seed=9)
    classifier = FewShotClassifier(rows_run, calibration_tasks=30).fit(x, y)
    assert rows_run.validation is not None
    tasks = of_size(rows_run.validation, 6, 2)
    expected = Calibration.on(answers_to(Trained(rows_run, None, "cpu"), tasks, 30))
    raw = FewShotClassifier(rows_run, calibration_tasks=0).fit(x, y).predict_proba(x)
    logits = np.log(raw)
    assert np.allclose(classifier.predict_proba(x), probabilities(logits, expected.temperature))
    assert classifier.predict(x).tolist() == classifier.classes_[raw.argmax(1)].tolist()
    given = FewShotClassifier(rows_run, calibration=rows_run.validation, calibration_tasks=30)
    assert np.allclose(given.fit(x, y).predict_proba(x), classifier.predict_proba(x))


def test_sets_and_rejections_are_of_the_calibration(rows_run: gs.Run) -> None:
    x, y = rows(4, 3, seed=9)
    new = rows(4, 10, seed=9, noise=1.5)[0]
    classifier = FewShotClassifier(rows_run, calibration_tasks=30).fit(x, y)
    proba = classifier.predict_proba(new)
    limits = classifier._calibrated()
    limit = 1 - threshold(limits.misses, limits.units, 0.9)
    for row, names in zip(proba, classifier.predict_set(new), strict=True):
        order = classifier.classes_[np.argsort(-row)].tolist()
        assert names == order[: max(1, int((row >= limit).sum()))]
    answers = classifier.predict(new, reject=0.3)
    doubtful = np.array([answer is None for answer in answers])
    assert 0 < doubtful.sum() < len(new)
    assert (answers[~doubtful] == classifier.predict(new)[~doubtful]).all()
    # A row that is like no class is rejected, and the examples of the classes are not.
    assert classifier.predict(x, reject=0.05).tolist() == classifier.predict(x).tolist()


def test_what_cannot_be_calibrated_says_why(rows_run: gs.Run) -> None:
    x, y = rows(4, 3)
    with pytest.raises(ConfigError, match=r"calibration_tasks is 0; give a whole number, at least"):
        FewShotClassifier(rows_run, calibration_tasks=0).fit(x, y).predict_set(x)
    opened = gs.open_run(rows_run.path, rows_run.learner, rows_run.source)
    with pytest.raises(ConfigError, match=r"without its validation tasks, .*calibration=source"):
        FewShotClassifier(opened).fit(x, y).predict_proba(x)
    narrow = gs.ClassTasks(rows(4, 9)[0][:, 1:], rows(4, 9)[1], ways=4, shots=3, queries=2)
    bad: Any
    for bad, message in (
        ("tiny", r"calibration is 'tiny'; give a source of tasks"),
        (narrow, r"failed on a task of the source 'calibration': RuntimeError"),
    ):
        with pytest.raises(ConfigError, match=message):
            FewShotClassifier(rows_run, calibration=bad).fit(x, y).predict_proba(x)
    few = of_size(source(2), 4, 14)
    assert isinstance(few, gs.ClassTasks) and few.queries == 1  # the classes have 20 rows
    many, names = rows(31, 1)  # the validation tasks have 30 classes
    classifier = FewShotClassifier(rows_run, calibration_tasks=20).fit(many, names)
    with pytest.warns(UserWarning, match="calibrated on tasks of the run's size, since"):
        classifier.predict_proba(many)


class Centres(nn.Module):
    """A network without a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(4, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Minus the distance from each centre."""
        return -(x[:, None] - self.centres).square().sum(2)


def test_a_network_without_a_linear_head_rejects_by_its_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = gs.fit(
        gs.maml(Centres()),
        source(1),
        source(2),
        out=tmp_path / "run",
        epochs=1,
        iterations=2,
        val_tasks=20,
        progress=False,
    )
    x, y = rows(4, 3)
    classifier = FewShotClassifier(run, calibration_tasks=20).fit(x, y)
    far = np.concatenate([x, 100 * np.ones_like(x[:1])])
    rejected = [answer is None for answer in classifier.predict(far, reject=0.05)]
    assert rejected == [False] * 12 + [True]
