"""Several processes as one: shares, exchanges, evaluation, whole runs, and what ends them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import HashStore  # type: ignore[attr-defined]

import gradshare as gs
from gradshare.errors import ConfigError, DataError, RunError
from gradshare.training import device as device_module
from gradshare.training import loop
from gradshare.training.distributed import OneProcess, OtherRankError, ProcessGroup
from gradshare.training.evaluation import ensemble_values, on_all_tasks, values_before_and_after
from gradshare.training.interruption import RunStoppedError
from gradshare.training.metrics import Metric, accuracy
from gradshare.training.outer_loop import outer_iteration
from gradshare.training.run import Run
from tests.training.killing import latest, require_same_tensors, timeless
from tests.training.ranks import Ranks, ranks
from tests.training.small import ROWS, Arguments, fit_on, mlp, poisoned, rows

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with ranks(3, tmp_path_factory.mktemp("ranks")) as started:
        yield started


def rank_of(rank: int, size: int) -> OneProcess:
    process = OneProcess()
    process.rank, process.size = rank, size
    return process


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 1000))
def test_tasks_are_shared_out_evenly_and_in_order(size: int, count: int, first: int) -> None:
    tasks = range(first, first + count)
    shares = [rank_of(rank, size).share(tasks) for rank in range(size)]
    assert [task for share in shares for task in share.tasks[: share.counted]] == list(tasks)
    counted = [share.counted for share in shares]
    assert max(counted) - min(counted) <= 1
    assert all(len(share.tasks) >= 1 and set(share.tasks) <= set(tasks) for share in shares)
    values = torch.arange(first, first + count).double() ** 2
    parts = [share.part_of_mean((torch.tensor(share.tasks) ** 2).double()) for share in shares]
    assert torch.isclose(torch.stack(parts).sum(), values.mean(), rtol=1e-12)


def exchange(group: ProcessGroup) -> dict[str, Any]:
    rank = group.rank
    made: list[int] = []

    def make() -> torch.Tensor:
        made.append(rank)
        return torch.tensor([rank + 7])

    wide = torch.tensor(rank + 2**-40, dtype=torch.float64)
    total = group.total([torch.full((2, 3), rank + 1.0), wide])
    return {
        "total": total,
        "gather": group.gather([rank] * rank),
        "first": group.from_first(make),
        "made": made,
        "agree": group.agree(lambda: rank * 10),
        "asked": group.asked,
    }


def test_every_exchange(three: Ranks) -> None:
    results = three(exchange)
    for rank, result in enumerate(results):
        assert torch.equal(result["total"][0], torch.full((2, 3), 6.0))
        assert result["total"][0].dtype == torch.float32
        # It is not rounded to the type of the first tensor.
        assert torch.equal(result["total"][1], torch.tensor(3 + 3 * 2**-40, dtype=torch.float64))
        assert result["gather"] == [1, 2, 2]
        assert torch.equal(result["first"], torch.tensor([7]))
        assert result["made"] == ([0] if rank == 0 else [])
        assert result["agree"] == rank * 10
        assert result["asked"] is None


def fail_on(group: ProcessGroup, words: dict[int, str], first: bool) -> object:
    def do() -> int:
        if group.rank in words:
            raise DataError(words[group.rank])
        return group.rank

    return group.from_first(do) if first else group.agree(do)


@pytest.mark.parametrize(
    ("words", "first", "expected"),
    [
        (
            {0: "no data", 1: "no data", 2: "no data"},
            False,
            [(DataError, "no data"), *[(OtherRankError, "rank 0 of 3 failed: no data")] * 2],
        ),
        (
            {1: "no data"},
            False,
            [
                (OtherRankError, "rank 1 of 3 failed: no data"),
                (DataError, "no data"),
                (OtherRankError, "rank 1 of 3 failed: no data"),
            ],
        ),
        (
            {1: "no data", 2: "no GPU"},
            False,
            [
                (OtherRankError, "rank 1 of 3 failed: no data"),
                (DataError, "no data"),
                (DataError, "no GPU"),
            ],
        ),
        (
            {0: "locked"},
            True,
            [(DataError, "locked"), *[(OtherRankError, "rank 0 of 3 failed: locked")] * 2],
        ),
    ],
)
def test_what_fails_on_one_fails_on_all_and_is_said_once(
    words: dict[int, str], first: bool, expected: list[tuple[type, str]], three: Ranks
) -> None:
    results = three(fail_on, words, first)
    assert [(type(result), str(result)) for result in results] == expected


def differ(group: ProcessGroup) -> None:
    group.require_identical({"a": torch.zeros(3), "b": torch.ones(2)})
    group.require_identical({"a": torch.tensor([1.0, 1.0 + 1e-7 * (group.rank == 2)])})


def test_ranks_that_drift_apart_end_the_run(three: Ranks) -> None:
    for result in three(differ):
        assert isinstance(result, RunError)
        assert str(result) == (
            "rank 2 of 3 no longer has the same parameters as the first process: their processors "
            "round differently; run on processors of one kind, with the same version of PyTorch "
            "and as many --threads each"
        )


def evaluated(group: OneProcess, count: int) -> Any:
    """What the validation and a test on some tasks come to."""
    learner = gs.maml(mlp(), steps=2, sharing=True)
    model = learner.init()
    metrics = {"accuracy": Metric(accuracy)}
    advanced: list[int] = []
    both = values_before_and_after(learner, model, metrics)
    fit = on_all_tasks(group, ROWS[1], count, CPU, both, advanced.append)
    ensemble = ensemble_values(learner, [model] * 2, metrics)
    test = on_all_tasks(group, ROWS[2], count + 1, CPU, ensemble)
    return fit, test, advanced[-1]


@pytest.mark.parametrize("count", [2, 37])
def test_evaluation_is_shared_out_and_comes_to_the_same(count: int, three: Ranks) -> None:
    alone = evaluated(OneProcess(), count)
    assert len(alone[0]["validation"]["accuracy"]) == alone[2] == count
    assert three(evaluated, count) == [alone] * 3


def assert_refused_by_rank_1(results: Sequence[object], words: str, folder: Path) -> None:
    """Rank 1 says why, the others that it was rank 1, and nothing was written."""
    assert [(type(result), str(result)) for result in results] == [
        (OtherRankError, f"rank 1 of 3 failed: {words}"),
        (ConfigError, words),
        (OtherRankError, f"rank 1 of 3 failed: {words}"),
    ]
    assert not folder.exists()


def start_differently(group: ProcessGroup, folder: Path, name: str, value: Any) -> Run:
    """A run that is another one on rank 1."""
    changes = {name: value} if group.rank == 1 else {}
    return fit_on(group, rows(**{"task_batch": 3, **changes}), folder)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("task_batch", 4, "task_batch is 4 here and 3 in the first process"),
        ("clip_norm", 0.5, "clip_norm is 0.5 here and None in the first process"),
        (
            "train",
            ROWS[0].replace(shots=2),
            f"train source is {ROWS[0].replace(shots=2).fingerprint!r} here and "
            f"{ROWS[0].fingerprint!r} in the first process",
        ),
    ],
)
def test_processes_of_different_runs_do_not_mix(
    name: str, value: Any, words: str, three: Ranks, tmp_path: Path
) -> None:
    words += "; start all processes of a run alike, on the same data and kind of device"
    results = three(start_differently, tmp_path / "run", name, value)
    assert_refused_by_rank_1(results, words, tmp_path / "run")


def compute_differently(group: ProcessGroup, folder: Path) -> Run:
    kind = "cpu" if group.rank == 1 else "cuda"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_module, "_own_device", lambda *_: torch.device(kind))
        return fit_on(group, rows(task_batch=3), folder)


def test_processes_on_different_kinds_of_device_do_not_mix(three: Ranks, tmp_path: Path) -> None:
    words = (
        "the kind of device is 'cpu' here and 'cuda' in the first process; start all processes of "
        "a run alike, on the same data and kind of device"
    )
    results = three(compute_differently, tmp_path / "run")
    assert_refused_by_rank_1(results, words, tmp_path / "run")


def diverge(group: ProcessGroup, folder: Path) -> str | None:
    """The third task, which rank 2 of 3 has, is infinite in iteration 5."""
    return fit_on(group, poisoned(rows(task_batch=3), 5, task=3), folder).diverged


def test_a_divergence_on_any_process_is_named_on_all(three: Ranks, tmp_path: Path) -> None:
    words = "epoch 2, iteration 5: query_x of task 3 holds a value that is not finite"
    assert three(diverge, tmp_path / "run") == [words] * 3


def stop_early(group: ProcessGroup, folder: Path) -> list[int]:
    """A run that a callback, which the first process alone calls, ends after two epochs."""
    told: list[int] = []

    def callback(event: gs.Event) -> bool:
        told.append(event.iteration)
        return event.kind == "epoch" and len(event.history) == 2

    run = fit_on(group, rows(task_batch=3, callbacks=[callback]), folder)
    assert [record.epoch for record in run.history] == [1, 2]
    assert run.test is not None
    return told


def test_a_callback_stops_every_process(three: Ranks, tmp_path: Path) -> None:
    first, *others = three(stop_early, tmp_path / "run")
    assert isinstance(first, list), first
    assert first[-1] == 6
    assert others == [[], []]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DataError("no data"), "no data"),
        (SystemExit(128 + signal.SIGTERM), "it was asked to stop"),
        (KeyboardInterrupt(), "it was asked to stop"),
        (ValueError("odd"), "ValueError: odd"),
    ],
)
def test_why_a_process_ends_is_told_to_the_others(error: BaseException, words: str) -> None:
    group = object.__new__(ProcessGroup)
    group.rank, group.size, group._store = 1, 2, HashStore()
    group.tell(error)
    assert group._store.get("failure").decode() == f"rank 1 of 2 failed: {words}"


def whole_run() -> Arguments:
    learner = gs.maml_plus_plus(mlp(), multi_step_iterations=5, steps=2, sharing=True)
    return rows(learner=learner, task_batch=3)


def take_part(group: ProcessGroup, folder: str, on_rank_1: str | None, resume: bool) -> Run:
    """A rank of a whole run in which something happens to rank 1. Each rank has another folder."""

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if group.rank == 1 and options["iteration"] == 4:
            if on_rank_1 == "SIGTERM":
                os.kill(os.getpid(), signal.SIGTERM)
            elif on_rank_1 == "error":
                raise RunError("memory ran out")
            elif on_rank_1 == "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            elif on_rank_1 == "silence":
                time.sleep(3600)
        return outer_iteration(*arguments, **options)

    loop.outer_iteration = interrupted  # type: ignore[attr-defined]
    with group:
        return fit_on(group, whole_run(), Path(f"{folder}-{group.rank}"), resume=resume)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run over two processes to which nothing happens."""
    folder = tmp_path_factory.mktemp("whole")
    with ranks(2, folder) as two:
        first, second = two(take_part, str(folder / "run"), None, False)
    assert isinstance(first, Run), first
    assert timeless(first) == timeless(second)
    assert first.test == second.test
    assert not (folder / "run-1").exists()
    return first


