"""A run to be done, and doing it: what every executor's processes have in common."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gradshare.config import train
from gradshare.errors import GradshareError, RunError
from gradshare.experiments.arms import Finished, finished
from gradshare.training.distributed import LostRankError
from gradshare.training.machine import keep_freed_memory
from gradshare.training.options import Watch


@dataclass(frozen=True)
class Job:
    """A training run to be done.

    Attributes:
        config: what to run.
        folder: where to.
    """

    config: Any
    folder: Path


class LostError(RunError):
    """A run whose process, or whose machine, ended without saying how."""


class UnexpectedError(RunError):
    """A defect of the program, met by a run.

    Attributes:
        trace: where.
    """

    def __init__(self, message: str, trace: str) -> None:
        super().__init__(message, trace)  # both, or it could not travel between processes
        self.trace = trace

    def __str__(self) -> str:
        return str(self.args[0])


Outcome = Finished | GradshareError
"""What became of a run. Errors are values here, since they have to travel between processes."""


def run_job(job: Job, threads: int, watch: Watch) -> Outcome:
    """Train a run in a process of its own, from where its folder was saved last.

    Args:
        job: the run.
        threads: how many to compute with.
        watch: told of progress.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    try:
        run = train(job.config, job.folder, resume=True, watch=watch)
        return finished(run, job.config)
    except LostRankError as error:
        return LostError(str(error))
    except GradshareError as error:
        return error
    except Exception as error:
        return UnexpectedError(f"{type(error).__name__}: {error}", traceback.format_exc())
