"""What sharing the tasks of a batch out over two processes costs or saves.

    python benchmarks/workers.py            # on 2 quiet cores
    python benchmarks/workers.py --quick    # tiny sizes, to see that it works; figures mean nothing

Times outer iterations (draw the tasks, meta-gradient with gradient sharing, Adam's step) of

- one process with 1 thread,
- one process with 2 threads,
- two processes with 1 thread each, as `--workers 2` and `torchrun` run them.

The contenders take turns, each turn in fresh processes: the first iteration of a turn is thrown
away, the median is over the others of all turns. Prints a Markdown table, and writes all times to
`--out`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradshare.config import RunConfig, build
from gradshare.tasks.source import prepared, training_indices
from gradshare.tasks.writing import ClassImages, write_store
from gradshare.training.fit import prepare_run
from gradshare.training.launch import is_first, torchrun_processes
from gradshare.training.layout import Layout
from gradshare.training.machine import environment, keep_freed_memory
from gradshare.training.outer_loop import outer_iteration

WARM_UP = 1
TURN = "GRADSHARE_BENCHMARK_TURN"  # the variable that tells a process of a turn what to do


@dataclass(frozen=True)
class Contender:
    """A way to run.

    Attributes:
        name: in the table.
        processes: how many.
        threads: of each.
    """

    name: str
    processes: int
    threads: int


CONTENDERS = (
    Contender("1 process, 1 thread", 1, 1),
    Contender("1 process, 2 threads", 1, 2),
    Contender("2 processes, 1 thread each", 2, 1),
)


@dataclass(frozen=True)
class Problem:
    """What is run.

    Attributes:
        size: of the images in pixels.
        channels: of the images.
        shots: support images of each of 5 classes.
        filters: of each convolution.
        queries: query images of each class.
    """

    size: int
    channels: int
    shots: int
    filters: int = 48
    queries: int = 15

    @property
    def name(self) -> str:
        """In the table."""
        return f"{self.size}×{self.size}, {self.shots}-shot"


PROBLEMS = (Problem(28, 1, 1), Problem(84, 3, 5))
QUICK = (Problem(16, 1, 1, filters=4, queries=2),)


def main() -> None:
    """Run what the command line asks for, or one process of a turn."""
    if TURN in os.environ:
        _take_turn(**json.loads(os.environ[TURN]))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 5, 8], help="task batches")
    parser.add_argument("--turns", type=int, default=5, help="turns of each contender")
    parser.add_argument("--iterations", type=int, default=2, help="timed iterations in a turn")
    parser.add_argument("--sizes", type=int, nargs="+", default=[28, 84], help="of the images")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-workers.json"))
    arguments = parser.parse_args()

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        chosen = [problem for problem in PROBLEMS if problem.size in arguments.sizes]
        for problem in QUICK if arguments.quick else chosen:
            _write_images(Path(folder), problem)
            for batch in arguments.batches:
                seconds = _measure(problem, batch, arguments, Path(folder))
                rows.append({**asdict(problem), "task_batch": batch, "seconds": seconds})
                print(f"{problem.name}, task batch {batch}: done", file=sys.stderr)
    print("\n".join(_table(rows)))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    described = {
        "environment": environment(torch.device("cpu"), "of `gradshare train`: see its docs"),
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(described, indent=1), encoding="utf-8")
    print(f"\nAll times: {arguments.out}")


def _measure(
    problem: Problem, batch: int, arguments: argparse.Namespace, folder: Path
) -> dict[str, list[float]]:
    """The seconds of each timed iteration by contender, which take turns."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in CONTENDERS}
    for _ in range(arguments.turns):
        for contender in CONTENDERS:
            settings = {
                "dataset": f"noise-{problem.size}",
                "data_root": str(folder),
                "shots": problem.shots,
                "queries": problem.queries,
                "filters": problem.filters,
                "task_batch": batch,
                "device": "cpu",
                "threads": contender.threads,
            }
            seconds[contender.name] += _turn(contender, settings, arguments.iterations)
    return seconds


def _turn(contender: Contender, settings: dict[str, Any], iterations: int) -> list[float]:
    """The seconds of some iterations in fresh processes, as the first of them saw it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = contender.processes
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__],
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                TURN: json.dumps({"settings": settings, "iterations": iterations}),
                **{"RANK": str(rank), "LOCAL_RANK": str(rank)},
                **{"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            },
        )
        for rank in range(size)
    ]
    outputs = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        sys.exit(f"{contender.name} failed; what it said is above")
    seconds: list[float] = json.loads(outputs[0])
    return seconds


def _take_turn(settings: dict[str, Any], iterations: int) -> None:
    """The body of each process of a turn; the first prints the seconds of each iteration."""
    keep_freed_memory()
    torch.set_num_threads(settings["threads"])
    parts = build(RunConfig(**settings))
    sources = (parts.train, parts.validation, parts.test)
    state, *_, contents = prepare_run(
        parts.learner, sources, parts.options, torch.device("cpu"), None
    )
    learner = Layout(**contents["layout"]).applied(parts.learner)
    seconds = []
    with torchrun_processes(settings["device"]) as processes:
        for iteration in range(WARM_UP + iterations):
            start = time.perf_counter()
            share = processes.share(training_indices(0, iteration, settings["task_batch"]))
            state.carried = outer_iteration(
                learner,
                state.meta,
                state.carried,
                state.optimizer,
                prepared(parts.train, parts.train.batch(share.tasks)),
                iteration=iteration,
                metrics={},
                share=share,
            ).carried
            seconds.append(time.perf_counter() - start)
    if is_first():
        print(json.dumps(seconds[WARM_UP:]))


def _write_images(folder: Path, problem: Problem) -> None:
    """A dataset of noise: what is in the images changes no time."""

    def classes() -> Iterator[ClassImages]:
        random = np.random.default_rng(0)
        shape = (problem.shots + problem.queries, problem.channels, problem.size, problem.size)
        for split in ("train", "val", "test"):
            for index in range(5):
                pixels = random.integers(0, 256, shape, dtype=np.uint8)
                yield ClassImages(split, f"{split}-{index}", pixels)

    name = f"noise-{problem.size}"
    path = folder / name / str(problem.size)
    write_store(path, classes(), name=name, rotate_classes=False, source={})


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Medians in seconds, and how two processes compare with two threads, as Markdown."""
    names = [contender.name for contender in CONTENDERS]
    lines = [
        f"| images | task batch | {' | '.join(names)} | 2 processes over 2 threads |",
        "|---" * (len(names) + 3) + "|",
    ]
    for row in rows:
        medians = [statistics.median(row["seconds"][name]) for name in names]
        images = f"{row['size']}×{row['size']}, {row['shots']}-shot"
        cells = [f"{median:.3f} s" for median in medians]
        ratio = f"{medians[1] / medians[2]:.2f}× as fast"
        lines.append(f"| {images} | {row['task_batch']} | {' | '.join(cells)} | {ratio} |")
    return lines


if __name__ == "__main__":
    main()
