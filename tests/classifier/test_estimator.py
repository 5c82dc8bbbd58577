"""The few-shot classifier, from a trained run to predictions."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.exceptions import NotFittedError

import gradshare as gs
from gradshare import FewShotClassifier, ImageTasks, RunConfig, TaskBatch
from gradshare.config import build, open_run, stored, train
from gradshare.errors import ConfigError, DataError, RunError
from gradshare.methods import Adapted, MetaLearner
from gradshare.tasks.images import ImageFormat, Resize, read_image
from gradshare.tasks.source import prepared
from tests.conftest import prepare_tiny

SETTINGS: dict[str, Any] = {
    "dataset": "tiny",
    "ways": 3,
    "queries": 4,
    "inner_steps": 2,
    "filters": 4,
    "epochs": 3,
    "task_batch": 2,
    "iterations_per_epoch": 5,
    "outer_lr": 0.05,  # so that the checkpoints differ
    "val_tasks": 4,
    "test_tasks": 8,
    "ensemble": 3,
    "device": "cpu",
    "threads": 1,
}


@pytest.fixture(scope="module", params=["inductive", "transductive"])
def run(
    request: pytest.FixtureRequest, data_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run that kept three checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(RunConfig(**SETTINGS, data_root=data_root, batch_norm=request.param), folder)
    return folder


def task(data_root: Path, index: int = 0) -> TaskBatch:
    split = gs.open_dataset("tiny", data_root).splits["test"]
    return ImageTasks(split, ways=3, shots=2, queries=5).batch([index])


def test_new_classes_are_learned_under_their_own_names(run: Path, data_root: Path) -> None:
    batch = task(data_root)
    names = np.array(["wren", "owl", "crow"])[batch.support_y[0].numpy()]
    classifier = FewShotClassifier(run).fit(batch.support_x[0], names)
    assert classifier.classes_.tolist() == ["crow", "owl", "wren"]
    classifier.set_params(calibration_tasks=20)
    probabilities = classifier.predict_proba(batch.query_x[0])
    assert probabilities.shape == (15, 3)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-6)
    assert set(classifier.predict(batch.query_x[0])) <= {"wren", "owl", "crow"}


def test_there_is_no_prediction_where_every_checkpoint_overflowed(
    run: Path, data_root: Path
) -> None:
    batch = task(data_root)
    classifier = FewShotClassifier(run)
    classifier.fit(batch.support_x[0], batch.support_y[0])
    overflowed = [
        Adapted({n: torch.full_like(t, torch.inf) for n, t in adapted.params.items()}, 2)
        for adapted in classifier._fitted.adapted
    ]
    classifier._fitted = replace(classifier._fitted, adapted=overflowed)
    with pytest.raises(RunError) as error:
        classifier.score(batch.query_x[0], batch.query_y[0])
    assert str(error.value) == (
        "there is no prediction: the inner steps overflowed on this support set, with each "
        "checkpoint (3); the run's inner rate is too high for it"
    )


def test_the_score_is_the_share_that_is_right(run: Path, data_root: Path) -> None:
    batch = task(data_root)
    names = np.array(["wren", "owl", "crow"])
    classifier = FewShotClassifier(run)
    classifier.fit(batch.support_x[0], names[batch.support_y[0].numpy()])
    predicted = classifier.predict(batch.query_x[0])
    assert classifier.score(batch.query_x[0], predicted) == 1
    others = predicted.copy()
    others[:6] = "heron"
    assert classifier.score(batch.query_x[0], others.tolist()) == 9 / 15
    with pytest.raises(DataError) as error:
        classifier.score(batch.query_x[0], predicted[:5])
    assert str(error.value) == "15 examples, but y has 5 entries; give one for each"
    with pytest.raises(DataError) as error:
        classifier.score(batch.query_x[0], batch.query_y[0])
    assert str(error.value) == (
        "none of the labels [0, 0, 0, 0, 0, 1, ...] is one of the classes ['crow', 'owl', 'wren']; "
        "give them as `fit` was given them"
    )
    classifier.fit(batch.support_x[0], batch.support_y[0])
    numbers = torch.from_numpy(classifier.predict(batch.query_x[0]))
    assert classifier.score(batch.query_x[0], numbers) == 1


def test_a_run_is_given_by_its_folder_or_as_it_is(run: Path, data_root: Path) -> None:
    batch = task(data_root)
    found = []
    for given in (run, str(run), open_run(run)):
        classifier = FewShotClassifier(given, calibration_tasks=0, device="cpu")
        classifier.fit(batch.support_x[0], batch.support_y[0])
        found.append(classifier.predict_proba(batch.query_x[0]).tolist())
    assert found[0] == found[1] == found[2]
    with pytest.raises(ConfigError) as error:
        FewShotClassifier(run, device="meta").fit(batch.support_x[0], batch.support_y[0])
    assert str(error.value) == "device 'meta' is unknown; use auto, cpu, cuda or cuda:N"


def test_it_is_as_right_as_the_runs_own_test(run: Path) -> None:
    recorded, source = open_run(run).test, build(stored(run)).test
    assert recorded is not None and source is not None
    classifier = FewShotClassifier(run)
    for index, accuracy in enumerate(recorded.ensemble["accuracy"]):
        batch = source.batch([index])
        classifier.fit(batch.support_x[0], batch.support_y[0])
        right = classifier.predict(batch.query_x[0]) == batch.query_y[0].numpy()
        assert right.mean() == pytest.approx(accuracy)
    assert len(set(recorded.ensemble["accuracy"])) > 1


def test_the_order_of_the_support_set_does_not_matter(run: Path, data_root: Path) -> None:
    batch = task(data_root)
    images, labels = batch.support_x[0].numpy(), batch.support_y[0].numpy()
    order = np.array([3, 0, 5, 2, 4, 1])
    one = FewShotClassifier(run, calibration_tasks=0).fit(images, labels)
    other = FewShotClassifier(run, calibration_tasks=0).fit(images[order], labels[order])
    queries = batch.query_x[0].numpy()
    assert np.allclose(one.predict_proba(queries), other.predict_proba(queries), atol=1e-4)


def test_the_mode_says_whether_a_prediction_depends_on_the_other_queries(
    run: Path, data_root: Path
) -> None:
    batch = task(data_root)
    classifier = FewShotClassifier(run, calibration_tasks=0)
    classifier.fit(batch.support_x[0], batch.support_y[0])
    assert classifier.transductive_ == (stored(run).batch_norm == "transductive")
    together = classifier.predict_proba(batch.query_x[0])
    if classifier.transductive_:
        few = "needs many examples at once, of all 3 classes. It got 1 and predicts 1 of"
        with pytest.warns(UserWarning, match=few):
            alone = classifier.predict_proba(batch.query_x[0][4:5])
        same = batch.query_x[0][4:5].expand(6, -1, -1, -1)
        with pytest.warns(UserWarning, match="It got 6 and predicts 1 of the classes; train with"):
            classifier.predict(same)
    else:
        alone = classifier.predict_proba(batch.query_x[0][4:5])
    alike = np.allclose(together[4], alone[0], atol=1e-5)
    assert alike == (not classifier.transductive_)


def test_probabilities_are_of_the_mean_logits_of_all_checkpoints(
    run: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, source = open_run(run), build(stored(run)).test
    learner = opened.learner
    assert isinstance(learner, MetaLearner) and isinstance(source, ImageTasks)
    batch = task(data_root)
    images = source.prepare(batch)
    logits = []
    for meta, carried in opened.models(3):
        adapted = learner.adapt(meta, carried, images)
        with torch.no_grad():
            logits.append(learner.predict(meta, adapted, images)[0])
    expected = torch.stack(logits).mean(0).softmax(-1).numpy()
    for one in logits:
        assert np.abs(one.softmax(-1).numpy() - expected).max() > 0.01
    # Where chunks change no prediction, the 15 queries are four of them.
    monkeypatch.setattr("gradshare.classifier.trained.CHUNK", 4)
    fitted = FewShotClassifier(run, calibration_tasks=0)
    fitted.fit(batch.support_x[0], batch.support_y[0])
    assert np.allclose(fitted.predict_proba(batch.query_x[0]), expected, atol=1e-5)
    best = FewShotClassifier(run, ensemble=1, calibration_tasks=0)
    best.fit(batch.support_x[0], batch.support_y[0])
    alone = logits[0].softmax(-1).numpy()
    assert np.allclose(best.predict_proba(batch.query_x[0]), alone, atol=1e-5)


def test_doubts_are_distances_from_the_nearest_class_mean_of_what_the_head_is_given(
    run: Path, data_root: Path
) -> None:
    batch = task(data_root)
    fitted = FewShotClassifier(run).fit(batch.support_x[0], batch.support_y[0])._fitted
    trained = fitted.trained
    learner, images = trained.learner, prepared(trained.source, batch)
    assert isinstance(learner, MetaLearner)
    expected = []
    for (meta, _), own in zip(trained.models, fitted.adapted, strict=True):
        module, given = learner.module(meta, own), list[torch.Tensor]()
        head = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)][-1]
        head.register_forward_pre_hook(lambda _, x, given=given: given.append(x[0]))
        module(images.support_x[0])
        support = {"support": images.support_x[0]} if learner.inductive else {}
        module(images.query_x[0], **support)
        embedded, queries = given
        means = [embedded[batch.support_y[0] == label].mean(0) for label in range(3)]
        distances = torch.stack([(queries - mean).square().sum(1).sqrt() for mean in means])
        expected.append(distances.min(0).values)
    found = fitted.distances(batch.query_x[0])
    torch.testing.assert_close(found, torch.stack(expected).mean(0), rtol=1e-3, atol=1e-3)


def test_what_does_not_fit_is_named(run: Path, data_root: Path) -> None:
    batch = task(data_root)
    classifier = FewShotClassifier(run)
    for use in (classifier.predict, classifier.predict_proba, classifier.predict_set):
        with pytest.raises(NotFittedError, match="is not fitted yet"):
            use(batch.query_x[0])
    with pytest.raises(DataError) as error:
        classifier.fit(batch.support_x[0], [0, 1, 2, 3, 0, 1])
    assert str(error.value) == (
        "the labels name 4 classes; this run was trained for 3: train one with as many --ways, or "
        "with a --method for any number: unicorn-maml, proto-maml or protonet"
    )
    with pytest.raises(DataError, match=r"6 examples, but y has 5 entries; give one for each"):
        classifier.fit(batch.support_x[0], [0, 0, 1, 1, 2])


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
    prepare_tiny(tmp_path / "data", source={"resize": resize})
    changed = {"data_root": tmp_path / "data"}
    (own / "config.yaml").write_text(stored(own).model_copy(update=changed).to_yaml())
    paths = photographs(tmp_path)
    labels = [path.name.split("-")[0] for path in paths]
    form = ImageFormat(16, 1, resize)
    pixels = np.stack([read_image(path, str(path), form) for path in paths])
    of_arrays = FewShotClassifier(own, calibration_tasks=0).fit(pixels, labels)
    of_files = FewShotClassifier(own, calibration_tasks=0).fit(paths, labels)
    expected = of_arrays.predict_proba(pixels)
    assert len({tuple(row) for row in expected}) == len(paths)
    texts = [str(path) for path in paths]
    for given in (paths, texts, tuple(texts), np.array(texts), np.array(paths)):
        assert np.array_equal(of_files.predict_proba(given), expected)


def test_a_file_that_is_missing_or_damaged_is_named(run: Path, tmp_path: Path) -> None:
    classifier = FewShotClassifier(run)
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
        classifier.predict([*paths, missing])


def test_one_path_and_what_is_no_array_are_told_from_images(run: Path) -> None:
    classifier = FewShotClassifier(run)
    path: Any
    for path in ("owl.png", Path("owl.png")):
        with pytest.raises(DataError) as error:
            classifier.fit(path, [0])
        assert str(error.value) == "X is one path, 'owl.png'; give a list: [X]"
    images: Any
    for images, message in (
        (3, r"^X is a int; give a list of images$"),
        ([], r"^X is empty; give at least one image$"),
        (Image.new("L", (9, 9)), r"^X is one image; give a list: \[X\]$"),
        (np.zeros((20, 30, 3)), r"^X has the shape \(20, 30, 3\), which is that of one image;"),
        ([np.zeros((9, 9)), 3], r"^X\[1\] is a int of int64 and shape \(\); give a path, a PIL"),
        (np.full((1, 9, 9), 7.0), r"^X\[0\] holds float64 from 7\.0 to 7\.0; give uint8 from 0"),
        (np.zeros((1, 9, 9), int), r"^X\[0\] holds int64 from 0 to 0; give uint8 from 0 to 255,"),
        ([[[1, 2], [3]]], r"^X\[0\] is not an image \(setting an array element with a sequence"),
        (torch.zeros(1, 9, 9).bfloat16(), r"^X\[0\] is not an image \(Got unsupported ScalarType"),
        (np.zeros((1, 9, 9, 2)), r"^X\[0\] has the shape \(9, 9, 2\); give \(H, W\), \(H, W, C\)"),
    ):
        with pytest.raises(DataError, match=message):
            classifier.fit(images, [0])


class Elsewhere(torch.Tensor):
    """A tensor that numpy cannot read where it is, as one on a GPU."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        return self.as_subclass(torch.Tensor)


