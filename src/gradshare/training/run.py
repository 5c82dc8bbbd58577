"""A run, as `fit` returns it or reopened from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradshare.errors import ConfigError, DataError, GradshareError, RunError, require_count
from gradshare.inner_loop import Tensors
from gradshare.methods import Learner
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.batch import first_leaf, tree_map
from gradshare.tasks.source import notes_of, other_dataset, prepared
from gradshare.training.adapted import AdaptedModel, as_inputs, as_tensor
from gradshare.training.checks import (
    explain_misfit,
    initial_state,
    require_finite,
    require_source,
    require_ways,
)
from gradshare.training.device import choose_device, keep_float32
from gradshare.training.distributed import OneProcess
from gradshare.training.evaluation import Evaluation, Model, Values, ensemble_values, on_all_tasks
from gradshare.training.folder import RunFolder
from gradshare.training.identity import description, shapes_digest
from gradshare.training.layout import Layout
from gradshare.training.memory import explain_out_of_memory
from gradshare.training.metrics import LOSS, Metric, accuracy
from gradshare.training.randomness import isolated
from gradshare.training.records import ranked
from gradshare.training.state import RunStatus


class Run:
    """A training run and its results.

    Attributes:
        path: its folder.
        learner: as it was trained; None if the run was opened without one.
        source: of the training tasks, whose `prepare` is used; None if the run was opened
            without one.
        validation: the source of the validation tasks; None if the run was opened without it.
        metrics: by name.
        score: the metric that selected the checkpoints.
        history: one record for each completed epoch.
        diverged: where and how it became non-finite; None if it did not.
        test: the values of the test tasks; None if there were none.
        seconds: of training, validation and test.
        environment: of the process that trained it.
        missing: why a run that was started from names was opened without its learner.
    """

    def __init__(
        self,
        path: Path,
        learner: Learner | None,
        source: TaskSource | None,
        *,
        metrics: Mapping[str, Metric],
        score: str,
        ensemble: int,
        device: torch.device,
        status: RunStatus,
        validation: TaskSource | None = None,
    ) -> None:
        self.path = path
        self.learner = learner
        self.metrics = dict(metrics)
        self.score = score
        self.device = device
        self.missing: GradshareError | None = None
        self.history = status.history
        self.diverged, self.test = status.diverged, status.test
        self.seconds, self.environment = status.seconds, status.environment
        self.source, self.validation = source, validation
        self._ensemble = ensemble

    def __repr__(self) -> str:
        """Its folder, its length and its last score."""
        epochs = "1 epoch" if len(self.history) == 1 else f"{len(self.history)} epochs"
        last = f", {self.score} {self.history[-1].mean(self.score):.4g}" if self.history else ""
        ended = f", diverged: {self.diverged}" if self.diverged else ""
        return f"Run({str(self.path)!r}, {epochs}{last}{ended})"

    @property
    def tested(self) -> Evaluation | None:
        """The evaluation at the end of the run; None if there was none."""
        if self.test is None:
            return None
        how = (f"ensemble of {self.test.members}", *self._how(None, self.test.dataset))
        return Evaluation(self.test.ensemble, self.metrics, self.score, how, self.test.note)

    def table(self) -> list[dict[str, Any]]:
        """The history as rows of one long table: epoch, split, metric, value, ci95."""
        return [row for record in self.history for row in record.rows()]

    def models(self, count: int = 1) -> list[Model]:
        """The meta-parameters and carried tensors of the best checkpoints, best first.

        Raises:
            RunError: the run has completed no epoch, or none of them can be read.
            ConfigError: more are asked for than were kept.
        """
        if not self.history:
            raise RunError(
                f"the run in {self.path} has completed no epoch: it goes on, was stopped, or "
                "diverged in its first; wait for it, continue it (resume='auto', --resume auto), "
                "or give another"
            )
        best = ranked(self.history, self.metrics[self.score], self.score)
        kept = [record.epoch for record in best[: self._ensemble]]
        if not isinstance(count, int) or not 1 <= count <= len(kept):
            raise ConfigError(
                f"ensemble is {count!r}, and {self.path} has kept {len(kept)} checkpoints; give a "
                f"number from 1 to {len(kept)}"
            )
        found = RunFolder(self.path).models(kept[:count])
        return [checkpoint.model(self.device) for checkpoint in found]

    def evaluate(
        self,
        source: TaskSource,
        *,
        tasks: int = 600,
        steps: int | None = None,
        ensemble: int = 1,
        metrics: Mapping[str, Metric] | None = None,
    ) -> Evaluation:
        """Evaluate the best checkpoint, or an ensemble of the best, on new tasks.

        Args:
            source: where they come from; tasks 0, …, n - 1. It may have other shots than in
                training, and other ways if the model allows it.
            tasks: n.
            steps: inner steps; None for as many as were trained.
            ensemble: the number of best checkpoints that are averaged.
            metrics: what to measure; None for the run's.

        Raises:
            ConfigError: the run was opened without a learner, or more checkpoints are asked for
                than were kept.
            DataError: the source is not a function of the index.
        """
        learner = self._require_learner()
        require_count("tasks", tasks)
        chosen = dict(metrics or self.metrics)
        with isolated(self.device), explain_out_of_memory():
            require_source("the source", source, range(tasks))
            require_ways("the source", learner, source, trained=self.source)
            models = self.models(ensemble)
            measured = ensemble_values(learner, models, chosen, steps=steps)

            def measure(batch: TaskBatch) -> dict[str, Values]:
                with explain_misfit(learner, models[0][0], "source", batch):
                    return measured(batch)

            found = on_all_tasks(OneProcess(), source, tasks, self.device, measure)
        members = (f"ensemble of {ensemble}",) if ensemble > 1 else ()
        how = (*members, *self._how(steps, other_dataset(self.source, source)))
        score = self.score if self.score in chosen else next(iter(chosen))
        return Evaluation(found["ensemble"], chosen, score, how, " ".join(notes_of(source)))

    def adapt(
        self, x: Any, y: Any, *, steps: int | None = None, prepare: bool = True
    ) -> AdaptedModel:
        """Adapt the best checkpoint to one support set.

        Args:
            x: (n, …) inputs as the source gives them; an array, a tensor, or a tuple or dictionary.
            y: (n,) classes of any type, or real targets.
            steps: inner steps; None for as many as were trained.
            prepare: whether the source's `prepare` runs first, here and in the returned module.

        Returns:
            A module that maps inputs to outputs. `classes` are the labels of its outputs.

        Raises:
            ConfigError: the run was opened without a learner, or its source is needed to prepare
                inputs.
            DataError: the support set is empty, or holds values that are not finite and that the
                model can't take.
        """
        learner = self._require_learner()
        source = self.source if prepare else None
        if prepare and source is None and RunFolder(self.path).contents()["prepares"]:
            raise ConfigError(
                f"the source of {self.path} prepares its batches; open the run with it: "
                "open_run(path, learner, source), or give prepared inputs and prepare=False"
            )
        with isolated(self.device), torch.no_grad():
            targets, classes = encoded(y, self.source)
            meta, carried = self.models()[0]
            like = tree_map(as_tensor, x)
            if self.source is not None:
                like = self.source.batch([0]).support_x
            else:  # real numbers of the model's type
                dtype = next(iter(meta.values())).dtype
                like = tree_map(lambda t: t.to(dtype) if t.is_floating_point() else t, like)
            inputs = as_inputs(x, like)
            if first_leaf(inputs).shape[:1] in ((), (0,)):
                raise DataError("the support set x is empty; give at least one example, as x[None]")
            parts = (tree_map(lambda t: t[None], part) for part in (inputs, targets) * 2)
            tasks = TaskBatch(*parts).to(self.device)
            ready = tasks if source is None else prepared(source, tasks)
            with explain_misfit(learner, meta, "support set", ready):
                adapted = learner.adapt(meta, carried, ready, steps=steps)
                require_finite("the support set", ready, [learner.predict(meta, adapted, ready)])
        return AdaptedModel(learner, meta, adapted, tasks, source, classes)

    def tensors(self) -> tuple[Tensors, Tensors]:
        """The meta-parameters and carried tensors of the best checkpoint; needs no learner."""
        return self.models(1)[0]

    def _require_learner(self) -> Learner:
        if self.learner is None:
            raise self.missing or ConfigError(
                f"the run in {self.path} was opened without its learner; give it: "
                "open_run(path, learner)"
            )
        return self.learner

    def _how(self, steps: int | None, dataset: str | None) -> tuple[str, ...]:
        network = getattr(self.learner, "network", None)
        norms = network is not None and network.uses_batch_statistics
        inductive = getattr(self.learner, "inductive", False)
        mode = (f"{'inductive' if inductive else 'transductive'} batch norm",) if norms else ()
        where = () if dataset is None else (f"on {dataset}",)
        return (*where, *((f"{steps} inner steps",) if steps is not None else ()), *mode)


def open_run(
    path: str | Path,
    learner: Learner | None = None,
    source: TaskSource | None = None,
    *,
    metrics: Mapping[str, Metric] | None = None,
    device: str = "auto",
) -> Run:
    """Open the folder of a run without making its learner from names; see `gradshare.open_run`."""
    folder = RunFolder(Path(path).expanduser())
    contents = folder.contents()
    identity = contents["identity"]
    place = choose_device(device)
    keep_float32(place)
    if learner is not None:
        with isolated(place):
            meta, _ = initial_state(learner)
        if shapes_digest(meta) != identity["meta-parameters"]:
            raise RunError(
                f"the run in {folder.path} has other meta-parameters than this learner; give the "
                "learner that it was trained with"
            )
        for name, value in description(learner).items():
            if identity.get(name) != value:
                raise RunError(
                    f"the run in {folder.path} was trained with {name} {identity.get(name)}, and "
                    f"this learner has {value}; give the learner that it was trained with"
                )
        learner = Layout(**contents["layout"]).applied(learner)
    known = {"accuracy": Metric(accuracy, unit="%")}
    if (loss := getattr(learner, "loss", None)) is not None:
        known[LOSS] = Metric(loss, best="low")
    found = {
        name: (metrics or {}).get(name, known.get(name, Metric(_not_given, best=best)))
        for name, best in identity["metrics"].items()
    }
    saved = folder.load_latest()
    status = RunStatus() if saved is None else RunStatus.of(saved)
    return Run(
        folder.path,
        learner,
        source,
        metrics=found,
        score=identity["score"],
        ensemble=identity["ensemble"],
        device=place,
        status=status,
    )


def _not_given(*_: object) -> float:
    raise ConfigError(
        "the run was trained with a metric of your own; give it again: "
        "open_run(path, learner, metrics={name: Metric(…)})"
    )


def encoded(y: Any, source: TaskSource | None) -> tuple[Any, tuple[Any, ...] | None]:
    """Targets as tensors, and the labels of classes 0, 1, …; None if they are not classes."""
    encode = getattr(source, "encode", None)
    if encode is not None:
        return encode(y)  # type: ignore[no-any-return]
    if isinstance(y, Mapping):
        return tree_map(torch.as_tensor, y), None
    labels = np.asarray(y.cpu() if isinstance(y, Tensor) else y)
    if labels.ndim != 1 or labels.dtype.kind == "f":
        targets = torch.as_tensor(labels)
        return (targets.float() if targets.is_floating_point() else targets), None
    names, codes = np.unique(labels, return_inverse=True)
    return torch.from_numpy(codes.astype(np.int64)), tuple(names.tolist())
