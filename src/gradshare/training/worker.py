"""The program of each process that `--workers` starts besides the first (see `launch`)."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from gradshare.config import RunConfig
from gradshare.errors import GradshareError
from gradshare.training.launch import Assignment, worker
from gradshare.training.machine import keep_freed_memory
from gradshare.training.run import ignore, train_in


def main() -> None:
    """Take part in a run; what goes wrong is for its first process to say."""
    assignment = Assignment(**json.loads(sys.stdin.buffer.readline()))
    config = RunConfig(**json.loads(assignment.config))
    threading.Thread(target=_end_with_the_first_process, daemon=True).start()
    keep_freed_memory()
    try:
        with worker(assignment, config) as processes:
            train_in(processes, config, Path(), ignore, resume=False)
    except GradshareError:
        sys.exit(1)


def _end_with_the_first_process() -> None:
    # Not sys.stdin, whose lock this thread would still hold when the interpreter ends.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
