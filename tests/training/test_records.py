"""What a run writes down after each epoch, and how it is read back."""

from __future__ import annotations

import json
import math
import os
import signal
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

import gradshare as gs
from gradshare.training.interruption import RunStoppedError
from gradshare.training.options import Progress
from gradshare.training.records import EpochRecord, EpochTotals, MetricsWriter
from gradshare.training.statistics import Interval
from tests.training.killing import records_in
from tests.training.small import rows

RECORD = EpochRecord(
    epoch=1,
    iterations=3,
    metrics={"validation": {"loss": Interval(math.nan, math.inf, 6)}},
    learned={"sharing.m": [0.5, math.nan]},
    outer_lr=1e-3,
    seconds=0.1,
)


def refuse(constant: str) -> None:
    raise AssertionError(constant)


def test_metrics_are_json_lines_without_nan(tmp_path: Path) -> None:
    run = gs.fit(**rows(), out=tmp_path / "run")
    lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    for epoch, line in enumerate(lines, start=1):
        record = json.loads(line, parse_constant=refuse)
        assert record["epoch"] == epoch
        assert record["iterations"] == 3 * epoch
        assert record["metrics"].keys() == {
            "train",
            "support before",
            "support after",
            "query before",
            "validation",
        }
        for split, metrics in record["metrics"].items():
            assert metrics.keys() == {"accuracy", "loss"}
            for mean, ci95, n in metrics.values():
                assert (ci95 is None) == (split == "train")
                assert n == (3 if split == "train" else 6)
                assert mean > 0
        assert len(record["learned"]["sharing.lambda"]) == 2


def test_a_run_is_one_long_table(tmp_path: Path) -> None:
    run = gs.fit(**rows(), out=tmp_path / "run")
    table = run.table()
    assert len(table) == 3 * 5 * 2
    assert table[-1].keys() == {"epoch", "split", "metric", "value", "ci95"}
    (row,) = [
        row
        for row in table
        if (row["epoch"], row["split"], row["metric"]) == (2, "validation", "loss")
    ]
    assert row["value"] == run.history[1].mean("loss")


def test_what_is_not_finite_is_null_and_read_back_as_nan(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, []) as metrics:
        metrics.write(RECORD)
    (line,) = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    stored = json.loads(line, parse_constant=refuse)
    assert stored["metrics"]["validation"]["loss"] == [None, None, 6]
    assert stored["learned"]["sharing.m"] == [0.5, None]
    (back,) = records_in(tmp_path)
    assert math.isnan(back.mean("loss"))
    assert math.isnan(back.learned["sharing.m"][1])
    with MetricsWriter(tmp_path, [back]):
        pass  # a run that is continued writes them again
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == line + "\n"


def test_a_half_written_last_line_is_passed_over(tmp_path: Path) -> None:
    run = gs.fit(**rows(), out=tmp_path / "run")
    path = run.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert records_in(run.path) == run.history[:-1]


def test_the_mean_of_an_epoch_without_iterations_is_nan() -> None:
    totals = EpochTotals()
    assert math.isnan(totals.means(["loss"])["loss"].mean)
    for value in (1.0, 2.0):
        totals.add({"loss": value})
    assert totals.means(["loss"]) == {"loss": Interval(1.5, None, 2)}


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    """What a TensorBoard event file holds: length, its checksum, an event, its checksum, again."""
    (path,) = folder.glob("events.out.tfevents.*")
    data, found, at = path.read_bytes(), [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        at += 12 + length + 4
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return found


def test_tensorboard_has_each_epoch_once_also_after_a_stop(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.phase == "train" and progress.done == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(RunStoppedError):
        gs.fit(**rows(progress=stop), out=tmp_path / "run")
    run = gs.fit(**rows(), out=tmp_path / "run", resume="auto")
    found = scalars(run.path / "tensorboard")
    values = {(tag, epoch): value for tag, epoch, value in found}
    assert len(values) == len(found)
    for record in run.history:
        for row in record.rows():
            tag = f"{row['split']}/{row['metric']}".replace(" ", "_")  # by TensorBoard's rules
            assert values[tag, record.epoch] == pytest.approx(row["value"])
        assert values["learned/sharing.m_2", record.epoch] == pytest.approx(
            record.learned["sharing.m"][1]
        )
        assert values["outer_lr", record.epoch] == pytest.approx(1e-3)
    assert {epoch for _, epoch in values} == {1, 2, 3}


def test_tensorboard_has_no_points_that_are_not_finite(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, []) as metrics:
        metrics.write(RECORD)
    tags = {tag for tag, _, _ in scalars(tmp_path / "tensorboard")}
    assert tags == {"outer_lr", "train/skipped", "learned/sharing.m_1"}
