"""Numbers as the tables and figures show them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from gradshare import Interval, Metric
from gradshare.training.metrics import accuracy as accuracy_of
from gradshare.training.statistics import student95
from reproduction.conditions import Difference

ACCURACY: Final = Metric(accuracy_of, unit="%")
MINUS: Final = "\N{MINUS SIGN}"
NOTHING: Final = "–"

METHODS: Final = {"maml": "MAML", "meta-sgd": "Meta-SGD", "maml++": "MAML++"}
DATASETS: Final = {"cub": "CUB", "mini-imagenet": "mini-ImageNet", "omniglot": "Omniglot"}


def accuracy(interval: Interval) -> str:
    """Mean and interval of fractions as "45.1 ± 1.2 %"; "45.1 %" where there is no interval."""
    return ACCURACY.show(interval)


def difference(found: Difference) -> str:
    """A difference of accuracies with the detectable one in brackets: "+1.1 ± 0.9 points (1.3)"."""
    mean, half = 100 * found.interval.mean, found.interval.ci95
    text = "0.0" if round(mean, 1) == 0 else f"{mean:+.1f}".replace("-", MINUS)
    behind = "" if half is None else f" ± {100 * half:.1f}"
    seen = "" if found.detectable is None else f"{100 * found.detectable:.1f}"
    return bracketed(f"{text}{behind} points", seen)


def speedup(ratio: float | None) -> str:
    """0.664 as "66 %", as in the paper's Table 1; a dash for None."""
    return NOTHING if ratio is None else f"{_whole_percent(ratio)} %"


def mean_speedup(ratios: Sequence[float], *notes: str, interval: bool = True) -> str:
    """A geometric mean over seeds less 1, as "41 % (−3 to 105, 2 of 3)" with a note "2 of 3".

    Args:
        ratios: such as epochs of the original / epochs of sharing: speed-ups + 1.
        notes: for the brackets; empty ones are left out.
        interval: whether to show the 95 % interval: Student's t of the logarithms.
    """
    logs = student95([math.log(ratio) for ratio in ratios])
    ends = ""
    if interval and logs.ci95 is not None:
        low, high = (math.expm1(logs.mean + end) for end in (-logs.ci95, logs.ci95))
        ends = f"{_whole_percent(low)} to {_whole_percent(high)}"
    return bracketed(speedup(math.expm1(logs.mean)), ends, *notes)


def bracketed(text: str, *notes: str) -> str:
    """A text with the notes that are not empty behind it, in brackets."""
    said = ", ".join(filter(None, notes))
    return f"{text} ({said})" if said else text


def of_seeds(count: int, seeds: int) -> str:
    """How many seeds something is known of, as "2 of 3"; empty for all of them."""
    return "" if count == seeds else f"{count} of {seeds}"


def counted(count: int, noun: str) -> str:
    """A count with its noun, as "12 epochs"."""
    return f"{count} {noun}" if count == 1 else f"{count:,} {noun}s"


def _whole_percent(ratio: float) -> str:
    """A ratio in percent without decimals."""
    return f"{round(100 * ratio)}".replace("-", MINUS)
