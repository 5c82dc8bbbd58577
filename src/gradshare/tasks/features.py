"""Stores of features: what a frozen backbone makes of the images of a prepared dataset.

A store is a folder with

- `train/`, `val/` and `test/`, each with `x.npy`, float32 (n, D), one row for each image as the
  backbone gives it; `y.npy`, its class; and, if the images have groups, `groups.npy`;
- `features.json`: the backbone with its preprocessing and the digest of its weights, the form of
  the images before it, and the mean and deviation of the training rows.

`gs.ClassTasks.load(path / "train")` reads a split without this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from torch import Tensor

from gradshare.errors import DataError
from gradshare.tasks.arrays import fingerprint, load
from gradshare.tasks.batch import TaskBatch
from gradshare.tasks.classes import ClassTasks
from gradshare.tasks.download import OnProgress
from gradshare.tasks.images import ImageFormat, Resize
from gradshare.tasks.splits import Splits
from gradshare.tasks.store import SPLITS, ImageStore, Sha256, Split, first_mistake
from gradshare.tasks.writing import writing

FORM = "features"
"""The name of the store of features among the stores of a dataset."""

RECORD = "features.json"

CHUNK = 64
"""Images that go through the backbone at a time."""

Rows = npt.NDArray[np.float32]


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
    mean: Annotated[tuple[FiniteFloat, ...], Field(min_length=3, max_length=3)] = (
        0.485,
        0.456,
        0.406,
    )
    std: Annotated[
        tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...],
        Field(min_length=3, max_length=3),
    ] = (0.229, 0.224, 0.225)


class BackboneRecord(BaseModel):
    """What a backbone is made from again, and how it is known to be the same.

    Attributes:
        name, options, weights: see `gradshare.Backbone`.
        preprocessing: of its images.
        version: of the package that it comes from.
        sha256: of its weights.
    """

    name: str
    options: dict[str, Any]
    weights: str | None
    preprocessing: Preprocessing
    version: str
    sha256: Sha256


class _Images(BaseModel):
    """The form of the images that the backbone was given."""

    size: int
    channels: int
    resize: Resize


class _Content(BaseModel):
    """The content of `features.json`."""

    format_version: Literal[1]
    name: str
    source: dict[str, Any]
    images: _Images
    backbone: BackboneRecord
    mean: list[FiniteFloat]
    std: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]]


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """An opened store of features.

    Attributes:
        name: of the dataset that the images are of.
        path: the store's folder.
        backbone: what made the features.
        form: what an image is brought to before the backbone's own preprocessing.
        mean: (D,) of the training rows.
        std: (D,) likewise; 1 where the training rows are all alike.
        source: where the images came from.
    """

    name: str
    path: Path
    backbone: BackboneRecord
    form: ImageFormat
    mean: Tensor = field(repr=False)
    std: Tensor = field(repr=False)
    source: dict[str, Any] = field(repr=False)

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
            content = _Content.model_validate_json((path / RECORD).read_bytes())
        except (OSError, ValidationError) as error:
            cause = first_mistake(error) if isinstance(error, ValidationError) else error
            raise DataError(
                f"the features in {path} are damaged ({cause}); delete {path} and run "
                "`gradshare data features` again"
            ) from error
        return cls(
            name=content.name,
            path=path,
            backbone=content.backbone,
            form=ImageFormat(**content.images.model_dump()),
            mean=torch.tensor(content.mean),
            std=torch.tensor(content.std),
            source=content.source,
        )


class FeatureTasks(ClassTasks):
    """N-way few-shot tasks from one split of a `FeatureStore`.

    Rows are as the backbone gives them; `prepare` standardises them with the mean and deviation
    of the training classes. Groups are kept apart, as by `ClassTasks`.

    Args:
        store: the features.
        split: "train", "val" or "test".
        ways: classes in a task (N).
        shots: support rows of each class.
        queries: query rows of each class.

    Raises:
        ConfigError, DataError: see `ClassTasks`.
    """

    def __init__(
        self, store: FeatureStore, split: str, *, ways: int = 5, shots: int = 1, queries: int = 15
    ) -> None:
        self.store = store
        self._name = f"split {split!r} of the features of {store.name}"
        x, y, groups = load(store.path / split)
        super().__init__(x, y, ways=ways, shots=shots, queries=queries, groups=groups)

    @property
    def fingerprint(self) -> str:
        """A digest of the features, the classes, the settings and the standardisation."""
        store = self.store
        return fingerprint(super().fingerprint, store.mean.tolist(), store.std.tolist())

    def prepare(self, batch: TaskBatch) -> TaskBatch:
        """Standardise the rows.

        Raises:
            DataError: they are longer or shorter than the rows of the store.
        """
        length = len(self.store.mean)

        def standardised(rows: Tensor) -> Tensor:
            if rows.shape[-1] != length:
                raise DataError(
                    f"rows of {rows.shape[-1]} numbers were given, and the features of "
                    f"{self.store.name} have {length}; give what the same backbone gives"
                )
            return (rows - self.store.mean.to(rows)) / self.store.std.to(rows)

        return replace(
            batch,
            support_x=standardised(batch.support_x),
            query_x=standardised(batch.query_x),
        )


def feature_splits(store: FeatureStore, **sizes: int) -> Splits:
    """The training, validation and test tasks of a store of features.

    Args:
        store: the features.
        **sizes: ways, shots and queries; see `FeatureTasks`.

    Raises:
        ConfigError, DataError: see `ClassTasks`.
    """
    return Splits(*(FeatureTasks(store, split, **sizes) for split in SPLITS))


class Extractor(Protocol):
    """What makes features of images, as `gradshare.Backbone` does."""

    record: BackboneRecord

    def __call__(self, images: Tensor) -> Tensor:
        """Images, uint8 (n, C, H, W), to float32 (n, D)."""
        ...


def write_features(
    store: ImageStore,
    backbone: Extractor,
    path: Path | str,
    *,
    force: bool = False,
    progress: OnProgress | None = None,
) -> FeatureStore:
    """Put the images of a dataset through a backbone, and write what comes out as a store.

    Args:
        store: the prepared dataset.
        backbone: see `gradshare.Backbone`.
        path: the folder of the new store.
        force: replace a store that exists.
        progress: called after each class.

    Raises:
        DataError: the folder exists, features are not finite, or the folder cannot be written.
    """
    path = Path(path).expanduser()
    if path.exists() and not (force and is_feature_store(path)):
        raise DataError(
            f"{path} is there already and is not overwritten; delete it, or write to another path"
        )
    channels, size, _ = store.image_shape
    try:
        with writing(path) as workspace:
            new = workspace / "store"
            done, total = 0, sum(len(split.class_names) for split in store.splits.values())
            for name, split in store.splits.items():
                rows = []
                for row in _of_classes(split, backbone):
                    rows.append(row)
                    done += 1
                    if progress is not None:
                        progress(done, total)
                _write_split(new / name, split, np.concatenate(rows))
            train = np.load(new / "train" / "x.npy")
            deviation = train.std(0, dtype=np.float64)
            content = _Content(
                format_version=1,
                name=store.name,
                source=dict(store.source),
                images=_Images(
                    size=size, channels=channels, resize=store.source.get("resize", "stretch")
                ),
                backbone=backbone.record,
                mean=train.mean(0, dtype=np.float64).tolist(),
                std=np.where(deviation > 0, deviation, 1.0).tolist(),
            )
            (new / RECORD).write_text(content.model_dump_json(), encoding="utf-8")
            if path.exists():
                path.rename(workspace / "replaced")
            new.rename(path)
    except OSError as error:
        raise DataError(
            f"cannot write the features to {path} ({error}); free space there, or choose a folder "
            "you may write to"
        ) from error
    return FeatureStore.open(path)


def features_path(data_root: Path, name: str) -> Path:
    """The folder of a dataset's store of features."""
    return data_root / name / FORM


