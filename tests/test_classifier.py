"""The few-shot classifier, from a trained run to predictions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gradshare import EpisodeSampler, FewShotClassifier, RunConfig, TaskBatch, open_dataset, train
from gradshare.errors import ConfigError, DataError, RunError
from gradshare.tasks.images import ImageFormat, Resize, read_image
from gradshare.training.evaluation import measure_test
from gradshare.training.folder import RunFolder
from gradshare.training.setup import set_up


@pytest.fixture(scope="module", params=["inductive", "transductive"])
def run(
    request: pytest.FixtureRequest, data_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run that kept three checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = RunConfig(
        dataset="tiny",
        data_root=data_root,
        ways=3,
        queries=4,
        inner_steps=2,
        filters=4,
        epochs=3,
        task_batch=2,
        iterations_per_epoch=5,
        outer_lr=0.05,  # so that the checkpoints differ
        val_tasks=4,
        test_tasks=8,
        ensemble=3,
        batch_norm=request.param,
        device="cpu",
        threads=1,
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


def test_there_is_no_prediction_where_every_checkpoint_overflowed(
    run: Path, data_root: Path
) -> None:
    batch = task(data_root)
    classifier = FewShotClassifier.from_run(run)
    classifier.fit(batch.support_x[0], batch.support_y[0])
    classifier._adapted = [
        {name: torch.full_like(tensor, torch.inf) for name, tensor in params.items()}
        for params in classifier._adapted
    ]
    with pytest.raises(RunError) as error:
        classifier.score(batch.query_x[0], batch.query_y[0])
    assert str(error.value) == (
        "there is no prediction: the inner steps overflowed on this support set, with every "
        "checkpoint (3); the run's inner rate is too high for it"
    )


def test_the_score_is_the_share_that_is_right(run: Path, data_root: Path) -> None:
    batch = task(data_root)
    names = np.array(["wren", "owl", "crow"])
    classifier = FewShotClassifier.from_run(run)
    with pytest.raises(DataError, match="call fit with a support set before asking"):
        classifier.score(batch.query_x[0], batch.query_y[0])
    classifier.fit(batch.support_x[0], names[batch.support_y[0].numpy()])
    predicted = classifier.predict(batch.query_x[0])
    assert classifier.score(batch.query_x[0], predicted) == 1
    others = predicted.copy()
    others[:6] = "heron"
    assert classifier.score(batch.query_x[0], others.tolist()) == 9 / 15
    with pytest.raises(DataError) as error:
        classifier.score(batch.query_x[0], predicted[:5])
    assert str(error.value) == "15 images, but 5 labels; give one for each"
    with pytest.raises(DataError) as error:
        classifier.score(batch.query_x[0], batch.query_y[0])
    assert str(error.value) == (
        "none of the labels [0, 0, 0, 0, 0, 1, ...] is one of the classes ['crow', 'owl', 'wren']; "
        "give them as `fit` was given them"
    )
    classifier.fit(batch.support_x[0], batch.support_y[0])
    numbers = torch.from_numpy(classifier.predict(batch.query_x[0]))
    assert classifier.score(batch.query_x[0], numbers) == 1


def test_a_device_is_named_or_given(run: Path, data_root: Path) -> None:
    batch = task(data_root)
    found = []
    for device in ("cpu", torch.device("cpu")):
        there = FewShotClassifier.from_run(run, device=device)
        classifier = FewShotClassifier(
            there.learner,
            there.models,
            there.normalization,
            ways=there.ways,
            form=there.form,
            device=device,
        )
        assert there.device == classifier.device == torch.device("cpu")
        classifier.fit(batch.support_x[0], batch.support_y[0])
        found.append(classifier.predict_proba(batch.query_x[0]).tolist())
    assert found[0] == found[1]
    with pytest.raises(ConfigError) as error:
        FewShotClassifier.from_run(run, device=torch.device("meta"))
    assert str(error.value) == "--device 'meta' is unknown; use auto, cpu, cuda or cuda:N"


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


def test_the_mode_says_whether_a_prediction_depends_on_the_other_queries(
    run: Path, data_root: Path
) -> None:
    batch = task(data_root)
    classifier = FewShotClassifier.from_run(run).fit(batch.support_x[0], batch.support_y[0])
    assert classifier.batch_norm == RunFolder(run).config().batch_norm
    together = classifier.predict_proba(batch.query_x[0])
    alone = classifier.predict_proba(batch.query_x[0][4:5])
    alike = np.allclose(together[4], alone[0], atol=1e-5)
    assert alike == (classifier.batch_norm == "inductive")


def test_probabilities_are_of_the_mean_logits_of_all_checkpoints(
    run: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(run)
    setup = set_up(folder.config())
    learner = setup.learner
    batch = task(data_root)
    images = setup.normalization.batch(batch)
    logits = []
    for learned, state in folder.best_models(folder.history(), 3, learner.init()):
        adapted = learner.adapt(learned, state, images).params[-1]
        with torch.no_grad():
            logits.append(learner.predict(learned, adapted, images, updates=learner.steps)[0])
    expected = torch.stack(logits).mean(0).softmax(-1).numpy()
    for one in logits:
        assert np.abs(one.softmax(-1).numpy() - expected).max() > 0.01
    # Where chunks change no prediction, the 15 queries are four of them.
    monkeypatch.setattr("gradshare.classifier.INDUCTIVE_CHUNK", 4)
    fitted = FewShotClassifier.from_run(run).fit(batch.support_x[0], batch.support_y[0])
    assert np.allclose(fitted.predict_proba(batch.query_x[0]), expected, atol=1e-5)
    best = FewShotClassifier.from_run(run, ensemble=1)
    best.fit(batch.support_x[0], batch.support_y[0])
    alone = logits[0].softmax(-1).numpy()
    assert np.allclose(best.predict_proba(batch.query_x[0]), alone, atol=1e-5)


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


def photographs(folder: Path) -> list[Path]:
    """Two for each of three classes: in colour, oblong, and of none of the run's sizes."""
    paths = []
    for name, seed in (("crow", 1), ("lark", 2), ("owl", 3), ("crow", 4), ("lark", 5), ("owl", 6)):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 50, 3), dtype=np.uint8)
        paths.append(folder / f"{name}-{seed}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.mark.parametrize("resize", ["stretch", "center-crop"])
def test_files_are_read_as_the_runs_dataset_was(run: Path, tmp_path: Path, resize: Resize) -> None:
    own = shutil.copytree(run, tmp_path / "run")
    config = RunFolder(own).config()
    RunFolder(own).store(config.model_copy(update={"resize": resize}))
    paths = photographs(tmp_path)
    labels = [path.name.split("-")[0] for path in paths]
    form = ImageFormat(16, 1, resize)
    pixels = np.stack([read_image(path, str(path), form) for path in paths])
    of_arrays = FewShotClassifier.from_run(own).fit(pixels, labels)
    of_files = FewShotClassifier.from_run(own).fit(paths, labels)
    expected = of_arrays.predict_proba(pixels)
    assert len({tuple(row) for row in expected}) == len(paths)
    texts = [str(path) for path in paths]
    for given in (paths, texts, tuple(texts), np.array(texts), np.array(paths)):
        assert np.array_equal(of_files.predict_proba(given), expected)
    assert of_files.predict(paths[:1]).tolist() == of_arrays.predict(pixels[:1]).tolist()


def test_a_file_that_is_missing_or_damaged_is_named(run: Path, tmp_path: Path) -> None:
    classifier = FewShotClassifier.from_run(run)
    paths = photographs(tmp_path)
    missing = tmp_path / "wren.png"
    with pytest.raises(DataError) as error:
        classifier.fit([*paths[:5], missing], [0, 1, 2, 0, 1, 2])
    assert str(error.value) == (
        f"{missing} cannot be read (No such file or directory); correct the path, or give yourself "
        "permission to read it"
    )
    classifier.fit(paths, [0, 1, 2, 0, 1, 2])
    missing.write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"wren\.png is not a readable image"):
        classifier.predict([missing])


