"""Measures gradshare beside its peers and says which targets are met.

    python -m benchmarks.bench              # all of it, at most 15 minutes on 2 quiet cores
    python -m benchmarks.bench --quick      # tiny sizes, to see that it works; figures mean nothing

Needs the peers (`pip install 'gradshare[bench]'`), Linux, and about 16 GB of memory, since all
contenders of a race are alive at once. Only one computes at a time; leave the machine alone
meanwhile. Prints tables, and writes `runs/bench.json` and PyTorch's profile of one iteration.

What is compared with what:

- *Time*: contenders in a race take turns, each in its own process; medians over the turns, of which
  `higher`, twice as slow as the others, has fewer for a meta-step. A meta-step ends with the
  meta-gradient in hand; images are there beforehand and Adam's step is left out, the same for all.
- *As it comes* and *with our allocator settings*: whether a process has called
  `gradshare.training.machine.keep_freed_memory` and was started with its `TUNABLES`, as what
  `gradshare` trains in always has.
- *Memory*: the peak of a fresh process of one thread over what it holds before the first iteration;
  an iteration draws uint8 images, normalises them and takes the meta-gradient. The leanest peer is
  the leanest with or without our allocator settings; ours runs with them, as in training.
- *Equal*: the relative difference ‖a - b‖ / ‖b‖ of each named tensor of the meta-gradient, the
  worst over tensors, peers and both of our modes. Rows of time and memory are void without it.
"""

from __future__ import annotations

import argparse
import datetime
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.contenders import FLOOR, PEER_NAMES, SLOW_STEP, Contender, ours
from benchmarks.driver import ROOT, Entry, Race, Seconds, Start, Worker, timed
from benchmarks.episodes import write_images
from benchmarks.ours import METHODS, Method
from benchmarks.problems import Problem, draw_tasks, starting_model
from benchmarks.rows import Row, print_figures, print_table, verdicts, write
from gradshare.errors import GradshareError
from gradshare.training.machine import cores, environment

