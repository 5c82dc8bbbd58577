"""Training the cells of a plan, and knowing how far each of them is.

A cell's folder, `OUT/CELL`, is that of its training run. With its `results.json` there the cell is
finished, whatever else is kept of it.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gradshare.config import MACHINE_FIELDS, first_difference, from_settings, stored
from gradshare.errors import ConfigError, DataError, GradshareError, RunError
from gradshare.experiments.arms import Finished, images_of
from gradshare.experiments.compare import require_trainable, results_of_runs
from gradshare.experiments.executors.job import Job
from gradshare.experiments.executors.loop import ERROR, Executor, WatchAll, run_all
from gradshare.experiments.paper.plan import Cell, Scale
from gradshare.experiments.results import FILENAME, Arm, Results, load_results, save_results
from gradshare.training.files import make_folder, write_atomically
from gradshare.training.folder import RunFolder

log = logging.getLogger(__name__)

FAILURE = "failure.txt"

# Settings of the first version, which changed no result.
DROPPED_SETTINGS = {"compile"}

State = Literal["done", "running", "begun", "failed", "unreadable", "left"]
"""Of a cell. Begun: it was interrupted, and goes on where it was saved last. Unreadable: its folder
holds another run, or something damaged, or one of other images than the rest; see `standings`."""


@dataclass(frozen=True)
class Standing:
    """How far a cell is.

    Attributes:
        cell: which.
        state: in a word.
        results: what it came to; None unless it is done.
        iterations: how many it has completed, by its last validation.
        seconds: how long those took; None where no epoch is complete.
        fault: why it failed, or cannot be read; None if neither.
    """

    cell: Cell
    state: State
    results: Results | None = None
    iterations: int = 0
    seconds: float | None = None
    fault: str | None = None


def command_of(scale: Scale, cell: Cell) -> str:
    """What to type to train a cell."""
    return f"gradshare paper run --scale {scale} --only {cell.name}"


def standing(cell: Cell, out: Path) -> Standing:
    """How far a cell is."""
    folder = out / cell.name
    try:
        if (folder / FILENAME).exists():
            return _finished(cell, folder)
        return _unfinished(cell, RunFolder(folder))
    except GradshareError as error:
        return Standing(cell, "unreadable", fault=str(error))
    except OSError as error:
        fault = f"{folder} cannot be read: {error.strerror or error}; check its permissions"
        return Standing(cell, "unreadable", fault=fault)


def standings(cells: Sequence[Cell], out: Path) -> list[Standing]:
    """How far some cells are.

    The runs of one dataset are compared task by task, so that one on other images than most of them
    cannot be read beside these. What older versions wrote does not say on which, and is taken as it
    is.
    """
    found = [standing(cell, out) for cell in cells]
    usual = _usual(found)
    return [
        one if _images(one) is None else _beside(one, usual[_dataset(one.cell.config)], out)
        for one in found
    ]


def _usual(found: Sequence[Standing]) -> dict[Hashable, Standing]:
    """Of each dataset a finished cell on the images that most of its cells say they are on."""
    recorded: dict[Hashable, list[Standing]] = {}
    for one in found:
        if _images(one) is not None:
            recorded.setdefault(_dataset(one.cell.config), []).append(one)
    usual = {}
    for kind, alike in recorded.items():
        counts = Counter(_images(one) for one in alike)
        usual[kind] = max(alike, key=lambda one: counts[_images(one)])  # of equally many the first
    return usual


def _beside(one: Standing, usual: Standing, out: Path) -> Standing:
    """How far a finished cell is, beside one of the usual images."""
    here, there = _images(one), _images(usual)
    if here == there:
        return one
    fault = (
        f"{out / one.cell.name / FILENAME} is of other images of {one.cell.config.dataset} "
        f"(SHA-256 {here:.12}…) than {usual.cell.name} ({there:.12}…), and so of other test tasks"
    )
    return Standing(one.cell, "unreadable", fault=fault)


def _images(one: Standing) -> str | None:
    """The SHA-256 of what a finished cell was trained and tested on, as far as it says."""
    recorded = None if one.results is None else one.results.environment.get("images_sha256")
    return None if recorded is None else str(recorded)


def _dataset(config: Any) -> Hashable:
    return config.dataset, config.image_size, config.resize


def run_cells(
    cells: Sequence[Cell],
    beside: Sequence[Standing],
    scale: Scale,
    out: Path,
    executor: Executor,
    watch: WatchAll,
) -> list[Standing]:
    """Train cells that are not finished; see `unfinished`.

    Those that were interrupted go on; one that fails is noted in its folder, and tried again the
    next time. The others go on without it.

    Args:
        cells: in the order in which they are begun.
        beside: how far all cells of the plan are: those that are finished say which images theirs
            are to be of.
        scale: of their plan.
        out: the folder of all results.
        executor: where they are trained.
        watch: told of progress.

    Returns:
        How far each is at the end.

    Raises:
        GradshareError: a dataset is missing or another than that of the finished cells, or memory
            is missing, or the folder cannot be written; nothing was begun.
        RunStoppedError: Ctrl-C or SIGTERM; every cell has saved what it had.
    """
    require_data(cells, beside, executor)
    make_folder(out)
    jobs = {cell.name: Job(cell.config, out / cell.name) for cell in cells}
    by_name = {cell.name: cell for cell in cells}
    for job in jobs.values():  # what an earlier attempt failed of is to be tried again
        _forget_failure(job.folder)

    def record(name: str, run: Finished) -> None:
        results = results_of_runs([run], command_of(scale, by_name[name]))
        # Where it ran is no setting of what ran, and a path means nothing elsewhere.
        config = {key: v for key, v in results.config.items() if key not in MACHINE_FIELDS}
        results = results.model_copy(update={"config": config})
        save_results(results, jobs[name].folder / FILENAME)

    def failed(name: str, error: GradshareError) -> None:
        log.warning("%s failed: %s", name, error)
        try:
            make_folder(jobs[name].folder)
            write_atomically(jobs[name].folder / FAILURE, f"{error}\n".encode())
        except RunError as unwritable:
            log.warning("%s", unwritable)

    if jobs:
        run_all(jobs, executor, watch, record, failed=failed)
    return standings(cells, out)


def unfinished(found: Sequence[Standing]) -> list[Cell]:
    """The cells that are to be trained: not those that are done, or that another process trains.

    Raises:
        RunError: one cannot be read, so that training it could lose something.
    """
    for one in found:
        if one.state == "unreadable":
            raise RunError(
                f"cell {one.cell.name}: {one.fault}. Move its folder away, or leave it out with "
                f"--except {one.cell.name}"
            )
    return [one.cell for one in found if one.state not in ("done", "running")]


def results_by_cell(found: Sequence[Standing]) -> Mapping[Cell, Results]:
    """What the finished cells came to."""
    return {one.cell: one.results for one in found if one.results is not None}


def require_data(cells: Sequence[Cell], beside: Sequence[Standing], executor: Executor) -> None:
    """Refuse cells whose data or memory is missing, before any of them is begun.

    Raises:
        GradshareError: what is missing, or is other images than the finished cells had, and for
            which cells.
    """
    usual = _usual(beside)
    largest: dict[Hashable, Cell] = {}
    for cell in cells:
        config = cell.config
        kind = _dataset(config)
        if kind not in largest or _work(config) > _work(largest[kind].config):
            largest[kind] = cell
    for kind, cell in largest.items():
        dataset = cell.config.dataset
        try:
            images = images_of(require_trainable(cell.config, executor))
            if kind in usual:
                _require_images(images["images_sha256"], usual[kind])
        except DataError as error:
            raise DataError(
                f"cells of {dataset} cannot be run: {error}{_without(dataset, cells)}"
            ) from error


def _without(dataset: str, cells: Sequence[Cell]) -> str:
    """How to leave out a dataset's cells and no others; nothing where no others are to be run."""
    its_own = [cell for cell in cells if cell.config.dataset == dataset]
    others = [cell for cell in cells if cell.config.dataset != dataset]
    labels = [
        word
        for word in its_own[0].labels.values()
        if all(cell.is_called(word) for cell in its_own)
        and not any(cell.is_called(word) for cell in others)
    ]
    words = labels[:1] or list(dict.fromkeys(cell.study for cell in its_own))
    return f"; or leave them out with --except {','.join(words)}" if others else ""


