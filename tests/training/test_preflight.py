"""What a run checks before its first step: memory and disk."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import gradshare as gs
from gradshare.errors import RunError
from gradshare.training import memory
from gradshare.training.layout import Layout
from gradshare.training.memory import LESS_MEMORY, amount, available, require_memory
from gradshare.training.options import Options
from gradshare.training.prepare import memory_needed, prepare_run
from tests.training.small import mlp, rows

CPU = torch.device("cpu")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


MEMINFO = "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 5000 kB\n"


def test_the_machines_free_memory_is_available(tmp_path: Path) -> None:
    assert available(CPU, write(tmp_path, {"proc/meminfo": MEMINFO})) == 5000 * 1024


def test_where_the_system_says_nothing_nothing_is_known(tmp_path: Path) -> None:
    assert available(CPU, tmp_path) is None


def test_this_machine_says_something() -> None:
    found = available(CPU)
    assert found is not None
    assert found > 0


@pytest.mark.parametrize("limited", ["a/b", "a", "."])
def test_a_control_group_or_one_above_it_limits_it(tmp_path: Path, limited: str) -> None:
    group = f"sys/fs/cgroup/{limited}"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/b/memory.current": "17\n",
        f"{group}/memory.max": "3000000\n",
        f"{group}/memory.current": "2000000\n",
        f"{group}/memory.stat": "anon 1\ninactive_file 500000\nactive_file 7\n",
    }
    assert available(CPU, write(tmp_path, files)) == 1_500_000


def test_control_groups_of_version_1_limit_it(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/job"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "5:devices:/x\n4:cpu,memory:/job/step\n0::/\n",
        f"{group}/memory.limit_in_bytes": "3000000\n",
        f"{group}/memory.usage_in_bytes": "1000000\n",
        f"{group}/memory.stat": "inactive_file 9\ntotal_inactive_file 200000\n",
    }
    assert available(CPU, write(tmp_path, files)) == 2_200_000


def test_a_limit_above_what_the_machine_has_does_not_count(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "9223372036854771712\n",
        "sys/fs/cgroup/memory.current": "1\n",
    }
    assert available(CPU, write(tmp_path, files)) == 5000 * 1024


MEASURE = """
import ctypes, json, sys, torch
from pathlib import Path
import gradshare as gs
from gradshare.training import dry_run
from gradshare.training.machine import keep_freed_memory

dry_run.REPETITIONS = 1
keep_freed_memory()
torch.set_num_threads(1)
options = json.loads(sys.argv[1])
x, y = torch.randn(80, 1, 20, 20), torch.arange(8).repeat_interleave(10)
tasks = gs.ClassTasks(x, y, ways=3, shots=5, queries=5)
model = gs.Conv4(ways=3, image_size=20, channels=1, filters=64)
learner = gs.maml(model, steps=4, sharing=True, second_order=options.pop("second_order"))


def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


before = []  # once everything is made, without what was freed, which steps would use again


def measure_before(*_):
    ctypes.CDLL(None).malloc_trim(0)
    before.append(resident("VmRSS:"))


dry_run.require_memory = measure_before
found = dry_run.estimate(
    learner, tasks, tasks, epochs=1, iterations=1, task_batch=8, device="cpu", **options
)
print(json.dumps([found.memory, resident("VmHWM:") - before[0]]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says what is resident")
@pytest.mark.parametrize(
    ("tasks", "memory", "second_order"),
    [
        ("vmap", "keep", True),
        ("loop", "recompute", False),
    ],
)
def test_the_estimate_is_near_what_is_measured(tasks: str, memory: str, second_order: bool) -> None:
    options = {"tasks": tasks, "memory": memory, "second_order": second_order}
    process = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(options)],
        check=True,
        capture_output=True,
        text=True,
    )
    need, measured = json.loads(process.stdout)
    assert 0.6 * measured < need < 1.7 * measured


def needed(*, processes: int = 1, **changes: Any) -> int:
    """What one process of a run needs."""
    given = rows(**changes)
    del given["progress"]
    learner, sources = given.pop("learner"), [given.pop(n) for n in ("train", "validation", "test")]
    options = Options(**given)
    state, _, _, contents = prepare_run(learner, tuple(sources), options, CPU, None)
    return memory_needed(Layout(**contents["layout"]), options, state, processes)


