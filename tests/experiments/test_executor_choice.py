"""Which executor a command line gets, and what it is told where it cannot have it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gradshare.cli import cli
from gradshare.config import from_settings
from gradshare.errors import ConfigError, GradshareError
from gradshare.experiments.executors.choice import Choice
from gradshare.experiments.executors.job import Job, LostError, run_job
from gradshare.experiments.executors.mirror import Mirror, apply
from gradshare.experiments.wording import counted
from gradshare.training.distributed import LostRankError
from gradshare.training.machine import cores


def test_local_is_the_default_and_retries_nothing(tiny: dict[str, Any], tmp_path: Path) -> None:
    executor = Choice().executor(from_settings(tiny), tmp_path, runs=1)
    assert (executor.at_a_time, executor.retries, executor.here) == (1, 0, True)
    assert executor.describe() == "1 at a time with 1 thread each"


def test_the_threads_of_the_environment_count_unless_a_number_is_given(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def described(threads: int) -> str:
        config = from_settings({**tiny, "threads": threads})
        return Choice(jobs=32).executor(config, tmp_path, runs=32).describe()

    monkeypatch.setattr("gradshare.experiments.executors.local.cores", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert described(threads=0) == "32 at a time with 2 threads each"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # and the tests compute in one thread
    assert described(threads=0) == "32 at a time with 1 thread each"
    assert described(threads=2) == "32 at a time with 2 threads each"


def test_others_take_all_runs_and_retry_twice(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = from_settings({**tiny, "threads": 2})
    on_ray = Choice("ray", ray_address="head:6379").executor(config, tmp_path, runs=9)
    assert (on_ray.at_a_time, on_ray.retries, on_ray.here) == (9, 2, False)
    assert on_ray.describe() == "on Ray at head:6379 as it has room, with 2 threads each"
    rehearsed = Choice("slurm", jobs=3, retries=0, slurm=["cluster=local", "time=9"])
    by_slurm = rehearsed.executor(config, tmp_path, runs=9)
    assert (by_slurm.at_a_time, by_slurm.retries, by_slurm.here) == (3, 0, False)
    assert by_slurm.describe() == (
        "as a rehearsal of Slurm jobs on this machine, at most 3 at a time with 2 threads each"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--ray-address", "auto"],
            "--ray-address is read by --executor ray, not by local; leave it out, or add "
            "--executor ray",
        ),
        (
            ["--executor", "ray", "--slurm", "time=9"],
            "--slurm is read by --executor slurm, not by ray; leave it out, or add "
            "--executor slurm",
        ),
        (
            ["--executor", "slurm", "--slurm", "time=9", "--slurm", "partion=gpu"],
            "--slurm partion=gpu: unknown key 'partion'; did you mean 'partition'? The keys are ",
        ),
        (
            ["--executor", "ray", "--workers", "2"],
            "--workers 2: --executor ray reserves room for one process a run; give it more "
            "--threads instead",
        ),
        (
            ["--executor", "ray", "--device", "cuda:1"],
            "--device cuda:1 names one card, but Ray deals out the cards; use --device cuda",
        ),
        (
            ["--executor", "ray", "--threads", "999"],
            f"--threads 999: this machine has {counted(cores(), 'core')}, so Ray would wait for "
            "ever; ask for fewer, or for another cluster with --ray-address",
        ),
        (
            ["--executor", "ray", "--ray-address", "127.0.0.1:1", "--queries", "4"],
            "the Ray cluster at 127.0.0.1:1 cannot be used: ConnectionRefusedError: [Errno 111] "
            "Connection refused; see docs/clusters.md",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    arguments: list[str], message: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    settings = ["--dataset", tiny["dataset"], "--data-root", tiny["data_root"]]
    out = tmp_path / "out"
    result = CliRunner().invoke(cli, ["compare", "--out", str(out), *settings, *arguments])
    assert isinstance(result.exception, GradshareError)
    assert str(result.exception).startswith(message)
    assert not out.exists()


def test_a_run_that_loses_one_of_its_processes_is_lost(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: object, **__: object) -> None:
        raise LostRankError("the process of rank 1 of 2 ended without a word")

    monkeypatch.setattr("gradshare.experiments.executors.job.train", lose)
    outcome = run_job(Job(from_settings(tiny), tmp_path), 1, lambda _: None)
    assert isinstance(outcome, LostError)  # and so is tried again
    assert str(outcome) == "the process of rank 1 of 2 ended without a word"


@pytest.mark.parametrize(
    ("name", "package", "module"),
    [("ray", "ray", "ray_cluster"), ("slurm", "submitit", "slurm_array")],
)
def test_a_missing_package_is_named_with_its_extra(
    name: Any,
    package: str,
    module: str,
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, f"gradshare.experiments.executors.{module}", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Without(package), *sys.meta_path])
    for loaded in [key for key in sys.modules if key.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    with pytest.raises(ConfigError) as error:
        Choice(name).executor(from_settings(tiny), tmp_path, runs=1)
    assert str(error.value) == (
        f"--executor {name} needs the package {package}, which is not installed; run: "
        f"pip install 'gradshare[{name}]'"
    )


class _Without:
    """Finds that a package is not installed."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self._package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_neither_is_imported_unless_it_is_asked_for() -> None:
    code = "import sys, gradshare.cli; print({'ray', 'submitit'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_a_mirror_follows_a_folder(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    mirror = Mirror(there)
    assert mirror.changes().written == {}
    (there / "checkpoints").mkdir(parents=True)
    for name in ("checkpoints/latest-1", "metrics.jsonl", ".lock", ".a.1.unfinished"):
        (there / name).write_bytes(name.encode())
    apply(mirror.changes(), here)
    names = {str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()}
    assert names == {"checkpoints/latest-1", "metrics.jsonl"}

    (there / "checkpoints/latest-2").write_bytes(b"2")
    (there / "checkpoints/latest-1").unlink()
    changes = mirror.changes()
    assert changes.written == {"checkpoints/latest-2": b"2"}
    apply(changes, here)
    assert [path.name for path in (here / "checkpoints").iterdir()] == ["latest-2"]
    assert mirror.changes() == type(changes)({}, frozenset())
