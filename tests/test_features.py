"""Features of a frozen backbone: their store, the backbone, and predictions from raw images."""

from __future__ import annotations

import json
import pickle
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock
from onnx import TensorProto, helper, save
from PIL import Image
from safetensors.torch import save_file

import gradshare as gs
from gradshare.backbones import preprocessed
from gradshare.cli import cli
from gradshare.config import RunConfig, build, train
from gradshare.errors import ConfigError, DataError
from gradshare.tasks.features import Preprocessing
from tests.own_backbones import toy

TOY = "tests/own_backbones.py:toy"
WIDTH = 12


def tiny_store(data_root: Path) -> gs.ImageStore:
    return gs.open_dataset("tiny", data_root)


def with_recordings(store: gs.ImageStore) -> gs.ImageStore:
    """The store as if each two images that follow each other were of one recording."""
    rows = len(store.splits["train"].images)
    groups = np.array([f"recording {row // 2}" for row in range(rows)])
    splits = {name: replace(split, groups=groups) for name, split in store.splits.items()}
    return replace(store, splits=splits)


@pytest.fixture
def features(data_root: Path, tmp_path: Path) -> gs.FeatureStore:
    store = with_recordings(tiny_store(data_root))
    return gs.write_features(store, gs.Backbone(TOY), tmp_path / "features")


# The store


def test_each_image_has_its_row_with_its_class_and_group_in_the_split_it_was_in(
    features: gs.FeatureStore, data_root: Path
) -> None:
    store, backbone = with_recordings(tiny_store(data_root)), gs.Backbone(TOY)
    for name, split in store.splits.items():
        x, y, groups = (
            np.load(features.path / name / f"{part}.npy") for part in ["x", "y", "groups"]
        )
        assert x.dtype == np.float32
        row = 0
        for label, start, count in zip(split.class_names, split.starts, split.counts, strict=True):
            images = torch.from_numpy(np.array(split.images[start : start + count]))
            end = row + count
            np.testing.assert_allclose(x[row:end], backbone(images), rtol=1e-5, atol=1e-6)
            assert set(y[row:end]) == {label}
            assert split.groups is not None
            assert groups[row:end].tolist() == split.groups[start : start + count].tolist()
            row = end
        assert len(x) == len(y) == len(groups) == row


