"""What a classifier needs of a run: its best checkpoints, and how its inputs are prepared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradshare.backbones import Backbone
from gradshare.classifier.inputs import as_images, as_rows, is_table
from gradshare.config.runs import open_run
from gradshare.errors import ConfigError, DataError, RunError
from gradshare.inner_loop import Tensors
from gradshare.methods import MetaLearner
from gradshare.methods.head import METHODS_OF_ANY_WAYS, body, members
from gradshare.tasks import ImageTasks, TaskBatch, TaskSource
from gradshare.tasks.absent import AbsentImages
from gradshare.tasks.batch import Tree, first_leaf, tree_map
from gradshare.tasks.features import FeatureTasks
from gradshare.tasks.images import ImageFormat
from gradshare.tasks.source import prepared
from gradshare.training.checks import explain_misfit, require_finite
from gradshare.training.evaluation import mean_of_finite
from gradshare.training.folder import RunFolder
from gradshare.training.randomness import isolated
from gradshare.training.run import Run

YARDSTICK_SIZE = 84
"""The largest height and width of the images that yardsticks see beside features."""

CHUNK = 200
"""The number of examples that are predicted at once, where that changes no prediction."""


class Trained:
    """The best checkpoints of a run whose targets are classes.

    Args:
        run: from `fit` or `open_run`, or its folder.
        ensemble: how many checkpoints are averaged; None for all that the run kept.
        device: where they run, if `run` is a folder; as in `fit`.

    Attributes:
        path: of the run.
        form: of the images that it takes; None if it takes other inputs.
        calibrations: those of the classifier, by ways, shots and tasks.
        transductive: whether a prediction depends on the other examples of the call; True for
            a learner that does not say.

    Raises:
        RunError: there is no such run, or no checkpoint of it can be read.
        ConfigError: the run lacks its learner or its source, has targets that are not classes, or
            has kept fewer checkpoints.
    """

    def __init__(self, run: Run | str | Path, ensemble: int | None, device: str) -> None:
        if not isinstance(run, Run):
            run = open_run(run, device=device)
        if run.missing is not None:
            raise run.missing
        if run.learner is None or run.source is None:
            raise ConfigError(
                f"the run in {run.path} was opened without its learner or its source; give both: "
                "gradshare.open_run(path, learner, source)"
            )
        self.path = run.path
        self.learner, self.source, self.validation = run.learner, run.source, run.validation
        self.device = run.device
        example = self.source.batch([0])
        if not isinstance(example.support_y, Tensor) or example.support_y.is_floating_point():
            raise ConfigError(
                f"the targets of the run in {run.path} are not classes; use run.adapt(x, y)"
            )
        self.like = example.support_x
        self.calibrations: dict[tuple[int, int, int], Any] = {}
        kept = min(RunFolder(run.path).contents()["identity"]["ensemble"], len(run.history))
        with isolated(self.device):
            self.models = run.models(max(kept, 1) if ensemble is None else ensemble)
        self.form = _image_format(self.source)
        self._body = None
        if isinstance(self.learner, MetaLearner):
            with contextlib.suppress(ConfigError):  # it has no linear head
                self._body = body(self.learner, None)
        inductive = getattr(self.learner, "inductive", False)
        network = getattr(self.learner, "network", None)
        self.transductive = not inductive and (network is None or network.uses_batch_statistics)

    def read(self, x: Any) -> Tree:
        """A user's inputs as the run's source gives them."""
        on_features = isinstance(self.source, FeatureTasks)
        with isolated(self.device):
            if self.form is None or (on_features and is_table(x)):
                return as_rows(x, self.like)
            images = as_images(x, self.form)
            return as_rows(self.backbone(images), self.like) if on_features else images

    def yardstick_inputs(self, x: Any, inputs: Tree) -> dict[str, Tensor]:
        """What classifiers that need no meta-training may see of a user's inputs, by its name.

        Args:
            x: the user's inputs.
            inputs: what `read` made of them.
        """
        if not isinstance(inputs, Tensor):
            return {}
        if self.form is None or is_table(x):
            return {"the inputs": inputs}
        if not isinstance(self.source, FeatureTasks):
            return {"pixels": inputs}
        small = replace(self.form, size=min(self.form.size, YARDSTICK_SIZE))
        return {"features": inputs, "pixels": as_images(x, small)}

    @cached_property
    def backbone(self) -> Backbone:
        """What made the features of the run's source, for images."""
        assert isinstance(self.source, FeatureTasks)
        return Backbone.of(self.source.store.backbone)

    def __getstate__(self) -> dict[str, Any]:
        """Without the backbone, which is loaded again from where it was."""
        return {name: value for name, value in vars(self).items() if name != "backbone"}

    def fit(self, support: TaskBatch) -> Fitted:
        """Adapt each checkpoint to the support set of one task, as the source gives it.

        Raises:
            DataError: the support set has more classes than the run can learn.
        """
        meta, carried = self.models[0]
        with self.preparing(support, "support set") as task:
            unadapted = self.learner.adapt(meta, carried, task, steps=0)
            most = self.learner.predict(meta, unadapted, task).shape[2]
            classes = int(task.support_y.max()) + 1
            if classes > most:
                raise DataError(
                    f"the labels name {classes} classes; this run was trained for {most}: train "
                    "one with as many --ways, or with a --method for any number: "
                    f"{METHODS_OF_ANY_WAYS}"
                )
            return Fitted(self, support, self.adapt(task))

    def adapt(self, tasks: TaskBatch, steps: int | None = None) -> list[Any]:
        """What `learner.adapt` returns for prepared tasks, for each checkpoint.

        Args:
            tasks: prepared tasks.
            steps: inner steps; None for as many as were trained.
        """
        return [
            self.learner.adapt(meta, carried, tasks, steps=steps) for meta, carried in self.models
        ]

    def outputs(self, tasks: TaskBatch, adapted: list[Any]) -> Tensor:
        """The mean outputs (T, n, classes) of the adapted checkpoints for the queries of prepared
        tasks. They are not finite where each checkpoint overflowed.
        """
        outputs = [
            self.learner.predict(meta, own, tasks)
            for (meta, _), own in zip(self.models, adapted, strict=True)
        ]
        return mean_of_finite(torch.stack(outputs))

    def distances(self, tasks: TaskBatch, adapted: list[Any]) -> Tensor:
        """How far (T, n) the queries of prepared tasks are from the nearest class mean of the
        support set, on average over the adapted checkpoints.

        The distance is that of the inputs of the head, or of the outputs of a learner that has no
        linear head.
        """
        weights = members(tasks).float().transpose(1, 2)
        as_queries = replace(
            tasks, query_x=tasks.support_x, query_y=tasks.support_y, query_n=tasks.support_n
        )
        found = []
        for (meta, _), own in zip(self.models, adapted, strict=True):
            support, queries = (self._embedded(meta, own, part) for part in (as_queries, tasks))
            means = weights.to(support.dtype) @ support / weights.sum(2, keepdim=True)
            # The mean of a class that the task lacks is not a number.
            found.append(torch.cdist(queries, means).nan_to_num(torch.inf).amin(2))
        return mean_of_finite(torch.stack(found))

    def _embedded(self, meta: Tensors, own: Any, tasks: TaskBatch) -> Tensor:
        """What the head of one checkpoint is given for the queries of tasks, (T, n, D)."""
        learner = self.learner
        if self._body is None or not isinstance(learner, MetaLearner):
            return learner.predict(meta, own, tasks).flatten(2)
        shared = learner.shared_parameters(meta, own.updates - 1)
        inputs = learner.outputs(
            own.params, shared, tasks, queries=True, training=False, network=self._body
        )
        return inputs.flatten(2)

    @contextlib.contextmanager
    def preparing(self, task: TaskBatch, name: str) -> Iterator[TaskBatch]:
        """Prepare a task to compute with. An error of the learner is one of what has this name."""
        with isolated(self.device), torch.no_grad():
            ready = prepared(self.source, task)
            with explain_misfit(self.learner, self.models[0][0], name, ready):
                yield ready


