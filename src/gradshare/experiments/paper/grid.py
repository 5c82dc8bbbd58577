"""Training the cells of a plan, and knowing how far each of them is.

A cell's folder, `OUT/CELL`, is that of its training run. With its `results.json` there the cell is
finished, whatever else is kept of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gradshare.errors import DataError, GradshareError, RunError
from gradshare.experiments.compare import results_of_runs
from gradshare.experiments.executors.job import Finished, Job
from gradshare.experiments.executors.loop import ERROR, Executor, WatchAll, run_all
from gradshare.experiments.paper.plan import Cell, Scale
from gradshare.experiments.results import FILENAME, Results, load_results, save_results
from gradshare.training.config import RunConfig
from gradshare.training.files import write_atomically
from gradshare.training.folder import MACHINE_FIELDS, RunFolder
from gradshare.training.preflight import require_memory
from gradshare.training.setup import set_up

FAILURE = "failure.txt"

State = Literal["done", "running", "begun", "failed", "left"]
"""Of a cell. Begun: it was interrupted, and goes on where it was saved last."""


@dataclass(frozen=True)
class Standing:
    """How far a cell is.

    Attributes:
        cell: which.
        state: in a word.
        results: what it came to; None unless it is done.
        iterations: how many it has completed, by its last validation.
        seconds: how long those took; None where no epoch is complete.
        failure: why it failed; None if it did not.
    """

    cell: Cell
    state: State
    results: Results | None = None
    iterations: int = 0
    seconds: float | None = None
    failure: str | None = None


def command_of(scale: Scale, cell: Cell) -> str:
    """What to type to train a cell."""
    return f"gradshare paper run --scale {scale} --only {cell.name}"


def standing(cell: Cell, out: Path) -> Standing:
    """How far a cell is.

    Raises:
        RunError: its folder holds another run than the plan has, or cannot be read.
    """
    folder = out / cell.name
    if (folder / FILENAME).exists():
        results = load_results(folder)
        _require_same(cell, RunConfig(**results.config), folder)
        return Standing(cell, "done", results, cell.config.iterations, results.arms[0].seconds)
    run = RunFolder(folder)
    if not run.started:
        return _not_running(Standing(cell, "left"), folder)
    _require_same(cell, run.config(), folder)
    iterations, seconds = 0, None
    if (folder / "metrics.jsonl").exists():
        try:
            last = run.history()[-1]
        except RunError:  # none is complete
            pass
        else:
            iterations, seconds = last.iterations, last.seconds
    state: State = "running" if run.in_use else "begun"
    found = Standing(cell, state, iterations=iterations, seconds=seconds)
    return found if state == "running" else _not_running(found, folder)


def run_cells(
    cells: Sequence[Cell],
    scale: Scale,
    out: Path,
    executor: Executor,
    watch: WatchAll,
) -> list[Standing]:
    """Train the cells that are not finished.

    Those that were interrupted go on; one that fails is noted in its folder, and tried again the
    next time. The others go on without it.

    Args:
        cells: in the order in which they are begun.
        scale: of their plan.
        out: the folder of all results.
        executor: where they are trained.
        watch: told of progress.

    Returns:
        How far each is at the end.

    Raises:
        GradshareError: a dataset is missing, or memory, or a folder holds another run; nothing
            was begun.
        RunStoppedError: Ctrl-C or SIGTERM; every cell has saved what it had.
    """
    todo = [cell for cell in cells if standing(cell, out).state != "done"]
    require_data(todo, executor)
    jobs = {cell.name: Job(cell.config, out / cell.name) for cell in todo}
    by_name = {cell.name: cell for cell in todo}

    def record(name: str, run: Finished) -> None:
        results = results_of_runs([run], command_of(scale, by_name[name]))
        save_results(results, jobs[name].folder / FILENAME)

    def failed(name: str, error: GradshareError) -> None:
        folder = jobs[name].folder
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FAILURE, f"{error}\n".encode())

    for job in jobs.values():  # what an earlier attempt failed of is to be tried again
        for name in (FAILURE, ERROR):
            (job.folder / name).unlink(missing_ok=True)
    if jobs:
        run_all(jobs, executor, watch, record, resume=True, failed=failed)
    return [standing(cell, out) for cell in cells]


def require_data(cells: Sequence[Cell], executor: Executor) -> None:
    """Refuse cells whose data or memory is missing, before any of them is begun.

    Raises:
        GradshareError: what is missing, and for which cells.
    """
    largest: dict[tuple[object, ...], Cell] = {}
    for cell in cells:
        config = cell.config
        kind = (config.dataset, config.image_size, config.resize)
        if kind not in largest or _work(config) > _work(largest[kind].config):
            largest[kind] = cell
    for cell in largest.values():
        config = cell.config
        if not executor.here:  # the devices and the memory of other machines are theirs to check
            config = RunConfig(**{**config.model_dump(), "device": "cpu"})
        try:
            setup = set_up(config)
        except DataError as error:
            raise DataError(
                f"cells of {config.dataset} cannot be run: {error}; or leave them out with --only"
            ) from error
        if executor.here:
            require_memory(config, setup, at_a_time=executor.at_a_time)


def _work(config: RunConfig) -> int:
    """Something that grows with the memory of a step."""
    return config.task_batch * config.ways * (config.shots * config.inner_steps + config.queries)


def _not_running(found: Standing, folder: Path) -> Standing:
    """What is known of a cell that nobody trains: perhaps why it failed."""
    path = folder / FAILURE
    if not path.exists():
        return found
    try:
        failure = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        failure = f"{path} cannot be read: {error}"
    return Standing(found.cell, "failed", None, found.iterations, found.seconds, failure)


def _require_same(cell: Cell, stored: RunConfig, folder: Path) -> None:
    """Refuse a folder that holds another run.

    Raises:
        RunError: names the first setting that differs.
    """
    for name in RunConfig.model_fields:
        old, new = getattr(stored, name), getattr(cell.config, name)
        if name not in MACHINE_FIELDS and old != new:
            raise RunError(
                f"{folder} holds a run with {name} {old!r}, the plan has {new!r}; use another "
                "--out, or move that folder away"
            )


def results_by_cell(cells: Sequence[Cell], out: Path) -> Mapping[Cell, Results]:
    """What the finished cells came to."""
    found = (standing(cell, out) for cell in cells)
    return {one.cell: one.results for one in found if one.results is not None}