MEGA = 1e6
KEPT, FLAT = "graphs kept", "memory flat"
MODES = {KEPT: False, FLAT: True}


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        large: the paper's setting on mini-ImageNet, 84×84 5-shot, task batch 1.
        small: 28×28 1-shot, task batch 5.
        exact: a small problem in float64.
        repetitions: turns of each contender in a race, for medians of headline rows.
        slow_repetitions: of the peer that takes twice as long as the others, or more.
        evaluation_tasks: adapted to in one turn.
        compared_tasks: whose predictions are compared.
        many_steps: K that is compared with K = 1 in memory.
        many_tasks: T that is compared with T = 1 in memory.
        episodes: drawn in one turn, from the store and from files.
        profiled: iterations timed by stage.
    """

    large: Problem
    small: Problem
    exact: Problem
    repetitions: int
    slow_repetitions: int
    evaluation_tasks: int
    compared_tasks: int
    many_steps: int
    many_tasks: int
    episodes: tuple[int, int]
    profiled: int


FULL = Scale(
    large=Problem(84, 3, shots=5, task_batch=1),
    small=Problem(28, 1, shots=1, task_batch=5),
    exact=Problem(28, 2, 2, 2, queries=3, steps=3, filters=8, dtype="float64", inner_lr=0.1),
    repetitions=5,
    slow_repetitions=2,
    evaluation_tasks=20,
    compared_tasks=3,
    many_steps=20,
    many_tasks=5,
    episodes=(400, 20),
    profiled=9,
)

QUICK = Scale(
    large=Problem(20, 3, shots=2, task_batch=1, queries=2, steps=2, filters=4),
    small=Problem(16, 1, shots=1, task_batch=2, queries=2, steps=2, filters=4),
    exact=Problem(16, 2, 2, 2, queries=2, steps=2, filters=4, dtype="float64", inner_lr=0.1),
    repetitions=2,
    slow_repetitions=1,
    evaluation_tasks=3,
    compared_tasks=2,
    many_steps=3,
    many_tasks=2,
    episodes=(4, 2),
    profiled=2,
)
SCALES = {"full": FULL, "quick": QUICK}


class Bench:
    """The measurements, in the order in which they are taken.

    Args:
        scale: how much is measured.
        peers: the names of those that take part.
        threads: of each contender.
        folder: an existing one, for what lasts no longer than the measurements.
        profile: the file for PyTorch's profile.
        start: starts a worker.
        say: told what is being measured.
    """

    def __init__(
        self,
        scale: Scale,
        peers: Sequence[str],
        threads: int,
        folder: Path,
        profile: Path,
        start: Start,
        say: Callable[[str], None],
    ) -> None:
        self.scale = scale
        self.peers = [Contender(name) for name in peers]
        self.threads = threads
        self.folder = folder
        self.profile = profile
        self.start = start
        self.say = say

    def rows(self) -> list[Row]:
        """Measure everything."""
        return [
            *self.meta_step(),
            *self.own_costs(),
            *self.memory_beside_peers(),
            *self.memory_growth(),
            *self.episodes(),
            *self.evaluation(),
        ]

    def meta_step(self) -> Iterator[Row]:
        """Time of a meta-step beside the peers and the floor, and whether all agree."""
        scale = self.scale
        both = [Entry(peer, kept) for kept in (False, True) for peer in self.peers]
        modes = {name: Entry(ours(flat=flat)) for name, flat in MODES.items()}
        floor = Entry(FLOOR)
        entries = [*both, *modes.values(), Entry(ours(), kept_memory=False), floor]
        slow = {e: scale.slow_repetitions for e in both if e.contender.kind == SLOW_STEP}
        with Race(self.start, self.threads, entries) as race:
            self.say("the same meta-gradient in float64")
            race.prepare(scale.exact, scale.exact.task_batch)
            yield self._equality("meta-gradient, small problem in float64", race, 1e-9)
            for problem, targets in (
                (scale.large, {KEPT: (2.0, 5.0), FLAT: (1.5, 3.5)}),
                (scale.small, {KEPT: (1.7, 2.5)}),
            ):
                setting = _setting(problem)
                self.say(f"meta-step at {setting}")
                layouts = race.prepare(problem, problem.task_batch)
                yield self._equality(f"meta-gradient, {setting}, float32", race, 1e-2)
                seconds = _medians(race.run(scale.repetitions, slow))
                details = {_name(e): {"s": seconds[e], "layout": layouts[e]} for e in entries}
                print_figures(
                    f"A meta-step at {setting}",
                    {_name(e): f"{seconds[e]:.3f} s, {layouts[e]}" for e in entries},
                )
                for mode, bounds in targets.items():
                    for kept, bound in zip((True, False), bounds, strict=True):
                        peer = min(seconds[e] for e in both if e.kept_memory is kept)
                        yield Row(
                            f"meta-step at {setting}, {mode}: times the speed of the fastest peer "
                            + ("with our allocator settings" if kept else "as it comes"),
                            peer / seconds[modes[mode]],
                            bound,
                            "×",
                            "≥",
                            details,
                        )
                if problem is scale.large:
                    yield Row(
                        f"meta-step at {setting}, {KEPT}: time over that of its convolutions alone",
                        seconds[modes[KEPT]] / seconds[floor],
                        1.4,
                        "×",
                        "≤",
                        details,
                    )

    def own_costs(self) -> Iterator[Row]:
        """What sharing costs, and MAML++'s parts beyond their query passes; the worst of both
        modes and both settings. All in one process: two of one contender differ by as much as is
        looked for here.
        """
        sharing: dict[str, float] = {}
        plus_plus: dict[str, float] = {}
        cases = {
            mode: (
                Entry(ours(flat=flat)),
                Entry(ours(flat=flat, sharing=True)),
                Entry(ours(flat=flat, name="maml++")),
                Entry(ours(flat=flat, name="maml++"), purpose="query pass"),
            )
            for mode, flat in MODES.items()
        }
        entries = [entry for case in cases.values() for entry in case]
        with Race(self.start, self.threads, entries, together=True) as race:
            for problem in (self.scale.large, self.scale.small):
                self.say(f"our own costs at {_setting(problem)}")
                race.prepare(problem, problem.task_batch)
                race.warm_up(self.folder)
                seconds = _medians(race.run(self.scale.repetitions))
                for mode, (base, shared, multi_step, query) in cases.items():
                    case = f"{_setting(problem)}, {mode}"
                    sharing[case] = 100 * (seconds[shared] / seconds[base] - 1)
                    expected = seconds[base] + (problem.steps - 1) * seconds[query]
                    plus_plus[case] = seconds[multi_step] / expected
                    print_figures(
                        f"Our own costs at {case}",
                        {
                            "MAML": f"{seconds[base]:.3f} s",
                            "with gradient sharing": f"{seconds[shared]:.3f} s",
                            "MAML++": f"{seconds[multi_step]:.3f} s",
                            "a query pass with its gradient": f"{seconds[query]:.3f} s",
                            "MAML and K - 1 query passes": f"{expected:.3f} s",
                        },
                    )
        yield Row(
            "gradient sharing's own cost, in percent of a step without it",
            max(sharing.values()),
            5,
            "%",
            "≤",
            sharing,
        )
        yield Row(
            "MAML++ (per-step batch norm, multi-step loss, LSLR): time over that of MAML and "
            "K - 1 query passes with their gradients",
            max(plus_plus.values()),
            1.05,
            "×",
            "≤",
            plus_plus,
        )

    def memory_beside_peers(self) -> Iterator[Row]:
        """Peak memory in flat mode beside the leanest peer. A peer's tasks follow each other, so
        that those which are among the leaner half with one task are so with several.
        """
        peers = [Entry(peer, kept) for kept in (False, True) for peer in self.peers]
        modes = {name: Entry(ours(flat=flat)) for name, flat in MODES.items()}
        for task_batch in (1, self.scale.many_tasks):
            problem = replace(self.scale.large, task_batch=task_batch)
            setting = _setting(problem)
            self.say(f"peak memory at {setting}")
            # Two iterations of ours, as in training. One flatters a peer, if anything.
            peaks = self._peaks(
                [(entry, problem, 1) for entry in peers]
                + [(entry, problem, 2) for entry in modes.values()]
            )
            by_entry = dict(zip((*peers, *modes.values()), peaks, strict=True))
            details = {_name(entry): peak for entry, peak in by_entry.items()}
            print_figures(
                f"Peak memory at {setting}",
                {name: f"{peak / MEGA:,.0f} MB" for name, peak in details.items()},
            )
            yield Row(
                f"peak memory at {setting}, {FLAT}: share of the leanest peer's",
                100 * by_entry[modes[FLAT]] / min(by_entry[peer] for peer in peers),
                50,
                "%",
                "≤",
                details,
            )
            peers = sorted(peers, key=by_entry.__getitem__)[: math.ceil(len(peers) / 2)]

    def memory_growth(self) -> Iterator[Row]:
        """How peak memory in flat mode grows with K and T, with sharing on."""
        scale, base = self.scale, self.scale.large
        added = (scale.many_tasks - 1) * _bytes_of_a_task(base)
        few, many = replace(base, steps=1), replace(base, steps=scale.many_steps)
        tasks = replace(base, task_batch=scale.many_tasks)
        for name in METHODS:
            self.say(f"how {name}'s memory grows")
            entry = Entry(ours(name=name, sharing=True, flat=True))
            setting = f"{_setting(base)}, {FLAT}, {name} with sharing"
            # The second iteration is the first that finds a ĝ.
            few_peak, many_peak, base_peak, tasks_peak = self._peaks(
                [(entry, problem, 2) for problem in (few, many, base, tasks)]
            )
            details = {
                f"K = {few.steps}, T = 1": few_peak,
                f"K = {many.steps}, T = 1": many_peak,
                f"K = {base.steps}, T = 1": base_peak,
                f"K = {base.steps}, T = {tasks.task_batch}": tasks_peak,
            }
            print_figures(
                f"Peak memory at {setting}",
                {case: f"{peak / MEGA:,.0f} MB" for case, peak in details.items()},
            )
            yield Row(
                f"peak memory at {setting}: K = {many.steps} over K = {few.steps}",
                many_peak / few_peak,
                1.15,
                "×",
                "≤",
                details,
            )
            yield Row(
                f"peak memory at {setting}: added by tasks 2 to {tasks.task_batch}, beside their "
                "images (uint8 and float32) and 3 K + 1 trees of parameters (θ_0 to θ_K, "
                "gradients, updates)",
                (tasks_peak - base_peak) / MEGA,
                added / MEGA,
                "MB",
                "≤",
                details,
            )

    def episodes(self) -> Iterator[Row]:
        """What sampling and moving cost, and how fast episodes are drawn."""
        shares: dict[str, float] = {}
        for problem in (self.scale.large, self.scale.small):
            setting = _setting(problem)
            self.say(f"where an iteration's time goes at {setting}")
            folder = self.folder / setting
            write_images(problem, folder)
            with self.start(threads=self.threads, kept_memory=True) as worker:
                stages = worker.ask(
                    "profile",
                    method=asdict(Method()),
                    problem=asdict(problem),
                    folder=str(folder),
                    iterations=self.scale.profiled,
                    table=str(self.profile),
                )
            total = sum(stages.values())
            shares[setting] = 100 * (total - stages["step"]) / total
            print_figures(
                f"An iteration at {setting}, {KEPT}",
                {
                    stage: f"{1000 * seconds:.2f} ms, {100 * seconds / total:.2f} %"
                    for stage, seconds in stages.items()
                },
            )
        yield Row(
            f"sampling, moving and normalising episodes, in percent of an iteration, {KEPT}",
            max(shares.values()),
            3,
            "%",
            "≤",
            shares,
        )
        problem = self.scale.large
        self.say("episodes a second")
        rates: dict[str, list[float]] = {"store": [], "files": []}
        with (
            self.start(threads=self.threads, kept_memory=True) as store,
            self.start(threads=self.threads, kept_memory=True) as files,
        ):
            for _ in range(self.scale.repetitions):
                for (source, seen), worker, count in zip(
                    rates.items(), (store, files), self.scale.episodes, strict=True
                ):
                    answer = worker.ask(
                        "draw",
                        source=source,
                        problem=asdict(problem),
                        folder=str(self.folder / _setting(problem)),
                        episodes=count,
                    )
                    seen.append(count / answer["seconds"])
        medians = {source: statistics.median(seen) for source, seen in rates.items()}
        print_figures(
            f"Episodes a second at {_setting(problem)}",
            {source: f"{rate:,.0f}" for source, rate in medians.items()},
        )
        yield Row(
            f"episodes a second at {_setting(problem)}: times those of a loader that decodes JPEG "
            "files each time",
            medians["store"] / medians["files"],
            20,
            "×",
            "≥",
            medians,
        )

    def evaluation(self) -> Iterator[Row]:
        """Adapt and predict, beside the peers with our allocator settings."""
        scale = self.scale
        peers = [Entry(peer, purpose="predictions") for peer in self.peers]
        mine = Entry(ours(), purpose="predictions")
        with Race(self.start, self.threads, [*peers, mine]) as race:
            self.say("the same predictions in float64")
            race.prepare(scale.exact, scale.compared_tasks)
            yield self._equality("predictions, small problem in float64", race, 1e-9)
            for problem in (scale.small, scale.large):
                setting = f"{problem.image_size}×{problem.image_size} {problem.shots}-shot"
                self.say(f"evaluation at {setting}")
                race.prepare(problem, scale.compared_tasks)
                yield self._equality(f"predictions at {setting}, float32", race, 1e-2)
                layouts = race.prepare(problem, scale.evaluation_tasks)
                seconds = _medians(race.run(scale.repetitions))
                rates = {entry: scale.evaluation_tasks / seconds[entry] for entry in race.entries}
                details = {
                    _name(e): {"tasks a second": rates[e], "layout": layouts[e]} for e in rates
                }
                print_figures(
                    f"Evaluation at {setting}, {scale.evaluation_tasks} tasks",
                    {_name(e): f"{rates[e]:.2f} tasks a second, {layouts[e]}" for e in rates},
                )
                yield Row(
                    f"evaluation at {setting}: times the tasks a second of the fastest peer with "
                    "our allocator settings",
                    rates[mine] / max(rates[peer] for peer in peers),
                    2,
                    "×",
                    "≥",
                    details,
                )

    def _equality(self, what: str, race: Race, target: float) -> Row:
        """Run everyone once and compare ours with every peer."""
        results = {entry: load_file(path) for entry, path in race.warm_up(self.folder).items()}
        peers = {e: r for e, r in results.items() if e.contender.method is None}
        differences = {
            f"{_name(entry)} and {_name(peer)}": difference(result, other)
            for entry, result in results.items()
            if entry not in peers
            for peer, other in peers.items()
        }
        first, *others = peers.values()
        among = max((difference(first, other) for other in others), default=0.0)
        return Row(
            f"equal: {what}",
            max(differences.values()),
            target,
            "",
            "≤",
            {**differences, "peers among themselves": among},
            depends_on_equality=False,
        )

    def _peaks(self, cases: Sequence[tuple[Entry, Problem, int]]) -> list[int]:
        """The peak memory of so many iterations, each in a fresh process of one thread, two
        processes at a time: memory does not depend on who else computes.
        """

        def peak(case: tuple[Entry, Problem, int]) -> int:
            entry, problem, iterations = case
            with Race(self.start, 1, [entry]) as race:
                return race.peaks(problem, iterations)[entry]

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(peak, cases))


def difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """The worst ‖a - b‖ / ‖b‖ of all tensors; infinite unless both have the same ones."""
    if a.keys() != b.keys():
        return math.inf
    differences = [float((a[name] - b[name]).norm() / b[name].norm()) for name in b]
    # `max` overlooks NaN.
    return max(differences) if all(map(math.isfinite, differences)) else math.inf


def _bytes_of_a_task(problem: Problem) -> int:
    """What a task of a batch may hold on to in flat mode: its images, as uint8 and as float32,
    and θ_0, …, θ_K with K gradients and K updates.
    """
    task = draw_tasks(problem, 1, seed=0)
    pixels: int = task.support_x.numel() + task.query_x.numel()
    adapted = sum(
        p.numel() for name, p in starting_model(problem).named_parameters() if ".norm." not in name
    )
    return (1 + 4) * pixels + 4 * (3 * problem.steps + 1) * adapted


def _medians(seconds: Seconds) -> dict[Entry, float]:
    return {entry: statistics.median(times) for entry, times in seconds.items()}


def _setting(problem: Problem) -> str:
    size = problem.image_size
    return f"{size}×{size} {problem.shots}-shot T = {problem.task_batch}"


def _name(entry: Entry) -> str:
    method = entry.contender.method
    name = entry.contender.kind
    if method is not None:
        name = f"gradshare, {FLAT if method.flat else KEPT}"
    return name if entry.kept_memory else f"{name}, as it comes"


def context(peers: Iterable[str], threads: int, scale: str) -> dict[str, Any]:
    """Where and how the figures were taken.

    Args:
        peers: the packages among them are named with their versions.
        threads: of each contender.
        scale: "full" or "quick".
    """
    described = {
        **environment(torch.device("cpu"), "of gradshare: see `benchmarks.ours`"),
        "date": datetime.date.today().isoformat(),
        "threads": threads,
        "scale": scale,
    }
    for name in peers:
        try:
            described[name] = version(name)
        except PackageNotFoundError:  # "plain" is no package
            continue
    return described


def main(arguments: Sequence[str] | None = None, start: Start = Worker) -> int:
    """Measure, print, write; 0 unless something could not be measured."""
    parser = argparse.ArgumentParser(description="Measures gradshare beside its peers.")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; figures mean nothing")
    parser.add_argument("--peers", default=",".join(PEER_NAMES), help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=cores(), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=ROOT / "runs", help="default: runs")
    options = parser.parse_args(arguments)
    peers = options.peers.split(",")
    if unknown := set(peers) - set(PEER_NAMES):
        parser.error(
            f"--peers {', '.join(sorted(unknown))} is unknown; use {', '.join(PEER_NAMES)}"
        )
    scale = "quick" if options.quick else "full"
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory() as folder, timed() as say:
            bench = Bench(
                SCALES[scale],
                peers,
                options.threads,
                Path(folder),
                options.out / "bench-profile.txt",
                start,
                say,
            )
            rows = bench.rows()
    except GradshareError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    result = verdicts(rows, context(peers, options.threads, scale))
    write(options.out / "bench.json", result)
    print_table(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
