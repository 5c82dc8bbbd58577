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

from gradshare.config import Order, RunConfig
from gradshare.errors import RunError
from gradshare.models import Conv4
from gradshare.training import memory, preflight
from gradshare.training.memory import available, estimate
from gradshare.training.preflight import amount, less_memory, require_memory
from gradshare.training.run import train
from gradshare.training.setup import build_learner, set_up

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


def estimated(**settings: Any) -> int:
    config = RunConfig(**{"ways": 5, "shots": 5, "tasks": "loop", "memory": "keep", **settings})
    learner, _ = build_learner(config, (3, 32, 32), CPU)
    return estimate(config, learner, (3, 32, 32))


@pytest.mark.parametrize(
    "more",
    [
        {"task_batch": 9},
        {"inner_steps": 9},
        {"queries": 40},
        {"shots": 9},
        {"filters": 64},
        {"method": "maml++"},
        {"batch_norm": "inductive"},
        {"tasks": "vmap"},
    ],
)
def test_more_work_needs_more_memory(more: dict[str, Any]) -> None:
    assert estimated(**more) > estimated()


@pytest.mark.parametrize(
    ("arm", "shares"),
    [
        ({"sharing": False}, False),
        ({"sharing_control": "rate-control"}, False),
        ({"sharing_control": "rate-control", "fixed_lambda": 0.5}, False),
        ({"sharing_control": "learned-rates"}, False),
        ({"sharing_control": "own-gradient"}, True),
        ({"sharing_control": "unnormalized"}, True),
        ({"sharing_control": "detached"}, True),
        ({"sharing_control": "forgotten"}, True),
        ({"fixed_lambda": 0.5}, True),
        ({"fixed_m": 1.0}, True),
    ],
)
def test_whatever_mixes_another_gradient_in_is_estimated_as_sharing(
    arm: dict[str, Any], shares: bool
) -> None:
    model = Conv4(ways=5, image_size=32, channels=3, filters=48)

    def graphs(**settings: Any) -> int:
        config = RunConfig(**settings)
        return memory.peak_of_graphs(config, model, (3, 32, 32), vmap=True, recompute=False)

    assert graphs(**arm) == graphs(sharing=shares)
    assert graphs(sharing=True) > graphs(sharing=False)


def test_first_order_and_recomputing_need_less() -> None:
    assert estimated(order="first") < estimated()
    assert estimated(memory="recompute") < estimated()


def test_activations_of_a_recomputing_step_do_not_grow_with_tasks_and_steps() -> None:
    config = {"sharing": False, "queries": 60, "memory": "recompute"}
    once = estimated(task_batch=1, inner_steps=1, **config)
    often = estimated(task_batch=4, inner_steps=10, **config)
    learner, _ = build_learner(RunConfig(shots=5), (3, 32, 32), CPU)
    model = memory.tensor_bytes(dict(learner.model.named_parameters()))
    assert often - once == pytest.approx(39 * memory.COPIES_A_STEP * model)


