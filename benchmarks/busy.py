"""How long a run of `gradshare compare` takes while other programs use all cores.

    python -m benchmarks.busy            # about two minutes
    python -m benchmarks.busy --quick    # tiny sizes, to see that it works; figures mean nothing

Times outer steps of MAML in a process as `compare` starts it, with all cores for one run and with
one, and with all cores without its setting of OpenMP. The three take turns. Target: all cores take
at most 1.5 times as long as one.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import torch

import gradshare as gs
from benchmarks.rows import Row, print_table, verdicts
from gradshare.comparison.compare import local_executor
from gradshare.executors import LocalExecutor
from gradshare.training.machine import TUNABLES, cores, environment

WARM_UP = 1
MOST = 1.5
DEFAULT, ONE, SPINNING = "compare's default", "one thread", "without its setting of OpenMP"


def outer_steps(filters: int, count: int) -> list[float]:
    """The seconds of some outer steps, in the process that calls this."""
    model = gs.Conv4(ways=5, image_size=28, channels=1, filters=filters)
    learner = gs.maml(model, steps=5)
    meta, carried = learner.init()
    images = torch.randn(4, 80, 1, 28, 28)
    classes = torch.arange(5).repeat(16).expand(4, 80)
    batch = gs.TaskBatch(images[:, :5], classes[:, :5], images[:, 5:], classes[:, 5:])
    seconds = []
    for iteration in range(WARM_UP + count):
        start = time.perf_counter()
        step = learner.outer_step(meta, carried, batch, iteration=iteration)
        torch.autograd.backward(step.objective.sum())
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:]


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
    parser.add_argument("--turns", type=int, default=3, help="turns of each")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    arguments = parser.parse_args()
    filters, turns = (4, 1) if arguments.quick else (48, arguments.turns)
    executors = {
        DEFAULT: local_executor(runs=1, at_a_time=1),
        ONE: local_executor(runs=cores(), at_a_time=cores()),
        SPINNING: LocalExecutor(1, dict([TUNABLES])),
    }
    seconds: dict[str, list[float]] = {name: [] for name in executors}
    with all_cores_busy():
        for _ in range(turns):
            for name, executor in executors.items():
                seconds[name] += executor.submit(outer_steps, filters, 3).result()
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    row = Row(
        "a run of compare with all cores busy, over one thread",
        medians[DEFAULT] / medians[ONE],
        MOST,
        "×",
        "≤",
        medians,
        depends_on_equality=False,
    )
    print_table(verdicts([row], environment(torch.device("cpu"), "vmap, graphs kept")))
    print("\n".join(f"{name}: {median:.2f} s" for name, median in medians.items()))


if __name__ == "__main__":
    import_module("benchmarks.busy").main()  # workers don't have this `__main__`
