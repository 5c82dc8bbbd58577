"""`gradshare.fit`: train a learner on tasks, in a folder from which the run can be continued."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch

from gradshare.errors import require_choice
from gradshare.methods import Learner
from gradshare.tasks import TaskSource
from gradshare.tasks.source import notes_of, training_indices
from gradshare.training.canary import Canary
from gradshare.training.checkpoint import Checkpoint, on_device
from gradshare.training.checks import require_shareable
from gradshare.training.device import device_of_process, keep_float32
from gradshare.training.distributed import OneProcess
from gradshare.training.folder import RunFolder, refuse_if_occupied
from gradshare.training.identity import require_alike, require_same_run
from gradshare.training.launch import is_first, torchrun_processes
from gradshare.training.layout import Layout, Memory, Tasks
from gradshare.training.loop import Trainer, is_complete
from gradshare.training.machine import commit, environment
from gradshare.training.memory import explain_out_of_memory, require_memory
from gradshare.training.metrics import Metric
from gradshare.training.options import ADAM, Callback, OnDivergence, Options, Start, Watch, ignore
from gradshare.training.prepare import Sources, memory_needed, prepare_run, saved_bytes
from gradshare.training.progress import RunBars
from gradshare.training.randomness import isolated
from gradshare.training.run import Run
from gradshare.training.state import CPU, TrainState
from gradshare.training.supervised import train_body

log = logging.getLogger(__name__)

Resume = Literal["never", "auto"]
CANARY_TASKS = 2


def fit(
    learner: Learner,
    train: TaskSource,
    validation: TaskSource,
    test: TaskSource | None = None,
    *,
    out: str | Path,
    epochs: int,
    iterations: int,
    task_batch: int = 4,
    val_tasks: int = 200,
    seed: int = 0,
    resume: Resume = "never",
    test_tasks: int = 600,
    metrics: Mapping[str, Metric] | None = None,
    score: str | None = None,
    ensemble: int = 1,
    optimizer: Callable[..., torch.optim.Optimizer] = ADAM,
    groups: Callable[[str], Mapping[str, Any]] | None = None,
    schedule: Callable[[int], float] | None = None,
    clamp_gradients: float | None = None,
    clip_norm: float | None = None,
    callbacks: Callback | Sequence[Callback] = (),
    on_divergence: OnDivergence = "record",
    device: str = "auto",
    tasks: Tasks = "auto",
    memory: Memory = "auto",
    start: Start = "random",
    start_iterations: int = 300,
    patience: int | None = None,
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
        test: a source of test tasks, on which the best checkpoints are tested at the end.
        out: a new folder for the run.
        epochs: the number of epochs, each of `iterations` outer iterations and a validation.
        iterations: outer iterations in an epoch.
        task_batch: T, tasks in an iteration.
        val_tasks: validation tasks in an epoch.
        seed: chooses the training tasks and the random numbers of training; below 2**22. It does
            not choose the initialisation, which is the learner's own.
        resume: "auto" continues the run in `out`, starts one if there is none, and does nothing
            if it is complete. More `epochs` extend a finished run.
        test_tasks: test tasks.
        metrics: to measure, by name. Default: accuracy and the loss for classes, else the loss.
        score: the metric that selects checkpoints; by default the first.
        ensemble: the number of best checkpoints that are kept, and averaged in the test.
        optimizer: makes a torch optimiser from a list of parameter groups. Default: Adam with the
            learning rate 0.001.
        groups: returns the optimiser's options for the meta-parameter of a name: {"lr": 1e-4}.
        schedule: returns the factor of the learning rates at an iteration, counted from 0.
        clamp_gradients: clamp each entry of the model's (not the rule's) outer gradient to ± this.
        clip_norm: scale the outer gradient down to this norm if it is longer.
        callbacks: functions, or one, that are called with each `Event`; one that returns True
            after an epoch ends the training.
        on_divergence: at an iteration with a loss or gradient that is not finite: "stop" with an
            error, "skip" the iteration, or end the run there and "record" that as its result.
        device: auto (CUDA if there is one), cpu, cuda or cuda:N.
        tasks: compute the tasks of a batch in a "loop" or in one "vmap".
        memory: "keep" the graphs of all inner steps, or "recompute" them to save memory.
        start: "supervised" first trains the body of the model, as `supervised_start` does.
        start_iterations: the steps of the supervised start.
        patience: end the training after this number of epochs in a row without a better score.
        progress: True shows a bar; a function is called with each `Progress`.

    Returns:
        The run.

    Raises:
        ConfigError, DataError: the arguments cannot be trained with; nothing was written.
        RunError: the folder cannot be used, or holds something else; or an iteration was refused
            with `on_divergence="stop"`, with everything before it saved.
        RunStoppedError: Ctrl-C or SIGTERM; everything so far is saved.
    """
    options = Options(
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
        start=start,
        start_iterations=start_iterations,
        patience=patience,
    )
    require_choice("resume", resume, Resume)
    with ExitStack() as stack:
        processes = stack.enter_context(torchrun_processes(device))
        watch: Watch = ignore
        if callable(progress):
            watch = progress
        elif progress and is_first():
            watch = stack.enter_context(RunBars()).watch("run")
        for note in notes_of(train, test) if is_first() else ():
            log.warning("%s", note)
        sources, folder = (train, validation, test), Path(out).expanduser()
        return fit_in(
            processes, learner, sources, options, folder, resume=resume == "auto", watch=watch
        )