def test_each_process_of_a_run_needs_memory_for_its_share_of_the_tasks() -> None:
    whole = needed(task_batch=5)
    assert needed(task_batch=5, processes=2) < whole
    assert needed(task_batch=5, processes=5) == needed(task_batch=5, processes=9) < whole / 2


@pytest.mark.parametrize("tasks", ["loop", "vmap"])
def test_a_process_of_tasks_that_are_taken_apart_needs_memory_for_those_at_once(tasks: str) -> None:
    apart: dict[str, Any] = {"learner": gs.maml(mlp(), steps=2), "tasks": tasks}
    alone = needed(task_batch=1, **apart)
    assert needed(task_batch=5, processes=5, **apart) == alone
    assert (needed(task_batch=5, **apart) == alone) == (tasks == "loop")


def test_a_run_that_cannot_fit_is_refused_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    with pytest.raises(RunError) as error:
        gs.fit(**rows(), out=tmp_path / "run")
    assert str(error.value) == (
        f"the run needs about {amount(needed())} of memory, 0.0 MB are available; lower the task "
        "batch, the inner steps, the queries or the size of the model or its inputs, or use "
        "memory='recompute' (--memory recompute) or the first order"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("share", "warns"), [(0.75, True), (1.0, True), (1.5, False)])
def test_a_run_that_hardly_fits_is_warned_of(
    share: float, warns: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    need = 10**9
    monkeypatch.setattr(memory, "available", lambda device: share * need)
    with caplog.at_level(logging.WARNING):
        require_memory(need, CPU)
    expected = (
        f"the run needs about 1.0 GB of memory, {amount(share * need)} are available; {LESS_MEMORY}"
    )
    assert caplog.messages == ([expected] if warns else [])


def test_on_a_gpu_where_the_estimate_is_not_calibrated_a_run_is_warned_of_and_not_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 1)
    with caplog.at_level(logging.WARNING):
        require_memory(10**9, torch.device("cuda"))
    assert len(caplog.messages) == 1


def wide() -> dict[str, Any]:
    """A run whose models are what its folder holds most of."""
    with torch.random.fork_rng(devices=[]):
        model = torch.nn.Sequential(torch.nn.Linear(6, 4000), torch.nn.Linear(4000, 3))
    return rows(learner=gs.maml(model, steps=2, sharing=True))


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def with_free(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))


def test_a_disk_without_the_room_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(50_000, monkeypatch)
    with pytest.raises(RunError) as error:
        gs.fit(**wide(), out=tmp_path / "a" / "run")
    message = str(error.value)
    assert message.startswith("the run needs ")
    assert message.endswith(
        f" MB of disk space in {tmp_path / 'a' / 'run'} for its checkpoints and records; 0.1 MB "
        "are free: free some, choose another output folder, keep fewer models (ensemble) or take "
        "a smaller model"
    )
    assert not (tmp_path / "a").exists()


def test_the_room_that_is_asked_for_is_what_a_run_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gs.fit(**wide(), out=tmp_path / "run")
    taken = bytes_in(tmp_path / "run")
    with_free(-1, monkeypatch)
    with pytest.raises(RunError) as error:
        gs.fit(**wide(), out=tmp_path / "other")
    wanted = 1e6 * float(str(error.value).split()[3])
    assert taken < wanted < 2 * taken  # one moment and one model more while they are written


def test_a_run_that_is_continued_needs_only_what_it_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gs.fit(**wide(), out=tmp_path / "run")
    with_free(bytes_in(tmp_path / "run"), monkeypatch)
    gs.fit(**wide(), out=tmp_path / "run", resume="auto")
    with pytest.raises(RunError, match="of disk space"):
        gs.fit(**wide(), out=tmp_path / "other")


def test_an_estimate_says_the_same_as_a_run_needs() -> None:
    given = rows()
    del given["progress"]
    assert gs.estimate(**given).memory == needed()
