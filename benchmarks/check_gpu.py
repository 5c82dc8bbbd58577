"""Checks gradshare on one CUDA GPU, in under 8 minutes, and measures it there.

    python -m benchmarks.check_gpu            # writes runs/gpu.json, and prints a table
    python -m benchmarks.check_gpu --quick    # tiny problems

A check that fails is recorded, and the others run. Without a GPU, the checks that a CPU can do run
on tiny problems, and the others are recorded as not run. Rows without a target are information. The
peers come with `pip install '.[bench]'`; one that is missing is recorded as failed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gradshare as gs
from benchmarks.contenders import Contender, Ours
from benchmarks.problems import Problem
from benchmarks.races import FEATURES, LARGE_IMAGES, PARALLEL, RESNET, SMALL_IMAGES
from benchmarks.rows import Row, context, print_rows, write
from gradshare.inner_loop import Tensors
from gradshare.training.device import keep_float32
from tests import oracle
from tests.problems import as_oracle_batch, learner, oracle_g_hat, perturbed, tasks

OUT = Path("runs/gpu.json")
LIMIT = 7 * 60  # seconds, after which no more contender is timed
METHODS = ("maml", "meta-sgd", "maml++")
LAYOUTS = tuple(itertools.product(("loop", "vmap"), ("keep", "recompute")))
TIMED = {
    "Conv-4 84×84, 5-shot, T = 1": LARGE_IMAGES,
    "Conv-4 84×84, 5-shot, T = 5": replace(LARGE_IMAGES, task_batch=5),
    "Conv-4 28×28, 1-shot, T = 5": SMALL_IMAGES,
    "Conv-4 28×28, 1-shot, T = 32": replace(SMALL_IMAGES, task_batch=32),
    "ResNet-12 84×84, 1-shot, T = 1": RESNET,
    "features, T = 25": FEATURES,
    "features, T = 100": replace(FEATURES, task_batch=100),
}


@dataclass(frozen=True)
class Setup:
    """Where and how the checks run.

    Attributes:
        device: "cuda" or "cpu".
        tiny: tiny problems, each run once.
        start: when the checks began.
    """

    device: str
    tiny: bool
    start: float

    def problem(self, problem: Problem) -> Problem:
        """The problem, or a tiny one in its place."""
        return problem.small("float32") if self.tiny else problem

    def ours(self, problem: Problem, **options: Any) -> Ours:
        """gradshare on a problem."""
        return Ours(self.problem(problem), device=self.device, **options)

    def seconds(self, run: Callable[[], object]) -> float:
        """The median time of a call over 2 seconds, at most 30 calls, after two for warming up."""
        times: list[float] = []
        for _ in range(2):
            run()
        while not times or (not self.tiny and sum(times) < 2 and len(times) < 30):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def wait(self) -> None:
        """Wait until the GPU has done its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()


class Captured:
    """A meta-step captured as one CUDA graph, ĝ included. Its tasks and meta-parameters are where
    the learner's are: new values are copied into them.
    """

    def __init__(self, ours: Ours) -> None:
        self.ours, self.carried = ours, ours.carried
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.gradients = self._step()

    def _step(self) -> Tensors:
        self.ours.carried = self.carried
        gradients = self.ours.run()
        for name, tensor in self.ours.carried.items():
            self.carried[name].copy_(tensor)
        return gradients

    def run(self) -> Tensors:
        """The meta-gradient, in the tensors of the capture."""
        self.graph.replay()
        return self.gradients


def parity(setup: Setup) -> Iterator[Row]:
    """Every method and layout against the literal algorithms in float64."""
    for method, sharing in itertools.product(METHODS, ("none", "sharing", "rate-control")):
        plus_plus = method == "maml++"
        setting = oracle.Setting(
            method,
            sharing,
            steps=2 if setup.tiny else 3,
            inner_lr=0.4,
            multi_step_iterations=10 if plus_plus else None,
            per_step_batch_norm=plus_plus,
        )
        found = {
            f"{layout[0]}, {layout[1]}": _beside_the_oracle(setting, setup.device, *layout)
            for layout in LAYOUTS
        }
        what = f"parity, float64: {method}, sharing {sharing}, worst of four layouts"
        yield Row(what, max(found.values()), "≤", 1e-9, found)


