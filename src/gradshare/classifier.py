"""A few-shot classifier from a trained run: fit a support set, predict queries."""

from __future__ import annotations

import dataclasses
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
from gradshare.training.evaluation import Model, mean_of_finite
from gradshare.training.folder import RunFolder
from gradshare.training.setup import build_learner, choose_device

Labels = npt.NDArray[Any]

# So many images are predicted at once where that changes no prediction.
INDUCTIVE_CHUNK = 200


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
    def from_run(
        cls, folder: str | Path, *, ensemble: int | None = None, device: str = "auto"
    ) -> FewShotClassifier:
        """The classifier of a training run's folder; it needs nothing else.

        Args:
            folder: a run, that is, one arm of a comparison.
            ensemble: how many of its best checkpoints to average; None for all that it kept.
            device: see `RunConfig`.

        Raises:
            RunError: there is no such run, or no checkpoint of it can be read.
            ConfigError: no such device here.
        """
        run = RunFolder(Path(folder))
        config, inputs = run.config(), run.inputs()
        place = choose_device(device)
        learner, _ = build_learner(config, inputs.image_shape, place)
        learner.model.to(place)
        count = config.ensemble if ensemble is None else ensemble
        return cls(
            learner,
            run.best_models(run.history(), count, learner.init()),
            Normalization(inputs.mean, inputs.std),
            ways=config.ways,
            image_shape=inputs.image_shape,
            device=place,
        )

    def fit(self, images: npt.ArrayLike | Tensor, labels: npt.ArrayLike) -> FewShotClassifier:
        """Adapt every checkpoint to a support set.

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
        self._task = self._support_task(support, torch.from_numpy(codes.reshape(-1)))
        self._adapted = [
            self.learner.adapt(learned, state, self._task).params[-1]
            for learned, state in self.models
        ]
        return self

    def predict_proba(self, images: npt.ArrayLike | Tensor) -> npt.NDArray[np.float32]:
        """The probability of each of `classes_`, (n, ways), for uint8 images (n, C, H, W).

        Raises:
            DataError: `fit` was not called, or images of another shape or type.
        """
        if not hasattr(self, "_adapted"):
            raise DataError("call fit with a support set before asking for predictions")
        queries = self._images(images)
        # Transductive predictions depend on which queries go together: all of a call do.
        at_a_time = INDUCTIVE_CHUNK if self.batch_norm == "inductive" else len(queries)
        chunks = [self._probabilities(chunk) for chunk in torch.split(queries, at_a_time)]
        probabilities: npt.NDArray[np.float32] = torch.cat(chunks).cpu().numpy()
        return probabilities

    def predict(self, images: npt.ArrayLike | Tensor) -> Labels:
        """The class of each image, as one of the labels that `fit` was given."""
        best = self.predict_proba(images).argmax(-1)
        chosen: Labels = self.classes_[best]
        return chosen

    @torch.no_grad()
    def _probabilities(self, queries: Tensor) -> Tensor:
        task = dataclasses.replace(
            self._task, query_x=self.normalization(queries.to(self.device))[None]
        )
        logits = [
            self.learner.predict(learned, params, task, updates=self.learner.steps)[0]
            for (learned, _), params in zip(self.models, self._adapted, strict=True)
        ]
        return mean_of_finite(torch.stack(logits)).softmax(-1)

    def _support_task(self, support: Tensor, codes: Tensor) -> TaskBatch:
        no_queries = torch.zeros(1, 0, dtype=torch.int64)
        task = TaskBatch(support[None], codes.to(torch.int64)[None], support[None, :0], no_queries)
        return self.normalization.batch(task.to(self.device))

    def _images(self, images: npt.ArrayLike | Tensor) -> Tensor:
        tensor = torch.as_tensor(images if isinstance(images, Tensor) else np.asarray(images))
        if tensor.dtype != torch.uint8 or tensor.shape[1:] != self.image_shape or len(tensor) == 0:
            raise DataError(
                f"images are {tensor.dtype} {tuple(tensor.shape)}; this run takes torch.uint8 "
                f"(n, {', '.join(map(str, self.image_shape))})"
            )
        return tensor
