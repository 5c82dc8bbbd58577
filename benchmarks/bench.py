"""Measures gradshare beside its peers and says which targets are met.

    python -m benchmarks.bench                   # the headline: at most 15 minutes on 2 idle cores
    python -m benchmarks.bench --all             # every race of `benchmarks.races`
    python -m benchmarks.bench --only ResNet     # the races whose names match
    python -m benchmarks.bench --quick           # tiny sizes, to see that it works

Needs the peers (`pip install '.[bench]'`), Linux with glibc, and 16 GB of memory. Only one
contender computes at a time; leave the machine alone meanwhile. Prints a table for each race, then
all rows, and writes them to `runs/bench.json`.

- *Time*: contenders take turns, each in its own process with the same threads and allocator
  settings. A turn is one or more meta-steps, to the meta-gradient, without the outer optimiser's
  step. Given are the median over the turns, and the lowest and the highest ratio of a round.
- *Memory*: the peak of the first meta-step over what the process held before it; with sharing, of
  the first two.
- *Equal*: ‖a - b‖ / ‖b‖ of each tensor of the meta-gradient in float64 on a small problem, beside
  the plain loop's; the worst tensor. Without it, the rows of a race are void.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import worker
from benchmarks.contenders import Contender
from benchmarks.races import PLAIN, RACES, Comparison, Race
from benchmarks.rows import Row, console, context, print_rows, write
from benchmarks.worker import Worker, difference
from gradshare.training.machine import cores

OUT = Path("runs/bench.json")
EQUAL = 1e-9
COMPARED = ("gradshare", "plain", "torchopt", "parallel-metalearn")
CHANGES_RESULT = {"sharing", "precision"}  # options with which ours computes something else


@dataclass
class Measured:
    """What a race found about one contender.

    Attributes:
        layout: of its work or memory; or why it could not be measured.
        bytes: its peak memory.
        seconds: of one unit of work, by round.
        difference: from the plain loop's result.
    """

    layout: str
    bytes: int | None = None
    seconds: list[float] = field(default_factory=list)
    difference: float | None = None

    @property
    def median(self) -> float | None:
        """Of the seconds."""
        return statistics.median(self.seconds) if self.seconds else None

    def describe(self) -> dict[str, Any]:
        """As it is written."""
        return {
            "layout": self.layout,
            "seconds": self.median,
            "rounds": self.seconds,
            "bytes": self.bytes,
            "difference": self.difference,
        }


def run(race: Race, threads: int, say: Callable[[str], None]) -> dict[str, Measured]:
    """Measure everybody in a race; who cannot work on the problem says why in `layout`."""
    found: dict[str, Measured] = {}
    workers: dict[str, Worker] = {}
    with ExitStack() as stack:
        for name, contender in race.contenders.items():
            say(f"{race.name}: {name}")
            if race.together and workers:
                workers[name] = next(iter(workers.values()))
            else:
                workers[name] = Worker(threads=threads, kept_memory=contender.kept_memory)
                stack.callback(workers[name].close)
            try:
                problem = race.problem_of(name)
                ready = workers[name].ask(worker.prepare, name, contender, problem, race.large)
            except Exception as error:  # a peer may raise anything
                found[name] = Measured(f"failed: {error!s:.150}")
                del workers[name]
                continue
            found[name] = Measured(ready.layout, None if race.together else ready.bytes)
        _compare(race, found, workers)
        for turn in range(race.rounds):
            say(f"{race.name}: round {turn + 1} of {race.rounds}")
            for name, process in workers.items():
                found[name].seconds.append(process.ask(worker.seconds, name, race.turn, race.large))
    return found


def _compare(race: Race, found: dict[str, Measured], workers: Mapping[str, Worker]) -> None:
    """Compare what all compute on a small problem with the plain loop's result."""
    if PLAIN not in workers:
        return
    expected = None
    for name in [PLAIN, *(name for name in workers if name != PLAIN)]:
        contender = race.contenders[name]
        if contender.kind not in COMPARED or CHANGES_RESULT & contender.options.keys():
            continue
        problem = race.problem_of(name).small()
        in_its_layout = _in_layout(contender, found[name].layout)
        computed = workers[name].ask(worker.result, in_its_layout, problem)
        expected = computed if expected is None else expected
        found[name].difference = difference(computed, expected)


def _in_layout(contender: Contender, layout: str) -> Contender:
    """The contender with the layout that was chosen for the large problem."""
    if contender.kind != "gradshare":
        return contender
    tasks, memory = layout.split(", ")
    return replace(contender, options={**contender.options, "tasks": tasks, "memory": memory})


