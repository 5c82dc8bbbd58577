"""A few-shot classifier from a trained run: fit a support set, predict queries."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradshare.errors import ConfigError, DataError, RunError
from gradshare.methods import MetaLearner
from gradshare.tasks import Normalization, TaskBatch
from gradshare.tasks.images import ImageFormat, read_image
from gradshare.training.evaluation import Model, mean_of_finite
from gradshare.training.folder import RunFolder
from gradshare.training.records import kept_epochs
from gradshare.training.setup import build_learner, choose_device, keep_float32

Labels = npt.NDArray[Any]

ImagesOrPaths = npt.ArrayLike | Tensor | Sequence[str | Path]
"""uint8 images (n, C, H, W), or the paths of n image files, which are read as the images of the
run's dataset were when it was prepared.
"""

# So many images are predicted at once where that changes no prediction.
INDUCTIVE_CHUNK = 200


class FewShotClassifier:
    """Learns new classes from a few images of each, with the best checkpoints of a trained run.

    The estimator's interface is scikit-learn's: `fit`, `predict`, `predict_proba`, `score`,
    `classes_`. With transductive batch norm, which is what the paper trains with, the images of one
    `predict` call influence each other's predictions; `batch_norm` says which mode the run has. On
    a GPU it turns TF32 off, for the whole process, as training does.

    Args:
        learner: the method, as it was trained.
        models: the checkpoints whose predictions are averaged.
        normalization: of the images.
        ways: how many classes there must be.
        form: what every image is, and every image file is turned into.
        device: where it runs, by its name too, as `RunConfig` has them.

    Raises:
        ConfigError: no such device here.
    """

    def __init__(
        self,
        learner: MetaLearner,
        models: Sequence[Model],
        normalization: Normalization,
        *,
        ways: int,
        form: ImageFormat,
        device: torch.device | str,
    ) -> None:
        self.learner = learner
        self.models = models
        self.normalization = normalization
        self.ways = ways
        self.form = form
        self.device = choose_device(str(device))
        keep_float32(self.device)
        self.batch_norm = "inductive" if learner.inductive else "transductive"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.form.shape

    @classmethod
    def from_run(
        cls,
        folder: str | Path,
        *,
        ensemble: int | None = None,
        device: torch.device | str = "auto",
    ) -> FewShotClassifier:
        """The classifier of a training run's folder; it needs nothing else.

        Args:
            folder: a run, that is, one arm of a comparison.
            ensemble: how many of its best checkpoints to average; None for all that it kept.
            device: see `RunConfig`.

        Raises:
            RunError: there is no such run, or no checkpoint of it can be read.
            ConfigError: no such device here, or `ensemble` is less than one or more than it kept.
        """
        run = RunFolder(Path(folder).expanduser())
        config, inputs, history = run.config(), run.inputs(), run.history()
        kept = len(kept_epochs(history, config.ensemble))
        count = kept if ensemble is None else ensemble
        if not 1 <= count <= kept:
            raise ConfigError(
                f"ensemble is {ensemble}, but must be from 1 to {kept}, the number of checkpoints "
                f"that {folder} kept; leave it out to average all of them"
            )
        place = choose_device(str(device))
        learner, _ = build_learner(config, inputs.image_shape, place)
        learner.model.to(place)
        channels, size, _ = inputs.image_shape
        return cls(
            learner,
            run.best_models(history, count, learner.init()),
            Normalization(inputs.mean, inputs.std),
            ways=config.ways,
            form=ImageFormat(size, channels, config.resize),
            device=place,
        )

    def fit(self, images: ImagesOrPaths, labels: npt.ArrayLike | Tensor) -> FewShotClassifier:
        """Adapt every checkpoint to a support set.

        Args:
            images: uint8 (n, C, H, W), or n paths of image files, in any order.
            labels: (n,) of exactly `ways` classes, of any type that numpy sorts, or a tensor on any
                device.

        Raises:
            DataError: images of another shape or type, a file that cannot be read, or another
                number of classes or labels.
        """
        support = self._images(images)
        names, codes = np.unique(_one_for_each(support, labels), return_inverse=True)
        if len(names) != self.ways:
            raise DataError(
                f"the labels name {len(names)} classes; this run was trained for {self.ways}"
            )
        self.classes_: Labels = names
        self._task = self._support_task(support, torch.from_numpy(codes))
        self._adapted = [
            self.learner.adapt(learned, state, self._task).params[-1]
            for learned, state in self.models
        ]
        return self

    def predict_proba(self, images: ImagesOrPaths) -> npt.NDArray[np.float32]:
        """The probability of each of `classes_`, (n, ways).

        Args:
            images: uint8 (n, C, H, W), or n paths of image files.

        Raises:
            DataError: `fit` was not called, images of another shape or type, or a file that cannot
                be read.
            RunError: the inner steps of every checkpoint overflowed on the support set.
        """
        if not hasattr(self, "_adapted"):
            raise DataError("call fit with a support set before asking for predictions")
        queries = self._images(images)
        # Transductive predictions depend on which queries go together: all of a call do.
        at_a_time = INDUCTIVE_CHUNK if self.batch_norm == "inductive" else len(queries)
        chunks = [self._probabilities(chunk) for chunk in torch.split(queries, at_a_time)]
        probabilities: npt.NDArray[np.float32] = torch.cat(chunks).cpu().numpy()
        return probabilities

    def predict(self, images: ImagesOrPaths) -> Labels:
        """Of each image the likeliest class, as `fit` was given it; see `predict_proba`."""
        best = self.predict_proba(images).argmax(-1)
        chosen: Labels = self.classes_[best]
        return chosen

    def score(self, images: ImagesOrPaths, labels: npt.ArrayLike | Tensor) -> float:
        """The share of images that are predicted right, in [0, 1].

        Args:
            images: uint8 (n, C, H, W), or n paths of image files.
            labels: (n,) the true classes, as `fit` was given them.

        Raises:
            DataError: as by `predict_proba`, another number of labels, or none of a class that
                `fit` was given.
        """
        predicted = self.predict(images)
        given = _one_for_each(predicted, labels)
        if set(given.tolist()).isdisjoint(self.classes_.tolist()):
            raise DataError(
                f"none of the labels {reprlib.repr(given.tolist())} is one of the classes "
                f"{reprlib.repr(self.classes_.tolist())}; give them as `fit` was given them"
            )
        return float((predicted == given).mean())

    @torch.no_grad()
    def _probabilities(self, queries: Tensor) -> Tensor:
        task = dataclasses.replace(
            self._task, query_x=self.normalization(queries.to(self.device))[None]
        )
        logits = [
            self.learner.predict(learned, params, task, updates=self.learner.steps)[0]
            for (learned, _), params in zip(self.models, self._adapted, strict=True)
        ]
        probabilities = mean_of_finite(torch.stack(logits)).softmax(-1)
        if not probabilities.isfinite().all():
            raise RunError(
                "there is no prediction: the inner steps overflowed on this support set, with "
                f"every checkpoint ({len(self.models)}); the run's inner rate is too high for it"
            )
        return probabilities

    def _support_task(self, support: Tensor, codes: Tensor) -> TaskBatch:
        no_queries = torch.zeros(1, 0, dtype=torch.int64)
        task = TaskBatch(support[None], codes.to(torch.int64)[None], support[None, :0], no_queries)
        return self.normalization.batch(task.to(self.device))

    def _images(self, images: ImagesOrPaths) -> Tensor:
        if isinstance(images, str | Path):
            raise DataError(f"images is one path, {str(images)!r}; give a list of paths")
        if paths := _paths(images):
            return torch.from_numpy(
                np.stack([read_image(path, str(path), self.form) for path in paths])
            )
        try:
            tensor = torch.as_tensor(images if isinstance(images, Tensor) else np.asarray(images))
        except (TypeError, ValueError) as error:  # of what has no numbers, or no shape
            raise DataError(
                f"images are no array ({error}); give uint8 images of one shape, or a list of paths"
            ) from error
        if tensor.dtype != torch.uint8 or tensor.shape[1:] != self.image_shape or len(tensor) == 0:
            raise DataError(
                f"images are {tensor.dtype} {tuple(tensor.shape)}; this run takes torch.uint8 "
                f"(n, {', '.join(map(str, self.image_shape))})"
            )
        return tensor


def _one_for_each(images: Sized, labels: npt.ArrayLike | Tensor) -> Labels:
    """Labels (n,) of so many images.

    Raises:
        DataError: there is another number of them.
    """
    given: Labels = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels).reshape(-1)
    if len(given) != len(images):
        raise DataError(f"{len(images)} images, but {len(given)} labels; give one for each")
    return given


def _paths(images: Any) -> list[Path]:
    """The images as paths; none if that is not what they are."""
    if isinstance(images, np.ndarray) and images.dtype.kind in "UO":
        images = images.tolist()
    if isinstance(images, Sequence) and all(isinstance(image, str | Path) for image in images):
        return [Path(image) for image in images]
    return []
