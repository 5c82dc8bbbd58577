"""A few-shot classifier from a trained run: fit a support set, predict queries."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence, Sized
from dataclasses import replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradshare.backbones import Backbone
from gradshare.config.runs import open_run
from gradshare.errors import ConfigError, DataError, RunError
from gradshare.tasks import ImageStore, ImageTasks, TaskBatch, TaskSource
from gradshare.tasks.batch import Tree, first_leaf, tree_map
from gradshare.tasks.features import FeatureTasks
from gradshare.tasks.images import ImageFormat, read_image
from gradshare.tasks.source import prepared
from gradshare.training.adapted import as_inputs
from gradshare.training.evaluation import mean_of_finite
from gradshare.training.folder import RunFolder
from gradshare.training.randomness import isolated
from gradshare.training.run import Run

Labels = npt.NDArray[Any]

# The number of examples that are predicted at once, if that changes no prediction.
CHUNK = 200


class FewShotClassifier:
    """Learns new classes from a few examples of each, with the best checkpoints of a trained run.

    The interface is scikit-learn's: `fit`, `predict`, `predict_proba`, `score`, `classes_`.

    Inputs are as the run's source gives them, before its `prepare`: an array, a tensor, or a tuple
    or dictionary of them, with the examples as first dimension. A run on images takes uint8
    (n, C, H, W), or the paths of n image files, which it reads as the dataset was read. A run on
    features takes either, which it puts through the backbone, or rows of features (n, D).

    With transductive batch norm, as in the paper, the examples of one `predict` call influence each
    other's predictions; see `transductive`.

    Args:
        run: a run whose targets are classes, from `fit` or `open_run`, or its folder.
        ensemble: how many of its best checkpoints are averaged; None for all that it kept.
        device: where it runs, if `run` is a folder; as in `fit`.

    Raises:
        RunError: there is no such run, or no checkpoint of it can be read.
        ConfigError: the run lacks its learner or its source, has targets that are not classes, or
            has kept fewer checkpoints.
    """

    def __init__(
        self, run: Run | str | Path, *, ensemble: int | None = None, device: str = "auto"
    ) -> None:
        if not isinstance(run, Run):
            run = open_run(run, device=device)
        if run.missing is not None:
            raise run.missing
        if run.learner is None or run._source is None:
            raise ConfigError(
                f"the run in {run.path} was opened without its learner or its source; give both: "
                "gradshare.open_run(path, learner, source)"
            )
        self._learner, self._source = run.learner, run._source
        example = self._source.batch([0])
        if not isinstance(example.support_y, Tensor) or example.support_y.is_floating_point():
            raise ConfigError(
                f"the targets of the run in {run.path} are not classes; use run.adapt(x, y)"
            )
        self._like = example.support_x
        kept = min(RunFolder(run.path).contents()["identity"]["ensemble"], len(run.history))
        self._device = run.device
        with isolated(self._device):
            self._models = run.models(max(kept, 1) if ensemble is None else ensemble)
        self._form = _image_format(self._source)
        inductive = getattr(self._learner, "inductive", False)
        network = getattr(self._learner, "network", None)
        self.transductive = not inductive and (network is None or network.uses_batch_statistics)
        """Whether a prediction depends on the other examples of the call. It is assumed of a
        learner that does not say.
        """

    def fit(self, x: Any, y: npt.ArrayLike | Tensor) -> FewShotClassifier:
        """Adapt each checkpoint to a support set.

        Args:
            x: n inputs, in any order.
            y: (n,) their classes, of any type that numpy sorts. There must be as many different
                ones as the model has outputs.

        Raises:
            DataError: inputs that the run does not take, an image that cannot be read, or another
                number of classes or labels.
        """
        with isolated(self._device), torch.no_grad():
            inputs = self._inputs(x)
            labels = _one_for_each(first_leaf(inputs), y)
            encode = getattr(self._source, "encode", None)
            if encode is not None:
                targets, classes = encode(labels)
            else:
                classes, codes = np.unique(labels, return_inverse=True)
                targets = torch.from_numpy(codes.astype(np.int64))
            inputs, targets = tree_map(lambda t: t[None], inputs), targets[None]
            self._task = TaskBatch(inputs, targets, inputs, targets).to(self._device)
            task = prepared(self._source, self._task)
            meta, carried = self._models[0]
            start = self._learner.adapt(meta, carried, task, steps=0)
            outputs = self._learner.predict(meta, start, task).shape[2]
            if outputs != len(classes):
                raise DataError(
                    f"the labels name {len(classes)} classes; this run was trained for {outputs}"
                )
            self._adapted = [
                self._learner.adapt(meta, carried, task) for meta, carried in self._models
            ]
        self.classes_: Labels = np.asarray(classes)
        return self

    def predict_proba(self, x: Any) -> npt.NDArray[np.float32]:
        """The probability of each of `classes_`, (n, classes).

        Args:
            x: n inputs.

        Raises:
            DataError: `fit` was not called, inputs that the run does not take, or an image that
                cannot be read.
            RunError: the inner steps of each checkpoint overflowed on the support set.
        """
        if not hasattr(self, "_adapted"):
            raise DataError("call fit with a support set before asking for predictions")
        with isolated(self._device), torch.no_grad():
            inputs = self._inputs(x)
            at_a_time = max(1, len(first_leaf(inputs))) if self.transductive else CHUNK
            chunks = [self._probabilities(chunk) for chunk in _chunks(inputs, at_a_time)]
        probabilities: npt.NDArray[np.float32] = torch.cat(chunks).float().cpu().numpy()
        return probabilities

    def predict(self, x: Any) -> Labels:
        """The most probable class of each input; see `predict_proba`."""
        best = self.predict_proba(x).argmax(-1)
        chosen: Labels = self.classes_[best]
        return chosen

    def score(self, x: Any, y: npt.ArrayLike | Tensor) -> float:
        """The share of inputs that are predicted right, in [0, 1].

        Args:
            x: n inputs.
            y: (n,) the true classes, as `fit` was given them.

        Raises:
            DataError: as by `predict_proba`, another number of labels, or none of a class that
                `fit` was given.
        """
        predicted = self.predict(x)
        given = _one_for_each(predicted, y)
        if set(given.tolist()).isdisjoint(self.classes_.tolist()):
            raise DataError(
                f"none of the labels {reprlib.repr(given.tolist())} is one of the classes "
                f"{reprlib.repr(self.classes_.tolist())}; give them as `fit` was given them"
            )
        return float((predicted == given).mean())

    def _probabilities(self, inputs: Tree) -> Tensor:
        queries = tree_map(lambda t: t[None].to(self._device), inputs)
        none = torch.zeros(first_leaf(queries).shape[:2], dtype=torch.int64, device=self._device)
        task = prepared(self._source, replace(self._task, query_x=queries, query_y=none))
        outputs = [
            self._learner.predict(meta, adapted, task)
            for (meta, _), adapted in zip(self._models, self._adapted, strict=True)
        ]
        probabilities = mean_of_finite(torch.stack(outputs))[0].softmax(-1)
        if not probabilities.isfinite().all():
            raise RunError(
                "there is no prediction: the inner steps overflowed on this support set, with "
                f"each checkpoint ({len(outputs)}); the run's inner rate is too high for it"
            )
        return probabilities

    def _inputs(self, x: Any) -> Tree:
        on_features = isinstance(self._source, FeatureTasks)
        if self._form is None or (on_features and not _paths(x) and np.ndim(x) == 2):
            return as_inputs(x, self._like)
        images = _images(x, self._form)
        return as_inputs(self._backbone(images), self._like) if on_features else images

    @cached_property
    def _backbone(self) -> Backbone:
        """What made the features of the run's source, for images."""
        assert isinstance(self._source, FeatureTasks)
        return Backbone.of(self._source.store.backbone)


