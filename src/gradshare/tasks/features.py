"""Stores of features: what a frozen backbone makes of the images of a prepared dataset.

A store is a folder with

- `train/`, `val/` and `test/`, each with `x.npy`, float32 (n, D), one row for each image as the
  backbone gives it; `y.npy`, its class; and, if the images have groups, `groups.npy`;
- `features.json`: the backbone with its preprocessing and the digest of its weights, the form of
  the images before it, and the mean and deviation of the training rows.

`gs.ClassTasks.load(path / "train")` reads a split without this module.
"""

from __future__ import annotations

import copy
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from torch import Tensor

from gradshare.errors import ConfigError, DataError
from gradshare.tasks.arrays import fingerprint, load
from gradshare.tasks.batch import TaskBatch
from gradshare.tasks.classes import ClassTasks
from gradshare.tasks.images import ImageFormat
from gradshare.tasks.source import Splits
from gradshare.tasks.store import SPLITS, Positive, Sha256, first_mistake, splits_note

FORM = "features"
"""The name of the store of features among the stores of a dataset."""

RECORD = "features.json"


class Preprocessing(BaseModel):
    """What is done to an image before the backbone sees it.

    Attributes:
        size: height and width of the input in pixels; None for the size of the stored images.
        crop: the share of the height and width that is kept: the image is resized to size / crop,
            and its middle is cut out.
        interpolation: of the resizing.
        mean: of the three channels of images in [0, 1], which is subtracted.
        std: likewise, by which they are then divided.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Annotated[int, Field(ge=1, le=4096)] | None = None
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)


class BackboneRecord(BaseModel):
    """From this a backbone is loaded again and compared: the arguments of `gradshare.Backbone`, the
    version of its package, and the digest of its weights.
    """

    name: str
    options: dict[str, Any]
    weights: str | None
    preprocessing: Preprocessing
    version: str
    sha256: Sha256


class FeatureStore(BaseModel):
    """An opened store of features: the content of its `features.json`.

    Attributes:
        name: of the dataset that the images are of.
        form: of its images; the backbone's preprocessing comes after.
        backbone: what made the features.
        mean: (D,) of the training rows.
        std: (D,) likewise; 1 where the training rows are all alike.
        source: where the images came from.
        path: the store's folder.
    """

    model_config = ConfigDict(frozen=True)

    format_version: Literal[1] = 1
    name: str
    form: ImageFormat
    backbone: BackboneRecord
    mean: tuple[FiniteFloat, ...] = Field(repr=False)
    std: tuple[Positive, ...] = Field(repr=False)
    source: dict[str, Any] = Field(repr=False)
    path: Path = Field(default=Path(), exclude=True)

    @classmethod
    def open(cls, path: Path | str) -> FeatureStore:
        """Open the store in a folder.

        Raises:
            DataError: the folder holds no such store, or a damaged one.
        """
        path = Path(path)
        if not is_feature_store(path):
            raise DataError(f"no features in {path}; run `gradshare data features` first")
        try:
            store = cls.model_validate_json((path / RECORD).read_bytes())
        except (OSError, ValidationError) as error:
            raise DataError(
                f"the features in {path} are damaged ({first_mistake(error)}); delete {path} and "
                "run `gradshare data features` again"
            ) from error
        return store.model_copy(update={"path": path})

    @property
    def label(self) -> str:
        """The name of the folder, which is the name that `gradshare data features` was given."""
        path = self.path.absolute()
        return path.parent.name if path.name == FORM else path.name


class FeatureTasks(ClassTasks):
    """N-way few-shot tasks from one split of a `FeatureStore`.

    Rows are as the backbone gives them; `prepare` standardises them with the mean and deviation
    of the training classes. Groups are kept apart, as by `ClassTasks`.

    Args:
        store: the features.
        split: "train", "val" or "test".
        **sizes: ways, shots and queries; see `ClassTasks`.

    Raises:
        ConfigError, DataError: see `ClassTasks`.
    """

    def __init__(self, store: FeatureStore, split: str, **sizes: Any) -> None:
        self.store = store
        self._name = f"split {split!r} of {store.label}"
        x, y, groups = load(store.path / split)
        super().__init__(x, y, groups=groups, **sizes)

    @property
    def fingerprint(self) -> str:
        """A digest of the features, the classes, the settings and the standardisation."""
        return fingerprint(super().fingerprint, self.store.mean, self.store.std)

    @property
    def dataset(self) -> str:
        """The name of the dataset of features."""
        return self.store.label

    def standardised_as(self, other: FeatureTasks) -> FeatureTasks:
        """The same tasks, standardised as others of the same backbone.

        Raises:
            ConfigError: they are of another backbone, or of other preprocessing before it.
        """
        mine, theirs = self.store.backbone, other.store.backbone
        if (mine.sha256, mine.preprocessing) != (theirs.sha256, theirs.preprocessing):
            raise ConfigError(
                f"the features in {self.dataset} are of the backbone {mine.name}, and those in "
                f"{other.dataset} of another ({theirs.name}) or of other preprocessing; make both "
                "alike with `gradshare data features`"
            )
        changed = copy.copy(self)
        statistics = {"mean": other.store.mean, "std": other.store.std}
        changed.store = self.store.model_copy(update=statistics)
        return changed

    @property
    def note(self) -> str | None:
        """A caveat printed with results on these tasks, or None."""
        return splits_note(self.dataset, self.store.source)

    def prepare(self, batch: TaskBatch) -> TaskBatch:
        """Standardise the rows. Raise DataError if their length is not that of the store's."""
        store = self.store

        def standardised(rows: Tensor) -> Tensor:
            if rows.shape[-1] != len(store.mean):
                raise DataError(
                    f"rows of {rows.shape[-1]} numbers were given, and the features in "
                    f"{store.label} have {len(store.mean)}; give what the same backbone gives"
                )
            return (rows - rows.new_tensor(store.mean)) / rows.new_tensor(store.std)

        support, query = standardised(batch.support_x), standardised(batch.query_x)
        return replace(batch, support_x=support, query_x=query)


def feature_splits(store: FeatureStore, **sizes: Any) -> Splits:
    """The training, validation and test tasks of a store of features.

    Args:
        store: the features.
        **sizes: ways, shots and queries; see `FeatureTasks`.
    """
    return Splits(*(FeatureTasks(store, split, **sizes) for split in SPLITS))


def features_path(data_root: Path, name: str) -> Path:
    """The folder of a dataset's store of features."""
    return data_root / name / FORM


def features_command(store: FeatureStore, out: str, data_root: Path) -> str:
    """The command line that makes the features of a store again, under the name `out`."""
    made = store.backbone
    words = ["gradshare", "data", "features", store.name, "--backbone", made.name]
    for key, value in made.options.items():
        words += ["--backbone-option", f"{key}={json.dumps(value)}"]
    if made.weights is not None:
        words += ["--weights", made.weights]
    for key, value in made.preprocessing.model_dump(exclude_defaults=True).items():
        words += ["--preprocess", f"{key}={json.dumps(value)}"]
    words += ["--image-size", str(store.form.size), "--resize", store.form.resize]
    return shlex.join([*words, "--out", out, "--data-root", str(data_root)])


def is_feature_store(path: Path) -> bool:
    """Whether there is a store of features in a folder."""
    return (path / RECORD).is_file()