def fit_in(
    processes: OneProcess,
    learner: Learner,
    sources: Sources,
    options: Options,
    folder: Path,
    *,
    resume: bool,
    watch: Watch = ignore,
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """Do this process's part of a run. Each process of the run calls this. See `fit`.

    Args:
        processes: of the run. The first alone uses `folder` and `watch`.
        settings: names and options from which the learner and the sources can be rebuilt, for
            `config.yaml`.
    """
    commit()  # as it is now; see there
    processes.from_first(lambda: refuse_if_occupied(folder, resume=resume))
    run_folder = RunFolder(folder)
    with ExitStack() as stack:
        stack.enter_context(explain_out_of_memory())
        device = device_of_process(options.device, processes)
        keep_float32(device)
        stack.enter_context(isolated(device))
        continued = run_folder if resume and run_folder.started else None
        state, metrics, score, contents = processes.agree(
            lambda: prepare_run(learner, sources, options, device, continued)
        )
        processes.agree(lambda: require_alike(processes, contents["identity"]))
        require_shareable(processes.size, sources[0], state.carried)
        # A learner that draws its initialisation has drawn another one in each process.
        initial = processes.from_first(lambda: [on_device(part, CPU) for part in state.model])
        for name, tensor in state.meta.items():
            tensor.data.copy_(initial[0][name])
        state.carried = on_device(initial[1], device)
        need = memory_needed(Layout(**contents["layout"]), options, state, processes.size)
        processes.agree(lambda: require_memory(need * processes.local_size, device))

        def open_folder() -> tuple[dict[str, Any], Checkpoint | None]:
            run_folder.require_disk(saved_bytes(state, options))
            stack.enter_context(run_folder.locked())
            # Another process may have begun a run meanwhile.
            refuse_if_occupied(folder, resume=resume)
            if not run_folder.started:
                run_folder.start(contents, settings)
                return contents, None
            stored = run_folder.contents()
            require_same_run(folder, stored["identity"], contents["identity"], options)
            return stored, run_folder.load_latest(state.model)

        stored, saved = processes.from_first(open_folder)
        layout = Layout(**stored["layout"])
        learner = layout.applied(learner)
        train, validation, test = sources
        canary_tasks = train.batch(training_indices(options.seed, 0, CANARY_TASKS)).to(device)
        canary = Canary(learner, train, canary_tasks)
        if saved is not None:
            processes.agree(lambda: state.restore(saved, options.total))
            processes.from_first(lambda: _continue(run_folder, stored, contents, canary, state))
        elif options.start == "supervised":
            train_body(processes, learner, state, train, options)
        if settings is not None:  # a run may be continued with other ones, such as more epochs
            processes.from_first(lambda: run_folder.store_settings(settings))
        status = state.status
        if not is_complete(options, status, test):
            status.test = None  # of a run that is extended
            if status.diverged is None:
                status.environment = environment(device, layout.describe())
            Trainer(
                run=stored["id"],
                learner=learner,
                train=train,
                validation=validation,
                test=test,
                options=options,
                metrics=metrics,
                score=score,
                device=device,
                folder=run_folder,
                processes=processes,
                canary=canary,
                watch=watch if processes.rank == 0 else ignore,
                state=state,
            ).run_to_the_end()
    return Run(
        folder,
        learner,
        train,
        metrics=metrics,
        score=score,
        ensemble=options.ensemble,
        device=device,
        status=status,
        validation=validation,
    )


def _continue(
    run_folder: RunFolder,
    stored: Mapping[str, Any],
    contents: Mapping[str, Any],
    canary: Canary,
    state: TrainState,
) -> None:
    """Note the new length of a restored run, and refuse it if its code computes something else."""
    canary.require_same(state, stored["files"], contents["files"])
    if contents["identity"]["epochs"] != stored["identity"]["epochs"]:
        run_folder.store({**stored, "identity": contents["identity"]})
        if state.status.stopped:
            log.warning(
                "a callback or its patience has ended the run in %s after epoch %d, and it stays "
                "ended; to train longer, start another run",
                run_folder.path,
                len(state.status.history),
            )
