"""What is measured: each race is a problem, its contenders, and what they are held to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from benchmarks.contenders import Contender
from benchmarks.problems import Problem

OURS, SHARING, KEPT, FLAT = (
    "gradshare",
    "gradshare with sharing",
    "gradshare, graphs kept",
    "gradshare, memory flat",
)
PLAIN, TORCHOPT = "plain loop", "torchopt"
VMAP, SEQUENTIAL = "parallel-metalearn, vmap", "parallel-metalearn, sequential"
FLOOR = "convolutions alone"

Contenders = Mapping[str, Contender]


@dataclass(frozen=True)
class Comparison:
    """A row of the result.

    Attributes:
        what: is said after the race's name.
        quantity: "speed", ours over the fastest of the others; "time" or "memory", ours over that
            of the fastest of the others.
        ours: the name of a contender.
        others: names of contenders.
        target: at least for a speed, at most for the others.
        within_spread: the target is met if a round met it.
    """

    what: str
    quantity: Literal["speed", "time", "memory"]
    ours: str
    others: Sequence[str]
    target: float
    within_spread: bool = False


@dataclass(frozen=True)
class Race:
    """Contenders that take turns, each in its own process.

    Attributes:
        name: in the result.
        problem: what they work on.
        contenders: who takes part, in the order of their turns.
        rows: the comparisons.
        instead: the problems of those contenders that work on another one.
        headline: whether `make bench` measures it.
        rounds: turns of each; with 0 only memory is measured.
        turn: the least seconds of a turn.
        unit: of work, in words.
        large: the memory of all contenders does not fit the machine. Each gives its own back after
            its turn, and takes it again by a run before the clock starts.
        together: all in one process, for differences as small as those between two processes of
            one contender. Their memory is then not measured.
    """

    name: str
    problem: Problem
    contenders: Contenders
    rows: Sequence[Comparison]
    instead: Mapping[str, Problem] = field(default_factory=dict)
    headline: bool = False
    rounds: int = 5
    turn: float = 0.5
    unit: str = "meta-step"
    large: bool = False
    together: bool = False

    def problem_of(self, name: str) -> Problem:
        """The problem of a contender."""
        return self.instead.get(name, self.problem)

    def small(self) -> Race:
        """The same with tiny problems, to see that it works."""
        return replace(
            self,
            problem=self.problem.small("float32"),
            instead={name: problem.small("float32") for name, problem in self.instead.items()},
            contenders={
                name: replace(c, options={**c.options, "iterations": 2}) if c.kind == "fit" else c
                for name, c in self.contenders.items()
            },
            rounds=min(self.rounds, 1),
            turn=0.0,
        )


def ours(**options: Any) -> Contender:
    """gradshare with these options of `benchmarks.contenders.Ours`."""
    return Contender("gradshare", options)


PEERS: Contenders = {PLAIN: Contender("plain"), TORCHOPT: Contender("torchopt")}
PARALLEL: Contenders = {
    VMAP: Contender("parallel-metalearn", {"backend": "vmap"}),
    SEQUENTIAL: Contender("parallel-metalearn", {"backend": "sequential"}),
}
# Evaluation has the layout of the run's training, here with T = 1.
AS_WITH_ONE_TASK = ours(tasks="vmap", memory="keep")
MODES: Contenders = {KEPT: ours(memory="keep"), FLAT: ours(memory="recompute")}


def beside_parallel_metalearn(name: str = OURS) -> list[Comparison]:
    """1.2 times the speed of its faster backend, in no more memory than its default takes, vmap."""
    return [
        Comparison("speed over parallel-metalearn's", "speed", name, list(PARALLEL), 1.2),
        Comparison("memory over parallel-metalearn's by vmap", "memory", name, [VMAP], 1.0),
    ]


def any_network(name: str, problem: Problem, *, plain: float = 1.0, headline: bool = False) -> Race:
    """A network of the user's own, in the default layout, beside all peers."""
    beside_plain = Comparison(
        "speed over a plain loop's", "speed", OURS, [PLAIN], plain, within_spread=plain == 1.0
    )
    return Race(
        name,
        problem,
        {OURS: ours(), **PEERS, **PARALLEL},
        [beside_plain, *beside_parallel_metalearn()],
        headline=headline,
    )