def _image_format(source: TaskSource) -> ImageFormat | None:
    """What the images of a source were turned into when they were prepared; None if it has none."""
    if isinstance(source, FeatureTasks):
        return source.store.form
    if not isinstance(source, ImageTasks):
        return None
    channels, size, _ = source.split.images.shape[1:]
    stored = source.split.stored
    record = {} if stored is None else ImageStore.open(stored.path).source
    return ImageFormat(size, channels, record.get("resize", "stretch"))


def _images(images: Any, form: ImageFormat) -> Tensor:
    """uint8 images (n, C, H, W), read from files if they are paths."""
    if isinstance(images, str | Path):
        raise DataError(f"x is one path, {str(images)!r}; give a list of paths")
    if paths := _paths(images):
        return torch.from_numpy(np.stack([read_image(path, str(path), form) for path in paths]))
    try:
        tensor = torch.as_tensor(images if isinstance(images, Tensor) else np.asarray(images))
    except (TypeError, ValueError) as error:  # of what has no numbers, or no shape
        raise DataError(
            f"x is not an array ({error}); give uint8 images of one shape, or a list of paths"
        ) from error
    if tensor.dtype != torch.uint8 or tensor.shape[1:] != form.shape or len(tensor) == 0:
        raise DataError(
            f"the images are {tensor.dtype} {tuple(tensor.shape)}; this run takes torch.uint8 "
            f"(n, {', '.join(map(str, form.shape))})"
        )
    return tensor


def _paths(images: Any) -> list[Path]:
    """The images as paths; none if that is not what they are."""
    if isinstance(images, np.ndarray) and images.dtype.kind in "UO":
        images = images.tolist()
    if isinstance(images, Sequence) and all(isinstance(image, str | Path) for image in images):
        return [Path(image) for image in images]
    return []


def _one_for_each(examples: Sized, y: npt.ArrayLike | Tensor) -> Labels:
    """The labels (n,) of some examples.

    Raises:
        DataError: there are more or fewer labels than examples.
    """
    given: Labels = np.asarray(y.cpu() if isinstance(y, Tensor) else y).reshape(-1)
    if len(given) != len(examples):
        raise DataError(f"{len(examples)} examples, but {len(given)} labels; give one for each")
    return given


def _chunks(inputs: Tree, size: int) -> Iterator[Tree]:
    for start in range(0, len(first_leaf(inputs)), size):
        yield tree_map(itemgetter(slice(start, start + size)), inputs)