def is_feature_store(path: Path) -> bool:
    """Whether there is a store of features in a folder."""
    return (path / RECORD).is_file()


def _of_classes(split: Split, backbone: Extractor) -> Iterator[Rows]:
    """The features of each class of a split."""
    for name, start, count in zip(split.class_names, split.starts, split.counts, strict=True):
        chunks = np.array_split(np.arange(start, start + count), math.ceil(count / CHUNK))
        images = (torch.from_numpy(np.asarray(split.images.take(c, axis=0))) for c in chunks)
        rows = torch.cat([backbone(chunk) for chunk in images]).numpy()
        if not np.isfinite(rows).all():
            raise DataError(
                f"the backbone {backbone.record.name} gives features of class {name!r} that are "
                "not finite; check its weights and its preprocessing"
            )
        yield rows


def _write_split(folder: Path, split: Split, rows: Rows) -> None:
    """Write a split in the layout that `ClassTasks.load` reads."""
    folder.mkdir(parents=True)
    np.save(folder / "x.npy", rows)
    np.save(folder / "y.npy", np.repeat(split.class_names, split.counts))
    if split.groups is not None:
        of_class = zip(split.starts, split.counts, strict=True)
        groups = [split.groups[start : start + count] for start, count in of_class]
        np.save(folder / "groups.npy", np.concatenate(groups))