def test_labels_may_be_a_tensor_on_another_device(run: Path, data_root: Path) -> None:
    batch = task(data_root)
    labels = batch.support_y[0].as_subclass(Elsewhere)
    classifier = FewShotClassifier(run).fit(batch.support_x[0], labels)
    assert classifier.classes_.tolist() == [0, 1, 2]


@pytest.mark.parametrize("ensemble", [0, 4, "1"])
def test_an_ensemble_that_the_run_does_not_have_is_refused(run: Path, ensemble: Any) -> None:
    with pytest.raises(ConfigError) as error:
        FewShotClassifier(run, ensemble=ensemble).fit(["a.png"], [0])
    assert str(error.value) == (
        f"ensemble is {ensemble!r}, and {run} has kept 3 checkpoints; give a number from 1 to 3"
    )


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        FewShotClassifier(tmp_path).fit(["a.png"], [0])


SIGNALS: dict[str, Any] = {
    **{name: value for name, value in SETTINGS.items() if name != "filters"},
    "dataset": "tests.own:signals",
    "model": "tests.own:Net",
    "queries": 2,
}


def test_signals_of_any_array_type(tmp_path: Path) -> None:
    config = RunConfig(**SIGNALS)
    classifier = FewShotClassifier(train(config, tmp_path / "run"), calibration_tasks=0)
    batch = build(config).train.batch([3])
    x, y = batch.support_x[0], np.array(["p", "q", "r"])[batch.support_y[0].numpy()]
    expected = classifier.fit(x, y).predict_proba(batch.query_x[0])
    assert not classifier.transductive_  # the model has no batch norm
    assert classifier.classes_.tolist() == ["p", "q", "r"]
    as_doubles = batch.query_x[0].double().numpy()
    assert np.allclose(classifier.fit(x.numpy(), y).predict_proba(as_doubles), expected)
    assert np.allclose(classifier.predict_proba(batch.query_x[0][2:3]), expected[2:3])
    with pytest.raises(DataError) as error:
        classifier.partial_fit(x[..., 1:], y)
    assert str(error.value) == (
        f"X has examples of shape {tuple(x[0, ..., 1:].shape)}, and those before have "
        f"{tuple(x[0].shape)}; give all the same shape"
    )


