"""Training runs as a Slurm job array, through submitit.

Nodes and the program share a disk: jobs train in the runs' own folders, and progress is read from
what they write there. Pickles and logs of submitit lie in `slurm/` in the output folder, and are
deleted when every run is done. Jobs outlive the program, which finds them again by `jobs.json`.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import submitit
from submitit.core.utils import DelayedSubmission, FailedSubmissionError, UncompletedJobError

from gradshare.errors import SIGNAL_STATUS, ConfigError, RunError
from gradshare.experiments.arms import ACCURACY, Finished
from gradshare.experiments.executors.job import Job, LostError, Outcome, run_job
from gradshare.experiments.executors.loop import Event
from gradshare.experiments.wording import counted
from gradshare.training.files import make_folder, write_atomically
from gradshare.training.folder import RunFolder
from gradshare.training.interruption import RunStoppedError
from gradshare.training.options import Progress

FOLDER: Final = "slurm"
JOBS: Final = "jobs.json"

POLL_SECONDS = 1.0
METRICS_SECONDS = 5.0
QUEUE_SECONDS = 10.0  # slurmctld serves everybody

# A job counts as over so long after Slurm says so, since its result may come late through NFS.
GRACE_SECONDS: Final = {"slurm": 15.0, "local": 1.0, "debug": 0.0}

# How often a job that ran out of time is queued again. A run may need its limit many times over.
MAX_TIMEOUTS = 1000

SIGNAL_DELAY_SECONDS = 90  # submitit's default

# Of `squeue`; in all other states a job runs, will run, or runs again.
OVER: Final = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
    }
)
GONE: Final = "no longer in the queue"


def _text(value: str) -> str:
    if not value or "\n" in value:
        raise ValueError("must be one line of text")
    return value


def _number(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ValueError("must be a whole number from 1")
    return int(value)


def _cards(value: str) -> int:
    if not value.isdecimal():
        raise ValueError("must be a whole number")
    return int(value)


def _memory(value: str) -> str:
    if not re.fullmatch(r"\d+[KMGT]?B?", value, re.IGNORECASE):
        raise ValueError("must be a number with a unit, like 16G")
    return value


def _minutes(value: str) -> int:
    """A time limit as Slurm takes it, rounded up to minutes."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", value)
    if match is None:
        raise ValueError("must be a time like 90 (minutes), 24:00:00 or 2-12:00:00")
    days, *rest = match.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is None and len(numbers) < 3:
        numbers.insert(0, 0)  # minutes, or minutes:seconds
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    minutes += 60 * (hours + 24 * int(days or 0)) + (seconds > 0)
    if minutes < 1:
        raise ValueError("must be at least a minute")
    return minutes


def _flag(value: str) -> bool:
    if value not in ("yes", "no"):
        raise ValueError("must be yes or no")
    return value == "yes"


def _cluster(value: str) -> str:
    if value not in GRACE_SECONDS:
        raise ValueError("must be slurm, local or debug")
    return value


SETTINGS: Final[dict[str, Callable[[str], Any]]] = {
    # Options of sbatch under their own names.
    **dict.fromkeys(("account", "comment", "constraint", "dependency", "exclude", "gres"), _text),
    **dict.fromkeys(("job-name", "licenses", "mail-type", "mail-user", "nice", "nodelist"), _text),
    **dict.fromkeys(("partition", "qos", "reservation", "tmp", "wckey"), _text),
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), _memory),
    "cpus-per-task": _number,
    "exclusive": _flag,
    "gpus-per-node": _cards,
    "time": _minutes,
    # Of submitit; see docs/clusters.md.
    "cluster": _cluster,
    "setup": _text,
    "signal-delay-s": _number,
    "srun-args": _text,
    "teardown": _text,
}
SEVERAL: Final = ("setup", "srun-args", "teardown")
SBATCH_ONLY: Final = ("licenses", "nice", "reservation", "tmp")
EVERYWHERE: Final = {"job-name": "name", "time": "timeout_min"} | {
    name: name.replace("-", "_") for name in ("cpus-per-task", "gpus-per-node")
}
"""What submitit has its own names for, so that all of its clusters read them."""


