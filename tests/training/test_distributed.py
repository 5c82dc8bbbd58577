"""Several processes as one: shares, exchanges, evaluation, whole runs, and what ends them."""

from __future__ import annotations

import dataclasses
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

from gradshare.config import RunConfig
from gradshare.errors import ConfigError, DataError, RunError
from gradshare.training import launch, run
from gradshare.training.distributed import OneProcess, OtherRankError, ProcessGroup
from gradshare.training.evaluation import measure_test, validate
from gradshare.training.interruption import RunStoppedError
from gradshare.training.outer_loop import outer_iteration
from gradshare.training.run import RunResult, train, train_in
from gradshare.training.setup import Setup, set_up
from tests.conftest import prepare_tiny
from tests.training.killing import final, timeless
from tests.training.ranks import Ranks, ranks


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with ranks(3, tmp_path_factory.mktemp("ranks")) as started:
        yield started


def ignore(progress: object) -> None:
    pass


def rank_of(rank: int, size: int) -> OneProcess:
    process = OneProcess()
    process.rank, process.size = rank, size
    return process


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 1000))
def test_tasks_are_shared_out_evenly_and_in_order(size: int, count: int, first: int) -> None:
    tasks = range(first, first + count)
    portions = [rank_of(rank, size).portion(tasks) for rank in range(size)]
    assert [task for portion in portions for task in portion] == list(tasks)
    lengths = [len(portion) for portion in portions]
    assert max(lengths) - min(lengths) <= 1
    if count:
        shares = [rank_of(rank, size).share(tasks) for rank in range(size)]
        assert all(len(share.tasks) >= 1 and set(share.tasks) <= set(tasks) for share in shares)
        assert sum(share.counted for share in shares) == count
        values = torch.arange(first, first + count).double() ** 2
        parts = [share.part_of_mean((torch.tensor(share.tasks) ** 2).double()) for share in shares]
        assert torch.isclose(torch.stack(parts).sum(), values.mean(), rtol=1e-12)


def exchange(group: ProcessGroup) -> dict[str, Any]:
    rank = group.rank
    made: list[int] = []

    def make() -> torch.Tensor:
        made.append(rank)
        return torch.tensor([rank + 7])

    total = group.total([torch.full((2, 3), rank + 1.0), torch.tensor(float(rank)).double()])
    return {
        "total": total,
        "gather": group.gather([rank] * rank),
        "first": group.from_first(make),
        "made": made,
        "on first": group.on_first(lambda: "here"),
        "agree": group.agree(lambda: rank * 10),
        "asked": group.asked,
    }


def test_every_exchange(three: Ranks) -> None:
    results = three(exchange)
    for rank, result in enumerate(results):
        assert torch.equal(result["total"][0], torch.full((2, 3), 6.0))
        assert torch.equal(result["total"][1], torch.tensor(3.0).double())
        assert result["total"][1].dtype == torch.float64
        assert result["gather"] == [1, 2, 2]
        assert torch.equal(result["first"], torch.tensor([7]))
        assert result["made"] == ([0] if rank == 0 else [])
        assert result["on first"] == ("here" if rank == 0 else None)
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


def measure(group: ProcessGroup | None, settings: dict[str, Any]) -> object:
    config = RunConfig(**settings)
    setup = set_up(config, group)
    model = setup.learner.init()
    advanced: list[int] = []
    accuracies, fit = validate(setup, model, config.val_tasks, advanced.append)
    test = measure_test(setup, [model, model], config.test_tasks, advanced.append)
    return accuracies.tolist(), fit, test, sum(advanced)


@pytest.mark.parametrize("count", [2, 37])
def test_evaluation_is_shared_out_and_comes_to_the_same(
    count: int, three: Ranks, tiny: dict[str, Any]
) -> None:
    settings = {**tiny, "val_tasks": count, "test_tasks": count + 1}
    alone = measure(None, settings)
    assert three(measure, settings) == [alone] * 3


def assert_refused_by_rank_1(results: Sequence[object], words: str, folder: Path) -> None:
    """Rank 1 says why, the others that it was rank 1, and nothing was written."""
    assert [(type(result), str(result)) for result in results] == [
        (OtherRankError, f"rank 1 of 3 failed: {words}"),
        (ConfigError, words),
        (OtherRankError, f"rank 1 of 3 failed: {words}"),
    ]
    assert not folder.exists()


def start_differently(group: ProcessGroup, settings: dict[str, Any], folder: Path) -> object:
    lr = 0.2 if group.rank == 1 else 0.1
    config = RunConfig(**{**settings, "inner_lr": lr, "threads": 1 + group.rank})
    return train_in(group, config, folder, ignore, resume=False)


def test_processes_of_different_runs_do_not_mix(
    three: Ranks, tiny: dict[str, Any], tmp_path: Path
) -> None:
    words = (
        "--inner-lr is 0.2 here and 0.1 in the first process; start all processes of a run with "
        "the same settings"
    )
    results = three(start_differently, {**tiny, "task_batch": 3}, tmp_path / "run")
    assert_refused_by_rank_1(results, words, tmp_path / "run")


