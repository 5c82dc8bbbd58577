"""A program that compares, for tests that send it and its workers signals.

python -m tests.comparison.driver OUT EXECUTOR RETRIES SECONDS
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import gradshare as gs
from gradshare.errors import SIGNAL_STATUS, GradshareError
from gradshare.executors import RayExecutor
from gradshare.training.interruption import RunStoppedError
from tests.comparison.small import small

EPOCHS = 6


def executor_of(name: str, folder: Path) -> Any:
    """An executor by name; None for the default, processes on this machine."""
    match name:
        case "local":
            return None
        case "ray":
            return RayExecutor()
        case "submitit":
            import submitit  # noqa: PLC0415

            executor = submitit.AutoExecutor(folder, cluster="local")
            executor.update_parameters(timeout_min=60)
            return executor
    raise ValueError(name)


class Slow:
    """A callback that slows a run down, and leaves the process of each worker in a folder."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder = folder
        self.seconds = seconds

    def __call__(self, event: gs.Event) -> None:
        if event.kind == "iteration" and event.iteration > 1:
            (self.folder / str(os.getpid())).touch()
            time.sleep(self.seconds)


def main(out: str, name: str, retries: str, seconds: str) -> int:
    path = Path(out)
    workers = path.with_name("workers")
    workers.mkdir(exist_ok=True)
    try:
        small(
            path,
            executor=executor_of(name, path.with_name("submitit")),
            epochs=EPOCHS,
            seeds=1,
            retries=int(retries),
            resume="auto",
            callbacks=[Slow(workers, float(seconds))],
        )
    except RunStoppedError as error:
        print(error, file=sys.stderr)
        return SIGNAL_STATUS + error.signal
    except GradshareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