def test_prepared_tasks_are_standardised_by_the_training_rows(features: gs.FeatureStore) -> None:
    rows = torch.from_numpy(np.load(features.path / "train" / "x.npy"))
    for split in ("train", "test"):
        source = gs.FeatureTasks(features, split, ways=3, shots=2, queries=3)
        raw = source.batch([0, 1])
        prepared = source.prepare(raw)
        expected = (raw.query_x - rows.mean(0)) / rows.std(0, correction=0)
        torch.testing.assert_close(prepared.query_x, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(prepared.query_y, raw.query_y)


def test_a_feature_that_never_varies_is_left_as_it_is(data_root: Path, tmp_path: Path) -> None:
    backbone = gs.Backbone("tests/own_backbones.py:HalfDead")
    store = gs.write_features(tiny_store(data_root), backbone, tmp_path / "features")
    assert store.std[0] == 1
    prepared = (source := gs.FeatureTasks(store, "val", ways=3, queries=3)).prepare(
        source.batch([0])
    )
    assert prepared.support_x.isfinite().all()
    assert (prepared.support_x[..., 0] == 0).all()


def test_recordings_are_in_the_support_or_the_query_set_of_a_task_and_never_in_both(
    features: gs.FeatureStore,
) -> None:
    rows = np.load(features.path / "train" / "x.npy")
    groups = np.load(features.path / "train" / "groups.npy")
    of_row = {row.tobytes(): group for row, group in zip(rows, groups, strict=True)}
    task = gs.FeatureTasks(features, "train", ways=4, shots=3, queries=4).batch(range(5))
    for support, query in zip(task.support_x, task.query_x, strict=True):
        sides = [{of_row[row.numpy().tobytes()] for row in side} for side in (support, query)]
        assert not sides[0] & sides[1]


def test_a_store_opens_as_it_was_written_and_class_tasks_read_its_splits(
    features: gs.FeatureStore,
) -> None:
    again = gs.FeatureStore.open(features.path)
    assert again == features
    assert again.form == gs.ImageFormat(16, 1, "stretch")
    assert len(gs.ClassTasks.load(features.path / "val", ways=3, queries=2).classes) == 5


def test_features_are_not_overwritten_unless_that_is_asked_for(
    features: gs.FeatureStore, data_root: Path
) -> None:
    store = tiny_store(data_root)
    with pytest.raises(DataError, match="is there already and is not overwritten"):
        gs.write_features(store, gs.Backbone(TOY), features.path)
    narrow = gs.Backbone(TOY, options={"width": 3})
    assert len(gs.write_features(store, narrow, features.path, force=True).mean) == 3
    assert not (features.path / "train" / "groups.npy").exists()


def test_features_that_another_process_wrote_meanwhile_are_not_overwritten(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = FileLock(tmp_path / ".features.lock")
    others.acquire()

    def finish(*_: object) -> None:
        (tmp_path / "features").mkdir()
        others.release()

    monkeypatch.setattr("gradshare.tasks.writing.log.warning", finish)
    with pytest.raises(DataError, match="is there already and is not overwritten"):
        gs.write_features(tiny_store(data_root), gs.Backbone(TOY), tmp_path / "features")


def test_a_damaged_record_is_said_to_be_damaged(features: gs.FeatureStore) -> None:
    record = features.path / "features.json"
    content = json.loads(record.read_text())
    content["std"][0] = 0
    record.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"are damaged \(std.0: .*greater than 0"):
        gs.FeatureStore.open(features.path)
    with pytest.raises(DataError, match="run `gradshare data features` first"):
        gs.FeatureStore.open(features.path / "train")


def test_features_that_are_not_finite_are_refused(data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gives features of class 'train-0' that are not finite"):
        gs.write_features(
            tiny_store(data_root), gs.Backbone("tests/own_backbones.py:Infinite"), tmp_path / "new"
        )
    assert not list(tmp_path.iterdir())


# The backbone


def test_preprocessing_resizes_cuts_the_middle_and_normalises() -> None:
    images = torch.randint(0, 256, (2, 1, 10, 10), dtype=torch.uint8)
    how = Preprocessing(size=8, crop=0.8, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    found = preprocessed(images, how)
    middle = images[:, :, 1:9, 1:9] / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (how.mean, how.std))
    torch.testing.assert_close(found, (middle - mean) / std)
    assert preprocessed(images, Preprocessing()).shape == (2, 3, 10, 10)
    even = preprocessed(torch.full((1, 3, 5, 5), 51, dtype=torch.uint8), Preprocessing(size=9))
    mean, std = torch.tensor(Preprocessing().mean), torch.tensor(Preprocessing().std)
    torch.testing.assert_close(even, ((0.2 - mean) / std)[:, None, None].expand(1, 3, 9, 9))


def test_an_onnx_file_gives_the_features_of_its_network(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx", batch="n")
    images = torch.randint(0, 256, (5, 3, 20, 20), dtype=torch.uint8)
    backbone = gs.Backbone(str(path))
    assert backbone.record.preprocessing.size == 8
    expected = preprocessed(images, backbone.record.preprocessing).mean((2, 3))
    torch.testing.assert_close(backbone(images), expected)
    one_by_one = gs.Backbone(str(write_onnx(tmp_path / "ONE.ONNX", batch=1)))
    torch.testing.assert_close(one_by_one(images), expected)


def test_weights_come_from_a_file_and_the_digest_tells_others_apart(tmp_path: Path) -> None:
    module = toy(seed=5)
    torch.save(module.state_dict(), tmp_path / "w.pt")
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    made = [gs.Backbone(TOY, weights=tmp_path / name) for name in ("w.pt", "w.safetensors")]
    direct = gs.Backbone(TOY, options={"seed": 5})
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    for backbone in made:
        assert backbone.record.sha256 == direct.record.sha256 != gs.Backbone(TOY).record.sha256
        assert torch.equal(backbone(images), direct(images))


def test_a_backbone_with_other_weights_than_the_features_were_made_with_is_refused(
    tmp_path: Path,
) -> None:
    torch.save(toy(seed=5).state_dict(), tmp_path / "w.pt")
    record = gs.Backbone(TOY, weights=tmp_path / "w.pt").record
    assert gs.Backbone.of(record).record == record
    torch.save(toy(seed=6).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="has other weights now than when it made the features"):
        gs.Backbone.of(record)


def test_weights_in_files_beside_an_onnx_file_are_a_part_of_its_digest(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net[1].onnx", batch="n")
    (tmp_path / "net[1].onnx.old").mkdir()
    before = gs.Backbone(str(path)).record.sha256
    (tmp_path / "net[1].onnx.data").write_bytes(b"weights")
    assert gs.Backbone(str(path)).record.sha256 != before


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("resnet", {}, "no backbone 'resnet'; give an import path like my_file.py:Name, an .onnx"),
        ("none.onnx", {}, r"none.onnx: there is no such file"),
        ("README.md:toy", {}, "there is no module 'README'"),
        ("none.py:toy", {}, "there is no file .*none.py"),
        ("tests/own_backbones.py:tou", {}, "has no 'tou'; did you mean 'toy'"),
        (TOY, {"options": {"widht": 2}}, "widht.*it takes width, seed"),
        ("tests/own_backbones.py:number", {}, "returned a int; return a torch.nn.Module"),
        (TOY, {"weights": "README.md"}, "README.md cannot be read as weights"),
        (TOY, {"preprocessing": {"sizes": 3}}, "--preprocess sizes: .*; there are size, crop"),
        (TOY, {"preprocessing": {"std": [1, 1, 0]}}, "--preprocess std.2: .*greater than 0"),
        ("timm:resnet18", {}, "needs timm, which cannot be imported"),
    ],
)
def test_what_is_no_backbone_is_refused_in_one_sentence(
    name: str, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        gs.Backbone(name, **more)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_onnx_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ConfigError, match=r"text.onnx cannot be read as an ONNX model"):
        gs.Backbone(str(tmp_path / "text.onnx"))
    rows = write_onnx(tmp_path / "rows.onnx", batch="n", last=True)
    with pytest.raises(
        ConfigError, match=r"takes .* give a model of one float input \(n, 3, H, W\)"
    ):
        gs.Backbone(str(rows))
    with pytest.raises(ConfigError, match="has its own weights and takes no options"):
        gs.Backbone(str(rows), options={"a": 1})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Flat", r"gives \(2,\) for 2 images; make it return one tensor, \(images, features\)"),
        ("Several", r"gives tuple for 2 images"),
        ("large", r"does not take images \(2, 3, 16, 16\) .* another --preprocess size="),
    ],
)
def test_outputs_that_are_no_features_are_refused(name: str, message: str) -> None:
    backbone = gs.Backbone(f"tests/own_backbones.py:{name}")
    with pytest.raises(ConfigError, match=message):
        backbone(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))