@pytest.mark.parametrize("method", ["unicorn-maml", "proto-maml", "protonet"])
def test_any_number_of_classes_if_the_method_takes_it(method: str, tmp_path: Path) -> None:
    config = RunConfig(**{**SIGNALS, "inner_steps": 5}, method=method)
    classifier = FewShotClassifier(train(config, tmp_path / "run"), calibration_tasks=0)
    x = build(config).train.batch([0]).support_x[0].repeat(2, 1, 1)
    assert classifier.fit(x[:5], list("abcde")).predict_proba(x).shape == (6, 5)
    assert classifier.fit(x[:2], [False, True]).predict(x).dtype == bool


def test_inputs_of_several_parts_and_classes_that_are_the_same_in_all_tasks(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    odd = np.arange(60) % 2
    a = random.normal(odd[:, None], 0.1, (60, 3))
    x = {"a": a, "b": random.integers(5, size=(60, 2))}
    labels = np.array(["well", "ill"])[odd]
    source = gs.GroupTasks(x, labels, np.arange(60) // 10, shots=2, queries=2)

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(5, 4)
            self.out = torch.nn.Linear(7, 2)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.out(torch.cat([a, self.words(b).mean(1)], 1))
            return found

    run = gs.fit(
        gs.maml(Both(), inner_lr=0.5),
        source,
        source,
        out=tmp_path / "run",
        epochs=1,
        iterations=2,
        val_tasks=2,
        progress=False,
    )
    inputs = {name: part[:4] for name, part in x.items()}
    classifier = FewShotClassifier(run, calibration_tasks=0)
    # By their order in the run's classes, not in the support set's.
    proba = classifier.fit(inputs, ["well", "ill", "well", "ill"]).predict_proba(inputs)
    assert classifier.classes_.tolist() == ["ill", "well"]
    assert proba.shape == (4, 2)
    assert classifier.score(inputs, ["well", "ill", "well", "ill"]) == 1
    classifier.set_params(calibration_tasks=20)
    assert classifier.predict(inputs, reject=0.2).shape == (4,)
    with pytest.raises(DataError, match="the label 'dead' is none of the classes"):
        classifier.fit(inputs, ["well", "ill", "well", "dead"])
    with pytest.raises(ConfigError) as error:
        FewShotClassifier(run.path).fit(inputs, ["well", "ill", "well", "ill"])
    assert str(error.value) == (
        f"the run in {run.path} was opened without its learner or its source; give both: "
        "gradshare.open_run(path, learner, source)"
    )


def test_a_run_whose_targets_are_not_classes_is_refused(tmp_path: Path) -> None:
    left_out = ("ways", "queries")
    sines = {name: value for name, value in SIGNALS.items() if name not in left_out}
    sines |= {"dataset": "tests.own:sines", "model": "tests.own:Curve", "loss": "mse"}
    run = train(RunConfig(**sines), tmp_path / "run")
    with pytest.raises(ConfigError) as error:
        FewShotClassifier(run).fit([[0.0]], [0])
    assert str(error.value) == (
        f"the targets of the run in {tmp_path / 'run'} are not classes; use run.adapt(x, y)"
    )
