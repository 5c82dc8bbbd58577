"""`gradshare.compare` in this process: what it trains, refuses, continues and tells."""

from __future__ import annotations

import functools
import os
import pickle
import re
import signal
import sys
import types
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F

import gradshare as gs
from gradshare.comparison import compare as module
from gradshare.comparison.compare import compare
from gradshare.comparison.plan import Plan
from gradshare.comparison.worker import train_run, tried_here, try_arms
from gradshare.errors import ConfigError, DataError, RunError
from gradshare.executors import LocalExecutor
from gradshare.training import layout
from gradshare.training.checkpoint import load_checkpoint
from gradshare.training.folder import RunFolder
from gradshare.training.interruption import RunStoppedError
from gradshare.training.options import Options, Progress
from gradshare.training.progress import RunBars
from tests.comparison.small import (
    OPTIONS,
    Arms,
    arms,
    assert_same,
    leftovers,
    net,
    run_folders,
    small,
)
from tests.training.killing import records_in
from tests.training.small import ROWS, SIGNALS, Wrapped, mlp

pytestmark = pytest.mark.usefixtures("without_reports")


def here(out: Path, made: Arms | None = None, **changes: Any) -> module.Comparison:
    """A comparison in a thread of this process."""
    return small(out, made, executor=ThreadPoolExecutor(1), **changes)


def quick(**names: Callable[[], Any]) -> dict[str, Any]:
    """Arguments of a comparison of a second."""
    sources = dict(zip(("train", "validation", "test"), ROWS, strict=True))
    return {"arms": names, **sources, **OPTIONS, "seeds": 1, "epochs": 1}


def plain() -> Any:
    return gs.maml(mlp(), steps=1)


def test_each_run_is_what_fit_makes_of_its_arm_and_seed(tmp_path: Path) -> None:
    comparison = here(tmp_path / "out")
    options = {name: v for name, v in OPTIONS.items() if name != "seeds"}
    train, validation, test = SIGNALS
    for run in comparison.results.runs:
        torch.manual_seed(run.seed)
        own = tmp_path / run.arm / str(run.seed)
        found = gs.fit(
            arms()[run.arm](), train, validation, test=test, seed=run.seed, out=own, **options
        )
        assert found.test is not None
        assert run.test == found.test.ensemble
        assert [r.metrics for r in run.history] == [r.metrics for r in found.history]
        last = "checkpoints/latest-000000009.safetensors"
        mine = load_checkpoint(tmp_path / "out" / "runs" / run.arm / f"seed-{run.seed}" / last)
        for name, tensor in load_checkpoint(own / last).meta.items():
            assert torch.equal(tensor, mine.meta[name])