def test_one_path_and_what_is_no_array_are_told_from_images(run: Path) -> None:
    classifier = FewShotClassifier.from_run(run)
    path: Any
    for path in ("owl.png", Path("owl.png")):
        with pytest.raises(DataError) as error:
            classifier.fit(path, [0])
        assert str(error.value) == "images is one path, 'owl.png'; give a list of paths"
    images: Any
    for images in (["owl.png", 3], [np.zeros((1, 16, 16)), np.zeros((1, 8, 8))]):
        with pytest.raises(DataError, match=r"^images are no array \(.*\); give uint8 images of"):
            classifier.fit(images, [0, 1])
    with pytest.raises(DataError, match=r"images are torch\.float64 \(0,\); this run takes"):
        classifier.fit([], [])


class Elsewhere(torch.Tensor):
    """A tensor that numpy cannot read where it is, as one on a GPU."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        return self.as_subclass(torch.Tensor)


def test_labels_may_be_a_tensor_on_another_device(run: Path, data_root: Path) -> None:
    batch = task(data_root)
    labels = batch.support_y[0].as_subclass(Elsewhere)
    classifier = FewShotClassifier.from_run(run).fit(batch.support_x[0], labels)
    assert classifier.classes_.tolist() == [0, 1, 2]


@pytest.mark.parametrize("ensemble", [-1, 0, 4])
def test_an_ensemble_that_the_run_does_not_have_is_refused(run: Path, ensemble: int) -> None:
    with pytest.raises(ConfigError) as error:
        FewShotClassifier.from_run(run, ensemble=ensemble)
    assert str(error.value) == (
        f"ensemble is {ensemble}, but must be from 1 to 3, the number of checkpoints that {run} "
        "kept; leave it out to average all of them"
    )
    assert len(FewShotClassifier.from_run(run, ensemble=1).models) == 1


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        FewShotClassifier.from_run(tmp_path)
