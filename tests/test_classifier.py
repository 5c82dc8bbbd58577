"""The few-shot classifier, from a trained run to predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradshare import EpisodeSampler, FewShotClassifier, RunConfig, TaskBatch, open_dataset, train
from gradshare.errors import DataError, RunError
from gradshare.training.evaluation import measure_test
from gradshare.training.folder import RunFolder
from gradshare.training.setup import set_up


@pytest.fixture(scope="module")
def run(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = RunConfig(
        dataset="tiny",
        data_root=data_root,
        ways=3,
        queries=4,
        inner_steps=2,
        filters=4,
        epochs=1,
        task_batch=2,
        iterations_per_epoch=10,
        val_tasks=4,
        test_tasks=8,
        batch_norm="inductive",
        device="cpu",
    )
    train(config, folder)
    return folder


def task(data_root: Path, index: int = 0) -> TaskBatch:
    split = open_dataset("tiny", data_root).splits["test"]
    return EpisodeSampler(split, ways=3, shots=2, queries=5, seed=7).batch([index])


def test_new_classes_are_learned_under_their_own_names(run: Path, data_root: Path) -> None:
    batch = task(data_root)
    names = np.array(["wren", "owl", "crow"])[batch.support_y[0].numpy()]
    classifier = FewShotClassifier.from_run(run).fit(batch.support_x[0], names)
    assert classifier.classes_.tolist() == ["crow", "owl", "wren"]
    probabilities = classifier.predict_proba(batch.query_x[0])
    assert probabilities.shape == (15, 3)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-6)
    assert set(classifier.predict(batch.query_x[0])) <= {"wren", "owl", "crow"}


def test_it_is_as_right_as_the_runs_own_test(run: Path) -> None:
    folder = RunFolder(run)
    config = folder.config()
    setup = set_up(config)
    models = folder.best_models(folder.history(), config.ensemble, setup.learner.init())
    recorded = measure_test(setup, models, config.test_tasks, lambda tasks: None).ensemble
    classifier = FewShotClassifier.from_run(run)
    for index, accuracy in enumerate(recorded):
        batch = setup.test.batch([index])
        classifier.fit(batch.support_x[0], batch.support_y[0])
        right = classifier.predict(batch.query_x[0]) == batch.query_y[0].numpy()
        assert right.mean() == pytest.approx(accuracy)
    assert len(set(recorded)) > 1


def test_the_order_of_the_support_set_does_not_matter(run: Path, data_root: Path) -> None:
    batch = task(data_root)
    images, labels = batch.support_x[0].numpy(), batch.support_y[0].numpy()
    order = np.array([3, 0, 5, 2, 4, 1])
    one = FewShotClassifier.from_run(run).fit(images, labels)
    other = FewShotClassifier.from_run(run).fit(images[order], labels[order])
    queries = batch.query_x[0].numpy()
    assert np.allclose(one.predict_proba(queries), other.predict_proba(queries), atol=1e-4)


def test_an_inductive_prediction_depends_on_no_other_query(run: Path, data_root: Path) -> None:
    batch = task(data_root)
    classifier = FewShotClassifier.from_run(run).fit(batch.support_x[0], batch.support_y[0])
    assert classifier.batch_norm == "inductive"
    together = classifier.predict_proba(batch.query_x[0])
    alone = classifier.predict_proba(batch.query_x[0][4:5])
    assert np.allclose(together[4], alone[0], atol=1e-5)


def test_what_does_not_fit_is_named(run: Path, data_root: Path) -> None:
    batch = task(data_root)
    classifier = FewShotClassifier.from_run(run)
    with pytest.raises(DataError, match="call fit with a support set before asking"):
        classifier.predict(batch.query_x[0])
    with pytest.raises(DataError, match=r"the labels name 2 classes; this run was trained for 3"):
        classifier.fit(batch.support_x[0][:4], [0, 0, 1, 1])
    with pytest.raises(DataError, match=r"6 images, but 5 labels; give one for each"):
        classifier.fit(batch.support_x[0], [0, 0, 1, 1, 2])
    with pytest.raises(DataError) as error:
        classifier.fit(batch.support_x[0].float(), batch.support_y[0])
    assert str(error.value) == (
        "images are torch.float32 (6, 1, 16, 16); this run takes torch.uint8 (n, 1, 16, 16)"
    )


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        FewShotClassifier.from_run(tmp_path)