def cost_of_sharing(name: str, problem: Problem, most: float, *, headline: bool = False) -> Race:
    """A meta-step with gradient sharing over one without, in the default layout."""
    return Race(
        f"gradient sharing, {name}",
        problem,
        {OURS: ours(), SHARING: ours(sharing=True)},
        [Comparison("time over that without it", "time", SHARING, [OURS], most)],
        headline=headline,
        rounds=7,
        together=True,
    )


def memory_growth(
    name: str, few: Problem, many: Problem, contender: Contender, most: float
) -> Race:
    """The peak memory on a larger problem over that on a smaller one."""
    return Race(
        name,
        many,
        {"many": contender, "few": contender},
        [Comparison("memory", "memory", "many", ["few"], most)],
        instead={"few": few},
        rounds=0,
    )


FEATURES = Problem("features", shots=5, task_batch=25)
SIGNALS = Problem("signals", shots=5, task_batch=25)
TRANSFORMER = Problem("transformer", shots=5, task_batch=25)
LSTM = Problem("LSTM", shots=5, task_batch=25)
SMALL_IMAGES = Problem("Conv-4 28×28", shots=1, task_batch=5)
LARGE_IMAGES = Problem("Conv-4 84×84", shots=5, task_batch=1)
RESNET = Problem("ResNet-12 84×84", shots=1, task_batch=1)
LONG = Problem("wide features", shots=5, task_batch=1)

