"""A few-shot classifier from a trained run: fit a support set, predict queries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradshare.episodes import Normalization, TaskBatch
from gradshare.errors import DataError
from gradshare.methods import MetaLearner
from gradshare.training.evaluation import Model
from gradshare.training.folder import RunFolder
from gradshare.training.setup import set_up

Labels = npt.NDArray[Any]


class FewShotClassifier:
    """Learns new classes from a few images of each, with the best checkpoints of a trained run.

    The estimator's interface is scikit-learn's: `fit`, `predict`, `predict_proba`, `classes_`. With
    transductive batch norm, which is what the paper trains with, the images of one `predict` call
    influence each other's predictions; `batch_norm` says which mode the run has.

    Args:
        learner: the method, as it was trained.
        models: the checkpoints whose predictions are averaged.
        normalization: of the images.
        ways: how many classes there must be.
        image_shape: (C, H, W) of every image.
        device: where it runs.
    """

    def __init__(
        self,
        learner: MetaLearner,
        models: Sequence[Model],
        normalization: Normalization,
        *,
        ways: int,
        image_shape: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        self.learner = learner
        self.models = models
        self.normalization = normalization
        self.ways = ways
        self.image_shape = image_shape
        self.device = device
        self.batch_norm = "inductive" if learner.inductive else "transductive"

    @classmethod
    def from_run(cls, folder: str | Path, *, ensemble: int | None = None) -> FewShotClassifier:
        """The classifier of a training run's folder.

        Args:
            folder: a run, that is, one arm of a comparison.
            ensemble: how many of its best checkpoints to average; None for all that it kept.

        Raises:
            RunError: there is no such run.
            ConfigError, DataError: the run's dataset, whose pixel statistics are needed, is gone.
        """
        run = RunFolder(Path(folder))
        config = run.config()
        setup = set_up(config)
        models = run.best_models(run.history(), ensemble or config.ensemble, setup.device)
        channels, height, width = setup.train.split.images.shape[1:]
        return cls(
            setup.learner,
            models,
            setup.normalization,
            ways=config.ways,
            image_shape=(channels, height, width),
            device=setup.device,
        )

    def fit(self, images: npt.ArrayLike | Tensor, labels: npt.ArrayLike) -> FewShotClassifier:
        """Keep the support set that predictions adapt to.

        Args:
            images: uint8 (n, C, H, W), in any order.
            labels: (n,) of exactly `ways` classes, of any type that numpy sorts.

        Raises:
            DataError: images of another shape or type, or another number of classes or labels.
        """
        support = self._images(images)
        names, codes = np.unique(np.asarray(labels), return_inverse=True)
        if len(codes) != len(support):
            raise DataError(f"{len(support)} images, but {len(codes)} labels; give one for each")
        if len(names) != self.ways:
            raise DataError(
                f"the labels name {len(names)} classes; this run was trained for {self.ways}"
            )
        self.classes_: Labels = names
        self._support = support
        self._codes = torch.from_numpy(codes.reshape(-1).astype(np.int64))
        return self

    def predict_proba(self, images: npt.ArrayLike | Tensor) -> npt.NDArray[np.float32]:
        """The probability of each of `classes_`, (n, ways), for uint8 images (n, C, H, W).

        Raises:
            DataError: `fit` was not called, or images of another shape or type.
        """
        if not hasattr(self, "_support"):
            raise DataError("call fit with a support set before asking for predictions")
        queries = self._images(images)
        task = self.normalization.batch(
            TaskBatch(
                self._support[None],
                self._codes[None],
                queries[None],
                torch.zeros(1, len(queries), dtype=torch.int64),
            ).to(self.device)
        )
        steps = self.learner.steps
        with torch.no_grad():
            logits = torch.stack(
                [
                    self.learner.predict(
                        learned,
                        self.learner.adapt(learned, state, task).params[-1],
                        task,
                        updates=steps,
                    )[0]
                    for learned, state in self.models
                ]
            ).mean(0)
        probabilities: npt.NDArray[np.float32] = logits.softmax(-1).cpu().numpy()
        return probabilities

    def predict(self, images: npt.ArrayLike | Tensor) -> Labels:
        """The class of each image, as one of the labels that `fit` was given."""
        best = self.predict_proba(images).argmax(-1)
        chosen: Labels = self.classes_[best]
        return chosen

    def _images(self, images: npt.ArrayLike | Tensor) -> Tensor:
        tensor = torch.as_tensor(images if isinstance(images, Tensor) else np.asarray(images))
        if tensor.dtype != torch.uint8 or tensor.shape[1:] != self.image_shape or len(tensor) == 0:
            raise DataError(
                f"images are {tensor.dtype} {tuple(tensor.shape)}; this run takes torch.uint8 "
                f"(n, {', '.join(map(str, self.image_shape))})"
            )
        return tensor
