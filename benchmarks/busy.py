"""How long a run of `gradshare compare` takes while other programs use all cores.

    python -m benchmarks.busy            # about two minutes
    python -m benchmarks.busy --quick    # a tiny problem, to see that it works

Times meta-steps in a process as `compare` starts it, with all cores for one run and with one, and
with all cores without its setting of OpenMP. The three take turns. Target: all cores take at most
1.5 times as long as one.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module

from benchmarks.contenders import Ours
from benchmarks.problems import Problem
from benchmarks.races import SMALL_IMAGES
from benchmarks.rows import Row, print_rows
from gradshare.comparison.compare import local_executor
from gradshare.executors import LocalExecutor
from gradshare.training.machine import TUNABLES, cores

MOST = 1.5
DEFAULT, ONE, SPINNING = "compare's default", "one thread", "without its setting of OpenMP"


def meta_steps(problem: Problem, count: int) -> list[float]:
    """The seconds of some meta-steps, in the process that calls this."""
    ours = Ours(problem, tasks="vmap", memory="keep")
    ours.run()
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        ours.run()
        seconds.append(time.perf_counter() - start)
    return seconds


@contextmanager
def all_cores_busy() -> Iterator[None]:
    """Keep each core busy with another program."""
    programs = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores())
    ]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def main() -> None:
    """Measure, and print the row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="a tiny problem")
    problem, turns = replace(SMALL_IMAGES, task_batch=4), 3
    if parser.parse_args().quick:
        problem, turns = problem.small("float32"), 1
    executors = {
        DEFAULT: local_executor(runs=1, at_a_time=1),
        ONE: local_executor(runs=cores(), at_a_time=cores()),
        SPINNING: LocalExecutor(1, dict([TUNABLES])),
    }
    seconds: dict[str, list[float]] = {name: [] for name in executors}
    with all_cores_busy():
        for _ in range(turns):
            for name, executor in executors.items():
                seconds[name] += executor.submit(meta_steps, problem, 3).result()
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    measured = medians[DEFAULT] / medians[ONE]
    row = Row("a run of compare with all cores busy, over one thread", measured, "≤", MOST)
    told = [Row(f"{name}, seconds a meta-step", median) for name, median in medians.items()]
    print_rows("compare on a busy machine", [row, *told])


if __name__ == "__main__":
    import_module("benchmarks.busy").main()  # workers don't have this `__main__`
