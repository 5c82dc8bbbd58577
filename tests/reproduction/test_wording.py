from __future__ import annotations

import pytest

from reproduction import wording
from reproduction.speedup import RatioInterval
from gradshare.training.statistics import Interval


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (Interval(0.52345, 0.0141, 600), "52.3 ± 1.4 %"),
        (Interval(0.52345, None, 1), "52.3 %"),
        (Interval(0.52345, 0.0, 2), "52.3 ± 0.0 %"),
        (Interval(0.52345, 0.0003, 99), "52.34 ± 0.03 %"),
        (Interval(1.0, 0.0, 2), "100.0 ± 0.0 %"),
    ],
)
def test_accuracies(interval: Interval, expected: str) -> None:
    assert wording.accuracy(interval) == expected


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (Interval(0.0112, 0.0091, 600), "+1.1 ± 0.9 points"),
        (Interval(-0.0112, 0.0091, 600), "−1.1 ± 0.9 points"),
        (Interval(-0.0002, 0.0091, 600), "0.0 ± 0.9 points"),
        (Interval(0.0002, 0.0091, 600), "0.0 ± 0.9 points"),
        (Interval(0.0002, None, 1), "0.0 points"),
        (Interval(0.25, None, 1), "+25.0 points"),
    ],
)
def test_differences(interval: Interval, expected: str) -> None:
    assert wording.points(interval) == expected


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.664, "66 %"),
        (1.34, "134 %"),
        (-0.25, "−25 %"),
        (0.0, "0 %"),
        (-0.001, "0 %"),
        (None, "–"),
    ],
)
def test_speedups(ratio: float | None, expected: str) -> None:
    assert wording.speedup(ratio) == expected


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (RatioInterval(1.41, 0.97, 2.05), "41 % (−3 to 105 %)"),
        (RatioInterval(1.0, 0.04, 24.3), "0 % (−96 to 2330 %)"),
        (RatioInterval(1.2, 1e-4, 4e7), "20 % (−100 to over 10,000 %)"),
        (RatioInterval(1.664, None, None), "66 %"),
    ],
)
def test_mean_speedups(mean: RatioInterval, expected: str) -> None:
    assert wording.speedup_range(mean) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.04, "0.0 s"),
        (4.16, "4.2 s"),
        (59.97, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7830, "2 h 10 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_durations(seconds: float, expected: str) -> None:
    assert wording.duration(seconds) == expected


def test_lists_and_counts() -> None:
    assert wording.listing([]) == ""
    assert wording.listing(["a"]) == "a"
    assert wording.listing(["a", "b", "c"]) == "a, b and c"
    assert wording.counted(1, "epoch") == "1 epoch"
    assert wording.counted(1500, "epoch") == "1,500 epochs"


def test_methods_are_written_as_in_the_paper() -> None:
    assert [wording.method(name) for name in ("maml", "meta-sgd", "maml++", "mine")] == [
        "MAML",
        "Meta-SGD",
        "MAML++",
        "mine",
    ]
