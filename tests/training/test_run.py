"""A run, end to end on a tiny dataset: what it writes, and that it learns, stops and continues."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

from gradshare import FewShotClassifier, open_dataset
from gradshare.config import RunConfig
from gradshare.errors import ConfigError, DataError, RunError
from gradshare.training import run
from gradshare.training.checkpoint import load_checkpoint
from gradshare.training.evaluation import measure_test
from gradshare.training.folder import RunFolder
from gradshare.training.interruption import RunStoppedError
from gradshare.training.outer_loop import make_optimizer, outer_iteration
from gradshare.training.records import MetricsWriter, kept_epochs
from gradshare.training.run import Progress, train
from gradshare.training.setup import set_up

CPU = torch.device("cpu")


def ignore(progress: Progress) -> None:
    pass


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("method", ["maml", "meta-sgd", "maml++"])
@pytest.mark.parametrize("arm", ["original", "gradient-sharing", "rate-control"])
def test_every_method_and_arm_runs(
    method: str, arm: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    config = RunConfig(
        **{
            **tiny,
            "method": method,
            "sharing": arm != "original",
            "sharing_control": "rate-control" if arm == "rate-control" else None,
        }
    )
    result = train(config, tmp_path / "run", ignore)
    assert config.arm == arm
    assert result.diverged is None
    assert [r.epoch for r in result.history] == [1, 2, 3]
    for record in result.history:
        assert (record.m is not None) == (arm == "gradient-sharing")
        assert (record.lambda_ is not None) == (arm != "original")
    assert result.test is not None
    assert len(result.test.ensemble) == len(result.test.single) == 8
    assert result.test.members == 2
    assert RunFolder(tmp_path / "run").config() == config
    assert RunFolder(tmp_path / "run").history() == result.history
    kept = [f"epoch-{e:06d}.safetensors" for e in sorted(kept_epochs(result.history, 2))]
    latest = ["latest-000000006.safetensors", "latest-000000009.safetensors"]
    assert checkpoints(tmp_path / "run") == [*kept, *latest]


def test_it_learns(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = RunConfig(**{**tiny, "epochs": 2, "iterations_per_epoch": 40, "val_tasks": 40})
    result = train(config, tmp_path / "run", ignore)
    last = result.history[-1]
    assert last.val_ci95 is not None
    assert last.val_accuracy - 2 * last.val_ci95 > config.chance
    assert last.inner_loop.query_loss_after < last.inner_loop.query_loss_before
    assert last.inner_loop.support_loss_after < last.inner_loop.support_loss_before
    assert last.inner_loop.query_accuracy_after == pytest.approx(last.val_accuracy)


def test_the_same_seed_gives_the_same_run_and_another_another(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    runs = [
        train(RunConfig(**{**tiny, "seed": seed}), tmp_path / name, ignore)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    losses = [[record.train_loss for record in run.history] for run in runs]
    assert losses[0] == losses[1] != losses[2]


def test_the_folder_may_be_text(tiny: dict[str, Any], tmp_path: Path) -> None:
    train(RunConfig(**{**tiny, "epochs": 1}), str(tmp_path / "run"))
    assert RunFolder(tmp_path / "run").started


def test_settings_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        train({"dataset": "glyphs"}, tmp_path / "run")  # type: ignore[arg-type]
    assert str(error.value) == "config is a dict; give a RunConfig(…) of settings"


def test_a_path_may_begin_at_home(
    tiny: dict[str, Any], data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(data_root)
    config = RunConfig(**{**tiny, "epochs": 1, "data_root": "~/data"})
    assert config.data_root == tmp_path / "data"
    assert open_dataset("tiny", "~/data").name == "tiny"
    train(config, "~/run")
    assert FewShotClassifier.from_run("~/run").ways == config.ways
    assert not (tmp_path / "~").exists()


def test_a_run_computes_with_the_threads_that_it_is_given(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    seen = set[int]()
    for threads, used in ((3, 3), (0, before)):
        config = RunConfig(**{**tiny, "epochs": 1, "threads": threads})
        train(config, tmp_path / str(threads), lambda _: seen.add(torch.get_num_threads()))
        assert seen == {used}
        assert torch.get_num_threads() == before
        seen.clear()


def test_arms_start_alike_and_see_the_same_tasks(tiny: dict[str, Any]) -> None:
    setups = [set_up(RunConfig(**{**tiny, "sharing": sharing})) for sharing in (True, False)]
    learned = [setup.learner.init()[0] for setup in setups]
    for name in learned[1]:
        assert torch.equal(learned[0][name], learned[1][name])
    batches = [setup.train.batch(range(4)) for setup in setups]
    assert torch.equal(batches[0].support_x, batches[1].support_x)
    assert torch.equal(batches[0].query_x, batches[1].query_x)


def test_seeds_change_training_and_never_validation(tiny: dict[str, Any]) -> None:
    one, other = (set_up(RunConfig(**{**tiny, "seed": seed})) for seed in (0, 1))
    assert torch.equal(one.val.batch([5]).query_x, other.val.batch([5]).query_x)
    assert torch.equal(one.test.batch([5]).query_x, other.test.batch([5]).query_x)
    assert not torch.equal(one.train.batch([5]).query_x, other.train.batch([5]).query_x)


def test_best_models_are_the_epochs_they_are_named_after(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    config = RunConfig(**tiny)
    result = train(config, tmp_path / "run", ignore)
    assert result.test is not None
    setup = set_up(config)
    models = RunFolder(tmp_path / "run").best_models(
        result.history, config.ensemble, setup.learner.init()
    )
    again = measure_test(setup, models, config.test_tasks, lambda tasks: None)
    assert again == result.test
    single = measure_test(setup, models[:1], config.test_tasks, lambda tasks: None)
    assert single.ensemble == result.test.single


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_continues_to_where_it_would_have_been(
    signal_number: int, tiny: dict[str, Any], tmp_path: Path
) -> None:
    config = RunConfig(**{**tiny, "method": "maml++", "cosine_annealing_to": 1e-5})
    whole = train(config, tmp_path / "whole", ignore)

    def stop(progress: Progress) -> None:
        if progress.phase == "train" and progress.done == 5:
            os.kill(os.getpid(), signal_number)

    with pytest.raises(RunStoppedError) as error:
        train(config, tmp_path / "stopped", stop)
    assert str(error.value) == (
        f"stopped after iteration 5 of 9; everything so far is saved in {tmp_path / 'stopped'}"
    )
    assert error.value.signal == signal_number
    resumed = train(config, tmp_path / "stopped", ignore, resume=True)
    assert resumed.test == whole.test
    for one, other in zip(resumed.history, whole.history, strict=True):
        assert {**one.to_json(), "seconds": 0} == {**other.to_json(), "seconds": 0}
    last = "latest-000000009.safetensors"
    ends = [load_checkpoint(tmp_path / n / "checkpoints" / last, CPU) for n in ("whole", "stopped")]
    for part in ("learned", "state", "optimizer"):
        one, other = getattr(ends[0], part), getattr(ends[1], part)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_diverging_run_is_recorded_and_keeps_its_best_epochs(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    # Adam at this rate makes the parameters overflow within a few iterations.
    config = RunConfig(**{**tiny, "outer_lr": 1e30, "val_tasks": 2})
    result = train(config, tmp_path / "run", ignore)
    assert result.diverged is not None
    assert result.diverged.startswith("epoch 1, iteration ")
    assert "nan" in result.diverged or "not finite" in result.diverged
    assert result.test is None


def test_a_refused_step_leaves_everything_as_it_was(tiny: dict[str, Any]) -> None:
    config = RunConfig(**tiny)
    setup = set_up(config)
    learned, state = setup.learner.init()
    optimizer = make_optimizer(learned, 0.1)
    tasks = setup.normalization.batch(setup.train.batch(range(2)))
    good = outer_iteration(
        setup.learner, learned, state, optimizer, tasks, iteration=0, clamp_gradients=None
    )
    before = {name: tensor.detach().clone() for name, tensor in learned.items()}
    steps = [s["step"].item() for s in optimizer.state.values()]
    tasks.query_x[0, 0] = float("inf")
    bad = outer_iteration(
        setup.learner, learned, good.state, optimizer, tasks, iteration=1, clamp_gradients=None
    )
    assert bad.refused == "the outer loss is nan"
    assert bad.state is good.state
    assert all(torch.equal(before[name], learned[name]) for name in learned)
    assert [s["step"].item() for s in optimizer.state.values()] == steps


def test_the_reference_clamp_spares_what_is_not_the_model(tiny: dict[str, Any]) -> None:
    config = RunConfig(**{**tiny, "method": "meta-sgd"})
    setup = set_up(config)
    learned, state = setup.learner.init()
    optimizer = make_optimizer(learned, 0.1)
    seen: dict[str, float] = {}

    def look(*args: object) -> None:
        for name, tensor in learned.items():
            assert tensor.grad is not None
            seen[name] = tensor.grad.abs().max().item()

    optimizer.register_step_pre_hook(look)
    tasks = setup.normalization.batch(setup.train.batch(range(2)))
    outer_iteration(
        setup.learner, learned, state, optimizer, tasks, iteration=0, clamp_gradients=1e-6
    )
    assert max(seen[name] for name in seen if name.startswith("model.")) <= 1e-6
    assert seen["sharing.lambda"] > 1e-6
    assert max(seen[name] for name in seen if name.startswith("meta_sgd.")) > 1e-6


def test_the_clamp_and_the_annealed_rate_reach_the_optimiser(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(
        **{**tiny, "epochs": 2, "iterations_per_epoch": 2, "cosine_annealing_to": 1e-5},
        outer_lr=1e-3,
        clamp_gradients=1e-6,
    )
    names = list(set_up(config).learner.init()[0])
    rates, largest = [], []

    class Watched(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            (group,) = self.param_groups
            rates.append(group["lr"])
            gradients = [parameter.grad.abs().max().item() for parameter in group["params"]]
            largest.append(dict(zip(names, gradients, strict=True)))
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "Adam", Watched)
    train(config, tmp_path / "run", ignore)
    # 1e-5 + (1e-3 - 1e-5) (1 + cos(π i / 4)) / 2
    assert rates == pytest.approx([1e-3, 8.550178566e-4, 5.05e-4, 1.549821434e-4], rel=1e-9)
    for seen in largest:
        assert max(seen[name] for name in seen if name.startswith("model.")) <= 1e-6
        assert seen["sharing.lambda"] > 1e-6


def test_a_folder_that_holds_something_is_refused_and_untouched(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").touch()  # what is hidden is not what a folder is known by
    (folder / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(RunError) as error:
        train(RunConfig(**tiny), folder, ignore)
    assert str(error.value) == (
        f"the output folder {folder} already holds 'thesis.txt'; choose another with --out, "
        "continue it with --resume auto, or delete it if you no longer need it"
    )
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "thesis.txt"]


def test_an_output_folder_below_a_file_is_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="cannot be written: Not a directory; choose another"):
        train(RunConfig(**tiny), tmp_path / "file" / "run", ignore)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"ways": 6},
            "6-way tasks need 6 classes, split 'val' has 5; lower --ways or add classes",
        ),
        (
            {"queries": 15},
            "class 'train-0' of split 'train' has 10 images, a task needs 16 (1 shots + 15 "
            "queries); lower --queries or --shots, or add images",
        ),
        (
            {"dataset": "omniglott"},
            "there is no dataset 'omniglott'; did you mean 'omniglot'? there are glyphs, ",
        ),
        ({"device": "tpu9"}, "--device 'tpu9' is unknown; use auto, cpu, cuda or cuda:N"),
        (
            {"pixel_scaling": "imagenet"},
            "--pixel-scaling imagenet is for colour images, tiny has 1 channel; use dataset or "
            "unit",
        ),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is_written(
    settings: dict[str, Any], message: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises((DataError, ConfigError)) as error:
        train(RunConfig(**{**tiny, **settings}), tmp_path / "run", ignore)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_metrics_are_json_lines_without_nan(tiny: dict[str, Any], tmp_path: Path) -> None:
    train(RunConfig(**tiny), tmp_path / "run", ignore)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    for epoch, line in enumerate(lines, start=1):

        def refuse(constant: str) -> None:
            raise AssertionError(constant)

        record = json.loads(line, parse_constant=refuse)
        assert record["epoch"] == epoch
        assert record["inner_loop"].keys() == {
            f"{images}_{quantity}_{when}"
            for images in ("support", "query")
            for quantity in ("accuracy", "loss")
            for when in ("before", "after")
        }


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """What a TensorBoard event file holds: length, its checksum, an event, its checksum, again."""
    (path,) = folder.glob("events.out.tfevents.*")
    data, found, at = path.read_bytes(), {}, 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        at += 12 + length + 4
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    return found


def test_tensorboard_has_every_epoch_once_also_after_a_stop(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    def stop(progress: Progress) -> None:
        if progress.phase == "train" and progress.done == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(RunStoppedError):
        train(RunConfig(**tiny), tmp_path / "run", stop)
    result = train(RunConfig(**tiny), tmp_path / "run", resume=True)
    found = scalars(tmp_path / "run" / "tensorboard")
    for record in result.history:
        assert found["validation/accuracy", record.epoch] == pytest.approx(record.val_accuracy)
        assert record.m is not None
        assert found["sharing/m_2", record.epoch] == pytest.approx(record.m[1])
    assert {epoch for _, epoch in found} == {1, 2, 3}


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError) as error:
        RunFolder(tmp_path).config()
    assert str(error.value) == (
        f"{tmp_path} holds no run (no config.yaml); give the folder of a run"
    )


def test_a_run_that_diverges_late_keeps_and_tests_its_good_epochs(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(**tiny)

    def overflow(progress: Progress) -> None:
        if progress.phase == "train" and progress.done == 7:

            def poisoned(*args: Any, **options: Any) -> Any:
                args[4].query_x[0, 0] = float("inf")  # of the eighth iteration
                return outer_iteration(*args, **options)

            monkeypatch.setattr(run, "outer_iteration", poisoned)

    result = train(config, tmp_path / "run", overflow)
    assert (
        result.diverged
        == "epoch 3, iteration 8: the query loss of task 1 is not finite after inner step 2"
    )
    assert [record.epoch for record in result.history] == [1, 2]
    assert result.test is not None
    assert result.test.members == 2
    again = train(config, tmp_path / "run", resume=True)
    assert (again.diverged, again.test) == (result.diverged, result.test)


def test_parameters_that_overflow_in_the_last_step_are_no_epoch(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowing(*args: Any, **options: Any) -> Any:
        result = outer_iteration(*args, **options)
        if options["iteration"] == 8:  # the last: no other iteration will notice
            args[1]["sharing.m"].data.fill_(float("inf"))
        return result

    monkeypatch.setattr(run, "outer_iteration", overflowing)
    result = train(RunConfig(**tiny), tmp_path / "run")
    assert [record.epoch for record in result.history] == [1, 2]
    assert result.diverged == "epoch 3, iteration 9: sharing.m is not finite"


def test_a_member_that_overflows_on_a_task_does_not_spoil_the_ensemble(
    tiny: dict[str, Any],
) -> None:
    setup = set_up(RunConfig(**tiny))
    learned, state = setup.learner.init()
    broken = {name: torch.full_like(tensor, float("nan")) for name, tensor in learned.items()}
    alone = measure_test(setup, [(learned, state)], 5, lambda tasks: None)
    both = measure_test(setup, [(learned, state), (broken, state)], 5, lambda tasks: None)
    assert both.ensemble == alone.ensemble
    worst = measure_test(setup, [(broken, state)], 5, lambda tasks: None)
    assert worst.ensemble == [0.0] * 5


def test_records_that_are_not_finite_are_null_and_read_back(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    result = train(RunConfig(**{**tiny, "epochs": 1}), tmp_path / "run")
    fit = dataclasses.replace(result.history[0].inner_loop, query_loss_after=float("nan"))
    record = dataclasses.replace(result.history[0], inner_loop=fit, train_loss=float("inf"))
    with MetricsWriter(tmp_path / "run", []) as metrics:
        metrics.write(record)
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["train_loss"] is None
    assert json.loads(line)["inner_loop"]["query_loss_after"] is None
    (back,) = RunFolder(tmp_path / "run").history()
    assert back.val_accuracy == record.val_accuracy
    with MetricsWriter(tmp_path / "run", [back]):
        pass  # a run that is continued writes them again


def test_a_half_written_last_line_is_passed_over(tiny: dict[str, Any], tmp_path: Path) -> None:
    result = train(RunConfig(**tiny), tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert RunFolder(tmp_path / "run").history() == result.history[:-1]


def test_a_finished_run_keeps_the_environment_that_it_was_trained_in(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To ask for it again, on another machine or of another commit, trains nothing."""
    config = RunConfig(**tiny)

    def somewhere(device: torch.device, layout: str) -> dict[str, Any]:
        return {"processor": where, "layout": layout}

    monkeypatch.setattr(run, "environment", somewhere)
    where = "here"
    first = train(config, tmp_path / "run")
    where = "there"
    again = train(config, tmp_path / "run", resume=True)
    assert again.environment == first.environment
    assert first.environment == {"processor": "here", "layout": set_up(config).layout.describe()}


def test_a_continued_run_has_the_environment_of_its_last_process(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = "here"
    monkeypatch.setattr(run, "environment", lambda device, layout: {"processor": where})

    def stop(progress: Progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(RunConfig(**tiny), tmp_path / "run", stop)
    where = "there"
    assert train(RunConfig(**tiny), tmp_path / "run", resume=True).environment == {
        "processor": "there"
    }


def test_running_out_of_memory_says_what_to_lower(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*args: Any, **options: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(run, "outer_iteration", exhausted)
    with pytest.raises(RunError) as error:
        train(RunConfig(**tiny), tmp_path / "run")
    assert str(error.value) == (
        "memory ran out (CUDA out of memory. Tried to allocate 9 GiB); start a new run and "
        "lower --task-batch 2, --queries 4, --filters 4, --inner-steps 2 or --image-size, or use "
        "--memory recompute or --order first"
    )
