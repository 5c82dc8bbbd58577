"""The calls of a comparison: some at a time, repeated when lost, stopped when asked."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from gradshare.comparison.calls import Call, WatchAll
from gradshare.comparison.plan import RUNS, Plan, shown
from gradshare.comparison.worker import LIVE, TRIAL, Ending, Key, Trial, train_run, try_arms
from gradshare.errors import GradshareError, RunError
from gradshare.training.interruption import RunStoppedError, StopRequests

log = logging.getLogger(__name__)

PLAN = ".plan-"
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Runner:
    """Makes the calls of a comparison; see `compare`. `stop` notes Ctrl-C and SIGTERM."""

    folder: Path
    executor: Any
    at_a_time: int | None
    retries: int
    watch: WatchAll
    stop: StopRequests

    def try_arms(self, plan: Plan) -> tuple[Trial, list[Key]]:
        """What `try_arms` finds on a machine like those that train."""
        with self._offered(plan) as path:
            call = Call("the trial of the arms", self.folder / TRIAL, self.executor, try_arms, path)
            ((kind, value),) = self._made([call], path).values()
        if kind != "done":
            raise RunError(f"{call.name} failed: {value}")
        return value  # type: ignore[no-any-return]

    def train(self, plan: Plan, keys: Sequence[Key]) -> None:
        """Train some runs, each from where its folder was saved last."""
        with self._offered(plan) as path:
            calls = []
            for arm, seed in keys:
                name = arm if len(plan.seeds) == 1 else f"{arm} (seed {seed})"
                place = plan.place(self.folder, arm, seed)
                calls.append(Call(name, place, self.executor, train_run, path, arm, seed))
            endings = self._made(calls, path)
        failures: dict[str, list[str]] = {}
        for name, (kind, why) in endings.items():
            if kind != "done":
                failures.setdefault(why, []).append(name)
        if failures:
            said = [f"{shown(', '.join(n), 200)} failed: {why}" for why, n in failures.items()]
            raise RunError(
                f"{'; '.join(said)}. The other runs are saved in {self.folder}; correct the cause "
                "and continue (resume='auto', --resume auto)"
            )

    @contextmanager
    def _offered(self, plan: Plan) -> Iterator[str]:
        """Let workers read a plan at the path that is returned, and remove it at the end.

        Each plan has a new name: workers of a program that was killed miss theirs, and stop.
        """
        path = str(self.folder.absolute() / f"{PLAN}{uuid4().hex}.pkl")
        self._withdraw(path)
        try:
            if isinstance(self.executor, ThreadPoolExecutor):  # its workers need no file
                LIVE[path] = plan
            else:
                plan.save(Path(path))
            yield path
        finally:
            self._withdraw(path)

    def _withdraw(self, path: str) -> None:
        """Remove a plan, those of programs that were killed, and how far runs are."""
        LIVE.pop(path, None)
        for pattern in (f"{PLAN}*", f".{TRIAL}.json*", f"{RUNS}/*/.seed-*"):
            for file in self.folder.glob(pattern):
                with contextlib.suppress(OSError):
                    file.unlink()

    def _made(self, calls: Sequence[Call], path: str) -> dict[str, Ending]:
        """Make some calls, and return what became of each by name."""
        waiting, running = list(calls), list[Call]()
        endings: dict[str, Ending] = {}
        while waiting or running:
            if self.stop.signal is not None:
                self._stop(running, path)
                words = f"stopped; everything so far is saved in {self.folder}"
                raise RunStoppedError(words, self.stop.signal)
            for call in waiting[:]:
                if len(running) == self.at_a_time:
                    break
                try:
                    if not call.submitted():
                        continue
                    running.append(call)
                    self.watch(call.name, None)
                except GradshareError as error:
                    endings[call.name] = "failed", str(error)
                waiting.remove(call)
            for call in running[:]:
                done = call.done()
                call.look(self.watch)
                if done:
                    running.remove(call)
                    kind, value = endings[call.name] = call.ending()
                    if kind == "stopped" and call.lost <= self.retries:
                        again = "%s: %s; it is started again (retry %d of %d)"
                        log.warning(again, call.name, value, call.lost, self.retries)
                        waiting.append(call)
            time.sleep(POLL_SECONDS)
        return endings

    def _stop(self, calls: Sequence[Call], path: str) -> None:
        """Wait until the runs that are trained have saved what they have, and cancel the others.

        This is seen from the locks of their folders, since a scheduler may not answer.
        """
        self._withdraw(path)
        trained = [call for call in calls if call.trained()]
        loading = [call for call in calls if call not in trained and not call.cancel()]
        while any(map(Call.trained, trained)) or not all(map(Call.done, loading)):
            time.sleep(POLL_SECONDS)