def slurm_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `KEY=VALUE` pairs; those of `SEVERAL` may come more than once and become lists.

    Raises:
        ConfigError: a key is unknown or comes twice, a value is not valid, or there is no time.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        written, equals, value = pair.partition("=")
        name = written.strip().removeprefix("--").replace("_", "-")
        if not equals:
            raise ConfigError(f"--slurm {pair}: give KEY=VALUE, like partition=gpu")
        if name not in SETTINGS:
            longer = [key for key in SETTINGS if key.startswith(name)]
            near = longer or difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0)
            raise ConfigError(
                f"--slurm {pair}: unknown key {written!r}; did you mean {near[0]!r}? The keys are "
                f"{', '.join(sorted(SETTINGS))}"
            )
        try:
            read = SETTINGS[name](value.strip())
        except ValueError as error:
            raise ConfigError(f"--slurm {pair}: {error}") from None
        if name in SEVERAL:
            settings.setdefault(name, []).append(read)
        elif name in settings:
            raise ConfigError(f"--slurm {pair}: {name} is given twice; give it once")
        else:
            settings[name] = read
    if "time" not in settings:
        raise ConfigError(
            "--executor slurm needs a time limit for a run, like --slurm time=24:00:00; a run that "
            "reaches it saves, queues again and goes on"
        )
    warning = settings.get("signal-delay-s", SIGNAL_DELAY_SECONDS)
    if 60 * settings["time"] <= warning:
        raise ConfigError(
            f"--slurm time is {counted(settings['time'], 'minute')}, and a run is told to save "
            f"{warning} seconds before its end; give it more"
        )
    return settings


