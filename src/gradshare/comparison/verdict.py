"""What a comparison says, in words that its numbers support."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradshare.comparison.results import Results
from gradshare.comparison.statistics import Difference, difference, epochs_to_gain, test_score
from gradshare.training.metrics import Metric
from gradshare.training.statistics import Interval

ENOUGH_SEEDS = 3
"""Fewer seeds decide nothing: rounding alone, like another seed, moves a run by more than its
interval over test tasks says.
"""

FEW_TASKS = 200
FEW_ARMS = 3
MOST_DIGITS = 17


@dataclass(frozen=True)
class Verdict:
    """What a reader should take away.

    Attributes:
        headline: one sentence that is true without the others.
        sentences: what it rests on, the most important first.
        caveats: what keeps it from saying more.
    """

    headline: str
    sentences: tuple[str, ...]
    caveats: tuple[str, ...]

    def __str__(self) -> str:
        """Each sentence in a line."""
        return "\n".join((self.headline, *self.sentences, *self.caveats))


def verdict(results: Results) -> Verdict:
    """Say what a comparison shows."""
    arms = [arm for arm in results.arms if arm not in (results.baseline, *results.controls)]
    told = arms or list(results.controls)
    headline = " ".join(_headline(results, arm) for arm in told) or _alone(results)
    if len(told) > FEW_ARMS:
        headline = _summary(results, told)
    if told and len(results.seeds) < ENOUGH_SEEDS:
        headline = f"Too few seeds to decide. So far: {headline}"
    sentences = [*_failures(results)]
    for arm in told:
        sentences += _sentences(results, arm)
    return Verdict(headline, tuple(sentences), tuple(_caveats(results, told)))


def show_difference(metric: Metric, interval: Interval) -> str:
    """A signed difference with its interval: "+1.1 ± 0.9 points".

    The mean looks larger than half the interval exactly where it is: then the interval excludes 0.
    """
    scale, unit = (100, "points") if metric.unit == "%" else (1, metric.unit)
    mean, half = scale * interval.mean, scale * (interval.ci95 or 0)
    if not math.isfinite(mean):
        return "not finite"
    digits = len(metric.show(interval).split()[0].partition(".")[2])
    while digits < MOST_DIGITS and (round(abs(mean), digits) > round(half, digits)) != (
        abs(mean) > half
    ):
        digits += 1
    sign = {1: "+", -1: "−"}.get((round(mean, digits) > 0) - (round(mean, digits) < 0), "")
    behind = "" if interval.ci95 is None else f" ± {half:.{digits}f}"
    return f"{sign}{abs(mean):.{digits}f}{behind} {unit}".rstrip()


def _headline(results: Results, arm: str) -> str:
    baseline = results.baseline
    found = difference(results, arm, baseline)
    if found.interval is None:
        return f"{_cap(arm)} and {baseline} cannot be compared: no seed has both trained."
    if found.better == 0:
        return f"No difference between {arm} and {baseline} can be told from these numbers."
    if found.better < 0 or arm in results.controls:
        return f"{_cap(arm)} was {'better' if found.better > 0 else 'worse'} than {baseline}."
    return f"{_cap(arm)} was better than {baseline}{_beside_controls(results, arm)}."


def _beside_controls(results: Results, arm: str) -> str:
    """How an arm that was better than the baseline did beside its strongest control."""
    known = [
        (found.better, control)
        for control in results.controls
        if (found := difference(results, arm, control)).interval is not None
    ]
    if not known:
        why = "no control trained" if results.controls else "no control was run"
        return f"; {why}, so it stays open why"
    better, control = min(known)
    if better > 0:
        return f", and better than {control}"
    if better < 0:
        return f", but {control}, a control, did better still"
    return (
        f", but not distinguishably better than {control}, a control: the gain is not shown to "
        f"come from what {arm} adds"
    )


def _summary(results: Results, arms: Sequence[str]) -> str:
    """How many arms differ from the baseline in one sentence."""
    found = {arm: difference(results, arm, results.baseline) for arm in arms}
    groups = {
        "better": [arm for arm, d in found.items() if d.better > 0],
        "worse": [arm for arm, d in found.items() if d.better < 0],
        "not distinguishable": [arm for arm, d in found.items() if d.better == 0],
    }
    said = [f"{len(names)} {word}" for word, names in groups.items() if names]
    best = f" (among them {', '.join(groups['better'][:FEW_ARMS])})" if groups["better"] else ""
    return f"Of {len(arms)} arms against {results.baseline}: {', '.join(said)}{best}."


def _sentences(results: Results, arm: str) -> Iterator[str]:
    """The differences of an arm from the baseline and the controls, and its pace."""
    for other in (results.baseline, *results.controls):
        found = difference(results, arm, other)
        if arm != other and found.interval is not None:
            yield _difference(results.metric(found.metric), found, found.interval)
    pairs = [
        (epochs_to_gain(results, run), epochs_to_gain(results, other))
        for run in results.of(arm)
        for other in results.of(results.baseline)
        if other.seed == run.seed and run.trained and other.trained
    ]
    if pairs:
        mine, theirs = (
            ", ".join("– (never)" if epoch is None else str(epoch) for epoch in column)
            for column in zip(*pairs, strict=True)
        )
        yield (
            f"{_cap(arm)} came to 95 % of {results.baseline}’s gain in epoch {mine}; "
            f"{results.baseline} in epoch {theirs}{' (one for each seed)' * (len(pairs) > 1)}."
        )


def _difference(metric: Metric, found: Difference, interval: Interval) -> str:
    seeds = len(found.per_seed)
    over = f"over {seeds} seeds" if seeds > 1 else "over the test tasks of one seed"
    text = f"{found.metric}, {found.first} − {found.second}: "
    if interval.mean == 0 == interval.ci95:
        return f"{text}none on any test task, {over}."
    text += f"{show_difference(metric, interval)} {over}, "
    if found.better:
        return f"{text}distinguishable from zero."
    text += "not distinguishable from zero"
    if found.detectable is not None:
        size = show_difference(metric, Interval(found.detectable, None, 0)).removeprefix("+")
        text += f" (a difference of {size} would have been seen)"
    return f"{text}."


def _failures(results: Results) -> Iterator[str]:
    """Which arms diverged or did not train."""
    for arm in results.arms:
        runs = results.of(arm)
        for outcome, word in (("diverged", "diverged"), ("not trained", "did not train")):
            failed = [run for run in runs if run.outcome == outcome]
            if failed:
                where = f" ({failed[0].message})" if failed[0].message else ""
                yield f"{_cap(arm)} {word} in {len(failed)} of {len(runs)} runs{where}."


def _alone(results: Results) -> str:
    found = test_score(results.of(results.baseline), results.score)
    if found is None:
        return f"{_cap(results.baseline)} was not tested."
    shown = results.metric(results.score).show(found)
    return f"{_cap(results.baseline)} has a test {results.score} of {shown}."


def _caveats(results: Results, told: Sequence[str]) -> Iterator[str]:
    if told and len(results.seeds) < ENOUGH_SEEDS:
        yield (
            "With fewer than three seeds the intervals say how far other test tasks would move "
            "these numbers, not how far another seed would; repeat with seeds=3 (--seeds 3)."
        )
    if told and not results.controls:
        yield (
            "There was no control. If an arm changes more than one thing at a time, such as the "
            "size of its steps, only a control that leaves one of them out shows which one matters."
        )
    tasks = min((len(v) for run in results.runs for v in run.test.values()), default=0)
    if 0 < tasks < FEW_TASKS:
        yield f"There were only {tasks} test tasks."


def _cap(name: str) -> str:
    return name[:1].upper() + name[1:]