def rows(race: Race, found: Mapping[str, Measured]) -> list[Row]:
    """The rows of a race."""
    details = {name: measured.describe() for name, measured in found.items()}
    differences = [
        found[name].difference
        for name, contender in race.contenders.items()
        if contender.kind == "gradshare" and found[name].difference is not None
    ]
    result = []
    if differences:
        worst = max(d for d in differences if d is not None)
        what = "logits" if next(iter(race.contenders.values())).predicts else "meta-gradient"
        result.append(
            Row(f"{race.name}: {what} beside the plain loop's", worst, "≤", EQUAL, details)
        )
    void = any(not row.met for row in result)
    for comparison in race.rows:
        value, spread = _value(comparison, found)
        result.append(
            Row(
                f"{race.name}: {comparison.what}",
                value,
                "≥" if comparison.quantity == "speed" else "≤",
                comparison.target,
                details,
                spread,
                comparison.within_spread,
                void,
            )
        )
    return result


def _value(
    comparison: Comparison, found: Mapping[str, Measured]
) -> tuple[float | None, tuple[float, float] | None]:
    """The value of a comparison and its spread over the rounds; None if it can't be had."""
    ours = found[comparison.ours]
    others = [found[name] for name in comparison.others]
    others = [other for other in others if other.seconds or other.bytes]
    if not others:
        return None, None
    other = min(others, key=lambda measured: measured.median or 0.0)
    if comparison.quantity == "memory":
        if not ours.bytes or not other.bytes:
            return None, None
        return ours.bytes / other.bytes, None
    if ours.median is None or other.median is None:
        return None, None
    pairs = [(ours.median, other.median), *zip(ours.seconds, other.seconds, strict=True)]
    value, *ratios = [b / a if comparison.quantity == "speed" else a / b for a, b in pairs]
    return value, (min(ratios), max(ratios))


def print_race(race: Race, found: Mapping[str, Measured]) -> None:
    """Print what a race found."""
    p = race.problem
    table = Table(
        title=f"{race.name} (K = {p.steps}, {p.queries} queries a class)", title_justify="left"
    )
    table.add_column("contender")
    for column in (f"ms a {race.unit}", "lowest…highest", "peak MB", "difference"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("layout")
    for name, measured in found.items():
        times = [1000 * seconds for seconds in measured.seconds]
        table.add_row(
            name,
            f"{statistics.median(times):,.1f}" if times else "–",
            f"{min(times):,.1f}…{max(times):,.1f}" if times else "–",
            "–" if measured.bytes is None else f"{measured.bytes / 1e6:,.0f}",
            "–" if measured.difference is None else f"{measured.difference:.0e}",
            measured.layout,
        )
    console().print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 0 unless nothing was measured."""
    parser = argparse.ArgumentParser(description="Measures gradshare beside its peers.")
    parser.add_argument("--all", action="store_true", help="all races, not the headline's alone")
    parser.add_argument("--only", metavar="REGEX", help="the races whose names match")
    parser.add_argument("--rounds", type=int, help="turns of each contender at most")
    parser.add_argument("--threads", type=int, default=cores(), help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; the values mean nothing")
    parser.add_argument("--out", type=Path, default=OUT, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.only is not None:
        try:
            chosen = [race for race in RACES if re.search(options.only, race.name)]
        except re.error as error:
            parser.error(f"--only {options.only}: {error}; write \\( for a bracket")
    else:
        chosen = [race for race in RACES if options.all or race.headline]
    if not chosen:
        parser.error(f"--only {options.only} matches no race: {[race.name for race in RACES]}")
    if options.rounds is not None:
        chosen = [replace(race, rounds=min(race.rounds, options.rounds)) for race in chosen]
    if options.quick:
        chosen = [race.small() for race in chosen]
    start = time.monotonic()

    def say(what: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - start), 60)
        print(f"[{minutes:2}:{seconds:02}] {what}", file=sys.stderr, flush=True)

    described = context(options.threads, "cpu", ["torchopt", "parallel-metalearn"])
    all_rows: list[Row] = []
    for race in chosen:
        try:
            found = run(race, options.threads, say)
        except Exception as error:  # the other races run
            all_rows.append(Row(race.name, None, note=f"failed: {error}"))
            continue
        print_race(race, found)
        all_rows += rows(race, found)
        write(options.out, all_rows, described)  # after each race, so that a stop loses one
    print_rows("gradshare beside its peers", all_rows)
    say(f"done; all values: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