class SlurmExecutor:
    """Runs as Slurm jobs; see `Executor`.

    Args:
        config: what the runs have in common.
        out: the output folder, on the disk that nodes share.
        settings: see `slurm_settings`.
        at_a_time: how many jobs of the array Slurm may run at a time.
        retries: see `Executor`.

    Raises:
        ConfigError: there is no Slurm here.
    """

    here = False

    def __init__(
        self,
        config: Any,
        out: Path,
        settings: Mapping[str, Any],
        at_a_time: int,
        retries: int,
    ) -> None:
        settings = {"cluster": "slurm", "cpus-per-task": config.threads or 1, **settings}
        self.retries = retries
        self._cluster: str = settings.pop("cluster")
        if self._cluster == "slurm" and shutil.which("srun") is None:
            raise ConfigError(
                "--executor slurm: there is no srun on this machine; run this on a login node of "
                "a Slurm cluster, or rehearse it here with --slurm cluster=local"
            )
        # Slurm is given all runs at once, and keeps to the number by itself.
        self.at_a_time = sys.maxsize if self._cluster == "slurm" else at_a_time
        self._array_parallelism = at_a_time
        self._threads: int = config.threads or settings["cpus-per-task"]
        self._settings = settings
        self._folder = out / FOLDER
        self._jobs: dict[str, Job] = {}
        self._submitted: dict[str, submitit.Job[Outcome]] = {}
        self._earlier: dict[str, str] = {}
        self._stopping = False
        self._unfinished: set[str] = set()
        self._states: dict[str, str] = {}
        self._queue_read_at = self._metrics_read_at = float("-inf")
        self._over_since: dict[str, float] = {}
        self._epochs: dict[str, int] = {}

    def __enter__(self) -> Self:
        make_folder(self._folder)
        # The cluster is named: by itself submitit would take the best that it finds.
        self._executor = submitit.AutoExecutor(
            self._folder,
            cluster=self._cluster,
            slurm_max_num_timeout=MAX_TIMEOUTS,
            local_max_num_timeout=MAX_TIMEOUTS,
        )
        self._executor.update_parameters(
            slurm_array_parallelism=self._array_parallelism, **_parameters(self._settings)
        )
        with contextlib.suppress(OSError, ValueError):
            self._earlier = json.loads((self._folder / JOBS).read_text(encoding="utf-8"))
        return self

    def __exit__(self, *raised: object) -> None:
        if self._submitted:
            self.stop(self._submitted)
        # Where something went wrong, the logs say what. A grid's failed run raises nothing here.
        if not any(raised) and not self._stopping and not self._unfinished:
            shutil.rmtree(self._folder, ignore_errors=True)

    def describe(self) -> str:
        """See `Executor`."""
        where = {
            "slurm": "as a Slurm job array",
            "local": "as a rehearsal of Slurm jobs on this machine",
            "debug": "as a rehearsal of Slurm jobs within this process",
        }[self._cluster]
        return f"{where}, at most {self._array_parallelism} at a time with " + (
            f"{counted(self._threads, 'thread')} each"
        )

    def start(self, jobs: Mapping[str, Job]) -> None:
        """See `Executor`."""
        self._jobs |= jobs
        new = []
        for name, job in jobs.items():
            earlier = self._found_again(name, job)
            if earlier is None:
                new.append(name)
            else:
                self._submitted[name] = earlier
        if new:
            try:
                submitted = self._executor.submit_array(
                    [_Task(jobs[name], self._threads) for name in new]
                )
            except (UncompletedJobError, FailedSubmissionError) as error:
                if not self._submitted:
                    shutil.rmtree(self._folder, ignore_errors=True)
                raise RunError(
                    f"Slurm refused the jobs: {str(error).strip()}; change what you give with "
                    "--slurm"
                ) from error
            self._submitted.update(zip(new, submitted, strict=True))
        self._queue_read_at = float("-inf")
        if self._cluster == "slurm":
            ids = {name: job.job_id for name, job in self._submitted.items()}
            write_atomically(self._folder / JOBS, json.dumps(ids).encode())

    def news(self) -> Iterator[Event]:
        """See `Executor`."""
        if self._cluster == "slurm":
            self._read_queue()
        if time.monotonic() - self._metrics_read_at > METRICS_SECONDS:
            self._metrics_read_at = time.monotonic()
            for name in self._submitted:
                yield from self._progress(name)
        over = {}
        for name, job in self._submitted.items():
            outcome = self._outcome(name, job)
            if outcome is not None:
                over[name] = outcome
        for name, outcome in over.items():
            yield from self._progress(name)
            del self._submitted[name]
            self._over_since.pop(name, None)
            if isinstance(outcome, Finished):
                self._unfinished.discard(name)
            else:
                self._unfinished.add(name)
            yield name, outcome
        if not over:
            time.sleep(POLL_SECONDS)

    def stop(self, names: Collection[str]) -> None:
        """See `Executor`."""
        self._stopping = True
        self._queue_read_at = float("-inf")
        ids = [self._submitted[name].job_id for name in names]
        if self._cluster == "slurm":
            subprocess.run(["scancel", *ids], check=False, capture_output=True)
        elif self._cluster == "local":
            for process in ids:
                # submitit would give a run one second to save.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGTERM)

    def _found_again(self, name: str, job: Job) -> submitit.Job[Outcome] | None:
        """The job that an earlier program submitted for a run, if it is still of use.

        Raises:
            RunError: it still trains there, with other settings.
        """
        number = self._earlier.pop(name, None)
        if number is None or self._cluster != "slurm":
            return None
        earlier: submitit.Job[Outcome] = submitit.SlurmJob(self._folder, number)
        state = _queue([number]).get(number, GONE)
        if earlier.paths.result_pickle.exists():
            try:
                alive = isinstance(earlier.result(), Finished)
            except UncompletedJobError:  # it failed before it could say how, as at an import
                alive = False
        else:
            alive = state not in OVER and state != GONE
        if not alive:
            return None
        task = earlier.submission().function
        if not isinstance(task, _Task) or task.job != job:
            raise RunError(
                f"the Slurm job {number} of an earlier command trains run {name!r} with other "
                f"settings; end it with `scancel {number}`, or continue with its settings"
            )
        return earlier

    def _read_queue(self) -> None:
        every = POLL_SECONDS if self._stopping else QUEUE_SECONDS
        if time.monotonic() - self._queue_read_at < every or not self._submitted:
            return
        self._queue_read_at = time.monotonic()
        self._states |= _queue([job.job_id for job in self._submitted.values()])

    def _progress(self, name: str) -> Iterator[Event]:
        """Where a run is, if it has completed an epoch since this was asked last."""
        config = self._jobs[name].config
        try:
            history = RunFolder(self._jobs[name].folder).history()
        except RunError:
            return
        if self._epochs.get(name) != len(history):
            self._epochs[name] = len(history)
            yield (
                name,
                Progress(
                    "train",
                    history[-1].iterations,
                    config.iterations,
                    epoch=min(len(history) + 1, config.epochs),
                    score=f"accuracy {100 * history[-1].mean(ACCURACY):.1f} %",
                ),
            )

    def _outcome(self, name: str, job: submitit.Job[Outcome]) -> Outcome | None:
        """What became of a run; None while nothing has."""
        state = self._over(job)
        if state is None:
            self._over_since.pop(name, None)
            return None
        if job.paths.result_pickle.exists() or self._cluster == "debug":
            try:
                outcome = job.result()
            except UncompletedJobError as error:
                return LostError(f"{_which(name, job)} failed: {_last_line(error)}{_log(job)}")
            if isinstance(outcome, RunStoppedError):
                signal.raise_signal(outcome.signal)  # it was in this process, and meant for all
            return outcome
        since = self._over_since.setdefault(name, time.monotonic())
        if not self._stopping and time.monotonic() - since < GRACE_SECONDS[self._cluster]:
            return None
        if state == "CANCELLED" and not self._stopping:
            return RunError(
                f"{_which(name, job)} was cancelled; everything so far is saved, continue with "
                "--resume auto"
            )
        return LostError(f"{_which(name, job)} ended without a result (it is {state}){_log(job)}")

    def _over(self, job: submitit.Job[Outcome]) -> str | None:
        """The state of a job that is over; None if it is not."""
        if self._cluster != "slurm":
            return "gone" if job.done() else None
        if job.paths.result_pickle.exists():
            return "COMPLETED"
        state = self._states.get(job.job_id)
        return state if state in OVER or state == GONE else None


