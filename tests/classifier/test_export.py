"""A classifier that is exported gives the same probabilities without gradshare."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import gradshare as gs
from gradshare.config import RunConfig, train
from gradshare.errors import ConfigError, GradshareError
from tests.classifier.conftest import rows
from tests.conftest import tiny_classes
from tests.test_features import write_onnx

ROOT = Path(__file__).parents[2]
TOY = "tests/own_backbones.py:toy"


def pictures(first: int, count: int) -> NDArray[np.uint8]:
    """Images (n, 16, 16, 1) of three classes, as many of each."""
    found = [own.images[first : first + count // 3] for own in tiny_classes("test", 3)]
    return np.concatenate(found).transpose(0, 2, 3, 1)


def answers_of(path: Path, x: NDArray[Any]) -> tuple[NDArray[Any], dict[str, Any]]:
    """The probabilities of a file, and its metadata."""
    if path.suffix == ".pt2":
        extra = {"gradshare": ""}
        program = torch.export.load(path, extra_files=extra).module()
        return program(torch.from_numpy(x)).numpy(), json.loads(extra["gradshare"])
    session = onnxruntime.InferenceSession(path)
    metadata = session.get_modelmeta().custom_metadata_map["gradshare"]
    return session.run(None, {session.get_inputs()[0].name: x})[0], json.loads(metadata)


def image_run(data_root: Path, out: Path, **settings: Any) -> gs.FewShotClassifier:
    """A classifier of pictures, of a run on them or on their features."""
    sizes = {"ways": 3, "queries": 4, "epochs": 1, "iterations_per_epoch": 1, "task_batch": 2}
    tests = {"val_tasks": 4, "test_tasks": 2, "inner_steps": 2, "device": "cpu", "threads": 1}
    config = RunConfig(**{"data_root": data_root, "dataset": "tiny", **sizes, **tests, **settings})
    run = train(config, out).path
    names = np.repeat(["crow", "lark", "owl"], 3)
    return gs.FewShotClassifier(run, calibration_tasks=20).fit(pictures(0, 9), names)


def features(data_root: Path, backbone: gs.Backbone, name: str) -> dict[str, Any]:
    """The settings of a run on features of the pictures."""
    gs.write_features(gs.open_dataset("tiny", data_root), backbone, data_root / name / "features")
    return {"dataset": name, "inner_lr": 0.1}


def require_the_same(classifier: gs.FewShotClassifier, path: Path, x: NDArray[Any]) -> Any:
    """Export a classifier, compare its answers with the file's, and return the metadata."""
    classifier.export(path)
    expected = classifier.predict_proba(x)
    assert np.ptp(expected, 0).max() > 0.01  # else any network would do
    for some in (x, x[:1]):
        found, metadata = answers_of(path, some)
        np.testing.assert_allclose(found, expected[: len(some)], atol=1e-4)
    assert metadata["classes"] == classifier.classes_.tolist()
    return metadata


@pytest.mark.parametrize(
    ("suffix", "settings"),
    [
        (".onnx", {"filters": 4, "method": "maml++", "ensemble": 2, "epochs": 2}),
        (".pt2", {"model": "resnet12", "model_option": {"widths": [4, 4, 4, 4]}}),
    ],
    ids=["conv4", "resnet12"],
)
def test_a_classifier_of_images_and_its_file_give_the_same_probabilities(
    suffix: str, settings: dict[str, Any], data_root: Path, tmp_path: Path
) -> None:
    classifier = image_run(data_root, tmp_path / "run", **settings)
    metadata = require_the_same(classifier, tmp_path / f"birds{suffix}", pictures(3, 12))
    assert {name: metadata[name] for name in ("size", "channels", "resize")} == {
        "size": 16,
        "channels": 1,
        "resize": "stretch",
    }


