"""`gradshare.compare`: arms × seeds, paired by task, with their controls and a verdict.

All arms of a comparison start from the same seed and see the same tasks. A comparison's folder
holds `results.json`, the report, and a run for each arm and seed under `runs/`.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gradshare.comparison.calls import WatchAll
from gradshare.comparison.plan import RUNS, Factory, Plan, seeds_from, with_candidates
from gradshare.comparison.results import (
    FILENAME,
    ArmRun,
    Results,
    load_results,
    sample_tasks,
    save_results,
)
from gradshare.comparison.running import Runner
from gradshare.comparison.summary import Verdict, as_text, verdict
from gradshare.comparison.worker import Trial, learners_of, tried_here, unfinished
from gradshare.errors import ConfigError, RunError, require_choice, require_count, some
from gradshare.executors import LocalExecutor
from gradshare.tasks import TaskSource
from gradshare.tasks.source import other_dataset
from gradshare.training.device import choose_device
from gradshare.training.files import make_folder
from gradshare.training.fit import Resume
from gradshare.training.folder import RunFolder, refuse_if_occupied
from gradshare.training.interruption import StopRequests
from gradshare.training.lock import locked
from gradshare.training.machine import TUNABLES, cores
from gradshare.training.options import Options, options_from
from gradshare.training.progress import RunBars
from gradshare.training.records import VALIDATION, judge, ranked
from gradshare.training.state import RunStatus, Test
from gradshare.training.statistics import Interval
from gradshare.training.yardsticks import yardsticks


class Comparison:
    """A finished comparison. `print(comparison)` shows the table and the verdict.

    Attributes:
        path: its folder.
        results: everything in `results.json`.
    """

    def __init__(self, path: Path, results: Results) -> None:
        self.path = path
        self.results = results

    @property
    def verdict(self) -> Verdict:
        """What it says, in words."""
        return verdict(self.results)

    def __str__(self) -> str:
        """The table, the verdict and the notes."""
        return as_text(self.results)

    def to_pandas(self) -> Any:
        """`results.table()` as a DataFrame."""
        import pandas as pd  # noqa: PLC0415  # not needed otherwise

        return pd.DataFrame(self.results.table())

    def report(self) -> Path:
        """Write `report.html`, one file without outside resources, and return its path."""
        from gradshare.comparison.report import write_report  # noqa: PLC0415  # matplotlib

        return write_report(self.results, self.path)


def compare(
    arms: Mapping[str, Factory | Mapping[str, Factory]],
    train: TaskSource,
    validation: TaskSource,
    test: TaskSource,
    *,
    out: str | Path,
    seeds: int | Sequence[int] = 1,
    baseline: str | None = None,
    controls: Sequence[str] = (),
    executor: Any = None,
    at_a_time: int | None = None,
    retries: int = 0,
    resume: Resume = "never",
    progress: bool | WatchAll = True,
    **options: Any,
) -> Comparison:
    """Train arms with the same seeds on the same tasks, and say how they differ.

    Args:
        arms: a function for each arm, by name, that makes its learner; or a dictionary of such
            functions, such as one for each inner rate. Of these all are trained with the first
            seed, and the one with the best validation score is compared.
        train: the source of training tasks.
        validation: the source of validation tasks.
        test: the source of test tasks.
        out: a new folder for everything that comes out.
        seeds: how many seeds, counted from the option `seed` (0), or a list of seeds.
        baseline: the arm that the others are compared with; by default the first.
        controls: the arms that leave out the part in question. Without one, the verdict says that
            the reason for a difference stays open.
        executor: where the runs are trained: anything with `submit(function, *args)` that returns
            a future. It stays open. Default: processes on this machine, which share its cores.
        at_a_time: how many runs are submitted at a time. Default: on this machine as many as there
            are cores, or one on a GPU; to an executor of your own all, or one if it uses threads.
        retries: how often a run is started again from its last checkpoint when its process or
            machine is lost. The count begins anew when it completes an epoch.
        resume: "auto" continues the comparison in `out`, with more arms or seeds too.
        progress: True shows it. A function is called with the name of a run and its `Progress`,
            which is None while the run is queued.
        **options: options of `fit`, the same for all arms.

    Raises:
        ConfigError, DataError: the arguments cannot be compared; nothing was written.
        RunError: the folder cannot be used; some runs failed (the others are saved); or a worker
            elsewhere could not try the arms.
        RunStoppedError: Ctrl-C or SIGTERM; each run has saved what it had.
    """
    made = options_from(options)
    require_choice("resume", resume, Resume)
    named, candidates = with_candidates(arms) if isinstance(arms, Mapping) else (arms, {})
    baseline = next(iter(candidates), "") if baseline is None else baseline
    controls = (controls,) if isinstance(controls, str) else tuple(controls)
    plan = Plan(
        named,
        candidates.get(baseline, (baseline,))[0],
        tuple(candidates.get(name, (name,))[0] for name in controls),
        train,
        validation,
        test,
        made,
        seeds_from(seeds, made.seed),
        candidates=tuple(each for each in candidates.values() if len(each) > 1),
    )
    return run_plan(
        plan,
        Path(out).expanduser(),
        executor=executor,
        at_a_time=at_a_time,
        retries=retries,
        resume=resume == "auto",
        progress=progress,
    )


def run_plan(
    plan: Plan,
    folder: Path,
    *,
    executor: Any = None,
    at_a_time: int | None = None,
    retries: int = 0,
    resume: bool = False,
    progress: bool | WatchAll = True,
    settings: Mapping[str, Any] | None = None,
    commands: Sequence[str] = (),
) -> Comparison:
    """Run a comparison; see `compare`.

    Args:
        executor, at_a_time, retries, resume, progress: see `compare`.
        settings: of all runs, for the report; by default those of `plan.options`.
        commands: that reproduce it, for the report; by default the one that is running.
    """
    require_count("retries", retries, least=0)
    if at_a_time is not None:
        require_count("at_a_time", at_a_time)
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise ConfigError(
            f"the executor is {executor!r:.100}; give an object with `submit(function, *args)`, "
            "such as gradshare.executors.RayExecutor()"
        )
    own = executor is None
    if own:
        at_a_time = at_a_time or runs_together(plan)
        # Not by what is left: with other threads a run that is continued would round differently.
        executor = local_executor(len(plan.runs), at_a_time)
    elif isinstance(executor, ThreadPoolExecutor):
        at_a_time = 1  # threads share the random generators
    _require_room(folder, resume=resume)
    trial: Trial | None = None
    if isinstance(executor, LocalExecutor | ThreadPoolExecutor):
        trial = tried_here(plan)
    else:  # they are tried on a worker, since this machine may have another kind of device
        learners_of(plan)
    with locked(folder, doing="comparing"):
        _require_room(folder, resume=resume)  # another process may have begun one meanwhile
        make_folder(folder / RUNS)
        with StopRequests() as stop, ExitStack() as stack:
            if own:
                stack.enter_context(executor)
            bars = stack.enter_context(RunBars(shown=progress is True))
            watch = progress if callable(progress) else bars
            runner = Runner(folder, executor, at_a_time, retries, watch, stop)
            if trial is None:
                trial, left = runner.try_arms(plan)
            else:
                left = unfinished(plan, folder)
            options = replace(plan.options, tasks=trial.tasks, memory=trial.memory)
            plan = replace(plan, options=options)
            notes = [*trial.notes, *_not_compared(plan, folder)]
            if plan.candidates:
                first = [key for key in left if key[1] == plan.seeds[0]]
                if first:
                    runner.train(plan, first)
                plan, note = _best_candidates(plan, folder, trial)
                notes.append(note)
                left = [key for key in left if key in plan.runs and key not in first]
                bars.say(note)
            if left:
                runner.train(plan, left)
        results = _collected(
            plan,
            folder,
            trial,
            notes=tuple(notes),
            settings=settings or _settings(plan.options),
            commands=commands or [shlex.join(["python", *sys.orig_argv[1:]])],
        )
        save_results(results, folder / FILENAME)
        comparison = Comparison(folder, results)
        comparison.report()
    return comparison


def runs_together(plan: Plan) -> int:
    """How many runs this machine trains at a time: as many as it has cores for, or one on a GPU."""
    on_cpu = choose_device(plan.options.device).type == "cpu"
    return max(1, cores() // (plan.threads or 1)) if on_cpu else 1


def local_executor(runs: int, at_a_time: int) -> LocalExecutor:
    """Processes for some runs that share this machine's cores."""
    threads = max(1, cores() // min(at_a_time, runs))
    # Threads that wait must not take others' cores.
    openmp = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    return LocalExecutor(at_a_time, dict([TUNABLES]) | openmp)


def _require_room(folder: Path, *, resume: bool) -> None:
    """Raise RunError if a folder holds something, except a comparison that is continued, or that
    has no run, since its arms could not be tried.
    """
    runs = folder / RUNS
    if runs.is_dir() and (resume or not any(runs.iterdir())):
        return
    if resume and (folder / FILENAME).is_file():
        load_results(folder)  # raises: of another version
    refuse_if_occupied(folder, resume=False)


def _not_compared(plan: Plan, folder: Path) -> Iterator[str]:
    """A note on runs in a folder that this comparison leaves out, such as those of other arms."""
    planned = {plan.place(folder, arm, seed) for arm, seed in plan.runs}
    others = sorted({*(folder / RUNS).glob("*/seed-*")} - planned)
    if others:
        names = some([path.relative_to(folder).as_posix() for path in others], 5)
        yield f"The folder holds runs that are not compared: {names}."


def _settings(options: Options) -> dict[str, Any]:
    names = ("epochs", "iterations", "task_batch", "val_tasks", "test_tasks", "ensemble")
    return {name: getattr(options, name) for name in (*names, "tasks", "memory", "device")}


def _best_candidates(plan: Plan, folder: Path, trial: Trial) -> tuple[Plan, str]:
    """Choose the candidate of each arm by its best validation score with the first seed, with which
    all have been trained.

    Returns:
        The plan with the chosen candidates only, and a note on the scores of all.
    """
    metric, seed = trial.metrics[trial.score], plan.seeds[0]
    chosen: dict[str, str] = {}
    said = []
    for candidates in plan.candidates:
        scores = {arm: _validated(_status(plan, folder, arm, seed), trial) for arm in candidates}
        best = min(scores, key=lambda arm: metric.rank(scores[arm].mean))
        chosen |= dict.fromkeys(candidates, best)
        shown = {arm: metric.show(s) if s.n else "diverged" for arm, s in scores.items()}
        said.append(", ".join(map(" ".join, shown.items())))
    kept = replace(
        plan,
        arms={arm: made for arm, made in plan.arms.items() if chosen.get(arm, arm) == arm},
        candidates=(),
        baseline=chosen.get(plan.baseline, plan.baseline),
        controls=tuple(chosen.get(name, name) for name in plan.controls),
    )
    return kept, (
        f"Each arm is compared at the value with the best validation {trial.score} of seed {seed}, "
        f"of these: {'; '.join(said)}."
    )


def _validated(status: RunStatus, trial: Trial) -> Interval:
    """The best validation score of a candidate; NaN if it diverged."""
    if status.diverged is not None:
        return Interval(math.nan, None, 0)
    best = ranked(status.history, trial.metrics[trial.score], trial.score)[0]
    return best.metrics[VALIDATION][trial.score]


def _status(plan: Plan, folder: Path, arm: str, seed: int) -> RunStatus:
    """What a run that has ended came to."""
    place = plan.place(folder, arm, seed)
    saved = RunFolder(place).load_latest()
    if saved is None:
        raise RunError(f"{place} has lost its checkpoints; compare in another folder")
    return RunStatus.of(saved)


def _collected(plan: Plan, folder: Path, trial: Trial, **more: Any) -> Results:
    """The results of runs that have ended, with the fields of `Results` in `more`."""
    score = trial.metrics[trial.score]
    runs: list[ArmRun] = []
    predicted: dict[str, list[list[int]]] = {}
    for arm, seed in plan.runs:
        status = _status(plan, folder, arm, seed)
        test = status.test or Test({}, {}, 0)
        if test.predicted:
            predicted.setdefault(arm, test.predicted)
        learned = judge(status.history, score, trial.score)
        runs.append(
            ArmRun(
                arm=arm,
                seed=seed,
                outcome="diverged" if status.diverged else learned,
                message=status.diverged,
                history=status.history,
                test=test.ensemble,
                members=test.members,
                by_class=test.by_class,
                training_seconds=status.training_seconds,
                environment=status.environment,
            )
        )
    classes = "accuracy" in trial.metrics
    return Results(
        gradshare=version("gradshare"),
        baseline=plan.baseline,
        controls=plan.controls,
        score=trial.score,
        metrics=trial.metrics,
        runs=tuple(runs),
        yardsticks=yardsticks(plan.test, plan.options.test_tasks) if classes else {},
        samples=sample_tasks(plan.test, predicted),
        tested_on=other_dataset(plan.train, plan.test),
        **more,
    )
