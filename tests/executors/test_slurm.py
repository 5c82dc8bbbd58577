"""Slurm by submitit, with stand-ins for Slurm's programs."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from gradshare.comparison.calls import Call
from gradshare.errors import ConfigError
from gradshare.executors import slurm_executor


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, first in PATH, with stand-ins for Slurm's programs that run a job here."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    state = folder / "state"
    for name, does in {
        # Its options are --unbuffered, --output FILE and --error FILE.
        "srun": 'shift 5; exec "$@"',
        "sbatch": f"""cp "$1" {folder}/batch
            echo RUNNING > {state}
            (SLURM_JOB_ID=7 sh {folder}/batch; echo COMPLETED > {state}) > {folder}/log 2>&1 &
            echo Submitted batch job 7""",
        "sacct": f"echo 'JobID|State|NodeList'; echo \"7|$(cat {state})|here\"",
    }.items():
        program(folder, name, does)
    return folder


def program(folder: Path, name: str, does: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_settings_go_to_submitit_as_they_are_and_jobs_have_the_name(
    tmp_path: Path, programs: Path
) -> None:
    settings = {
        "partition": "gpu",
        "gpus_per_node": 2,
        "timeout_min": 90,
        "slurm_constraint": "a100",
        "additional_parameters": {"requeue": True, "container-image": "docker://pytorch"},
    }
    executor = slurm_executor(tmp_path / "slurm", "momentum", settings)
    job = executor.submit(pow, 2, 10)
    assert job.result() == 1024
    batch = (programs / "batch").read_text(encoding="utf-8").splitlines()
    for line in (
        "#SBATCH --job-name=momentum",
        "#SBATCH --partition=gpu",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --time=90",
        "#SBATCH --constraint=a100",
        "#SBATCH --requeue",
        "#SBATCH --container-image=docker://pytorch",
    ):
        assert line in batch


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"partitionn": "gpu"}, "Unknown argument 'partitionn' for executor 'slurm' in"),
        ({"timeout_min": "soon"}, 'Parameter "timeout_min" expected type'),
    ],
)
def test_what_submitit_refuses_is_one_sentence(
    settings: dict[str, Any], complaint: str, tmp_path: Path, programs: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        slurm_executor(tmp_path / "slurm", "momentum", settings)
    assert str(error.value).startswith(f"submitit refuses the settings of Slurm: {complaint}")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "slurm").exists()


@pytest.mark.parametrize("missing", ["sbatch", "srun"])
def test_a_machine_without_slurm_is_one_error(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in {"sbatch", "srun"} - {missing}:
        program(tmp_path, name, "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError) as error:
        slurm_executor(tmp_path / "slurm", "momentum", {})
    assert str(error.value) == (
        f"there is no {missing} on this machine, so nothing can be submitted to Slurm; run this on "
        "a login node"
    )


def test_a_busy_sbatch_is_asked_again(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradshare.comparison.calls.BACK_OFF_SECONDS", (0, 0))
    sbatch = (programs / "sbatch").read_text(encoding="utf-8")
    busy = "echo 'sbatch: error: Batch job submission failed: Socket timed out' >&2; exit 1"
    for seen in ("twice", "once"):
        sbatch = f"[ -e {programs}/{seen} ] || {{ touch {programs}/{seen}; {busy}; }}\n{sbatch}"
    program(programs, "sbatch", sbatch)
    executor = slurm_executor(tmp_path / "slurm", "momentum", {})
    call = Call("a run", tmp_path, executor, tuple, ["done", None])
    assert [call.submitted() for _ in range(3)] == [False, False, True]
    assert call.ending() == ("done", None)
