"""The plan of a comparison: arms by name, sources, options, seeds."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import cloudpickle
import torch

from gradshare.errors import ConfigError, GradshareError
from gradshare.methods import Learner
from gradshare.tasks import TaskSource
from gradshare.training.checks import require_learner
from gradshare.training.files import write_atomically
from gradshare.training.options import Options
from gradshare.training.randomness import generators_kept, seed_generators

RUNS = "runs"
LARGEST = 64 << 20
LONGEST_NAME = 60

Factory = Callable[[], Learner]
Made = TypeVar("Made")


@dataclass(frozen=True)
class Plan:
    """A comparison to be run.

    Attributes:
        arms: makes the learner of each arm, by name.
        baseline: the arm that the others are compared with.
        controls: arms that leave out what the others are meant to show.
        train, validation, test: the sources of tasks.
        options: of each run, but for its seed.
        seeds: of the runs.
        settings: from which each arm can be made again, by name, if it can; see `fit_in`.
        own_options: the options of arms that have others, such as another outer learning rate.
        candidates: the names of the candidates of each arm that has several; see `compare`.
        threads: of each run; 0 for as many as its process has.
    """

    arms: Mapping[str, Factory]
    baseline: str
    controls: tuple[str, ...]
    train: TaskSource
    validation: TaskSource
    test: TaskSource
    options: Options
    seeds: tuple[int, ...]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    own_options: Mapping[str, Options] = field(default_factory=dict)
    candidates: tuple[tuple[str, ...], ...] = ()
    threads: int = 0

    def __post_init__(self) -> None:
        """Check the names and seeds."""
        if not isinstance(self.arms, Mapping) or not self.arms:
            raise ConfigError(
                "a comparison needs arms: a dictionary of functions that make a learner, such as "
                '{"original": lambda: gradshare.maml(Net())}'
            )
        alike: dict[str, str] = {}
        for name, factory in self.arms.items():
            if not isinstance(name, str) or shown(name) != name:
                raise ConfigError(
                    f"an arm is named {name!r:.80}; give a text of at most {LONGEST_NAME} "
                    "characters in one line, without control characters and double spaces"
                )
            if not callable(factory) or hasattr(factory, "outer_step"):
                raise ConfigError(
                    f"the arm {name!r} is a {type(factory).__name__}; give a function that makes "
                    "the learner (lambda: gradshare.maml(…)), so that each seed has its own"
                )
            if (other := alike.setdefault(name.casefold(), name)) != name:
                raise ConfigError(
                    f"the arms {other!r} and {name!r} differ only in upper and lower case, and "
                    "some disks would take them for one; rename one"
                )
        for name in (self.baseline, *self.controls):
            if name not in self.arms:
                role = "baseline" if name == self.baseline else "control"
                raise ConfigError(
                    f"the {role} {name!r} is not an arm; the arms are {list(self.arms)}"
                )
        if self.baseline in self.controls:
            raise ConfigError(f"{self.baseline!r} is both the baseline and a control")
        if self.test is None:
            raise ConfigError("a comparison needs test tasks; give their source as `test`")
        for arm, seed in self.runs:
            self.options_of(arm, seed)

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Each arm with each seed, all arms of a seed before the next seed."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]

    @property
    def sources(self) -> tuple[TaskSource, TaskSource, TaskSource]:
        """The sources of training, validation and test tasks."""
        return self.train, self.validation, self.test

    def learner(self, arm: str, seed: int) -> Learner:
        """Make the learner of an arm, with the same random numbers for all arms of a seed."""
        with generators_kept(torch.device("cpu")):
            seed_generators(seed)
            try:
                learner = self.arms[arm]()
                require_learner(learner)
            except Exception as error:
                kind = "" if isinstance(error, GradshareError) else f"{type(error).__name__}: "
                raise ConfigError(f"the arm {arm!r} cannot be made: {kind}{error}") from error
        return learner

    def options_of(self, arm: str, seed: int) -> Options:
        """The options of one run. All runs have the layout of `options`."""
        options, layout = self.own_options.get(arm, self.options), self.options
        return replace(options, seed=seed, tasks=layout.tasks, memory=layout.memory)

    def place(self, folder: Path, arm: str, seed: int) -> Path:
        """The folder of one run, which does not depend on the other arms."""
        plain = re.sub(r"[^\w.+-]+", "-", arm).strip("-.")[:40]
        if plain != arm:  # another arm may look the same
            plain = f"{plain}-{hashlib.sha256(arm.encode()).hexdigest()[:8]}".lstrip("-")
        return folder / RUNS / plain / f"seed-{seed}"

    def save(self, path: Path) -> None:
        """Write the plan for workers in other processes."""
        modules = list(_own_modules())
        try:
            for module in modules:
                cloudpickle.register_pickle_by_value(module)
            data = cloudpickle.dumps(self)
        except Exception as error:
            raise ConfigError(
                f"the arms or sources can't be sent to other processes: {type(error).__name__}: "
                f"{error!s:.300}; keep what they use picklable, or compare in this process: "
                "executor=concurrent.futures.ThreadPoolExecutor(1)"
            ) from error
        finally:
            for module in modules:
                cloudpickle.unregister_pickle_by_value(module)
        if len(data) > LARGEST:
            raise ConfigError(
                f"the arms and sources take {len(data) >> 20} MB when they are sent to other "
                f"processes, and {LARGEST >> 20} MB is the most; give a source that reads its "
                "data from a path, such as ClassTasks.load(folder)"
            )
        write_atomically(path, data)


def _own_modules() -> Iterator[ModuleType]:
    """The modules of the user's project, which workers on other machines may not find: those that
    lie where the program was started or beside its script, and are not installed there.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    homes = {Path.cwd(), *([Path(script).resolve().parent] if script else [])}
    for name, module in list(sys.modules.items()):
        file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        if name == "__main__" or not str(file).endswith(".py") or module.__name__ != name:
            continue  # the main module is always sent
        place = Path(str(file)).resolve()
        installed = {"site-packages", "dist-packages"} & {*place.parts}
        ours = Path(__file__).resolve().parents[1] in place.parents
        if not (installed or ours) and homes & {*place.parents}:
            yield module