RACES = [
    any_network("features, T = 25", FEATURES, plain=2.0, headline=True),
    any_network("features, T = 100", replace(FEATURES, task_batch=100), plain=2.0),
    any_network("signals, T = 25", SIGNALS, headline=True),
    any_network("signals, T = 8", replace(SIGNALS, task_batch=8)),
    any_network("transformer, T = 25", TRANSFORMER),
    any_network("LSTM, T = 25", LSTM),
    Race(
        "Conv-4 28×28, 1-shot, T = 5",
        SMALL_IMAGES,
        {**MODES, **PEERS, **PARALLEL},
        [
            Comparison(
                "speed over the faster of plain loop and torchopt", "speed", KEPT, list(PEERS), 2.2
            ),
            Comparison("memory flat: speed over a plain loop's", "speed", FLAT, [PLAIN], 1.3),
            *beside_parallel_metalearn(KEPT),
        ],
        headline=True,
    ),
    any_network("Conv-4 28×28, 1-shot, T = 25", replace(SMALL_IMAGES, task_batch=25)),
    Race(
        "Conv-4 84×84, 5-shot, T = 1",
        LARGE_IMAGES,
        {**MODES, **PEERS, **PARALLEL, FLOOR: Contender("convolutions")},
        [
            Comparison("time over its convolutions alone", "time", KEPT, [FLOOR], 1.4),
            Comparison(
                "speed over the faster of plain loop and torchopt", "speed", KEPT, list(PEERS), 2.0
            ),
            Comparison("memory flat: memory over a plain loop's", "memory", FLAT, [PLAIN], 0.25),
            *beside_parallel_metalearn(KEPT),
        ],
        headline=True,
        rounds=3,
    ),
    Race(
        "ResNet-12 84×84, 1-shot, T = 1",
        RESNET,
        {**MODES, PLAIN: PEERS[PLAIN]},
        [
            Comparison("speed over a plain loop's", "speed", KEPT, [PLAIN], 1.5),
            Comparison("memory flat: speed over a plain loop's", "speed", FLAT, [PLAIN], 1.2),
            Comparison("memory flat: memory over a plain loop's", "memory", FLAT, [PLAIN], 0.35),
        ],
        headline=True,
        rounds=2,
        large=True,
    ),
    Race(
        "ResNet-12 84×84, 1-shot, T = 1, default layout",
        RESNET,
        {OURS: ours(), PLAIN: PEERS[PLAIN], **PARALLEL},
        beside_parallel_metalearn(),
        rounds=3,
        large=True,
    ),
    Race(
        "evaluation, Conv-4 84×84, 5-shot",
        replace(LARGE_IMAGES, task_batch=10),
        {name: replace(c, predicts=True) for name, c in {OURS: AS_WITH_ONE_TASK, **PEERS}.items()},
        [
            Comparison(
                "speed over the faster of plain loop and torchopt", "speed", OURS, list(PEERS), 1.3
            )
        ],
        headline=True,
        rounds=3,
        turn=0.0,
        unit="task",
    ),
    Race(
        "fit, features, T = 8, 1,500 iterations",
        replace(FEATURES, task_batch=8),
        {"fit": Contender("fit", {"iterations": 1500}), OURS: ours()},
        [Comparison("time over the bare meta-steps'", "time", "fit", [OURS], 1.15)],
        headline=True,
        rounds=2,
        turn=10.0,
    ),
    cost_of_sharing("Conv-4 28×28, T = 5", SMALL_IMAGES, 1.05, headline=True),
    cost_of_sharing("Conv-4 84×84, T = 5", replace(LARGE_IMAGES, task_batch=5), 1.05),
    cost_of_sharing("features, T = 25", FEATURES, 1.1),
    cost_of_sharing("signals, T = 25", SIGNALS, 1.1),
    cost_of_sharing("transformer, T = 25", TRANSFORMER, 1.1),
    cost_of_sharing("LSTM, T = 25", LSTM, 1.1),
    memory_growth(
        "fit, Conv-4 28×28, T = 25 over T = 1",
        replace(SMALL_IMAGES, task_batch=1),
        replace(SMALL_IMAGES, task_batch=25),
        Contender("fit", {"iterations": 2}),
        1.3,
    ),
    memory_growth(
        "ResNet-12 84×84 with sharing, memory flat, K = 10 over K = 1",
        replace(RESNET, queries=5, steps=1),
        replace(RESNET, queries=5, steps=10),
        ours(sharing=True, memory="recompute"),
        1.3,
    ),
    *(
        memory_growth(
            f"long inner loop, memory flat, K = {steps} over K = 5",
            LONG,
            replace(LONG, steps=steps),
            ours(memory="recompute"),
            math.sqrt(steps / 5),
        )
        for steps in (50, 100)
    ),
    Race(
        "our allocator settings, Conv-4 84×84, 5-shot, T = 1",
        LARGE_IMAGES,
        {
            f"{name}{without}": replace(contender, kept_memory=not without)
            for without in ("", ", without them")
            for name, contender in {OURS: ours(), PLAIN: PEERS[PLAIN]}.items()
        },
        [
            Comparison(
                f"{name}: speed over that without them",
                "speed",
                name,
                [f"{name}, without them"],
                1.0,
            )
            for name in (OURS, PLAIN)
        ],
    ),
    Race(
        "bfloat16, Conv-4 84×84, 5-shot, T = 1",
        LARGE_IMAGES,
        {"bfloat16": ours(precision="bfloat16"), OURS: ours()},
        [Comparison("speed over float32's", "speed", "bfloat16", [OURS], 1.0)],
    ),
    Race(
        "drawing tasks, 84×84, 5-shot",
        LARGE_IMAGES,
        {"store": Contender("store"), "JPEG files": Contender("files")},
        [
            Comparison(
                "speed over a loader that decodes JPEG files", "speed", "store", ["JPEG files"], 20
            )
        ],
        unit="task",
    ),
]
