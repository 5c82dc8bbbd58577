"""The verdict of a comparison: sentences that its numbers support."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from gradshare.comparison.differences import Difference, difference, mean_score
from gradshare.comparison.results import Results
from gradshare.training.statistics import Interval, confidence95

ENOUGH_SEEDS = 3
"""Fewer seeds decide nothing: rounding alone, like another seed, moves a run by more than its
interval over test tasks says.
"""

FEW_ARMS = 3
MOST_SENTENCES = 12


@dataclass(frozen=True)
class Verdict:
    """What a reader should take away.

    Attributes:
        headline: one sentence that is true without the others.
        sentences: the differences behind it, and the arms that failed.
        caveats: what limits these conclusions.
    """

    headline: str
    sentences: tuple[str, ...]
    caveats: tuple[str, ...]

    def __str__(self) -> str:
        """Each sentence in a line."""
        return "\n".join((self.headline, *self.sentences, *self.caveats))


def verdict(results: Results) -> Verdict:
    """Say what a comparison shows."""
    baseline = results.baseline
    arms = [arm for arm in results.arms if arm not in (baseline, *results.controls)]
    found = [difference(results, arm, baseline) for arm in arms or results.controls]
    if not found:
        headline = _alone(results)
    elif len(found) <= FEW_ARMS:
        headline = " ".join(_headline(results, each) for each in found)
    else:
        headline = _summary(results, found)
    if 0 < max((each.seeds for each in found), default=0) < ENOUGH_SEEDS:
        headline = f"Too few seeds to decide. So far: {headline}"
    sentences = list(islice(_sentences(results, found), MOST_SENTENCES + 1))
    if len(sentences) > MOST_SENTENCES:
        sentences[-1] = "The table has the differences of all arms."
    return Verdict(headline, tuple(sentences), tuple(_caveats(results, found)))


def _headline(results: Results, found: Difference) -> str:
    names = f"“{found.first}” and “{found.second}”"
    if found.interval is None:
        return f"{names} cannot be compared: no seed has both trained."
    over = results.where + results.among_seeds(found.seeds)
    if found.better == 0:
        return f"No difference between {names} can be told from these numbers{over}."
    word = "better" if found.better > 0 else "worse"
    beside = ""
    if found.better > 0 and found.first not in results.controls:
        beside = _beside_controls(results, found.first)
    return f"“{found.first}” was {word} than “{found.second}”{over}{beside}."


def _beside_controls(results: Results, arm: str) -> str:
    """How an arm that was better than the baseline did beside its strongest control."""
    found = [difference(results, arm, control) for control in results.controls]
    known = [each for each in found if each.interval is not None]
    if not known:
        why = "no control trained" if results.controls else "no control was run"
        return f"; {why}, so it stays open why"
    strongest = min(known, key=lambda each: each.better)
    control = f"“{strongest.second}”"
    if strongest.better > 0:
        return f", and better than {control}"
    if strongest.better < 0:
        return f", but {control}, a control, did better still"
    return (
        f", but not distinguishably better than {control}, a control: the gain is not shown to "
        f"come from what “{arm}” adds"
    )


def _summary(results: Results, found: list[Difference]) -> str:
    """The number of arms that differ from the baseline, in one sentence."""
    words = {1: "better", -1: "worse", 0: "not distinguishable", None: "not trained"}
    counts = Counter(None if each.interval is None else each.better for each in found)
    said = ", ".join(f"{counts[key]} {word}" for key, word in words.items() if counts[key])
    return f"Of {len(found)} arms compared with “{results.baseline}”{results.where}: {said}."


def _sentences(results: Results, found: list[Difference]) -> Iterator[str]:
    """Which arms failed, and how the others differ from the baseline and the controls."""
    for arm in results.arms:
        runs = results.of(arm)
        for outcome, word in (("diverged", "diverged"), ("not trained", "did not train")):
            failed = [run for run in runs if run.outcome == outcome]
            if failed:
                where = f" ({failed[0].message})" if failed[0].message else ""
                yield f"“{arm}” {word} in {len(failed)} of {len(runs)} runs{where}."
    for first in found:
        others = [control for control in results.controls if control != first.first]
        for each in (first, *(difference(results, first.first, other) for other in others)):
            if each.interval is not None:
                yield _difference(results, each, each.interval)


def _difference(results: Results, found: Difference, interval: Interval) -> str:
    metric = results.metrics[results.score]
    over = f"{found.seeds} seeds" if found.seeds > 1 else "the test tasks of one seed"
    text = f"“{found.first}” − “{found.second}” in {results.score}{results.where}: "
    if interval.mean == 0 == interval.ci95:
        return f"{text}none on any test task, over {over}."
    text += f"{metric.show_difference(interval)} over {over}, "
    if found.better:
        return f"{text}distinguishable from zero."
    seen = ""
    if found.detectable is not None and math.isfinite(found.detectable):
        size = f"{metric.factor * found.detectable:.{metric.digits(interval)}f}"
        size = f"{size} {metric.unit_of_differences}".rstrip()
        seen = f" (a difference of {size} would have been seen)"
    return f"{text}not distinguishable from zero{seen}."


def _alone(results: Results) -> str:
    found = mean_score(results.of(results.baseline), results.score)
    if found is None:
        return f"“{results.baseline}” was not tested."
    shown = results.metrics[results.score].show(found)
    return f"“{results.baseline}” has a test {results.score}{results.where} of {shown}."


def _caveats(results: Results, found: list[Difference]) -> Iterator[str]:
    if any(0 < each.seeds < ENOUGH_SEEDS for each in found):
        yield (
            "One or two seeds say little about others: rounding alone can move a run by more than "
            "its interval over tasks. Compare at least three (seeds=3, --seeds 3)."
        )
    if found and not results.controls:
        yield (
            "There was no control. If an arm changes more than one thing at a time, such as the "
            "size of its steps, only a control that leaves one of them out shows which one matters."
        )
    means = [mean_score(results.of(arm), results.score) for arm in results.arms]
    scale = results.metrics[results.score]
    for name, values in results.yardsticks.items():
        easy = confidence95(values.get(results.score, []))
        if not any(mean and scale.rank(mean.mean) <= scale.rank(easy.mean) for mean in means):
            yield (
                f"“{name}”, which needs no meta-training, has a test {results.score}"
                f"{results.where} of {scale.show(easy)}: better than each arm."
            )
