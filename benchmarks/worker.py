"""One process that measures one contender at a time, told what to do on standard input.

    python -m benchmarks.worker --threads 2 [--keep-freed-memory]

A request is a line of JSON, {"operation": NAME, …arguments of the method of `Session`}; the answer
is a line of JSON, {"error": TEXT} where the request cannot be met. Everything is done within a
request, so that a process that was asked nothing computes nothing.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.contenders import Contender
from benchmarks.episodes import DecodingLoader, open_tasks
from benchmarks.floor import Floor
from benchmarks.memory import peak_over_resident
from benchmarks.ours import Method, Ours
from benchmarks.peers import PEERS
from benchmarks.problems import Problem, Runner, draw_tasks
from gradshare.errors import GradshareError
from gradshare.inner_loop import Tensors
from gradshare.training.machine import keep_freed_memory

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
LAYOUT_TRIALS = 1

# Of a peer's memory layouts: 1.91 GB against 1.97 at 84×84, 5-shot, K = 5.
LEANEST = "channels-last"

Answer = dict[str, Any]


class Session:
    """What the process was told to prepare, and the operations on it."""

    def __init__(self) -> None:
        self.measured: dict[int, Callable[[], Tensors]] = {}

    def answer(self, request: dict[str, Any]) -> Answer:
        """Do what a request says."""
        arguments = dict(request)
        operation = arguments.pop("operation")
        try:
            answer: Answer = getattr(self, operation)(**arguments)
        except GradshareError as error:
            return {"error": str(error)}
        return answer

    def prepare(
        self, contender: Answer, problem: Answer, purpose: str, tasks: int, slot: int = 0
    ) -> Answer:
        """Build a contender with its images, and keep what `run` is to time.

        Args:
            contender: the fields of a `Contender`.
            problem: the fields of a `Problem`.
            purpose: "step" (a meta-gradient), "predictions" (of each task by itself) or "query
                pass" (see `Ours.query_pass`).
            tasks: how many.
            slot: where it is kept, if this process has several contenders.
        """
        who, work = Contender.of(contender), Problem(**problem)
        if who.kind == "floor":
            floor = Floor(work)

            def convolutions() -> Tensors:
                floor.run()
                return {}

            self.measured[slot] = convolutions
            return {"layout": "the fastest of each call"}
        layout = _fastest_layout(who, work, purpose)
        runner = _build(who, work, layout)
        given = runner.as_given(draw_tasks(work, tasks, work.seed))
        self.measured[slot] = lambda: _purpose(runner, purpose)(given)
        return {"layout": layout}

    def run(self, slot: int = 0) -> Answer:
        """Time what was prepared, once; what its graphs leave behind is cleared beforehand."""
        gc.collect()
        start = time.perf_counter()
        self.measured[slot]()
        return {"seconds": time.perf_counter() - start}

    def save(self, path: str, slot: int = 0) -> Answer:
        """Run what was prepared, and write the tensors that come out."""
        result = self.measured[slot]()
        save_file({name: t.detach().clone().contiguous() for name, t in result.items()}, path)
        return {}

    def peak(self, contender: Answer, problem: Answer, iterations: int) -> Answer:
        """The peak memory of meta-steps from drawing their images to their meta-gradient, over
        what was resident before the first; in bytes. Of use in a fresh process only.
        """
        work = Problem(**problem)
        runner = _build(Contender.of(contender), work, LEANEST)

        def iteration(index: int) -> None:
            runner.meta_gradient(runner.as_given(draw_tasks(work, work.task_batch, index)))

        return {"bytes": peak_over_resident(iteration, iterations)}

    def draw(self, source: str, problem: Answer, folder: str, episodes: int) -> Answer:
        """Time the drawing of episodes from the "store" or the "files" of `write_images`."""
        work = Problem(**problem)
        draw: Callable[[int], object]
        if source == "store":
            stored = open_tasks(work, Path(folder))

            def from_store(index: int) -> object:
                return stored.batch([index])

            draw = from_store
        else:
            draw = DecodingLoader(work, Path(folder)).batch
        draw(0)
        start = time.perf_counter()
        for index in range(1, episodes + 1):
            draw(index)
        return {"seconds": time.perf_counter() - start}

    def profile(
        self, method: Answer, problem: Answer, folder: str, iterations: int, table: str
    ) -> Answer:
        """Where an iteration's time goes: medians in seconds of sampling, of moving and
        normalising, and of the meta-step; and PyTorch's own profile of one iteration in a file.
        """
        work = Problem(**problem)
        source, ours = open_tasks(work, Path(folder)), Ours(work, Method(**method))
        stages: list[list[float]] = []

        def iteration(index: int) -> None:
            first = index * work.task_batch
            times = [time.perf_counter()]
            with torch.profiler.record_function("## sampling"):
                tasks = source.batch(range(first, first + work.task_batch))
            times.append(time.perf_counter())
            with torch.profiler.record_function("## moving and normalising"):
                given = ours.as_given(tasks.to("cpu"))
            times.append(time.perf_counter())
            with torch.profiler.record_function("## meta-step"):
                ours.meta_gradient(given)
            times.append(time.perf_counter())
            stages.append([after - before for before, after in itertools.pairwise(times)])

        iteration(0)
        stages.clear()
        for index in range(1, iterations + 1):
            iteration(index)
        sampling, moving, step = (statistics.median(stage) for stage in zip(*stages, strict=True))
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profile:
            iteration(iterations + 1)
        averages = profile.key_averages()
        Path(table).write_text(averages.table(sort_by="cpu_time_total", row_limit=40))
        return {"sampling": sampling, "moving": moving, "step": step}


def _build(contender: Contender, problem: Problem, layout: str) -> Runner:
    """A contender with its network built; a layout is for peers, since ours brings its own."""
    if contender.method is not None:
        return Ours(problem, contender.method)
    return PEERS[contender.kind](problem, LAYOUTS[layout])


def _purpose(runner: Runner, purpose: str) -> Callable[[Any], Tensors]:
    if purpose == "step":
        return runner.meta_gradient
    if purpose == "predictions":
        return lambda tasks: {"logits": runner.predictions(tasks)}
    assert isinstance(runner, Ours)
    return runner.query_pass


def _fastest_layout(contender: Contender, problem: Problem, purpose: str) -> str:
    """The memory layout that serves a peer best, from a task of one inner step in each. Most
    users never leave the contiguous one; a peer is measured at its best.
    """
    if contender.method is not None:
        return "our own"
    trial = replace(problem, steps=1, task_batch=1)
    seconds: dict[str, float] = {}
    for layout in LAYOUTS:
        runner = _build(contender, trial, layout)
        given = runner.as_given(draw_tasks(trial, 1, trial.seed))
        times = []
        for _ in range(LAYOUT_TRIALS + 1):
            start = time.perf_counter()
            _purpose(runner, purpose)(given)
            times.append(time.perf_counter() - start)
        seconds[layout] = min(times[1:])
    return min(seconds, key=seconds.__getitem__)


def main() -> None:
    """Serve requests until standard input ends."""
    parser = argparse.ArgumentParser(description="Measures one contender; see benchmarks.bench.")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--keep-freed-memory", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.keep_freed_memory:
        keep_freed_memory()
    # What a peer prints must not get between the answers.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        session = Session()
        for line in sys.stdin:
            print(json.dumps(session.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