def shown(text: str, width: int = LONGEST_NAME) -> str:
    """A user's text in one short line, without control characters, which can turn the text around
    it or make a page invalid.
    """
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", " ", text)
    plain = " ".join(plain.split()) or "unnamed"
    return plain if len(plain) <= width else f"{plain[: width - 1].rstrip()}…"


def with_candidates(
    arms: Mapping[str, Made | Mapping[str, Made]],
) -> tuple[dict[str, Made], dict[str, tuple[str, ...]]]:
    """Name the candidates of each arm that is a dictionary of them: "ARM [CANDIDATE]".

    Returns:
        What makes each candidate, by its name; and the names of the candidates of each arm.
    """
    made: dict[str, Made] = {}
    candidates = {}
    for arm, value in arms.items():
        if isinstance(value, Mapping):
            named = {f"{arm} [{name}]": each for name, each in value.items()}
        else:
            named = {arm: value}
        if not named:
            raise ConfigError(f"the arm {arm!r} has no candidates; give it at least one")
        made |= named
        candidates[arm] = tuple(named)
    return made, candidates


def seeds_from(seeds: int | Sequence[int], first: int) -> tuple[int, ...]:
    """That many seeds from a first one on, or the given ones."""
    found: tuple[Any, ...] = ()
    if isinstance(seeds, Integral):
        found = tuple(range(first, first + int(seeds)))
    elif isinstance(seeds, Iterable):
        found = tuple(seeds)
    whole = all(isinstance(seed, Integral) for seed in found)
    if not found or not whole or len(set(found)) < len(found):
        raise ConfigError(
            f"seeds is {seeds!r:.60}; give a number of at least 1, or different seeds: [0, 1, 2]"
        )
    return tuple(map(int, found))
