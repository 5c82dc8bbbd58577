"""From what a user asked for to an executor."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gradshare.errors import ConfigError
from gradshare.experiments.executors.local import LocalExecutor, default_jobs, default_threads
from gradshare.experiments.executors.loop import Executor

Name = Literal["local", "ray", "slurm"]
NAMES: tuple[Name, ...] = get_args(Name)

REMOTE_RETRIES = 2


@dataclass(frozen=True)
class Choice:
    """Where runs are to go.

    Attributes:
        name: the executor.
        jobs: runs at a time; None for as many as there is room for.
        retries: see `Executor`; None for none here and two elsewhere.
        ray_address: of a Ray cluster; None for one of this machine's own.
        slurm: `KEY=VALUE` pairs; see `slurm_settings`.
    """

    name: Name = "local"
    jobs: int | None = None
    retries: int | None = None
    ray_address: str | None = None
    slurm: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse what the executor does not read.

        Raises:
            ConfigError: something is given that belongs to another executor.
        """
        for option, given, reader in (
            ("--ray-address", self.ray_address, "ray"),
            ("--slurm", self.slurm, "slurm"),
        ):
            if given and self.name != reader:
                raise ConfigError(
                    f"{option} is read by --executor {reader}, not by {self.name}; leave it out, "
                    f"or add --executor {reader}"
                )

    def executor(self, config: Any, out: Path, runs: int) -> Executor:
        """Make the executor.

        Args:
            config: what the runs have in common.
            out: the folder above all of theirs.
            runs: how many there are.

        Raises:
            ConfigError: it is not installed, or cannot do this.
        """
        if self.name == "local":
            at_a_time = min(self.jobs or default_jobs(config), runs)
            return LocalExecutor(at_a_time, default_threads(config, at_a_time), self.retries or 0)
        if config.workers > 1:
            raise ConfigError(
                f"--workers {config.workers}: --executor {self.name} reserves room for one process "
                "a run; give it more --threads instead"
            )
        at_a_time = min(self.jobs or runs, runs)
        retries = REMOTE_RETRIES if self.retries is None else self.retries
        if self.name == "ray":
            ray = _optional("ray_cluster", package="ray", extra="ray")
            made: Executor = ray.RayExecutor(config, self.ray_address, at_a_time, retries)
        else:
            slurm = _optional("slurm_array", package="submitit", extra="slurm")
            settings = slurm.slurm_settings(self.slurm)
            made = slurm.SlurmExecutor(config, out, settings, at_a_time, retries)
        return made


def _optional(module: str, *, package: str, extra: str) -> Any:
    """Import an executor's module.

    Raises:
        ConfigError: its package is not installed.
    """
    try:
        return importlib.import_module(f"gradshare.experiments.executors.{module}")
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ConfigError(
            f"--executor {extra} needs the package {package}, which is not installed; run: "
            f"pip install 'gradshare[{extra}]'"
        ) from None
