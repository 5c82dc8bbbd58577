"""`gradshare.fit`: train a learner on tasks, in a folder from which the run can be continued."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from gradshare.errors import ConfigError, RunError, require_choice
from gradshare.methods import Learner
from gradshare.tasks import TaskSource
from gradshare.tasks.source import fingerprint_of, prepared, training_indices
from gradshare.training.canary import Canary, changed_files, description, source_digests
from gradshare.training.checkpoint import Checkpoint, on_device
from gradshare.training.checks import (
    initial_state,
    make_optimizer,
    require_learner,
    require_source,
    require_together,
)
from gradshare.training.device import device_of_process, keep_float32
from gradshare.training.distributed import OneProcess
from gradshare.training.folder import KEPT_LATEST, RunFolder, require_room
from gradshare.training.launch import is_first, torchrun_processes
from gradshare.training.layout import Layout, Memory, Tasks, choose_layout, tensor_bytes
from gradshare.training.loop import Job, is_complete, run_to_the_end
from gradshare.training.machine import commit, environment
from gradshare.training.metrics import Metric
from gradshare.training.options import ADAM, Callback, OnDivergence, Options, Watch, ignore
from gradshare.training.preflight import memory_errors, require_disk, require_memory
from gradshare.training.progress import RunBars
from gradshare.training.randomness import isolated
from gradshare.training.run import Run
from gradshare.training.state import CPU, TrainState

Resume = Literal["never", "auto"]

# The optimiser's moments and the gradient, besides the parameter itself.
COPIES_OF_META = 4
CANARY_TASKS = 2
# A line of metrics.jsonl, which TensorBoard's file and each checkpoint hold too.
RECORD_BYTES = 2000


def fit(
    learner: Learner,
    train: TaskSource,
    validation: TaskSource,
    *,
    out: str | Path,
    epochs: int,
    iterations: int,
    task_batch: int = 4,
    val_tasks: int = 200,
    seed: int = 0,
    resume: Resume = "never",
    test: TaskSource | None = None,
    test_tasks: int = 600,
    metrics: Mapping[str, Metric] | None = None,
    score: str | None = None,
    ensemble: int = 1,
    optimizer: Callable[..., torch.optim.Optimizer] = ADAM,
    groups: Callable[[str], Mapping[str, Any]] | None = None,
    schedule: Callable[[int], float] | None = None,
    clamp_gradients: float | None = None,
    clip_norm: float | None = None,
    callbacks: Sequence[Callback] = (),
    on_divergence: OnDivergence = "record",
    device: str = "auto",
    tasks: Tasks = "auto",
    memory: Memory = "auto",
    progress: bool | Watch = True,
) -> Run:
    """Meta-train a learner, and keep the checkpoints that are best on validation tasks.

    A run that is stopped or killed at any moment is continued by the same call with
    `resume="auto"`, to exactly where it would have ended. Under `torchrun` each process calls this
    and does a share of the tasks.

    Args:
        learner: the method, such as `gradshare.maml(model)`.
        train: the source of training tasks.
        validation: the source of validation tasks; the same ones after each epoch.
        out: a new folder for everything that comes out.
        epochs: how many times `iterations`; after each comes a validation.
        iterations: outer iterations in an epoch.
        task_batch: T, tasks in an iteration.
        val_tasks: validation tasks.
        seed: of the training tasks and of random numbers while training, below 2**22. The
            initialisation is the learner's own.
        resume: "auto" continues the run in `out`, starts one if there is none, and does nothing
            if it is complete. A finished run is extended by more `epochs`.
        test: a source of test tasks, to test the best checkpoints on at the end.
        test_tasks: test tasks.
        metrics: by name. Default: accuracy and the loss for classes, else the loss.
        score: the metric that selects checkpoints; by default the first.
        ensemble: how many of the best checkpoints are kept, and averaged in the test.
        optimizer: makes a torch optimiser from a list of parameter groups.
        groups: from a meta-parameter's name to the options of its group, such as {"lr": 1e-4}.
        schedule: from the iteration, from 0, to a factor of the learning rates.
        clamp_gradients: clamp each entry of the model's outer gradient to ± this.
        clip_norm: scale the outer gradient down to this norm if it is longer.
        callbacks: functions that are told of each `Event`; one that returns True after an epoch
            ends the training.
        on_divergence: at an iteration with a loss or gradient that is not finite: "stop" with an
            error, "skip" the iteration, or end the run there and "record" that as its result.
        device: auto (CUDA if there is one), cpu, cuda or cuda:N.
        tasks: compute the tasks of a batch in a "loop" or in one "vmap".
        memory: "keep" the graphs of all inner steps, or "recompute" them in the backward pass,
            which takes memory that does not grow with the inner steps.
        progress: show it; or a function that is told.

    Returns:
        The run.

    Raises:
        ConfigError, DataError: the arguments cannot be trained with; nothing was written.
        RunError: the folder cannot be used, or holds something else; or an iteration was refused
            with `on_divergence="stop"`, with everything before it saved.
        RunStoppedError: Ctrl-C or SIGTERM; everything so far is saved.
    """
    options = Options.of(
        epochs=epochs,
        iterations=iterations,
        task_batch=task_batch,
        val_tasks=val_tasks,
        test_tasks=test_tasks,
        seed=seed,
        metrics=metrics,
        score=score,
        ensemble=ensemble,
        optimizer=optimizer,
        groups=groups,
        schedule=schedule,
        clamp_gradients=clamp_gradients,
        clip_norm=clip_norm,
        callbacks=callbacks,
        on_divergence=on_divergence,
        device=device,
        tasks=tasks,
        memory=memory,
    )
    require_choice("resume", resume, Resume)
    with ExitStack() as stack:
        processes = stack.enter_context(torchrun_processes(device))
        watch: Watch = ignore
        if callable(progress):
            watch = progress
        elif progress and is_first():
            watch = stack.enter_context(RunBars()).watch("run")
        return fit_in(
            processes,
            learner,
            (train, validation, test),
            options,
            Path(out).expanduser(),
            resume=resume == "auto",
            watch=watch,
        )


def fit_in(
    processes: OneProcess,
    learner: Learner,
    sources: tuple[TaskSource, TaskSource, TaskSource | None],
    options: Options,
    folder: Path,
    *,
    resume: bool,
    watch: Watch = ignore,
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """Be one of the processes of a run; the others call this too. See `fit`.

    Args:
        processes: of the run.
        learner: the method.
        sources: of training, validation and test tasks.
        options: of the run.
        folder: of the run; read and written by the first process alone.
        resume: whether the run may be continued.
        watch: told of progress.
        settings: names and options from which the learner and the sources can be rebuilt, for
            `config.yaml`.
    """
    commit()  # as it is now; see there
    processes.from_first(lambda: require_room(folder, resume=resume))
    with ExitStack() as stack:
        stack.enter_context(memory_errors())
        device = device_of_process(options.device, processes)
        keep_float32(device)
        stack.enter_context(isolated(device))
        continued = RunFolder(folder) if resume and RunFolder(folder).started else None
        state, metrics, score, contents = processes.agree(
            lambda: prepare_run(learner, sources, options, device, continued)
        )
        processes.agree(lambda: _require_alike(processes, contents))
        # Where the learner draws its initialisation, each process has drawn its own.
        initial = processes.from_first(lambda: [on_device(part, CPU) for part in state.model])
        for name, tensor in state.meta.items():
            tensor.data.copy_(initial[0][name])
        state.carried = on_device(initial[1], device)
        need = memory_needed(Layout(**contents["layout"]), options, state, processes=processes.size)
        processes.agree(lambda: require_memory(need * processes.local_size, device))
        home = RunFolder(folder)

        def open_home() -> tuple[dict[str, Any], Checkpoint | None]:
            require_disk(saved_bytes(state, options), folder)
            stack.enter_context(home.locked())
            # Another process may have begun a run meanwhile.
            require_room(folder, resume=resume)
            if not home.started:
                home.start(contents, settings)
                return contents, None
            stored = home.contents()
            _require_same(home, stored, contents, options)
            like = state.checkpoint(stored["id"], None)
            return stored, home.load_latest(like)

        stored, saved = processes.from_first(open_home)
        layout = Layout(**stored["layout"])
        laid_out = layout.applied(learner)
        train, validation, test = sources
        tasks = train.batch(training_indices(options.seed, 0, CANARY_TASKS)).to(device)
        canary = Canary(laid_out, train, tasks)
        if saved is not None:
            processes.agree(lambda: state.restore(saved, options.total))
            files = changed_files(stored["files"], contents["files"])

            def resume_from() -> None:
                canary.require_same(state, saved.progress["canary"], files)
                if contents["identity"]["epochs"] != stored["identity"]["epochs"]:
                    home.store({**stored, "identity": contents["identity"]})

            processes.from_first(resume_from)
        if settings is not None:  # a run may be continued with other ones, such as more epochs
            processes.from_first(lambda: home.store_settings(settings))
        if not is_complete(options, state, test):
            state.test = None  # of a run that is extended
            if state.diverged is None:
                state.environment = environment(device, layout.describe())
            job = Job(
                stored["id"],
                laid_out,
                train,
                validation,
                test,
                options,
                metrics,
                score,
                device,
                home,
                processes,
                canary,
                watch if processes.rank == 0 else ignore,
            )
            run_to_the_end(job, state)
    return Run(folder, laid_out, train, metrics, score, options.ensemble, device, state)


def prepare_run(
    learner: Learner,
    sources: tuple[TaskSource, TaskSource, TaskSource | None],
    options: Options,
    device: torch.device,
    continued: RunFolder | None,
) -> tuple[TrainState, dict[str, Metric], str, dict[str, Any]]:
    """Check that everything fits together, and make the state before any training.

    Args:
        learner: the method.
        sources: of training, validation and test tasks.
        options: of the run.
        device: where it runs.
        continued: the run that is continued, whose layout is kept.

    Returns:
        The state, the metrics, the score, and the contents of `run.json`.
    """
    require_learner(learner)
    train, validation, test = sources
    named = {"train": train, "validation": validation}
    if test is not None:
        named["test"] = test
    for name, source in named.items():
        counts = {"validation": options.val_tasks, "test": options.test_tasks}
        asked = range(counts.get(name, 0)) or training_indices(options.seed, 0, 2)
        require_source(name, source, asked)
    meta, carried = initial_state(learner)
    meta = {name: t.detach().to(device).requires_grad_() for name, t in meta.items()}
    carried = on_device(carried, device)
    metrics, score = require_together(
        learner, (meta, carried), named, options.metrics, options.score
    )
    optimizer = make_optimizer(options.optimizer, meta, options.groups)
    if options.schedule is not None:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    if continued is not None:
        layout = Layout(**continued.contents()["layout"])
    else:
        tasks = prepared(train, train.batch(list(range(min(2, options.task_batch)))).to(device))
        layout = choose_layout(
            learner,
            (meta, carried),
            tasks,
            task_batch=options.task_batch,
            tasks=options.tasks,
            memory=options.memory,
        )
    fingerprints = {name: fingerprint_of(source) for name, source in named.items()}
    contents = {
        "gradshare": version("gradshare"),
        "id": uuid.uuid4().hex,
        "identity": {
            **options.identity(meta, optimizer, metrics, score, fingerprints),
            **description(learner),
        },
        "layout": {"tasks": layout.tasks, "memory": layout.memory, "bytes": layout.bytes},
        "prepares": hasattr(train, "prepare"),
        "files": source_digests(learner, *named.values()),
    }
    return TrainState(meta, carried, optimizer), metrics, score, contents


def memory_needed(layout: Layout, options: Options, state: TrainState, *, processes: int) -> int:
    """An estimate of the bytes that one process of a run takes at its peak."""
    share = math.ceil(options.task_batch / processes)
    outside = COPIES_OF_META * tensor_bytes(state.meta) + tensor_bytes(state.carried)
    return layout.bytes * share // options.task_batch + outside


def saved_bytes(state: TrainState, options: Options) -> int:
    """What a run's checkpoints and records take on the disk at most."""
    model = tensor_bytes(state.meta) + tensor_bytes(state.carried)
    moment = model + 2 * tensor_bytes(state.meta)
    # Of each kind there is one more while it is written.
    models = (options.ensemble + 1) * model + (KEPT_LATEST + 1) * moment
    return models + RECORD_BYTES * options.epochs * (KEPT_LATEST + 3)