# Runs on features


@pytest.fixture(scope="module")
def root(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the dataset "tiny" and its features, "tiny-features"."""
    root = tmp_path_factory.mktemp("features")
    (root / "tiny").symlink_to(data_root / "tiny")
    done = command(root, "features", "tiny", "--backbone", TOY, "--preprocess", "size=20")
    assert f"{WIDTH} features of each image" in done
    return root


SETTINGS: dict[str, Any] = {
    "dataset": "tiny-features",
    "ways": 3,
    "queries": 4,
    "val_tasks": 20,
    "test_tasks": 60,
    "epochs": 2,
    "iterations_per_epoch": 5,
    "device": "cpu",
    "threads": 1,
}


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> gs.Run:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train(RunConfig(**SETTINGS, data_root=root), folder)


def test_a_run_on_features_has_the_recipe_for_them_unless_other_settings_are_given(
    run: gs.Run, root: Path
) -> None:
    stored = RunConfig.from_yaml(run.path / "config.yaml")
    assert (stored.model, stored.method, stored.inner_steps) == ("mlp", "unicorn-maml", 20)
    assert (stored.start, stored.sharing) == ("supervised", False)
    assert (stored.task_batch, stored.outer_lr, stored.epochs) == (8, 3e-4, 2)
    assert run.test is not None
    assert np.mean(run.test.ensemble["accuracy"]) > 0.55  # chance is 1/3
    build(RunConfig(**SETTINGS, data_root=root, method="protonet"))  # which takes no steps
    other = {"method": "maml", "start": "random", "sharing_control": "rate-control"}
    parts = build(RunConfig(**SETTINGS, **other, data_root=root))
    assert type(parts.learner) is gs.MetaLearner
    assert parts.options.start == "random"
    assert isinstance(parts.learner.model, gs.MLP)


@pytest.mark.usefixtures("few_calibration_tasks")
def test_raw_images_are_predicted_as_the_rows_that_were_made_of_them(
    run: gs.Run, root: Path, tmp_path: Path
) -> None:
    split = tiny_store(root).splits["test"]
    chosen = np.concatenate([start + np.arange(6) for start in split.starts[:3]])
    images, labels = np.array(split.images[chosen]), np.repeat(["a", "b", "c"], 6)
    rows = np.load(root / "tiny-features" / "features" / "test" / "x.npy")
    of_chosen = rows[chosen - split.starts[0]]
    paths = []
    for number, image in enumerate(images):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(image[0]).save(paths[-1])
    expected = gs.FewShotClassifier(run.path).fit(of_chosen, labels).predict_proba(of_chosen)
    for x in (images, paths):
        found = gs.FewShotClassifier(run.path).fit(x, labels).predict_proba(x)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    alone = gs.FewShotClassifier(run).fit(images, labels).predict_proba(images[:1])
    np.testing.assert_allclose(alone, expected[:1], rtol=1e-4, atol=1e-5)


def test_a_check_has_yardsticks_on_features_and_on_pixels(run: gs.Run, root: Path) -> None:
    split = tiny_store(root).splits["test"]
    chosen = np.concatenate([start + np.arange(6) for start in split.starts[:3]])
    images, labels = np.array(split.images[chosen]), np.repeat(["a", "b", "c"], 6)
    classifier = gs.FewShotClassifier(run, calibration_tasks=0)
    assert list(gs.check(classifier, images, labels).right) == [
        "this run",
        "nearest class mean on features",
        "logistic regression on features",
        "nearest class mean on pixels",
        "logistic regression on pixels",
    ]
    # The backbone is not in a pickle, and is loaded again.
    expected = classifier.fit(images, labels).predict_proba(images)
    again = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_allclose(again.predict_proba(images), expected)


def test_rows_of_another_backbone_are_refused_at_prediction(run: gs.Run) -> None:
    with pytest.raises(
        DataError, match=rf"shape \(3, {WIDTH + 1}\); this run takes \(n, {WIDTH}\)"
    ):
        gs.FewShotClassifier(run).fit(np.zeros((3, WIDTH + 1), np.float32), ["a", "b", "c"])


def test_a_dataset_of_features_is_shown_and_is_not_opened_as_images(root: Path) -> None:
    shown = command(root, "show", "tiny-features")
    assert f"{WIDTH} features of tiny" in shown
    assert "120" in shown  # training images
    listed = command(root, "list").split()
    assert listed[listed.index("tiny-features") + 2 : -1][:2] == ["features", "│"]
    assert "name: " + str(Path(TOY.split(":", maxsplit=1)[0]).resolve()) in shown
    with pytest.raises(ConfigError, match=r"^--out a\.png: tiny-features holds features"):
        command(root, "show", "tiny-features", "--out", "a.png")
    with pytest.raises(DataError, match="holds features, not images; open it with"):
        gs.open_dataset("tiny-features", root)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--backbone", TOY], "is there already and is not overwritten"),
        (["tiny", "--backbone", TOY, "--out", "tiny"], "holds images; give the features another"),
        (["tiny", "--backbone", TOY, "--out", "a/b"], "cannot name a dataset"),
        (["tiny-features", "--backbone", TOY, "--out", "new"], "holds features, not images"),
    ],
)
def test_a_command_that_cannot_write_features_says_why(
    root: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        command(root, "features", *arguments)


def test_arms_are_compared_on_features_and_the_report_says_how_to_make_them(
    root: Path, tmp_path: Path, in_this_process: None
) -> None:
    words = ["--dataset", "tiny-features", "--data-root", str(root), "--ways", "3"]
    short = "--queries 4 --epochs 1 --iterations-per-epoch 2 --start-iterations 9 --val-tasks 4"
    out = tmp_path / "compared"
    words += [*short.split(), "--test-tasks", "6", "--out", str(out)]
    done = CliRunner().invoke(cli, ["compare", *words])
    assert done.exit_code == 0, done.output
    assert "original, gradient-sharing: 2 runs, 1 × 2 iterations each" in done.output
    toy = shlex.quote(f"{Path('tests/own_backbones.py').resolve()}:toy")  # with a space in it
    (made, _) = gs.load_results(out).commands
    assert made == (
        f"gradshare data features tiny --backbone {toy} --preprocess size=20 "
        f"--image-size 16 --resize stretch --out tiny-features --data-root {root}"
    )
    starts = [
        RunConfig.from_yaml(out / "runs" / arm / "seed-0" / "config.yaml").start
        for arm in ("original", "gradient-sharing")
    ]
    assert starts == ["supervised"] * 2


def test_errors_name_a_dataset_of_features_and_not_that_of_its_images(root: Path) -> None:
    too_many = RunConfig(**{**SETTINGS, "ways": 40}, data_root=root)
    with pytest.raises(DataError, match="split 'train' of tiny-features has 12;"):
        build(too_many)
    train = build(RunConfig(**SETTINGS, data_root=root)).train
    rows = torch.zeros(1, 3, WIDTH + 1)
    labels = torch.zeros(1, 3, dtype=torch.int64)
    batch = gs.TaskBatch(rows, labels, rows, labels)
    with pytest.raises(DataError, match=f"the features in tiny-features have {WIDTH}; give"):
        train.prepare(batch)  # type: ignore[attr-defined]


def test_settings_of_images_are_refused_on_features(root: Path) -> None:
    config = RunConfig(**SETTINGS, data_root=root, pixel_scaling="unit")
    with pytest.raises(ConfigError, match="--pixel-scaling unit is for images, and --dataset"):
        build(config)


def command(root: Path, *arguments: str) -> str:
    """What `gradshare data` prints."""
    words = ["data", *arguments, "--data-root", str(root)]
    return CliRunner().invoke(cli, words, catch_exceptions=False).output


def write_onnx(path: Path, *, batch: str | int, last: bool = False) -> Path:
    """A model that averages images of 8×8 pixels, channels first or last."""
    shape = [batch, 8, 8, 3] if last else [batch, 3, 8, 8]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, [batch, 3, 1, 1])
    node = helper.make_node("GlobalAveragePool", ["images"], ["rows"])
    opset = [helper.make_opsetid("", 13)]
    graph = helper.make_graph([node], "mean", [images], [rows])
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path