def compute_differently(group: ProcessGroup, settings: dict[str, Any], folder: Path) -> object:
    def without_gpu_on_rank_1(config: RunConfig, processes: OneProcess) -> Setup:
        kind = "cpu" if group.rank == 1 else "cuda"
        return dataclasses.replace(set_up(config, processes), device=torch.device(kind))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "set_up", without_gpu_on_rank_1)
        return train_in(group, RunConfig(**settings), folder, ignore, resume=False)


def test_processes_on_different_kinds_of_device_do_not_mix(
    three: Ranks, tiny: dict[str, Any], tmp_path: Path
) -> None:
    words = (
        "the device is cpu here and cuda in the first process; give every process of a run a GPU, "
        "or --device cpu"
    )
    results = three(compute_differently, {**tiny, "task_batch": 3}, tmp_path / "run")
    assert_refused_by_rank_1(results, words, tmp_path / "run")


def prepare_differently(group: ProcessGroup, settings: dict[str, Any], folder: Path) -> object:
    if group.rank == 1:
        prepare_tiny(folder / "other", train_classes=11)
        settings = {**settings, "data_root": folder / "other"}
    return train_in(group, RunConfig(**settings), folder / "run", ignore, resume=False)


def test_processes_with_different_images_do_not_mix(
    three: Ranks, tiny: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**tiny, "task_batch": 3}
    results = three(prepare_differently, settings, tmp_path)
    here, first = (
        set_up(RunConfig(**{**settings, "data_root": root})).images_sha256[:12]
        for root in (tmp_path / "other", tiny["data_root"])
    )
    words = (
        f"the prepared dataset has images of SHA-256 {here}… here and of {first}… in the first "
        "process; prepare it alike on all machines of a run, or copy it from one to the others"
    )
    assert_refused_by_rank_1(results, words, tmp_path / "run")


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


def take_part(
    group: ProcessGroup, settings: dict[str, Any], folder: str, on_rank_1: str | None, resume: bool
) -> RunResult:
    """A rank of a whole run, with a folder of its own, in which something befalls rank 1."""

    def befallen(*arguments: Any, **options: Any) -> Any:
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

    run.outer_iteration = befallen  # type: ignore[attr-defined]
    config = RunConfig(**settings)
    with launch._member(group, config):
        return train_in(group, config, Path(f"{folder}-{group.rank}"), ignore, resume=resume)


@pytest.fixture(scope="module")
def settings(data_root: Path) -> dict[str, Any]:
    return {
        "dataset": "tiny",
        "data_root": str(data_root),
        **{"ways": 3, "queries": 4, "task_batch": 3, "inner_steps": 2, "filters": 4},
        **{"epochs": 3, "iterations_per_epoch": 3, "val_tasks": 6, "test_tasks": 8},
        **{"ensemble": 2, "device": "cpu", "threads": 1, "method": "maml++"},
    }


@pytest.fixture(scope="module")
def whole(
    settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunResult, Path]:
    """A run over two processes that nothing befell, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    with ranks(2, folder) as two:
        first, second = two(take_part, settings, str(folder / "run"), None, False)
    assert isinstance(first, RunResult), first
    assert timeless(first) == timeless(second)
    assert first.test == second.test
    assert not (folder / "run-1").exists()
    return first, folder / "run-0"


def assert_same_end(result: RunResult, folder: Path, whole: tuple[RunResult, Path]) -> None:
    assert timeless(result) == timeless(whole[0])
    assert result.test == whole[0].test
    for part, tensors in final(whole[1]).items():
        others = final(folder)[part]
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, others[name]), name


def test_a_run_over_two_processes_is_the_run_of_one(
    settings: dict[str, Any], whole: tuple[RunResult, Path], tmp_path: Path
) -> None:
    alone = train(RunConfig(**settings), tmp_path / "alone")
    for one, other in zip(alone.history, whole[0].history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.m == pytest.approx(other.m, rel=1e-4)
        assert one.lambda_ == pytest.approx(other.lambda_, rel=1e-4)


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
    settings: dict[str, Any],
    whole: tuple[RunResult, Path],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    with ranks(2, tmp_path) as two:
        ends = two(take_part, settings, str(folder), what, False)
    assert [str(end) for end in ends] == [words.format(folder=folder) for words in (first, second)]
    if what == "SIGTERM":
        assert [end.signal for end in ends] == [signal.SIGTERM] * 2
    assert type(ends[0]) is (RunStoppedError if what == "SIGTERM" else OtherRankError)
    # On other machines the second process has nothing to read.
    (tmp_path / "store").unlink(missing_ok=True)
    with ranks(2, tmp_path) as two:
        result, _ = two(take_part, settings, str(folder), None, True)
    assert_same_end(result, tmp_path / "run-0", whole)
    assert not (tmp_path / "run-1").exists()


@pytest.mark.parametrize("what", ["SIGKILL", "silence"])
def test_a_process_that_is_lost_ends_the_run_and_is_no_hang(
    what: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    timeout = 3.0 if what == "silence" else 120.0
    with ranks(2, tmp_path, timeout) as two:
        (end,) = two.of([0], take_part, settings, str(tmp_path / "run"), what, False)
        two.kill()
    assert isinstance(end, OtherRankError)
    assert str(end).startswith(
        "another of the 2 processes of this run was lost, as rank 0 noticed: "
    )
    assert str(end).endswith(
        f"; everything up to iteration 4 is saved in {tmp_path / 'run-0'}, continue it with "
        "--resume auto"
    )