def _require_alike(processes: OneProcess, contents: Mapping[str, Any]) -> None:
    """Raise unless each process has the same run as the first."""
    own = dict(contents["identity"])
    first = processes.from_first(lambda: own)
    for name, value in own.items():
        if first[name] != value:
            raise ConfigError(
                f"{name} is {value!r:.100} here and {first[name]!r:.100} in the first process; "
                "start all processes of a run alike, on the same data"
            )


def _require_same(
    home: RunFolder, stored: Mapping[str, Any], now: Mapping[str, Any], options: Options
) -> None:
    """Raise unless a stored run can be continued as this one.

    Raises:
        RunError: they differ; or more epochs are asked for where the schedule depends on how many
            there are, or fewer.
    """
    old, new = dict(stored["identity"]), dict(now["identity"])
    old_epochs, epochs = old.pop("epochs"), new.pop("epochs")
    old_schedule = old.pop("schedule")
    new.pop("schedule")
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            raise RunError(
                f"{home.path} holds a run with {name} {old.get(name)!r:.200}, this one has "
                f"{new.get(name)!r:.200}; continue it as it was, or choose another folder (--out)"
            )
    if epochs < old_epochs:
        raise RunError(
            f"{home.path} holds a run of {old_epochs} epochs, and {epochs} were asked for; ask for "
            "as many or more"
        )
    if options.factors(old_epochs * options.iterations) != old_schedule:
        raise RunError(
            f"the schedule gives other learning rates than those that the run in {home.path} was "
            "trained with; a run is extended only if its schedule does not depend on its length"
        )
