"""The benchmarks: contenders do the same work, and every row is measured, at tiny sizes.

What they say of time and memory is for `make bench`; here nothing but their form is looked at.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench, growth
from benchmarks.contenders import PEER_NAMES, Contender, ours
from benchmarks.driver import ROOT, Worker, checked
from benchmarks.episodes import DecodingLoader, open_tasks, write_images
from benchmarks.floor import Floor
from benchmarks.ours import Method, Ours
from benchmarks.peers import PEERS
from benchmarks.problems import Problem, Runner, draw_tasks
from benchmarks.rows import Row, verdicts
from benchmarks.worker import LAYOUTS, Session
from gradshare.errors import RunError

SMALL = Problem(16, 2, 2, 2, ways=3, queries=2, steps=3, filters=4, dtype="float64", inner_lr=0.4)


@pytest.fixture
def cheap_collection() -> Iterator[None]:
    """Before each run garbage is collected, which in this process means looking at all of pytest's
    and torch's objects, some hundred times.
    """
    gc.freeze()
    yield
    gc.unfreeze()


class LocalWorker:
    """Answers like a worker process, in this one, where nothing needs to be imported again."""

    def __init__(self, *, threads: int, kept_memory: bool) -> None:
        self.session = Session()

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        # Through JSON, as between processes.
        request = json.loads(json.dumps({"operation": operation, **arguments}))
        answer = checked(json.loads(json.dumps(self.session.answer(request))))
        if operation == "peak":  # this process is not fresh: its memory may not grow at all
            answer["bytes"] += 10**6
        return answer

    def __enter__(self) -> LocalWorker:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("flat", [False, True], ids=["graphs kept", "memory flat"])
@pytest.mark.parametrize("peer", PEER_NAMES)
def test_peers_and_ours_agree_in_float64(peer: str, flat: bool, layout: str) -> None:
    mine = Ours(SMALL, Method(flat=flat))
    other: Runner = PEERS[peer](SMALL, LAYOUTS[layout])
    tasks = draw_tasks(SMALL, 2, seed=1)
    for _ in range(2):  # adaptation must leave nothing behind
        gradients = mine.meta_gradient(mine.as_given(tasks))
        theirs = other.meta_gradient(other.as_given(tasks))
        assert len(gradients) == 14
        assert bench.difference(gradients, theirs) < 1e-9
        predictions = mine.predictions(mine.as_given(tasks))
        assert predictions.shape == (2, 6, 3)
        expected = other.predictions(other.as_given(tasks))
        assert bench.difference({"": predictions}, {"": expected}) < 1e-9


def test_the_problem_can_be_learned_and_leaves_float32_its_digits() -> None:
    """Better than chance (0.2), so that losses do not explode and contenders can agree."""
    problem = Problem(28, 1, shots=5, task_batch=1, filters=16)
    plain = PEERS["plain"](problem, torch.contiguous_format)
    tasks = draw_tasks(problem, 4, seed=0)
    right = plain.predictions(plain.as_given(tasks)).argmax(-1) == tasks.query_y
    assert right.double().mean() > 0.3
    gradients = [
        {name: gradient.clone() for name, gradient in peer.meta_gradient(given).items()}
        for peer in (plain, PEERS["plain"](problem, torch.channels_last))
        for given in [peer.as_given(tasks)]
    ]
    assert bench.difference(*gradients) < 1e-2


@pytest.mark.parametrize("sharing", [False, True])
@pytest.mark.parametrize("name", ["maml", "meta-sgd", "maml++"])
def test_every_method_of_ours_runs(name: Any, sharing: bool) -> None:
    mine = Ours(SMALL, Method(name=name, sharing=sharing))
    tasks = mine.as_given(draw_tasks(SMALL, 2, seed=1))
    gradients = mine.meta_gradient(tasks)
    assert set(gradients) >= {"blocks.0.conv.weight", "linear.bias"}
    assert ("sharing.lambda" in gradients) is sharing
    assert mine.query_pass(tasks).keys() == {
        name.removeprefix("model.")
        if name.startswith("model.blocks") and ".norm." not in name
        else name.removeprefix("model.")
        if name.startswith("model.linear")
        else name
        for name in mine.meta
        if name.startswith("model.")
    }


def test_the_floor_has_the_convolutions_of_a_second_order_step() -> None:
    """As many operations as autograd runs for the plain loop, by PyTorch's own count, less those
    of one call: its double backward of the first layer also goes through to the images, each
    step, although nothing asks for that.
    """
    p = replace(SMALL, dtype="float32")
    plain = PEERS["plain"](p, torch.contiguous_format)
    given = plain.as_given(draw_tasks(p, p.task_batch, seed=0))
    to_images = 2 * (p.ways * p.shots) * p.filters * p.channels * 3 * 3 * p.image_size**2
    unneeded = p.task_batch * p.steps * to_images
    run = operations_of_convolutions(lambda: plain.meta_gradient(given))
    assert operations_of_convolutions(Floor(p).run) == run - unneeded > 0


def operations_of_convolutions(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operator, count in counts.items() if "convolution" in str(operator))


def test_a_decoding_loader_draws_the_same_episodes_as_the_store(tmp_path: Path) -> None:
    problem = Problem(16, 3, shots=2, task_batch=1, queries=3)
    write_images(problem, tmp_path)
    decoded, stored = (
        DecodingLoader(problem, tmp_path).batch(3),
        open_tasks(problem, tmp_path).batch([3]),
    )
    assert torch.equal(decoded.support_y, stored.support_y)
    assert torch.equal(decoded.query_y, stored.query_y)
    for images, others in (
        (decoded.support_x, stored.support_x),
        (decoded.query_x, stored.query_x),
    ):
        assert images.dtype == others.dtype == torch.uint8
        assert images.shape == others.shape
        # JPEG loses the noise; another image would differ by some sixty on average.
        assert (images.float() - others.float()).abs().mean() < 15


def test_peak_memory_is_that_of_the_iterations() -> None:
    # In a process of its own, as in the benchmark: what others have freed may still be resident.
    script = """