@dataclass(frozen=True)
class Fitted:
    """The checkpoints of a run after the inner steps on one support set.

    Attributes:
        trained: the run.
        support: the support set, as one task, as the source gives it.
        adapted: what `learner.adapt` returned, for each checkpoint.
    """

    trained: Trained
    support: TaskBatch
    adapted: list[Any]

    def outputs(self, inputs: Tree) -> Tensor:
        """The mean outputs (n, classes) of the checkpoints for n inputs.

        Raises:
            RunError: the inner steps of each checkpoint overflowed on the support set.
        """
        outputs = self._in_chunks(self.trained.outputs, inputs)
        if not outputs.isfinite().all():
            require_finite("the examples", self._with_queries(inputs), [outputs])
            raise RunError(
                "there is no prediction: the inner steps overflowed on this support set, with each "
                f"checkpoint ({len(self.adapted)}); the run's inner rate is too high for it"
            )
        return outputs

    def distances(self, inputs: Tree) -> Tensor:
        """How far (n,) inputs are from the nearest class; see `Trained.distances`."""
        return self._in_chunks(self.trained.distances, inputs)

    def _in_chunks(self, measure: Callable[[TaskBatch, list[Any]], Tensor], inputs: Tree) -> Tensor:
        """What a function of prepared tasks returns if some inputs are the queries of one task."""
        count = len(first_leaf(inputs))
        size = count if self.trained.transductive else CHUNK
        parts = []
        for start in range(0, count, size):
            chunk = self._with_queries(tree_map(itemgetter(slice(start, start + size)), inputs))
            with self.trained.preparing(chunk, "examples") as task:
                parts.append(measure(task, self.adapted)[0])
        return torch.cat(parts)

    def _with_queries(self, inputs: Tree) -> TaskBatch:
        """The task whose queries, without targets, are some inputs."""
        queries = tree_map(lambda t: t[None].to(self.trained.device), inputs)
        none = torch.zeros(
            first_leaf(queries).shape[:2], dtype=torch.int64, device=self.trained.device
        )
        return replace(self.support, query_x=queries, query_y=none)


def opened(run: Run | str | Path | Trained, ensemble: int | None, device: str) -> Trained:
    """The best checkpoints of a run, or those given: the classifiers of a page share them."""
    return run if isinstance(run, Trained) else Trained(run, ensemble, device)


def _image_format(source: TaskSource) -> ImageFormat | None:
    """What the images of a source were turned into when they were prepared; None if it has none."""
    if isinstance(source, FeatureTasks):
        return source.store.form
    return source.form if isinstance(source, ImageTasks | AbsentImages) else None