def _require_images(here: str, finished: Standing) -> None:
    """Refuse images whose runs could not be compared, task by task, with what is finished.

    Raises:
        DataError: says what to do.
    """
    there = _images(finished)
    if here != there:
        raise DataError(
            f"it was prepared from other images (SHA-256 {here:.12}…) than those of the finished "
            f"cell {finished.cell.name} ({there:.12}…), so that they would have other test tasks; "
            "prepare it from the same copy, or begin another folder with --out"
        )


def _work(config: Any) -> int:
    """Something that grows with the memory of a step."""
    images = config.shots * config.inner_steps + config.queries
    return int(config.task_batch * config.ways * images)


def _finished(cell: Cell, folder: Path) -> Standing:
    results = load_results(folder)
    with _settings_of(folder):
        known = {name: v for name, v in results.config.items() if name not in DROPPED_SETTINGS}
        config = from_settings(known)
    _require_same(cell, config, folder)
    if len(results.arms) != 1:
        raise RunError(f"{folder / FILENAME} holds a comparison, not one run")
    (run,) = results.arms
    _require_tested(cell, run, folder)
    return Standing(
        cell, "done", results, run.epochs * cell.config.iterations_per_epoch, run.seconds
    )


def _unfinished(cell: Cell, run: RunFolder) -> Standing:
    iterations, seconds, fault = 0, None, None
    if run.started:
        with _settings_of(run.path):
            config = stored(run.path)
        _require_same(cell, config, run.path)
        with contextlib.suppress(RunError):  # no epoch is complete
            last = run.history()[-1]
            iterations, seconds = last.iterations, last.seconds
    state: State = "begun" if run.started else "left"
    found = Standing(cell, state, iterations=iterations, seconds=seconds)
    if run.in_use:
        return replace(found, state="running")
    if (run.path / FAILURE).exists():
        fault = (run.path / FAILURE).read_text("utf-8", errors="replace").strip()
        return replace(found, state="failed", fault=fault)
    return found


