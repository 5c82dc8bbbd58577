"""Starting contenders, each in its own process, and letting one of them compute at a time."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.contenders import Contender
from benchmarks.problems import Problem
from gradshare.errors import RunError
from gradshare.training.machine import TUNABLES

ROOT = Path(__file__).parent.parent


class Asked(Protocol):
    """Something that answers requests; see `benchmarks.worker`."""

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Wait for the answer.

        Raises:
            RunError: it could not do it.
        """
        ...

    def __enter__(self) -> Asked: ...

    def __exit__(self, *error: object) -> None: ...


class Start(Protocol):
    """Starts a worker."""

    def __call__(self, *, threads: int, kept_memory: bool) -> Asked:
        """`kept_memory`: with our allocator settings."""
        ...


class Worker:
    """A worker process.

    Args:
        threads: that it computes with.
        kept_memory: with our allocator settings, instead of the C library's own.
    """

    def __init__(self, *, threads: int, kept_memory: bool) -> None:
        command = [sys.executable, "-m", "benchmarks.worker", "--threads", str(threads)]
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if kept_memory:
            command.append("--keep-freed-memory")
            variables |= [TUNABLES]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """See `Asked`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self.process.stdin.write(json.dumps({"operation": operation, **arguments}) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RunError(
                f"a benchmark's process ended with status {self.process.wait()} while asked to "
                f"{operation}; what it said stands above (-9: the system ran out of memory)"
            )
        return checked(json.loads(line))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if error[0] is not None:
            self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def checked(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer that is none of an error.

    Raises:
        RunError: it is.
    """
    if "error" in answer:
        raise RunError(answer["error"])
    return answer


@dataclass(frozen=True)
class Entry:
    """A contender in a race.

    Attributes:
        contender: who.
        kept_memory: with our allocator settings.
        purpose: what is timed; see `Session.prepare`.
    """

    contender: Contender
    kept_memory: bool = True
    purpose: str = "step"


Seconds = dict[Entry, list[float]]


class Race:
    """Contenders on one problem, each in its own process, all alive at once.

    Args:
        start: starts a process.
        threads: of each.
        entries: who takes part; their order is the order of their turns.
        together: all in one process, for differences that are as small as those between two
            processes of one contender; all must have our allocator settings then.
    """

    def __init__(
        self, start: Start, threads: int, entries: list[Entry], *, together: bool = False
    ) -> None:
        self.start = start
        self.threads = threads
        self.entries = entries
        self.together = together
        self.stack = ExitStack()
        self.workers: dict[Entry, Asked] = {}

    def __enter__(self) -> Race:
        with ExitStack() as stack:
            for entry in self.entries:
                if self.together and self.workers:
                    self.workers[entry] = self.workers[self.entries[0]]
                    continue
                worker = self.start(threads=self.threads, kept_memory=entry.kept_memory)
                self.workers[entry] = stack.enter_context(worker)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def peaks(self, problem: Problem, iterations: int) -> dict[Entry, int]:
        """The peak memory of everyone's meta-steps, in turn, in bytes over what is resident before
        them. Only as the first thing that is asked, while the processes are fresh.
        """
        return {
            entry: worker.ask(
                "peak",
                contender=asdict(entry.contender),
                problem=asdict(problem),
                iterations=iterations,
            )["bytes"]
            for entry, worker in self.workers.items()
        }

    def prepare(self, problem: Problem, tasks: int) -> dict[Entry, str]:
        """Let everyone build its network and images; returns the memory layout of each."""
        return {
            entry: worker.ask(
                "prepare",
                contender=asdict(entry.contender),
                problem=asdict(problem),
                purpose=entry.purpose,
                tasks=tasks,
                slot=slot,
            )["layout"]
            for slot, (entry, worker) in enumerate(self.workers.items())
        }

    def warm_up(self, folder: Path) -> dict[Entry, Path]:
        """Let everyone run once, in turn, and write what comes out (the floor has nothing)."""
        paths = {}
        for slot, (entry, worker) in enumerate(self.workers.items()):
            path = folder / f"{slot}.safetensors"
            worker.ask("save", path=str(path), slot=slot)
            if entry.contender.kind != "floor":
                paths[entry] = path
        return paths

    def run(self, repetitions: int, fewer: Mapping[Entry, int] | None = None) -> Seconds:
        """Everyone in turn, again and again, so that what slows the machine for a while slows all
        alike.

        Args:
            repetitions: how many turns there are.
            fewer: who takes part in the first few alone.
        """
        turns = dict.fromkeys(self.entries, repetitions) | dict(fewer or {})
        seconds: Seconds = {entry: [] for entry in self.entries}
        for turn in range(repetitions):
            for slot, (entry, worker) in enumerate(self.workers.items()):
                if turn < turns[entry]:
                    seconds[entry].append(worker.ask("run", slot=slot)["seconds"])
        return seconds


@contextmanager
def timed() -> Iterator[Callable[[str], None]]:
    """Says what is being done, and for how long everything has been going on."""
    start = time.monotonic()

    def say(what: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - start), 60)
        print(f"[{minutes:2}:{seconds:02}] {what}", file=sys.stderr, flush=True)

    yield say
    say("done")