def assert_same_end(run: Run, whole: Run) -> None:
    assert timeless(run) == timeless(whole)
    assert run.test == whole.test
    require_same_tensors(latest(run.path), latest(whole.path))


def test_a_run_over_two_processes_is_the_run_of_one(whole: Run, tmp_path: Path) -> None:
    alone = gs.fit(**whole_run(), out=tmp_path / "alone")
    for one, other in zip(alone.history, whole.history, strict=True):
        assert one.mean("loss", "train") == pytest.approx(other.mean("loss", "train"), rel=1e-4)
        for name, values in one.learned.items():
            assert values == pytest.approx(other.learned[name], rel=1e-4)


@pytest.mark.parametrize(
    ("what", "first", "second"),
    [
        (
            "SIGTERM",
            "stopped after iteration 5 of 9; everything so far is saved in {folder}-0",
            "stopped after iteration 5 of 9; everything so far is saved in {folder}-1",
        ),
        (
            "error",
            "rank 1 of 2 failed: memory ran out; everything up to iteration 4 is saved in "
            "{folder}-0, continue it with --resume auto",
            "memory ran out",
        ),
    ],
)
def test_what_ends_one_process_ends_the_run_and_nothing_is_lost(
    what: str,
    first: str,
    second: str,
    whole: Run,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    with ranks(2, tmp_path) as two:
        ends = two(take_part, str(folder), what, False)
    assert [str(end) for end in ends] == [words.format(folder=folder) for words in (first, second)]
    if what == "SIGTERM":
        assert [end.signal for end in ends] == [signal.SIGTERM] * 2
    assert type(ends[0]) is (RunStoppedError if what == "SIGTERM" else OtherRankError)
    # On other machines the second process has nothing to read.
    (tmp_path / "store").unlink(missing_ok=True)
    with ranks(2, tmp_path) as two:
        run, _ = two(take_part, str(folder), None, True)
    assert_same_end(run, whole)
    assert not (tmp_path / "run-1").exists()


@pytest.mark.parametrize("what", ["SIGKILL", "silence"])
def test_a_process_that_is_lost_ends_the_run_and_is_no_hang(what: str, tmp_path: Path) -> None:
    timeout = 3.0 if what == "silence" else 120.0
    with ranks(2, tmp_path, timeout) as two:
        (end,) = two.of([0], take_part, str(tmp_path / "run"), what, False)
        two.kill()
    assert isinstance(end, OtherRankError)
    assert str(end).startswith(
        "another of the 2 processes of this run was lost, as rank 0 noticed: "
    )
    assert str(end).endswith(
        f"; everything up to iteration 4 is saved in {tmp_path / 'run-0'}, continue it with "
        "--resume auto"
    )