def test_arms_of_a_seed_start_the_same_and_the_callers_generators_are_untouched(
    tmp_path: Path,
) -> None:
    starts: dict[str, list[float]] = {"a": [], "b": []}

    def made(arm: str) -> Any:
        starts[arm].append(float(torch.rand(())) + float(np.random.random()))  # noqa: NPY002
        return plain()

    before = torch.get_rng_state()
    compare(
        **{**quick(a=lambda: made("a"), b=lambda: made("b")), "seeds": [3, 7]},
        out=tmp_path / "out",
        executor=ThreadPoolExecutor(1),
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert sorted(starts["a"]) == sorted(starts["b"])
    assert len(set(starts["a"])) == 2


def test_methods_of_each_kind_are_compared_and_start_from_the_same_weights(tmp_path: Path) -> None:
    methods: dict[str, Any] = {
        "maml": gs.maml,
        "proto-maml": gs.proto_maml,
        "reptile": gs.reptile,
        "imaml": lambda model: gs.imaml(model, steps=2),
        "protonet": gs.protonet,
    }
    made: Arms = {name: lambda make=make: make(net()) for name, make in methods.items()}  # type: ignore[misc]
    comparison = here(tmp_path / "out", made, epochs=1, seeds=[1])
    assert {run.arm: len(run.test["accuracy"]) for run in comparison.results.runs} == (
        dict.fromkeys(methods, 8)
    )
    assert not any("starts with another" in note for note in comparison.results.notes)


def test_what_starts_differently_is_noted_and_what_starts_the_same_with_each_seed_too(
    tmp_path: Path,
) -> None:
    def shifted() -> Any:
        torch.rand(1)
        return gs.maml(net(), steps=2)

    model = net()
    made = {**arms(), "shifted": shifted, "one model": lambda: gs.maml(model, steps=2)}
    comparison = here(tmp_path / "out", made, epochs=1)
    notes = comparison.results.notes
    assert len(notes) == 3
    assert notes[0].startswith("shifted starts with another ")
    assert notes[0].endswith(" than original.")
    assert notes[2] == "one model starts from the same parameters with each seed."
    assert str(comparison).endswith("\n".join(notes))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_arms_are_tried_whatever_the_caller_has_set(mode: Any) -> None:
    train, validation, test = ROWS
    options = Options(epochs=1, iterations=1, device="cpu")
    plan = Plan({"a": plain}, "a", (), train, validation, test, options, (0,))
    expected = tried_here(plan)
    with mode():
        assert tried_here(plan) == expected


class Broken:
    """A source whose tasks depend on the call."""

    def batch(self, indices: Any) -> Any:
        return SIGNALS[0].batch(list(range(len(indices))))


def bad_arm() -> Any:
    raise ValueError("no such layer")


def same() -> Callable[[], Any]:
    learner = plain()
    return lambda: learner


def shared() -> Arms:
    one = functools.cache(plain)
    return {"a": one, "b": one}


LOSSES = {"a": F.mse_loss, "b": F.l1_loss}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arms": {}}, "a comparison needs arms: a dictionary of functions that make a learner"),
        ({"arms": [plain]}, "a comparison needs arms: a dictionary of functions"),
        ({"arms": {"a": plain()}}, "the arm 'a' is a MetaLearner; give a function that makes"),
        ({"arms": {" ": plain}}, "an arm is named ' '; give a text of at most 60"),
        ({"arms": {"two\nlines": plain}}, "an arm is named 'two\\nlines'; give a text"),
        ({"arms": {"x" * 10_000: plain}}, "give a text of at most 60 characters"),
        ({"arms": {1: plain}}, "an arm is named 1; give a text"),
        ({"arms": {"lr": plain, "LR": plain}},
         "the arms 'lr' and 'LR' differ only in upper and lower case, "),
        ({"baseline": "c"}, "the baseline 'c' is not an arm; the arms are ['a', 'b']"),
        ({"controls": ["c"]}, "the control 'c' is not an arm; the arms are ['a', 'b']"),
        ({"controls": "a"}, "'a' is both the baseline and a control"),
        ({"test": None}, "a comparison needs test tasks; give their source as `test`"),
        ({"arms": {"a": plain, "b": bad_arm}},
         "the arm 'b' cannot be made: ValueError: no such layer"),
        ({"arms": {"a": plain, "b": net}}, "the arm 'b' cannot be made: the learner is Sequential"),
        ({"arms": {"a": plain, "b": lambda: gs.maml(mlp(outputs=7), steps=1)}},
         "the arm 'b': Sequential has 7 outputs"),
        ({"arms": {"a": plain, "b": same()}},
         "the arm 'b' returns an object that was returned before; make the model and the learner"),
        ({"arms": shared()}, "returns an object that was returned before"),
        ({"seeds": 0}, "seeds is 0; give a number of at least 1, or different seeds"),
        ({"seeds": 2.5}, "seeds is 2.5; give a number of at least 1, or different seeds"),
        ({"seeds": "3"}, "seeds is '3'; give a number of at least 1, or different seeds"),
        ({"iterations_per_epoch": 3}, "there is no option 'iterations_per_epoch' of training; did"),
        ({"seeds": [1, 1]}, "seeds is [1, 1]; give a number of at least 1, or different seeds"),
        ({"seeds": [-1]}, "seed is -1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"at_a_time": 0}, "at_a_time is 0"),
        ({"resume": "yes"}, "resume 'yes' is unknown"),
        ({"device": "tpu"}, "device 'tpu' is unknown"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_said_before_anything_is_written(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError) as error:
        compare(**{**quick(a=plain, b=plain), **arguments}, out=out)
    assert message in str(error.value)
    assert not out.exists()


def test_a_source_that_is_not_a_function_of_its_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train"):
        compare(**{**quick(a=plain), "train": Broken()}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arms_that_are_measured_differently_are_refused(tmp_path: Path) -> None:
    made: Arms = {
        arm: functools.partial(gs.maml, mlp(inputs=1, outputs=1), steps=1, loss=loss)
        for arm, loss in LOSSES.items()
    }
    with pytest.raises(ConfigError) as error:
        small(tmp_path / "out", made, [gs.Sinusoids(), gs.Sinusoids(), gs.Sinusoids(seed=1)])
    assert str(error.value) == (
        "the arm 'b' is measured by loss (l1_loss), and 'a' by loss (mse_loss); give metrics=… "
        "that all arms can be measured by"
    )


class Heavy(Wrapped):
    """A source that holds its data, as if it were large."""

    def __init__(self, source: Any, megabytes: int) -> None:
        super().__init__(source)
        self.data = bytes(megabytes << 20)


class Open(Wrapped):
    """A source that cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle an open file")


def test_a_source_too_large_for_other_processes_is_refused_with_a_path_as_remedy(
    tmp_path: Path,
) -> None:
    arguments = {**quick(a=plain), "train": Heavy(ROWS[0], 65)}
    with pytest.raises(ConfigError) as error:
        compare(**arguments, out=tmp_path / "out")
    assert str(error.value) == (
        "the arms and sources take 65 MB when they are sent to other processes, and 64 MB is the "
        "most; give a source that reads its data from a path, such as ClassTasks.load(folder)"
    )
    assert leftovers(tmp_path / "out") == []
    compare(**arguments, out=tmp_path / "here", executor=ThreadPoolExecutor(1))  # nothing is sent


def test_a_source_that_cannot_be_sent_is_refused_with_threads_as_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        compare(**{**quick(a=plain), "train": Open(ROWS[0])}, out=tmp_path / "out")
    assert str(error.value) == (
        "the arms or sources can't be sent to other processes: TypeError: cannot pickle an open "
        "file; keep what they use picklable, or compare in this process: "
        "executor=concurrent.futures.ThreadPoolExecutor(1)"
    )


def test_a_folder_that_holds_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    for resume in ("never", "auto"):
        with pytest.raises(RunError, match=r"already holds 'thesis\.txt'"):
            compare(**quick(a=plain), out=tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_comparison_of_version_0_1_0_is_not_continued(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"format_version": 1, "arms": []}')
    with pytest.raises(RunError, match=r"format 1, and this gradshare reads 3; use gradshare 0\.1"):
        compare(**quick(a=plain), out=tmp_path, resume="auto")


def written(out: Path) -> dict[str, int]:
    """When each checkpoint was written."""
    return {
        str(path.relative_to(out)): path.stat().st_mtime_ns
        for path in out.rglob("checkpoints/*.safetensors")
    }


def test_a_finished_comparison_takes_more_arms_and_seeds_and_trains_nothing_again(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    original, sharing = arms().values()
    here(out, {"original": original}, seeds=1)
    before = written(out)
    with pytest.raises(RunError, match="already holds"):
        here(out, {"original": original}, seeds=1)
    made = {"sharing": sharing, "original": original, "lr=0.1/α": original}
    here(out, made, seeds=2, baseline="original", resume="auto")
    assert {name: when for name, when in written(out).items() if name in before} == before
    here(tmp_path / "at once", made, seeds=2, baseline="original")
    assert_same(out, tmp_path / "at once")
    everything = written(out)
    assert here(out, made, seeds=2, baseline="original", resume="auto").results.baseline == (
        "original"
    )
    fewer = here(out, {"original": original}, seeds=1, resume="auto").results
    assert written(out) == everything
    assert re.search(
        r"^The folder holds runs that are not compared: runs/lr-0.1-α-[^/]*/seed-0, "
        r"runs/lr.*/seed-1, runs/original/seed-1, runs/sharing/seed-0, runs/sharing/seed-1\.$",
        fewer.notes[-1],
    )


def test_what_a_finished_comparison_was_not_is_refused_by_the_runs_own_check(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    here(out, seeds=1)
    everything = written(out)
    other = {**arms(), "sharing": lambda: gs.maml(net(), steps=2, inner_lr=0.4, sharing=True)}
    with pytest.raises(RunError, match=r"sharing.* holds a run with rule"):
        here(out, other, seeds=1, resume="auto")
    # Of the same rule and shapes: its gradients tell.
    other["sharing"] = lambda: gs.maml(net(nn.Tanh()), steps=2, sharing=True)
    with pytest.raises(RunError, match="have changed since"):
        here(out, other, seeds=1, resume="auto")
    with pytest.raises(RunError) as error:
        here(out, seeds=1, task_batch=3, resume="auto")
    assert "holds a run with task_batch 2, this one has 3" in str(error.value)
    with pytest.raises(RunError, match="holds a run of 3 epochs, and 2 were asked for"):
        here(out, seeds=1, epochs=2, resume="auto")
    assert written(out) == everything
    here(out, seeds=1, epochs=4, resume="auto")
    assert {len(records_in(run)) for run in run_folders(out)} == {4}


def test_an_arm_that_diverges_is_a_result(tmp_path: Path) -> None:
    arguments = quick(good=plain, wild=lambda: gs.maml(mlp(), steps=2, inner_lr=1e38))
    out, executor = tmp_path / "out", ThreadPoolExecutor(1)
    comparison = compare(**arguments, out=out, executor=executor)
    assert [run.outcome == "diverged" for run in comparison.results.runs] == [False, True]
    assert "“wild” diverged in 1 of 1 runs (epoch 1, iteration 1: " in str(comparison)
    everything = written(out)
    compare(**arguments, out=out, executor=executor, resume="auto")
    assert written(out) == everything


class Defective:
    """A learner that meets a defect in its third iteration."""

    def __init__(self, learner: Any, *, mended: bool = False) -> None:
        self.learner = learner
        self.mended = mended

    def init(self) -> Any:
        return self.learner.init()

    def adapt(self, *args: Any, **options: Any) -> Any:
        return self.learner.adapt(*args, **options)

    def predict(self, *args: Any) -> Any:
        return self.learner.predict(*args)

    def outer_step(self, *args: Any, iteration: int, **options: Any) -> Any:
        if iteration == 2 and not self.mended:
            raise ZeroDivisionError("unforeseen")
        return self.learner.outer_step(*args, iteration=iteration, **options)


def test_a_defect_is_one_sentence_its_trace_is_in_a_file_and_the_other_runs_finish(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    made = {"bad": lambda: Defective(plain()), "good": plain}
    with pytest.raises(RunError) as error:
        compare(**{**quick(**made), "seeds": 4}, out=out, executor=ThreadPoolExecutor(1))
    assert str(error.value) == (
        "bad (seed 0), bad (seed 1), bad (seed 2), bad (seed 3) failed: ZeroDivisionError: "
        f"unforeseen (see {out / 'errors.txt'}). The other runs are saved in {out}; "
        "correct the cause and continue (resume='auto', --resume auto)"
    )
    trace = (out / "errors.txt").read_text(encoding="utf-8")
    assert "in outer_step" in trace
    assert trace.count("Traceback") == 4
    assert all(records_in(run) for run in run_folders(out) if "good" in str(run))
    made["bad"] = lambda: Defective(plain(), mended=True)
    finished = compare(
        **{**quick(**made), "seeds": 4}, out=out, resume="auto", executor=ThreadPoolExecutor(1)
    )
    assert all(run.test for run in finished.results.runs)


class Spy:
    """Runs calls at once, and keeps what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def submit(self, *call: Any) -> Any:
        self.calls.append(call)
        future: Future[Any] = Future()
        future.set_result(call[0](*call[1:]))
        return future


def test_an_executor_gets_two_functions_of_the_package_a_path_an_arm_and_a_seed(
    tmp_path: Path,
) -> None:
    out, executor = tmp_path / "out", Spy()
    small(out, executor=executor, epochs=1)
    keys = [(arm, seed) for seed in (0, 1) for arm in ("original", "sharing")]
    assert [call[0] for call in executor.calls] == [try_arms, *[train_run] * 4]
    assert [call[2:] for call in executor.calls] == [(), *keys]
    for call in executor.calls:
        assert Path(call[1]).parent == out
        assert len(pickle.dumps(call)) < 500
    assert leftovers(out) == []
    small(out, executor=executor, epochs=1, resume="auto")
    assert [call[0] for call in executor.calls[5:]] == [try_arms]  # everything is finished


class Node(Spy):
    """Runs calls as on a machine where graphs that take more than some bytes are not kept."""

    def __init__(self, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.most = {"cpu": most, "cuda": most}
        self.monkeypatch = monkeypatch

    def submit(self, *call: Any) -> Any:
        with self.monkeypatch.context() as patch:
            patch.setattr(layout, "KEPT_UP_TO", self.most)
            return super().submit(*call)


def test_the_layout_is_that_of_the_arm_that_needs_most_on_a_machine_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    light, heavy = (functools.partial(gs.maml, mlp(), steps=steps) for steps in (1, 9))
    alone = compare(**quick(light=light), out=tmp_path / "alone", executor=ThreadPoolExecutor(1))
    most = layout_of(tmp_path / "alone", "light").bytes
    assert alone.results.settings["memory"] == "keep"
    arguments = quick(light=light, heavy=heavy)
    together = compare(**arguments, out=tmp_path / "out", executor=Node(most, monkeypatch))
    assert together.results.settings["memory"] == "recompute"
    for arm in ("light", "heavy"):
        found = layout_of(tmp_path / "out", arm)
        assert found.memory == "recompute"


def layout_of(out: Path, arm: str) -> layout.Layout:
    contents = RunFolder(out / "runs" / arm / "seed-0").contents()
    return layout.Layout(**contents["layout"])


def test_a_trial_that_fails_elsewhere_leaves_a_folder_that_can_be_compared_in(
    tmp_path: Path,
) -> None:
    out, executor = tmp_path / "out", Spy()
    with pytest.raises(RunError) as error:
        compare(**{**quick(a=plain), "device": "cuda:77"}, out=out, executor=executor)
    assert len(executor.calls) == 1  # the machine that submits is not asked for the device
    assert str(error.value).startswith(
        "the trial of the arms failed: device 'cuda:77' cannot be used here ("
    )
    assert leftovers(out) == []
    compare(**quick(a=plain), out=out, executor=executor)
    with pytest.raises(RunError, match="already holds"):
        compare(**quick(a=plain), out=out, executor=executor)


def test_an_arm_that_cannot_be_made_is_said_before_a_worker_is_waited_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the arm 'b' cannot be made: ValueError: no such layer"):
        compare(**quick(a=plain, b=bad_arm), out=tmp_path / "out", executor=Queue())
    assert not (tmp_path / "out").exists()


def test_a_trial_whose_worker_is_lost_is_reported_or_repeated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Preempted(Spy):
        def submit(self, *call: Any) -> Any:
            if self.calls:
                return super().submit(*call)
            self.calls.append(call)
            future: Future[Any] = Future()
            future.set_exception(OSError("preempted"))
            return future

    with pytest.raises(RunError) as error:
        compare(**quick(a=plain), out=tmp_path / "out", executor=Preempted())
    assert str(error.value) == (
        "the trial of the arms failed: its worker was lost: OSError: preempted"
    )
    compare(**quick(a=plain), out=tmp_path / "out", executor=Preempted(), retries=1)
    assert caplog.messages == [
        "the trial of the arms: its worker was lost: OSError: preempted; it is started again "
        "(retry 1 of 1)"
    ]


def test_a_run_whose_worker_is_lost_is_reported_and_the_other_runs_finish(tmp_path: Path) -> None:
    class Killed(Spy):
        def submit(self, *call: Any) -> Any:
            if call[2:] != ("original", 0):
                return super().submit(*call)
            future: Future[Any] = Future()
            future.set_exception(OSError("killed"))
            return future

    out = tmp_path / "out"
    with pytest.raises(RunError) as error:
        small(out, executor=Killed(), epochs=1, seeds=1)
    assert str(error.value) == (
        "original failed: its worker was lost: OSError: killed. The other runs are saved in "
        f"{out}; correct the cause and continue (resume='auto', --resume auto)"
    )
    assert [len(records_in(run)) for run in run_folders(out)] == [1]


def test_each_run_computes_with_the_threads_of_the_plan(tmp_path: Path) -> None:
    found: set[int] = set()

    def note(_: gs.Event) -> None:
        found.add(torch.get_num_threads())

    before = torch.get_num_threads()
    options = Options(epochs=1, iterations=2, val_tasks=2, test_tasks=2, callbacks=[note])
    train, validation, test = ROWS
    plan = Plan({"a": plain}, "a", (), train, validation, test, options, (0,), threads=before + 2)
    executor = ThreadPoolExecutor(1)
    module.run_plan(plan, tmp_path / "out", executor=executor, progress=False)
    assert found == {before + 2}
    assert torch.get_num_threads() == before


def test_a_worker_that_does_not_see_the_folder_says_so_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / ".plan-1.pkl"
    kind, why = train_run(str(path), "original", 0)
    assert kind == "failed"
    assert why == (
        f"the machine {os.uname().nodename} cannot read {path} (No such file or directory); "
        "compare in a folder that all machines share"
    )
    assert list(tmp_path.iterdir()) == []


def test_threads_train_one_run_at_a_time_and_an_executor_of_the_users_stays_open(
    tmp_path: Path,
) -> None:
    class Watched(ThreadPoolExecutor):
        def submit(self, *call: Any, **options: Any) -> Any:
            assert all(future.done() for future in futures)
            futures.append(super().submit(*call, **options))
            return futures[-1]

    futures: list[Any] = []
    executor = Watched(4)
    small(tmp_path / "one", executor=executor, at_a_time=4, epochs=1)
    assert len(futures) == 4
    assert executor.submit(pow, 2, 3).result() == 8
    with LocalExecutor(1) as local:
        one = {"original": arms()["original"]}
        small(tmp_path / "local", one, executor=local, epochs=1, seeds=1)
        assert local.submit(pow, 2, 3).result() == 8
    here(tmp_path / "other", epochs=1)
    assert_same(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize(
    ("at_a_time", "expected"), [(None, (8, "2")), (2, (2, "4")), (3, (3, "2")), (20, (20, "2"))]
)
def test_cores_are_shared_out_among_the_runs_that_go_at_a_time(
    at_a_time: int | None,
    expected: tuple[int, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class CalledError(Exception):
        pass

    def executor(at_a_time: int, environment: dict[str, str]) -> LocalExecutor:
        assert (at_a_time, environment["OMP_NUM_THREADS"]) == expected
        raise CalledError

    monkeypatch.setattr(module, "cores", lambda: 8)
    monkeypatch.setattr(module, "LocalExecutor", executor)
    with pytest.raises(CalledError):
        small(tmp_path / "out", at_a_time=at_a_time)


@pytest.mark.parametrize(
    ("device", "threads", "expected"),
    [("cpu", 0, 8), ("cpu", 3, 2), ("cpu", 16, 1), ("cuda", 0, 1), ("cuda", 2, 1)],
)
def test_as_many_runs_go_at_a_time_as_there_are_cores_for_or_one_on_a_gpu(
    device: str, threads: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "cores", lambda: 8)
    monkeypatch.setattr(module, "choose_device", lambda _: torch.device(device))
    options = Options(epochs=1, iterations=1)
    train, validation, test = ROWS
    plan = Plan({"a": plain}, "a", (), train, validation, test, options, (0,), threads=threads)
    assert module.runs_together(plan) == expected


class Queue(Spy):
    """Tries arms at once, and queues runs for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.futures: list[Future[Any]] = []

    def submit(self, *call: Any) -> Any:
        if call[0] is try_arms:
            return super().submit(*call)
        self.futures.append(Future())
        return self.futures[-1]


def test_a_queued_run_is_shown_as_queued_and_cancelled_by_a_request_to_stop(
    tmp_path: Path,
) -> None:
    told: list[tuple[str, Progress | None]] = []

    def watch(name: str, progress: Progress | None) -> None:
        told.append((name, progress))
        if len(told) == 6:
            signal.raise_signal(signal.SIGTERM)

    executor, out = Queue(), tmp_path / "out"
    with pytest.raises(RunStoppedError) as error:
        small(out, executor=executor, progress=watch)
    assert error.value.signal == signal.SIGTERM
    trial = "the trial of the arms"
    assert told == [
        (trial, None),
        (trial, Progress("try", 2, 2, epoch=0, score=None)),
        *((f"{arm} (seed {seed})", None) for seed in (0, 1) for arm in ("original", "sharing")),
    ]
    assert all(future.cancelled() for future in executor.futures)
    assert leftovers(out) == []


def test_the_display_of_a_queued_run_says_queued() -> None:
    console = Console(force_terminal=True, width=100, file=None, record=True)
    with RunBars(console) as bars:
        bars("sharing (seed 1)", None)
        bars("original (seed 1)", Progress("train", 3, 9, epoch=2, score="accuracy 31.0 %"))
    shown = console.export_text()
    assert any("sharing (seed 1)" in line and "queued" in line for line in shown.splitlines())
    assert any("epoch 2" in line and "accuracy 31.0 %" in line for line in shown.splitlines())


class Silent(ThreadPoolExecutor):
    """An executor that does not say what becomes of its calls."""

    def submit(self, *call: Any, **options: Any) -> Any:
        future = super().submit(*call, **options)
        if call[0] is try_arms:
            return future

        def done() -> bool:
            raise OSError("slurm_load_jobs error: Unable to contact slurm controller")

        future.done = done  # type: ignore[method-assign]
        return future


def test_a_scheduler_that_does_not_answer_does_not_keep_a_program_from_stopping(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    def watch(name: str, progress: Progress | None) -> None:
        if progress is not None and progress.done >= 3 and not told:
            told.append(name)
            signal.raise_signal(signal.SIGTERM)

    class Elsewhere:
        """Not known to be threads of this process."""

        def __init__(self) -> None:
            self.pool = Silent(1)

        def submit(self, *call: Any) -> Any:
            return self.pool.submit(*call)

    out, executor = tmp_path / "out", Elsewhere()
    with pytest.raises(RunStoppedError):
        small(out, executor=executor, progress=watch, seeds=1, epochs=1000)
    executor.pool.shutdown()
    assert records_in(out / "runs" / told[0] / "seed-0")
    said = {m for m in caplog.messages if m.startswith("the executor does not answer about ")}
    assert said
    assert all(message.endswith("Unable to contact slurm controller") for message in said)


def test_where_each_run_is_comes_from_its_folder(tmp_path: Path) -> None:
    told: dict[str, list[Progress]] = {}

    def watch(name: str, progress: Progress | None) -> None:
        if progress is not None:
            told.setdefault(name, []).append(progress)

    here(tmp_path / "out", progress=watch, seeds=1, epochs=2)
    assert set(told) == {"original", "sharing"}
    for progress in told.values():
        assert (progress[-1].phase, progress[-1].done, progress[-1].total) == ("test", 8, 8)
        assert progress[-1].score is not None
        assert progress[-1].score.startswith("accuracy ")


def test_a_comparison_is_a_data_frame_where_pandas_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pandas = types.ModuleType("pandas")
    pandas.DataFrame = list  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    comparison = compare(**quick(a=plain), out=tmp_path / "out", executor=ThreadPoolExecutor(1))
    assert comparison.to_pandas() == comparison.results.table()
