"""One process that measures, and what it is asked to do. Only one process computes at a time."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.contenders import Contender, Peer, Runner
from benchmarks.memory import give_back_freed, peak_over_resident
from benchmarks.problems import Problem
from gradshare.errors import RunError
from gradshare.training.machine import TUNABLES, keep_freed_memory


@dataclass(frozen=True)
class Prepared:
    """A contender that is ready to be timed.

    Attributes:
        layout: see `Runner`.
        bytes: the peak memory of its first run over what was resident before.
    """

    layout: str
    bytes: int


class Worker:
    """A process that measures.

    Args:
        threads: that it computes with.
        kept_memory: with our allocator settings, instead of the C library's own.
    """

    def __init__(self, *, threads: int, kept_memory: bool = True) -> None:
        self.pool = ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(threads,),
        )
        variables = {"OMP_NUM_THREADS": str(threads), **(dict([TUNABLES]) if kept_memory else {})}
        with _environment(variables):
            self.ask(os.getpid)  # starts it

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the process, and wait.

        Raises:
            RunError: the process is gone.
        """
        try:
            return self.pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise RunError("its process ended; perhaps memory ran out") from error

    def close(self) -> None:
        """End the process."""
        self.pool.shutdown()


def _start(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_the_driver, daemon=True).start()


def _end_with_the_driver() -> None:
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)


_prepared: dict[str, Callable[[], object]] = {}
_units: dict[str, int] = {}


def prepare(name: str, contender: Contender, problem: Problem, large: bool) -> Prepared:
    """Build a contender, run it for its peak memory, and keep it for `seconds`."""
    runner = _at_its_best(contender, problem)
    if contender.kept_memory:
        keep_freed_memory()
    work = runner.predict if contender.predicts else runner.run
    # The second meta-step with sharing is the first that finds a ĝ.
    iterations = 2 if "sharing" in contender.options else 1
    peak = peak_over_resident(lambda _: work(), iterations)
    if large:
        give_back_freed()
    _prepared[name] = work
    _units[name] = problem.task_batch if contender.predicts else runner.units
    return Prepared(runner.layout, peak)


def seconds(name: str, at_least: float, large: bool) -> float:
    """The seconds of one meta-step, or of one evaluated task.

    Args:
        name: what was prepared.
        at_least: seconds; the work is repeated until they have passed.
        large: see `benchmarks.races.Race`.
    """
    gc.collect()
    if large:
        _prepared[name]()
    runs, start = 0, time.perf_counter()
    while runs == 0 or time.perf_counter() - start < at_least:
        _prepared[name]()
        runs += 1
    elapsed = time.perf_counter() - start
    if large:
        give_back_freed()
    return elapsed / runs / _units[name]


def result(contender: Contender, problem: Problem) -> dict[str, Any]:
    """What a contender computes: the meta-gradient by name, or the logits; as arrays."""
    runner = contender.build(problem)
    tensors = {"logits": runner.predict()} if contender.predicts else runner.run()
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def _at_its_best(contender: Contender, problem: Problem) -> Any:
    """A contender; a peer in the layout of images in which one task and inner step are faster.

    Most users never leave the contiguous one.
    """
    runner = contender.build(problem)
    if not isinstance(runner, Peer) or not problem.has_images:
        return runner
    trial = replace(problem, steps=1, task_batch=1)
    times = {}
    for channels_last in (False, True):
        tried = contender.build(trial, channels_last=channels_last)
        times[channels_last] = min(_time(tried) for _ in range(2))
    return contender.build(problem, channels_last=True) if times[True] < times[False] else runner


def _time(runner: Runner) -> float:
    start = time.perf_counter()
    runner.run()
    return time.perf_counter() - start


def difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The worst ‖a - b‖ / ‖b‖ of all arrays; infinite unless both have the same names."""
    if a.keys() != b.keys():
        return math.inf
    norms = {name: float(((a[name] - b[name]) ** 2).sum() ** 0.5) for name in b}
    relative = [norms[name] / float((b[name] ** 2).sum() ** 0.5) for name in b]
    # `max` overlooks NaN.
    return max(relative) if all(map(math.isfinite, relative)) else math.inf


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
