"""How time and memory of a meta-step grow with K, shots, ways, image size and task batch.

    python -m benchmarks.growth             # about 10 minutes on 2 quiet cores
    python -m benchmarks.growth --quick     # tiny sizes, to see that it works

One thing at a time is changed, from 84×84, 5-way 1-shot, 15 queries, K = 5, task batch 1. All
contenders have our allocator settings. Writes `runs/growth.md`, `runs/growth.json` and a figure for
each thing that is changed. Time and memory are measured as in `benchmarks.bench`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullLocator,
    ScalarFormatter,
)

from benchmarks.bench import FLAT, KEPT, MEGA, context
from benchmarks.contenders import Contender, ours
from benchmarks.driver import ROOT, Entry, Race, Start, Worker, timed
from benchmarks.problems import Problem
from benchmarks.rows import write
from gradshare.comparison.figures import style
from gradshare.errors import GradshareError
from gradshare.training.files import write_atomically
from gradshare.training.machine import cores

DPI = 200


class Look(NamedTuple):
    """A line's colour, dashes and marker, in matplotlib's terms."""

    color: str
    line: Any
    marker: str


CONTENDERS: Mapping[str, tuple[Entry, Look]] = {
    f"gradshare, {KEPT}": (Entry(ours()), Look("#D55E00", "-", "o")),
    f"gradshare, {FLAT}": (Entry(ours(flat=True)), Look("#009E73", (0, (6, 1.5, 1.2, 1.5)), "^")),
    "plain loop": (Entry(Contender("plain")), Look("#0072B2", (0, (5, 1.6)), "s")),
    "higher": (Entry(Contender("higher")), Look("#CC79A7", (0, (1.2, 1.4)), "D")),
}

AXES = {
    "steps": "inner steps K",
    "shots": "shots",
    "ways": "ways",
    "image_size": "image size (pixels)",
    "task_batch": "task batch T",
}


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        base: where one thing at a time is changed.
        values: by the name of the changed field of `Problem`, ascending; the base's is among them.
        repetitions: timed meta-steps of each contender at each point.
    """

    base: Problem
    values: Mapping[str, Sequence[int]]
    repetitions: int

    def points(self) -> list[Problem]:
        """Every problem to be measured, once."""
        changed = [self.at(field, value) for field in self.values for value in self.values[field]]
        return list(dict.fromkeys(changed))

    def at(self, field: str, value: int) -> Problem:
        """The base with one thing changed."""
        return Problem(**{**asdict(self.base), field: value})


FULL = Plan(
    Problem(84, 3, shots=1, task_batch=1),
    {
        "steps": (1, 2, 5, 10),
        "shots": (1, 5, 10),
        "ways": (2, 5, 10, 20),
        "image_size": (28, 56, 84),
        "task_batch": (1, 2, 4),
    },
    repetitions=3,
)
QUICK = Plan(
    Problem(16, 1, shots=1, task_batch=1, ways=2, queries=2, steps=1, filters=4),
    {"steps": (1, 2), "task_batch": (1, 2)},
    repetitions=1,
)
PLANS = {"full": FULL, "quick": QUICK}


@dataclass(frozen=True)
class Point:
    """What a meta-step of a problem costs each contender, by the names of `CONTENDERS`.

    Attributes:
        seconds: the median.
        bytes: the peak.
    """

    seconds: Mapping[str, float]
    bytes: Mapping[str, int]


def measure(
    plan: Plan, start: Start, threads: int, say: Callable[[str], None]
) -> dict[Problem, Point]:
    """Every point of a plan, with fresh processes for each."""
    entries = {name: entry for name, (entry, _) in CONTENDERS.items()}
    measured = {}
    for problem in plan.points():
        say(_described(problem))
        with (
            tempfile.TemporaryDirectory() as folder,
            Race(start, threads, list(entries.values())) as race,
        ):
            peaks = race.peaks(problem, iterations=1)
            race.prepare(problem, problem.task_batch)
            race.warm_up(Path(folder))
            seconds = race.run(plan.repetitions)
        measured[problem] = Point(
            {name: statistics.median(seconds[entry]) for name, entry in entries.items()},
            {name: peaks[entry] for name, entry in entries.items()},
        )
    return measured