def test_rows_and_prediction_sets_are_exported(rows_run: gs.Run, tmp_path: Path) -> None:
    x, y = rows(5, 4, noise=1.5)
    classifier = gs.FewShotClassifier(rows_run, calibration_tasks=20).fit(x, y)
    new = classifier._fitted.trained.read(rows(5, 20, noise=1.5)[0]).numpy()
    metadata = require_the_same(classifier, tmp_path / "rows.ONNX", new)
    found, _ = answers_of(tmp_path / "rows.ONNX", new)
    sets = found >= metadata["least_probability"]["0.9"]
    sets[np.arange(len(new)), found.argmax(1)] = True
    expected = classifier.predict_set(new, coverage=0.9)
    assert [set(classifier.classes_[chosen]) for chosen in sets] == [set(s) for s in expected]


def test_a_backbone_and_what_is_done_to_its_images_are_in_the_file(
    data_root: Path, tmp_path: Path
) -> None:
    how = {"size": 20, "crop": 0.8, "interpolation": "bicubic"}
    settings = features(data_root, gs.Backbone(TOY, preprocessing=how), "toy")
    classifier = image_run(data_root, tmp_path / "run", **settings)
    for suffix in (".onnx", ".pt2"):
        metadata = require_the_same(classifier, tmp_path / f"birds{suffix}", pictures(3, 12))
        assert metadata["backbone"]["preprocessing"]["crop"] == 0.8
        assert str(ROOT).encode() not in (tmp_path / f"birds{suffix}").read_bytes()


def test_a_backbone_from_an_onnx_file_is_joined_with_the_classifier(
    data_root: Path, tmp_path: Path
) -> None:
    one_by_one = write_onnx(tmp_path / "net.onnx", batch=1)
    settings = features(data_root, gs.Backbone(str(one_by_one)), "file")
    classifier = image_run(data_root, tmp_path / "run", **settings)
    require_the_same(classifier, tmp_path / "birds.onnx", pictures(3, 12))
    with pytest.raises(ConfigError, match=r"ONNX file cannot be exported to .pt2; give .onnx"):
        classifier.export(tmp_path / "birds.pt2")


class OwnNorm(nn.Module):
    """A network whose own norm has the statistics of the support set."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.linear = nn.Linear(256, 3)

    def forward(self, x: Tensor, support: Tensor | None = None) -> Tensor:
        """Images to scores."""
        mean = (x if support is None else support).mean()
        scores: Tensor = self.linear(x.flatten(1)) / 100 + mean * 100 * torch.arange(3)
        return scores


class Flat(nn.Sequential):
    """A linear network."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(256, 3))


class Branches(nn.Module):
    """A network that computes something else for some images."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Images to scores."""
        scores: Tensor = self.linear(x.flatten(1))
        return scores if x.mean() > 0 else -scores


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("a.onnx", {"batch_norm": "transductive", "filters": 4}, "depends on the others, by trans"),
        ("a.zip", {"filters": 4}, r"a.zip has another ending than .onnx or .pt2"),
        ("a.pt2", {"model": f"{__name__}:OwnNorm"}, "log-probabilities differ from the"),
        ("a.onnx", {"model": f"{__name__}:Branches"}, r"or ONNX does not support .*; ch"),
        ("no/a.pt2", {"model": f"{__name__}:Flat"}, r"no/a.pt2 cannot be written: No such file"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_no_file(
    name: str, settings: dict[str, Any], message: str, data_root: Path, tmp_path: Path
) -> None:
    classifier = image_run(data_root, tmp_path / "run", **settings)
    with pytest.raises(GradshareError, match=message):
        classifier.export(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_shipped_model_is_exported_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.zeros((2, 28, 28), np.uint8)
    images[1, 4:24] = 255
    classifier = gs.FewShotClassifier("glyphs", calibration_tasks=0).fit(images, ["blank", "bar"])
    assert require_the_same(classifier, tmp_path / "a.onnx", images[..., None])["run"] == "glyphs"


def test_export_names_the_packages_that_are_missing(
    rows_run: gs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = gs.FewShotClassifier(rows_run, calibration_tasks=0).fit(*rows(3, 4))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match="run `pip install onnx onnxruntime onnxscript`"):
        classifier.export(tmp_path / "rows.ONNX")
