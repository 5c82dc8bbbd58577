"""Numbers as people read them, the same in the terminal, the figures and the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gradshare.experiments.speedup import RatioInterval
from gradshare.training.statistics import Interval

MINUS: Final = "\N{MINUS SIGN}"
NOTHING: Final = "–"

WIDE: Final = 10_000
"""Percent: seeds that disagree leave a speed-up open by powers of ten, whose digits say nothing."""

METHODS: Final = {"maml": "MAML", "meta-sgd": "Meta-SGD", "maml++": "MAML++"}
DATASETS: Final = {"cub": "CUB", "mini-imagenet": "mini-ImageNet", "omniglot": "Omniglot"}


def method(name: str) -> str:
    """A method as the paper writes it; a name that is not the paper's stays as it is."""
    return METHODS.get(name, name)


def dataset(name: str) -> str:
    """A dataset as its authors write it; any other name stays as it is."""
    return DATASETS.get(name, name)


def percent(fraction: float) -> str:
    """0.4512 as "45.1 %"."""
    return f"{_digits(100 * fraction, 1)} %"


def accuracy(interval: Interval) -> str:
    """Mean and interval of fractions as "45.1 ± 1.2 %"; "45.1 %" where there is no interval."""
    if interval.ci95 is None:
        return percent(interval.mean)
    return f"{_plus_minus(interval)} %"


def points(interval: Interval) -> str:
    """A difference of accuracies, in fractions, as "+1.1 ± 0.9 points"."""
    text = _digits(100 * interval.mean, 1) if interval.ci95 is None else _plus_minus(interval)
    positive = not text.startswith((MINUS, "0.0 ", "0.00 ")) and text != "0.0"
    return f"{'+' if positive else ''}{text} points"


def difference(interval: Interval, detectable: float | None) -> str:
    """The same, and how small a difference could have been seen: "+1.1 ± 0.9 points (1.3)"."""
    text = points(interval)
    return text if detectable is None else f"{text} ({100 * detectable:.1f})"


def speedup(ratio: float | None) -> str:
    """0.664 as "66 %", as in the paper's Table 1; a dash for None."""
    return NOTHING if ratio is None else f"{_digits(100 * ratio, 0)} %"


def speedup_range(mean: RatioInterval) -> str:
    """A mean speed-up over seeds, from ratios of epochs, as "41 % (−3 to 105 %)"."""
    text = speedup(mean.ratio - 1)
    if mean.low is None or mean.high is None:
        return text
    high = 100 * (mean.high - 1)
    end = f"{_digits(high, 0)} %" if high < WIDE else f"over {WIDE:,} %"
    return f"{text} ({_digits(100 * (mean.low - 1), 0)} to {end})"


def duration(seconds: float) -> str:
    """Wall time with about three digits: "4.2 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def listing(words: Sequence[str]) -> str:
    """Words as "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


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