def markdown(plan: Plan, measured: Mapping[Problem, Point], where: Mapping[str, Any]) -> str:
    """The tables, one for each thing that is changed."""
    lines = [
        "# How a meta-step's time and memory grow",
        "",
        f"Measured by `make bench-growth` on {where['cores']} cores of {where['processor']}, "
        f"Python {where['python']}, torch {where['torch']}, {where['date']}. MAML, second order, "
        f"Conv-4; changed one at a time from {_described(plan.base)}.",
        "",
    ]
    names = list(CONTENDERS)
    for field, values in plan.values.items():
        lines += [
            f"## {AXES[field]}",
            "",
            f"| {AXES[field]} | {' | '.join(f'{n} (s)' for n in names)} | "
            f"{' | '.join(f'{n} (MB)' for n in names)} |",
            "|--:" * (1 + 2 * len(names)) + "|",
        ]
        for value in values:
            point = measured[plan.at(field, value)]
            cells = [
                *(f"{point.seconds[name]:.3f}" for name in names),
                *(f"{point.bytes[name] / MEGA:,.0f}" for name in names),
            ]
            lines.append(f"| {value} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def records(
    plan: Plan, measured: Mapping[Problem, Point], where: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One record for each point and contender, as JSON has them."""
    return [
        {
            "changed": field,
            "value": value,
            "contender": name,
            "seconds": point.seconds[name],
            "bytes": point.bytes[name],
            "context": where,
        }
        for field, values in plan.values.items()
        for value in values
        for point in [measured[plan.at(field, value)]]
        for name in CONTENDERS
    ]


def figures(plan: Plan, measured: Mapping[Problem, Point]) -> Iterator[tuple[str, Figure]]:
    """Time and memory side by side over each thing that is changed; the contenders differ in line
    style and marker too, so that a grey print loses nothing.
    """
    for field, values in plan.values.items():
        points = [measured[plan.at(field, value)] for value in values]
        figure = Figure(figsize=(6.8, 3.4), layout="constrained")
        time, memory = figure.subplots(1, 2)
        for name, (_, look) in CONTENDERS.items():
            drawn: dict[str, Any] = {
                "color": look.color,
                "linestyle": look.line,
                "marker": look.marker,
            }
            time.plot(values, [p.seconds[name] for p in points], label=name, **drawn)
            memory.plot(values, [p.bytes[name] / MEGA for p in points], **drawn)
        for axes, title in ((time, "seconds a meta-step"), (memory, "peak memory (MB)")):
            axes.set_title(title)
            axes.set_xlabel(AXES[field])
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.xaxis.set_major_locator(FixedLocator([float(value) for value in values]))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        figure.legend(loc="outside upper center", ncols=2)
        yield f"growth-{field.replace('_', '-')}", figure


def _described(problem: Problem) -> str:
    size = problem.image_size
    return (
        f"{size}×{size}, {problem.ways}-way {problem.shots}-shot, {problem.queries} queries, "
        f"K = {problem.steps}, T = {problem.task_batch}"
    )


def main(arguments: Sequence[str] | None = None, start: Start = Worker) -> int:
    """Measure, print, write; 0 unless something could not be measured."""
    parser = argparse.ArgumentParser(description="How a meta-step's time and memory grow.")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; figures mean nothing")
    parser.add_argument("--threads", type=int, default=cores(), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=ROOT / "runs", help="default: runs")
    options = parser.parse_args(arguments)
    scale = "quick" if options.quick else "full"
    plan = PLANS[scale]
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    try:
        with timed() as say:
            measured = measure(plan, start, options.threads, say)
        where = context(["higher"], options.threads, scale)
        write(out / "growth.json", records(plan, measured, where))
        tables = markdown(plan, measured, where)
        write_atomically(out / "growth.md", tables.encode())
        with style():
            for name, figure in figures(plan, measured):
                figure.savefig(out / f"{name}.png", dpi=DPI)
    except GradshareError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
