"""Trains the cells of a plan, and reads how far each of them is.

`OUT/CELL` is the folder of a cell's run. When the run has ended, its result is written there, as
`result.json`. `python -m reproduction pack` copies the results of a study into one file,
`OUT/STUDY.jsonl.gz`.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gradshare import GradshareError, RunConfig, RunError
from gradshare.config import train
from gradshare.executors import LocalExecutor, LostWorkerError
from gradshare.training.files import write_atomically
from gradshare.training.interruption import RunStoppedError
from gradshare.training.lock import is_locked
from gradshare.training.machine import TUNABLES, keep_freed_memory
from reproduction.plan import Cell
from reproduction.records import PACKED, Run, first_difference, read_runs, record_of

RESULT, FAILURE = "result.json", "failure.txt"

State = Literal["done", "running", "begun", "failed", "left"]
"""Of a cell. "begun" means that it was interrupted; it continues from its last checkpoint."""


@dataclass(frozen=True)
class Status:
    """How far a cell is.

    Attributes:
        cell: which.
        state: see `State`.
        run: its result, if it is done.
        iterations: how many it has completed.
        seconds: how long these took.
        failure: why it failed, if it did.
    """

    cell: Cell
    state: State
    run: Run | None = None
    iterations: int = 0
    seconds: float = 0.0
    failure: str | None = None


def statuses(cells: Sequence[Cell], out: Path) -> list[Status]:
    """The status of each cell.

    Raises:
        RunError: a result has other settings than the plan, or other test tasks than the other
            results: its images differ, or one of them is of gradshare 0.1, which drew other tasks.
    """
    packed = {run.cell: run for file in sorted(out.glob(f"*{PACKED}")) for run in read_runs(file)}
    found = [_status(cell, out / cell.name, packed.get(cell.name)) for cell in cells]
    _require_the_same_tasks(finished(found))
    return found


def _require_the_same_tasks(runs: Mapping[Cell, Run]) -> None:
    """Raise RunError if two runs on one dataset cannot be compared task by task."""
    seen: dict[Any, tuple[str, Any]] = {}
    for cell, run in runs.items():
        config, facts = cell.config, run.environment
        data = config.dataset, config.image_size, config.resize
        version = "0.1" if facts["gradshare"].startswith("0.1.") else "0.2"
        for what, value in ("images", facts.get("images_sha256")), ("gradshare", version):
            if value is not None:
                other, there = seen.setdefault((what, data), (cell.name, value))
                if there != value:
                    raise RunError(
                        f"{cell.name} and {other} have different test tasks, and cannot be "
                        f"compared: {what} {value:.12} and {there:.12}; move one of them away"
                    )


def finished(found: Sequence[Status]) -> dict[Cell, Run]:
    """The results of the finished cells."""
    return {one.cell: one.run for one in found if one.run is not None}


def _status(cell: Cell, folder: Path, run: Run | None) -> Status:
    if run is None and (folder / RESULT).is_file():
        run = Run.model_validate_json((folder / RESULT).read_bytes())
    if run is not None:
        if difference := first_difference(run, cell.config):
            raise RunError(
                f"the result of {cell.name} is of a run with {difference}; give another --out"
            )
        iterations = run.epochs * cell.config.iterations_per_epoch
        return Status(cell, "done", run, iterations, run.seconds)
    iterations, seconds = 0, 0.0
    if (folder / "metrics.jsonl").is_file():
        # The last line may be half written.
        lines = (folder / "metrics.jsonl").read_text("utf-8").split("\n")[:-1]
        if lines:
            last = json.loads(lines[-1])
            iterations, seconds = last["iterations"], last["seconds"]
    state: State = "begun" if iterations else "left"
    failure = None
    if is_locked(folder):
        state = "running"
    elif (folder / FAILURE).is_file():
        state, failure = "failed", (folder / FAILURE).read_text("utf-8").strip()
    return Status(cell, state, None, iterations, seconds, failure)


def seconds_left(one: Status, measured: Sequence[Status]) -> float | None:
    """How long a cell will take, at its own pace or else the median pace of its study; None if
    neither is known.
    """
    if one.state == "done":
        return 0.0
    left = one.cell.config.iterations - one.iterations
    alike = [other for other in measured if other.cell.study == one.cell.study and other.iterations]
    paces = [o.seconds / o.iterations for o in ([one] if one.iterations else alike)]
    return left * statistics.median(paces) if paces else None


def run_cells(cells: Sequence[Cell], out: Path, jobs: int) -> Iterator[tuple[Cell, str | None]]:
    """Train cells in processes on this machine, those that were interrupted from where they were.

    Ctrl-C and SIGTERM stop the processes, which save what they have.

    Args:
        cells: in the order in which they are begun.
        out: the folder of all cells.
        jobs: how many are trained at a time.

    Yields:
        Each cell when it ends, and why it failed, or None. The others continue.
    """
    out = out.absolute()
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with LocalExecutor(jobs, dict([TUNABLES])) as executor:
            futures = {}
            for cell in cells:
                settings = cell.config.model_dump(mode="json")
                settings["data_root"] = str(cell.config.data_root.absolute())
                futures[executor.submit(train_cell, cell.name, settings, out / cell.name)] = cell
            for future in as_completed(futures):
                try:
                    failure = future.result()
                except LostWorkerError as error:
                    failure = str(error)
                yield futures[future], failure
    finally:
        signal.signal(signal.SIGTERM, previous)


def train_cell(name: str, settings: dict[str, Any], folder: Path) -> str | None:
    """Train a cell in a worker process, and write its result into its folder.

    Returns:
        Why it failed, which is written there too; None if it did not.
    """
    keep_freed_memory()
    config = RunConfig(**settings)
    (folder / FAILURE).unlink(missing_ok=True)
    try:
        run = train(config, folder, resume=True)
        result = record_of(name, run, config).model_dump_json()
        write_atomically(folder / RESULT, result.encode())
    except RunStoppedError as error:  # it is saved
        return str(error)
    except Exception as error:
        failure = str(error) if isinstance(error, GradshareError) else traceback.format_exc()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FAILURE).write_text(failure, "utf-8")
        return failure
    return None
