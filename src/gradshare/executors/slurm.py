"""Slurm as an executor, by submitit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradshare.errors import ConfigError

# submitit's settings for every kind of cluster; it wants "slurm_" before the names of the others.
SHARED = (
    *("timeout_min", "mem_gb", "nodes", "cpus_per_task"),
    *("gpus_per_node", "tasks_per_node", "stderr_to_stdout"),
)


def slurm_executor(folder: Path, name: str, settings: Mapping[str, Any]) -> Any:
    """submitit's executor for Slurm.

    Args:
        folder: for submitit's files, on a disk that all machines share.
        name: of the jobs.
        settings: by submitit's names, with or without the prefix "slurm_": timeout_min,
            gpus_per_node, partition, additional_parameters, … submitit checks them.

    Raises:
        ConfigError: submitit is not installed, Slurm is not on this machine, or submitit refuses
            a setting.
    """
    try:
        import submitit  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the executor slurm needs the package submitit; run `pip install submitit`"
        ) from error
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise ConfigError(
                f"there is no {program} on this machine, so nothing can be submitted to Slurm; run "
                "this on a login node"
            )
    # A run may need its time limit many times over.
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=1000)
    prefixed = {
        key if key in SHARED or key.startswith("slurm_") else f"slurm_{key}": value
        for key, value in settings.items()
    }
    try:
        executor.update_parameters(name=name, **prefixed)
    except (NameError, TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"submitit refuses the settings of Slurm: {str(error).splitlines()[0]}"
        ) from error
    return executor