@contextlib.contextmanager
def _settings_of(folder: Path) -> Iterator[None]:
    """Name the folder in an error about its settings.

    Raises:
        RunError: they are invalid.
    """
    try:
        yield
    except ConfigError as error:
        raise RunError(f"{folder} holds a run with invalid settings: {error}") from error


def _require_same(cell: Cell, config: Any, folder: Path) -> None:
    """Refuse a folder that holds another run.

    Raises:
        RunError: names the first setting that differs.
    """
    difference = first_difference(config, cell.config)
    if difference is not None:
        name, old, new = difference
        raise RunError(f"{folder} holds a run with {name} {old!r}, the plan has {new!r}")


def _require_tested(cell: Cell, run: Arm, folder: Path) -> None:
    """Refuse a run that was tested on other tasks than the plan's.

    Raises:
        RunError: says on how many.
    """
    counts = [run.test.tasks] if run.test else []
    counts += [] if run.test_accuracies is None else [len(run.test_accuracies)]
    for count in counts:
        if count != cell.config.test_tasks:
            raise RunError(
                f"{folder / FILENAME} holds a run with the accuracies of {count} test tasks, the "
                f"plan has {cell.config.test_tasks}"
            )


def _forget_failure(folder: Path) -> None:
    for name in (FAILURE, ERROR):
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(
                f"{folder / name} cannot be removed: {error.strerror or error}; move {folder} away"
            ) from error
