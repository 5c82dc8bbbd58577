"""The benchmarks: contenders compute the same, and every race and check runs on tiny problems.

What they say of time and memory is for `make bench`; here only its form is looked at.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench, check_gpu, worker
from benchmarks.bench import Measured
from benchmarks.contenders import Contender, Plain
from benchmarks.episodes import Files, Store
from benchmarks.floor import Floor
from benchmarks.memory import peak_over_resident
from benchmarks.problems import Problem
from benchmarks.races import (
    FEATURES,
    KEPT,
    LARGE_IMAGES,
    MODES,
    OURS,
    PARALLEL,
    PEERS,
    PLAIN,
    RACES,
    SEQUENTIAL,
    VMAP,
    Comparison,
    Race,
    ours,
)
from benchmarks.rows import Row
from benchmarks.worker import Worker, difference
from gradshare.errors import ConfigError, RunError

OTHERS = {**PEERS, **PARALLEL}


@pytest.mark.parametrize(
    "network", ["features", "signals", "transformer", "LSTM", "Conv-4 84×84", "ResNet-12 84×84"]
)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_all_contenders_compute_the_same_meta_gradient_in_float64(network: str) -> None:
    problem = Problem(network, shots=2, task_batch=2).small()
    expected = worker.result(Contender("plain"), problem)
    assert expected.keys() == dict(problem.model(ours=False).named_parameters()).keys()
    for name, contender in {**OTHERS, **MODES}.items():
        # PyTorch's second derivative of layer norm by `torch.func` under `torch.vmap` is wrong.
        wrong = name == VMAP and network in ("features", "transformer")
        assert difference(worker.result(contender, problem), expected) < (1e-2 if wrong else 1e-9)


def test_a_contender_leaves_nothing_behind_in_its_network() -> None:
    problem = LARGE_IMAGES.small()
    for contender in (*OTHERS.values(), *MODES.values()):
        runner = contender.build(problem)
        first = {name: tensor.clone() for name, tensor in runner.run().items()}
        again = runner.run()
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_contenders_adapt_to_the_same_predictions_in_either_layout_of_images() -> None:
    problem = LARGE_IMAGES.small()
    expected = Contender("plain").build(problem).predict()
    assert expected.shape == (1, 10, 5)
    for contender in (*PEERS.values(), ours()):
        layouts = [{"channels_last": True}, {}] if contender in PEERS.values() else [{}]
        for layout in layouts:
            predicted = contender.build(problem, **layout).predict()
            assert (predicted - expected).norm() < 1e-9 * expected.norm()


def test_the_floor_has_the_convolutions_of_a_second_order_step() -> None:
    """As many operations as autograd runs for the plain loop, by PyTorch's own count, less those
    of one call: its double backward of the first layer also goes through to the images, each
    step, although nothing asks for that.
    """
    problem = replace(LARGE_IMAGES, task_batch=2).small("float32")
    channels, size, _ = problem.kind.shape
    filters = 4
    to_images = 2 * (5 * problem.shots) * filters * channels * 3 * 3 * size**2
    unneeded = problem.task_batch * problem.steps * to_images
    run = operations_of_convolutions(Plain(problem).run)
    assert operations_of_convolutions(Floor(problem).run) == run - unneeded > 0


def operations_of_convolutions(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operator, count in counts.items() if "convolution" in str(operator))


def test_a_decoding_loader_draws_the_same_tasks_as_the_store() -> None:
    problem = LARGE_IMAGES.small()
    decoded, stored = Files(problem).draw(3), Store(problem).draw(3)
    assert torch.equal(decoded.support_y, stored.support_y)
    assert torch.equal(decoded.query_y, stored.query_y)
    for images, others in (
        (decoded.support_x, stored.support_x),
        (decoded.query_x, stored.query_x),
    ):
        assert images.dtype == others.dtype == torch.uint8
        assert images.shape == others.shape
        # JPEG loses some of the noise; another image would differ by some sixty on average.
        assert (images.float() - others.float()).abs().mean() < 20


def test_every_race_compares_contenders_that_take_part() -> None:
    names = [race.name for race in RACES]
    assert len(set(names)) == len(names)
    for race in RACES:
        assert race.instead.keys() <= race.contenders.keys()
        for comparison in race.rows:
            assert {comparison.ours, *comparison.others} <= race.contenders.keys(), race.name
            assert race.rounds or comparison.quantity == "memory"
            assert not (race.together and comparison.quantity == "memory")


class LocalWorker:
    """Answers like a worker process, in this one, where nothing needs to be imported again."""

    def __init__(self, *, threads: int, kept_memory: bool) -> None:
        pass

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def close(self) -> None:
        pass


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(run: Callable[[int], object], iterations: int) -> int:
        for iteration in range(iterations):
            run(iteration)
        return 10**6

    monkeypatch.setattr(bench, "Worker", LocalWorker)
    monkeypatch.setattr(worker, "peak_over_resident", peak)
    monkeypatch.setattr(worker, "keep_freed_memory", lambda: None)


ONE_OF_EACH_KIND = (
    "^signals, T = 8|^Conv-4 84|^evaluation|^fit, features|sharing, Conv-4 28|K = 50|^our allocator"
    "|^bfloat16|^drawing"
)


@pytest.mark.usefixtures("in_this_process")
def test_races_of_each_kind_run_and_every_row_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs" / "bench.json"
    chosen = [race for race in RACES if re.search(ONE_OF_EACH_KIND, race.name)]
    arguments = ["--only", ONE_OF_EACH_KIND, "--quick", "--rounds", "1", "--threads", "1"]
    assert bench.main([*arguments, "--out", str(out)]) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))
    whats = [row["what"] for row in rows]
    assert len(set(whats)) == len(whats)
    for race in chosen:
        for comparison in race.rows:
            assert f"{race.name}: {comparison.what}" in whats
    for row in rows:
        assert {"what", "measured", "target", "met"} <= row.keys()
        assert isinstance(row["measured"], float), row
        assert not row["void"]
        assert {"date", "threads", "torchopt", "parallel-metalearn"} <= row["context"].keys()
    equal = [row for row in rows if "beside the plain loop's" in row["what"]]
    assert len(equal) == sum(PLAIN in race.contenders for race in chosen)
    assert all(row["met"] for row in equal)
    assert "gradshare beside its peers" in capsys.readouterr().out


@pytest.mark.usefixtures("in_this_process")
def test_a_contender_that_fails_says_why_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "metalearn.algorithms", None)
    out = tmp_path / "bench.json"
    assert bench.main(["--only", "^signals, T = 8", "--quick", "--out", str(out)]) == 0
    rows = {row["what"]: row for row in json.loads(out.read_text(encoding="utf-8"))}
    assert rows["signals, T = 8: speed over a plain loop's"]["measured"] > 0
    lost = rows["signals, T = 8: speed over parallel-metalearn's"]
    assert lost["measured"] is None
    assert lost["met"] is False
    assert "failed: the peer cannot be imported" in lost["details"][VMAP]["layout"]


def peak_of_64_megabytes() -> int:
    before = torch.ones(10**8 // 4)  # gone before the first iteration, and not counted
    del before
    return peak_over_resident(lambda _: torch.ones(64 * 10**6 // 4).sum(), 3)


def test_a_worker_is_a_process_that_measures_and_whose_end_is_reported() -> None:
    process = Worker(threads=1)
    assert 0.9 * 64 < process.ask(peak_of_64_megabytes) / 1e6 < 1.5 * 64
    ready = process.ask(worker.prepare, "ours", ours(), LARGE_IMAGES.small("float32"), True)
    assert ready.bytes > 0
    assert ready.layout == "vmap, keep"
    assert process.ask(worker.seconds, "ours", 0.0, True) > 0
    with pytest.raises(RunError, match="its process ended; perhaps memory ran out"):
        process.ask(os._exit, 1)
    process.close()


def two(ours_seconds: list[float], plain_seconds: list[float], error: float) -> dict[str, Measured]:
    return {
        OURS: Measured("vmap, keep", 3 * 10**6, ours_seconds, error),
        PLAIN: Measured("contiguous", 2 * 10**6, plain_seconds, 0.0),
    }


RACE = Race(
    "a race",
    LARGE_IMAGES,
    {OURS: ours(), PLAIN: PEERS[PLAIN]},
    [
        Comparison("speed", "speed", OURS, [PLAIN], 2.0),
        Comparison("speed within the spread", "speed", OURS, [PLAIN], 2.0, within_spread=True),
        Comparison("memory", "memory", OURS, [PLAIN], 1.0),
    ],
)


def test_rows_hold_medians_over_rounds_against_their_targets() -> None:
    equal, speed, within, memory = bench.rows(RACE, two([1.0, 1.0, 4.0], [1.8, 1.9, 8.0], 1e-15))
    assert equal.met
    assert speed.measured == within.measured == 1.9
    assert speed.spread == (1.8, 2.0)
    assert not speed.met
    assert within.met
    assert memory.measured == 1.5
    assert memory.shown() == ("a race: memory", "1.5", "≤ 1", "no")


def test_without_equal_meta_gradients_no_row_of_the_race_counts() -> None:
    equal, speed, *_ = bench.rows(RACE, two([1.0], [9.0], 1e-3))
    assert not equal.met
    assert speed.void
    assert speed.met is False
    assert speed.shown()[-1] == "void"


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_value_that_is_missing_meets_no_target(value: float | None) -> None:
    assert Row("what", value, "≤", 1.0).met is False
    assert Row("what", value).met is None


def test_the_fastest_of_the_others_is_the_one_that_counts() -> None:
    found = {
        KEPT: Measured("vmap, keep", 10, [1.0]),
        VMAP: Measured("contiguous", 20, [2.0]),
        SEQUENTIAL: Measured("contiguous", 5, [3.0]),
    }
    race = Race(
        "a race",
        LARGE_IMAGES,
        {KEPT: ours(), **PARALLEL},
        [Comparison("memory", "memory", KEPT, list(PARALLEL), 1.0)],
    )
    (memory,) = bench.rows(race, found)
    assert memory.measured == 0.5


def test_a_difference_is_the_worst_of_all_arrays() -> None:
    one = {"a": np.array([3.0, 4.0]), "b": np.array([1.0])}
    other = {"a": np.array([3.0, 4.5]), "b": np.array([2.0])}
    assert difference(one, other) == 0.5
    assert difference(one, {"a": one["a"]}) == math.inf
    assert difference(one, {**one, "b": np.array([math.nan])}) == math.inf


def test_the_gpu_check_runs_what_a_cpu_can_and_says_what_was_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check_gpu, "METHODS", ["maml"])  # the others: test_parity.py
    monkeypatch.setattr(check_gpu, "TIMED", {"features": FEATURES})
    out = tmp_path / "gpu.json"
    assert check_gpu.main(["--quick", "--out", str(out)]) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))
    parity = [row for row in rows if row["what"].startswith("parity")]
    assert len(parity) == 3
    assert all(row["met"] for row in parity)
    assert all(row["measured"] == 0 for row in rows if "that differ" in row["what"])
    assert any("vmap, ms" in row["what"] and row["measured"] > 0 for row in rows)
    if not torch.cuda.is_available():
        assert [row["what"] for row in rows if row["note"] == "not run: no CUDA GPU"] == [
            "synchronisation",
            "memory",
            "utilisation",
        ]
    assert "parity, float64: maml, sharing none" in capsys.readouterr().out


def test_a_gpu_check_that_fails_is_recorded_and_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(setup: check_gpu.Setup) -> Any:
        yield Row("before", 1.0)
        raise ConfigError("of no use")

    def works(setup: check_gpu.Setup) -> Any:
        yield Row("after", 2.0)

    monkeypatch.setattr(check_gpu, "CHECKS", [(fails, False), (works, False)])
    out = tmp_path / "gpu.json"
    assert check_gpu.main(["--out", str(out)]) == 1
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert [row["what"] for row in rows] == ["before", "fails", "after"]
    assert rows[1]["note"] == "failed: of no use"
    assert "ConfigError" in rows[1]["details"]["error"]