import torch
from benchmarks.memory import peak_over_resident
before = torch.ones(10**8 // 4)  # gone before the first iteration, and not counted
del before
print(peak_over_resident(lambda index: torch.ones(64 * 10**6 // 4).sum(), 3) / 1e6)
"""
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 64 * 0.9 < float(ended.stdout) < 64 * 1.5


@pytest.mark.usefixtures("cheap_collection")
def test_every_row_is_measured_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--threads", "1", "--out", str(tmp_path)]
    assert bench.main(arguments, start=LocalWorker) == 0
    rows = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    for row in rows:
        assert {"what", "measured", "target", "met"} <= row.keys()
        assert isinstance(row["measured"], float), row["what"]
        assert not row["void"]
        assert row["context"]["scale"] == "quick"
    whats = [row["what"] for row in rows]
    assert len(set(whats)) == len(whats)
    for part, count in {
        "equal: meta-gradient": 3,
        "equal: predictions": 3,
        "the fastest peer with our allocator settings": 5,
        "the fastest peer as it comes": 3,
        "convolutions alone": 1,
        "gradient sharing's own cost": 1,
        "K - 1 query passes": 1,
        "share of the leanest peer's": 2,
        "K = 3 over K = 1": 3,
        "added by tasks 2 to 2": 3,
        "in percent of an iteration": 1,
        "episodes a second": 1,
        "evaluation at": 2,
    }.items():
        assert len([what for what in whats if part in what]) == count, part
    equal = [row for row in rows if row["what"].startswith("equal")]
    assert all(row["met"] for row in equal)
    for peer in PEER_NAMES:
        assert all(any(peer in name for name in row["details"]) for row in equal)
    printed = capsys.readouterr().out
    assert "gradshare beside its peers" in printed
    assert "## meta-step" in (tmp_path / "bench-profile.txt").read_text(encoding="utf-8")


@pytest.mark.usefixtures("cheap_collection")
def test_growth_is_measured_written_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--threads", "1", "--out", str(tmp_path)]
    assert growth.main(arguments, start=LocalWorker) == 0
    records = json.loads((tmp_path / "growth.json").read_text(encoding="utf-8"))
    assert [(r["changed"], r["value"]) for r in records[:: len(growth.CONTENDERS)]] == [
        ("steps", 1),
        ("steps", 2),
        ("task_batch", 1),
        ("task_batch", 2),
    ]
    assert all(record["seconds"] > 0 for record in records)
    tables = (tmp_path / "growth.md").read_text(encoding="utf-8")
    assert tables in capsys.readouterr().out
    assert "## inner steps K" in tables
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "growth-steps.png",
        "growth-task-batch.png",
    }


def row(measured: float, direction: Any = "≥", *, timed: bool = True) -> Row:
    return Row("speed", measured, 2.0, "×", direction, {"plain": 1.0}, depends_on_equality=timed)


def test_a_row_is_met_on_the_right_side_of_its_target() -> None:
    assert [row(value).reached for value in (1.9, 2.0, 2.1, float("nan"))] == [
        False,
        True,
        True,
        False,
    ]
    assert [row(value, "≤").reached for value in (1.9, 2.0, 2.1, float("nan"))] == [
        True,
        True,
        False,
        False,
    ]
    (result,) = verdicts([row(2.5)], {"threads": 2})
    assert result == {
        "what": "speed",
        "measured": 2.5,
        "target": "≥ 2 ×",
        "met": True,
        "void": False,
        "unit": "×",
        "details": {"plain": 1.0},
        "context": {"threads": 2},
    }


def test_without_equality_no_figure_of_speed_counts() -> None:
    results = verdicts([row(1.0, timed=False), row(2.5)], {})
    assert [(result["met"], result["void"]) for result in results] == [
        (False, False),
        (False, True),
    ]


def test_a_difference_is_the_worst_of_all_tensors() -> None:
    one = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0])}
    other = {"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([2.0])}
    assert bench.difference(one, other) == 0.5
    assert bench.difference(one, {"a": one["a"]}) == float("inf")
    assert bench.difference(one, {**one, "b": torch.tensor([float("nan")])}) == float("inf")


def test_a_worker_is_a_process_that_answers_and_says_what_is_wrong() -> None:
    problem = asdict(replace(SMALL, dtype="float32"))
    with Worker(threads=1, kept_memory=True) as worker:
        contender = asdict(ours(flat=True))
        assert worker.ask("peak", contender=contender, problem=problem, iterations=1)["bytes"] > 0
        worker.ask("prepare", contender=contender, problem=problem, purpose="step", tasks=2)
        assert worker.ask("run")["seconds"] > 0
        worker.process.kill()
        with pytest.raises(RunError, match=r"ended with status -9 while asked to run"):
            worker.ask("run")


def test_a_peer_that_is_not_installed_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "higher", None)
    arguments = ["--quick", "--threads", "1", "--out", str(tmp_path)]
    assert bench.main(arguments, start=LocalWorker) == 1
    assert (
        "Error: the peer 'higher' cannot be imported (import of higher halted; None in "
        "sys.modules); install the peers with `pip install 'gradshare[bench]'`, or leave it out "
        "with --peers"
    ) in capsys.readouterr().err
    assert not (tmp_path / "bench.json").exists()
    without = Session().answer(
        {
            "operation": "prepare",
            "contender": asdict(Contender("plain")),
            "problem": asdict(SMALL),
            "purpose": "step",
            "tasks": 1,
        }
    )
    assert without["layout"] in LAYOUTS