class _Task:
    """What a job does: train, and when its time is up, queue again."""

    def __init__(self, job: Job, threads: int) -> None:
        self.job = job
        self._threads = threads

    def __call__(self) -> Outcome:
        if submitit.JobEnvironment().cluster == "debug":
            return run_job(self.job, self._threads, lambda _: None)
        time_is_up = getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}")
        queue_again: Any = signal.getsignal(time_is_up)
        asked: set[int] = set()

        def ask(number: int, *_: object) -> None:
            asked.add(number)
            if number != signal.SIGTERM:
                signal.raise_signal(signal.SIGTERM)  # which the run takes as the request to stop

        def report(_: Progress) -> None:
            if asked:  # before the run was ready to be asked
                signal.raise_signal(signal.SIGTERM)

        for number in (signal.SIGTERM, time_is_up):
            signal.signal(number, ask)
        outcome = run_job(self.job, self._threads, report)
        if isinstance(outcome, RunStoppedError):
            if time_is_up in asked:
                queue_again(time_is_up, None)
            # Without a result, so that whoever takes it away can start it again.
            sys.exit(SIGNAL_STATUS + signal.SIGTERM)
        return outcome

    def checkpoint(self) -> DelayedSubmission:
        """What submitit is to run when the job is queued again."""
        return DelayedSubmission(self)


def _parameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under submitit's names."""
    parameters: dict[str, Any] = {}
    for name, value in settings.items():
        if name in SBATCH_ONLY:
            parameters.setdefault("slurm_additional_parameters", {})[name] = value
        elif name in EVERYWHERE:
            parameters[EVERYWHERE[name]] = value
        elif value is not False:
            parameters["slurm_" + name.replace("-", "_")] = value
    return parameters


def _queue(numbers: Sequence[str]) -> dict[str, str]:
    """The states of jobs; nothing where Slurm does not answer."""
    listed = subprocess.run(
        [
            *("squeue", "--array", "--noheader", "--states=all", "--format=%i %T"),
            f"--jobs={','.join(numbers)}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode and "Invalid job id" not in listed.stderr:
        return {}
    states = dict.fromkeys(numbers, GONE)
    for line in listed.stdout.splitlines():
        number, _, state = line.strip().partition(" ")
        states[number] = state
    return states


def _which(name: str, job: submitit.Job[Outcome]) -> str:
    return f"the Slurm job {job.job_id} of run {name!r}"


def _log(job: submitit.Job[Outcome]) -> str:
    return f"; its log is {job.paths.stderr}"


def _last_line(error: BaseException) -> str:
    """Of the trace that submitit's message quotes, the line that says what it was."""
    lines = str(error).split("-" * 22)
    trace = lines[1] if len(lines) > 1 else lines[0]
    return trace.strip().splitlines()[-1]