def _beside_the_oracle(
    setting: oracle.Setting, device: str, tasks_layout: str, memory: str
) -> float:
    """The worst relative difference of a gradient or a ĝ in two outer iterations."""
    ours = learner(
        setting,
        tasks_at_a_time=None if tasks_layout == "vmap" else 1,
        recompute=memory == "recompute",
    )
    meta, carried = ours.init()
    outer = perturbed(meta)
    here = {name: t.detach().to(device).requires_grad_() for name, t in outer.items()}
    carried = {name: tensor.to(device) for name, tensor in carried.items()}
    g_hat, worst = None, 0.0
    for iteration in (1, 2):
        batch = tasks(3, seed=iteration)
        loss, g_hat = oracle.outer_loss(
            dict(outer), g_hat, as_oracle_batch(batch), setting, iteration
        )
        step = ours.outer_step(here, carried, batch.to(device), iteration=iteration - 1)
        carried = step.carried
        expected, got = _gradients(loss, outer), _gradients(step.objective.mean(), here)
        stored = oracle_g_hat(carried, setting.steps) or []
        pairs = [(got[name], expected[name]) for name in expected]
        for ours_k, theirs_k in zip(stored, g_hat or [], strict=True):
            pairs += [(ours_k[name], theirs_k[name]) for name in theirs_k]
        worst = max(worst, *(relative(a, b) for a, b in pairs))
    return worst