MEASURE = """
import json, sys, torch
from gradshare.config import RunConfig
from gradshare.training.machine import keep_freed_memory
from gradshare.training.memory import PeakMemory, estimate
from gradshare.training.outer_loop import make_optimizer, outer_iteration
from gradshare.training.setup import set_up

keep_freed_memory()
torch.set_num_threads(1)
config = RunConfig(**json.loads(sys.argv[1]))
setup = set_up(config)
learned, state = setup.learner.init()
optimizer = make_optimizer(learned, 0.001)
tasks = setup.normalization.batch(setup.train.batch(range(config.task_batch)))
peak = PeakMemory(setup.device)
for iteration in range(2):
    outer_iteration(setup.learner, learned, state, optimizer, tasks, iteration=iteration,
                    clamp_gradients=None)
need = estimate(config, setup.learner, setup.image_shape)
print(json.dumps([need, peak.bytes()]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says what is resident")
@pytest.mark.parametrize(
    ("tasks", "memory"), [("vmap", "keep"), ("loop", "keep"), ("loop", "recompute")]
)
def test_the_estimate_is_near_what_is_measured(
    tasks: str, memory: str, tiny: dict[str, Any]
) -> None:
    size = {"task_batch": 8, "inner_steps": 4, "filters": 128}
    settings = {**tiny, **size, "tasks": tasks, "memory": memory}
    process = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(settings)],
        check=True,
        capture_output=True,
        text=True,
    )
    need, measured = json.loads(process.stdout)
    assert 0.6 * measured < need < 1.7 * measured


def test_a_run_that_cannot_fit_is_refused_before_it_begins(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "available", lambda device: 20_000_000)
    config = RunConfig(**tiny)
    setup = set_up(config)
    need = estimate(config, setup.learner, setup.image_shape)
    with pytest.raises(RunError) as error:
        train(config, tmp_path / "run")
    assert str(error.value) == (
        f"the run needs about {amount(need)} of memory, 20.0 MB are available; lower --task-batch "
        "2, --queries 4, --filters 4, --inner-steps 2 or --image-size, or use --memory recompute "
        "or --order first"
    )
    assert not (tmp_path / "run").exists()
    with pytest.raises(RunError) as error:
        require_memory(config, setup, at_a_time=3)
    assert str(error.value).startswith(f"3 runs at a time need about {amount(3 * need)} of memory")
    assert str(error.value).endswith("or --order first, or lower --jobs")


def test_a_run_over_as_many_workers_as_tasks_needs_a_task_for_each(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = set_up(RunConfig(**tiny))
    one = estimate(RunConfig(**{**tiny, "task_batch": 1}), setup.learner, setup.image_shape)
    monkeypatch.setattr(preflight, "available", lambda device: 20_000_000)
    with pytest.raises(RunError) as error:
        require_memory(RunConfig(**{**tiny, "workers": 2}), setup)
    assert str(error.value).startswith(f"the run needs about {amount(2 * one)} of memory")


@pytest.mark.parametrize(("share", "warns"), [(0.75, True), (1.0, True), (1.5, False)])
def test_a_run_that_hardly_fits_is_warned_of(
    share: float,
    warns: bool,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = RunConfig(**tiny)
    setup = set_up(config)
    need = estimate(config, setup.learner, setup.image_shape)
    monkeypatch.setattr(preflight, "available", lambda device: share * need)
    with caplog.at_level(logging.WARNING):
        require_memory(config, setup)
    assert ("the run needs about" in caplog.text) == warns


def test_a_disk_without_the_room_is_named_before_anything_is_written(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000))
    with pytest.raises(RunError) as error:
        train(RunConfig(**tiny), tmp_path / "a" / "run")
    message = str(error.value)
    assert message.startswith(
        f"the run needs 0.1 MB of disk space in {tmp_path / 'a' / 'run'}, for its last 2 moments "
        "of 0.0 MB each, its best 2 models of 0.0 MB each, the one being written and the records "
        "of 3 epochs; 0.1 MB are free: free some, choose another --out, or lower --ensemble 2 or "
        "--filters 4"
    )
    assert not (tmp_path / "a").exists()


def test_the_room_that_is_asked_for_is_what_a_run_takes(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(**{**tiny, "filters": 32})
    train(config, tmp_path / "run")
    taken = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=-1))
    with pytest.raises(RunError) as error:
        train(config, tmp_path / "other")
    wanted = 1e6 * float(str(error.value).split()[3])
    assert taken < wanted < 2 * taken  # one moment and one model more while they are written


def test_a_run_that_is_continued_needs_only_what_it_does_not_hold(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(**{**tiny, "filters": 32})
    train(config, tmp_path / "run")
    taken = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=taken))
    train(config, tmp_path / "run", resume=True)
    with pytest.raises(RunError, match="of disk space"):
        train(config, tmp_path / "other")


@pytest.mark.parametrize(
    ("order", "recomputes", "end"),
    [
        ("second", False, ", or use --memory recompute or --order first"),
        ("second", True, ", or use --order first"),
        ("first", False, ", or use --memory recompute"),
        ("first", True, ""),
    ],
)
def test_what_is_done_already_is_no_remedy(order: Order, recomputes: bool, end: str) -> None:
    words = less_memory(RunConfig(order=order), recomputes=recomputes)
    assert words == (
        "lower --task-batch 5, --queries 15, --filters 48, --inner-steps 5 or --image-size" + end
    )
