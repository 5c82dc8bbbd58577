"""Numbers as the tables and figures show them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from gradshare import Interval
from gradshare.training.statistics import student95
from reproduction.conditions import Difference

MINUS: Final = "\N{MINUS SIGN}"
NOTHING: Final = "–"

METHODS: Final = {"maml": "MAML", "meta-sgd": "Meta-SGD", "maml++": "MAML++"}
DATASETS: Final = {"cub": "CUB", "mini-imagenet": "mini-ImageNet", "omniglot": "Omniglot"}


def percent(fraction: float) -> str:
    """0.4512 as "45.1 %"."""
    return f"{_digits(100 * fraction, 1)} %"


def accuracy(interval: Interval) -> str:
    """Mean and interval of fractions as "45.1 ± 1.2 %"; "45.1 %" where there is no interval."""
    if interval.ci95 is None:
        return percent(interval.mean)
    return f"{_plus_minus(interval)} %"


def difference(found: Difference) -> str:
    """A difference of accuracies with the detectable one in brackets: "+1.1 ± 0.9 points (1.3)"."""
    mean = found.interval
    text = _digits(100 * mean.mean, 1) if mean.ci95 is None else _plus_minus(mean)
    positive = not text.startswith((MINUS, "0.0 ", "0.00 ")) and text != "0.0"
    seen = "" if found.detectable is None else f"{100 * found.detectable:.1f}"
    return bracketed(f"{'+' if positive else ''}{text} points", seen)


def speedup(ratio: float | None) -> str:
    """0.664 as "66 %", as in the paper's Table 1; a dash for None."""
    return NOTHING if ratio is None else f"{_digits(100 * ratio, 0)} %"


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
        low, high = (_digits(100 * math.expm1(logs.mean + e), 0) for e in (-logs.ci95, logs.ci95))
        ends = f"{low} to {high}"
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


def _plus_minus(interval: Interval) -> str:
    """Percent, with a second decimal where one decimal would show the interval as 0.0."""
    half = 100 * (interval.ci95 or 0.0)
    decimals = 2 if 0 < half < 0.05 else 1
    return f"{_digits(100 * interval.mean, decimals)} ± {half:.{decimals}f}"


def _digits(value: float, decimals: int) -> str:
    """Fixed decimals, with a real minus sign, and none before a zero."""
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", MINUS)