def _gradients(loss: Tensor, outer: Tensors) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(
        loss, list(outer.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(outer, gradients, strict=True))


def relative(a: Tensor, b: Tensor) -> float:
    """‖a - b‖ / ‖b‖, with 1e-4 added below: some gradients are zero but for rounding."""
    a, b = a.cpu().double(), b.cpu().double()
    return float((a - b).norm() / (b.norm() + 1e-4))


def synchronisation(setup: Setup) -> Iterator[Row]:
    """Whether a meta-step waits for the GPU."""
    for sharing, (tasks_layout, memory) in itertools.product((False, True), LAYOUTS):
        ours = setup.ours(SMALL_IMAGES, tasks=tasks_layout, memory=memory, sharing=sharing)
        ours.run()
        setup.wait()
        torch.cuda.set_sync_debug_mode("error")
        error = ""
        try:
            ours.run()
        except RuntimeError:
            error = traceback.format_exc(limit=-3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        what = f"waits for the GPU in a step: {tasks_layout}, {memory}, sharing {sharing}"
        yield Row(what, float(bool(error)), "≤", 0, {"error": error})


def tf32(setup: Setup) -> Iterator[Row]:
    """Whether `fit` leaves TF32 off, and float32's error with it off."""
    if setup.device == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        with tempfile.TemporaryDirectory() as folder:
            _train(setup, Path(folder) / "run", epochs=1)
        on = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
        yield Row("TF32 after fit", float(on), "≤", 0)
        keep_float32(torch.device("cuda"))  # whatever fit did: all contenders compute the same
    problem = setup.problem(SMALL_IMAGES)
    narrow = Ours(problem, device=setup.device).run()
    wide = Ours(replace(problem, dtype="float64"), device=setup.device).run()
    found = {name: relative(narrow[name], wide[name]) for name in wide}
    yield Row("float32's meta-gradient beside float64's", max(found.values()), "≤", 1e-2, found)


def repeatability(setup: Setup) -> Iterator[Row]:
    """Whether two runs, and a resumed one, are equal bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("first", "second", "resumed")]
        first, second = (_train(setup, path, epochs=2) for path in paths[:2])
        _train(setup, paths[2], epochs=1)
        resumed = _train(setup, paths[2], epochs=2)
        for name, other in (("a second run", second), ("a resumed run", resumed)):
            pairs = [
                (tensors[key], others[key])
                for model, other_model in zip(first.models(2), other.models(2), strict=True)
                for tensors, others in zip(model, other_model, strict=True)
                for key in tensors
            ]
            unequal = sum(not torch.equal(a, b) for a, b in pairs)
            yield Row(f"tensors of {name} that differ, of {len(pairs)}", float(unequal))


def _train(setup: Setup, path: Path, *, epochs: int) -> gs.Run:
    problem = setup.problem(SMALL_IMAGES)
    return gs.fit(
        gs.maml(problem.model(ours=True), steps=problem.steps, sharing=True),
        problem.source(),
        problem.source(),
        out=path,
        epochs=epochs,
        iterations=2 if setup.tiny else 20,
        task_batch=problem.task_batch,
        val_tasks=2,
        ensemble=2,
        resume="auto",
        device=setup.device,
        progress=False,
    )


def memory(setup: Setup) -> Iterator[Row]:
    """How the peak memory grows with K where it should be flat."""
    cases = [(LARGE_IMAGES, 20, 1.15), (RESNET, 10, 1.3)]
    for (problem, most, target), sharing in itertools.product(cases, (False, True)):
        found = {}
        for steps in (1, 5, most):
            ours = setup.ours(replace(problem, steps=steps), memory="recompute", sharing=sharing)
            ours.run()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            ours.run()
            found[f"K = {steps}"] = torch.cuda.max_memory_allocated() - before
            del ours
        growth = found[f"K = {most}"] / found["K = 1"]
        name = f"{problem.network}, sharing {sharing}"
        yield Row(f"memory, K = {most} over K = 1: {name}", growth, "≤", target, found)


def times(setup: Setup) -> Iterator[Row]:
    """Milliseconds of a meta-step: ours by loop, vmap and a CUDA graph, and the peers."""
    peers: Mapping[str, Contender] = {"plain loop": Contender("plain"), **PARALLEL}
    for name, problem in TIMED.items():
        found: dict[str, float] = {}
        for layout in ("loop", "vmap"):
            ours = setup.ours(problem, tasks=layout, memory="keep")
            eager = {key: g.clone() for key, g in ours.run().items()}
            found[layout] = 1000 * setup.seconds(ours.run)
            yield Row(f"{name}: {layout}, ms", found[layout])
            if setup.device == "cuda":
                yield from _captured(setup, f"{name}: {layout}, CUDA graph", ours, eager)
            del ours, eager
        for peer, contender in peers.items():
            if time.monotonic() - setup.start > LIMIT:
                yield Row(f"{name}: {peer}, ms", None, note="not run: no time was left")
                continue
            try:
                runner = contender.build(setup.problem(problem), device=setup.device)
                value, note = 1000 * setup.seconds(runner.run), ""
                del runner
            except Exception as error:  # of a peer
                value, note = None, f"failed: {error!s:.80}"
            yield Row(f"{name}: {peer}, ms", value, note=note)


def _captured(setup: Setup, name: str, ours: Ours, eager: Tensors) -> Iterator[Row]:
    """The time of a captured step, and whether it computes the same."""
    try:
        captured = Captured(ours)
    except RuntimeError as error:
        yield Row(f"{name}, ms", None, note=f"failed: {error!s:.80}")
        return
    yield Row(f"{name}, ms", 1000 * setup.seconds(captured.run))
    gradients = captured.run()
    setup.wait()
    worst = max(relative(gradients[key], eager[key]) for key in eager)
    yield Row(f"{name}, beside the step that is not captured", worst, "≤", 1e-3)


def utilisation(setup: Setup) -> Iterator[Row]:
    """The share of a step's time in which the GPU computes."""
    for name, problem in TIMED.items():
        ours = setup.ours(problem)
        seconds = setup.seconds(ours.run)
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            ours.run()
            setup.wait()
        busy = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
        details = {"layout": ours.layout, "seconds": seconds, "seconds of kernels": busy}
        yield Row(f"{name}: GPU busy, share of a step", busy / seconds, details=details)


def bfloat16(setup: Setup) -> Iterator[Row]:
    """The speed and the error of mixed precision."""
    wide, narrow = (setup.ours(LARGE_IMAGES, precision=p) for p in ("float32", "bfloat16"))
    speed = setup.seconds(wide.run) / setup.seconds(narrow.run)
    yield Row("bfloat16, Conv-4 84×84, 5-shot, T = 1: speed over float32's", speed)
    found, expected = narrow.run(), wide.run()
    worst = max(relative(found[name], expected[name]) for name in expected)
    yield Row("bfloat16: worst relative error of the meta-gradient", worst)


# Each with whether it needs a GPU. What must hold comes first.
CHECKS: Sequence[tuple[Callable[[Setup], Iterator[Row]], bool]] = (
    (parity, False),
    (synchronisation, True),
    (tf32, False),
    (repeatability, False),
    (memory, True),
    (times, False),
    (utilisation, True),
    (bfloat16, False),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks, print, write; 1 if a target is missed or a check failed."""
    parser = argparse.ArgumentParser(description="Checks gradshare on a CUDA GPU.")
    parser.add_argument("--quick", action="store_true", help="tiny problems")
    parser.add_argument("--out", type=Path, default=OUT, help="default: %(default)s")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    setup = Setup(device, tiny=options.quick or device == "cpu", start=time.monotonic())
    described = context(torch.get_num_threads(), device, [])
    if setup.tiny:
        described["tiny"] = "tiny problems: times mean nothing"
    rows: list[Row] = []
    failed = False
    for check, needs_gpu in CHECKS:
        name = check.__name__
        print(f"[{time.monotonic() - setup.start:4.0f} s] {name}", file=sys.stderr, flush=True)
        if needs_gpu and device == "cpu":
            rows.append(Row(name, None, note="not run: no CUDA GPU"))
        else:
            try:
                rows.extend(check(setup))  # keeps the rows before an error
            except Exception as error:  # the other checks run
                failed = True
                details = {"error": traceback.format_exc()}
                rows.append(Row(name, None, note=f"failed: {error!s:.80}", details=details))
        write(options.out, rows, described)
    print_rows(f"gradshare on {described.get('gpu', 'a CPU, with tiny problems')}", rows)
    return int(failed or any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
