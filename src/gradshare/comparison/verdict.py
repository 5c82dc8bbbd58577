"""What a comparison says, in words that its numbers support."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradshare.comparison.results import Results
from gradshare.comparison.statistics import Difference, difference, epochs_to_gain, test_score
from gradshare.training.metrics import Metric
from gradshare.training.statistics import Interval

ENOUGH_SEEDS = 3
"""Fewer seeds decide nothing: rounding alone, like another seed, moves a run by more than its
interval over test tasks says."""

FEW_TASKS = 200


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
        """The sentences in lines."""
        return "\n".join((self.headline, *self.sentences, *self.caveats))


def verdict(results: Results) -> Verdict:
    """Say what a comparison came to."""
    arms = [arm for arm in results.arms if arm not in (results.baseline, *results.controls)]
    told = arms or list(results.controls)
    headline = " ".join(_headline(results, arm) for arm in told) or _alone(results)
    decides = len(results.seeds) >= ENOUGH_SEEDS
    if told and not decides:
        headline = f"Too few seeds to decide. So far: {headline}"
    sentences = [*_failures(results)]
    for arm in told:
        sentences += _sentences(results, arm)
    return Verdict(headline, tuple(sentences), tuple(_caveats(results, told)))


def show_difference(metric: Metric, interval: Interval) -> str:
    """A signed difference with its interval: "+1.1 ± 0.9 points"."""
    points = metric.unit == "%"
    scale = 100 if points else 1
    text = Metric(metric.function, unit="%" if points else "").show(interval)
    text = text.removesuffix(" %")
    # At the edge of its interval one digit more shows on which side of it the mean lies.
    half = interval.ci95 or 0
    if half and abs(abs(interval.mean) - half) * scale < 0.05 * (1 if points else half):
        text = f"{scale * interval.mean:.3g} ± {scale * half:.3g}"
    sign = "+" if interval.mean > 0 and not text.startswith("0.0 ") else ""
    unit = "points" if points else metric.unit
    return f"{sign}{text} {unit}".rstrip().replace("-", "−")


def _headline(results: Results, arm: str) -> str:
    found = difference(results, arm, results.baseline)
    if found.interval is None:
        return f"{_cap(arm)} and {results.baseline} cannot be compared: no seed has both trained."
    if found.better == 0:
        return f"No difference between {arm} and {results.baseline} can be told from these numbers."
    word = "better" if found.better > 0 else "worse"
    text = f"{_cap(arm)} was {word} than {results.baseline}"
    if found.better < 0 or arm in results.controls:
        return f"{text}."
    if not results.controls:
        return f"{text}; no control was run, so it stays open why."
    against = [(c, difference(results, arm, c)) for c in results.controls]
    known = [(control, d) for control, d in against if d.interval is not None]
    if not known:
        return f"{text}; no control trained, so it stays open why."
    control, strictest = min(known, key=lambda pair: pair[1].better)
    if strictest.better > 0:
        return f"{text}, and better than {control}."
    if strictest.better < 0:
        return f"{text}, but {control}, a control, did better still."
    return (
        f"{text}, but not distinguishably better than {control}, a control: the gain is not shown "
        f"to be owed to what {arm} adds."
    )


def _sentences(results: Results, arm: str) -> list[str]:
    """The differences of an arm from the baseline and the controls."""
    sentences = []
    for other in (results.baseline, *results.controls):
        found = difference(results, arm, other)
        if arm != other and found.interval is not None:
            sentences.append(_difference(results, found))
    pace = _pace(results, arm)
    return [*sentences, *([pace] if pace else [])]


def _difference(results: Results, found: Difference) -> str:
    assert found.interval is not None
    metric = results.metric(found.metric)
    over = f"over {found.seeds} seeds" if found.seeds > 1 else "over the test tasks of one seed"
    text = (
        f"{found.metric}, {found.first} − {found.second}: "
        f"{show_difference(metric, found.interval)} {over}, "
        f"{'' if found.better else 'not '}distinguishable from zero"
    )
    if not found.better and found.detectable is not None:
        size = show_difference(metric, Interval(found.detectable, None, 0)).removeprefix("+")
        text += f" (a difference of {size} would have been seen)"
    return f"{text}."


def _pace(results: Results, arm: str) -> str:
    """How soon an arm came to 95 % of the baseline's gain."""
    pairs = []
    for run in results.of(arm):
        other = next((r for r in results.of(results.baseline) if r.seed == run.seed), None)
        if other is not None and run.trained and other.trained:
            pairs.append((epochs_to_gain(results, run), epochs_to_gain(results, other)))
    if not pairs:
        return ""
    mine, theirs = ([_epoch(pair[i]) for pair in pairs] for i in (0, 1))
    return (
        f"{_cap(arm)} came to 95 % of {results.baseline}’s gain in epoch {', '.join(mine)}; "
        f"{results.baseline} in epoch {', '.join(theirs)}"
        f"{' (one for each seed)' if len(pairs) > 1 else ''}."
    )


def _epoch(epoch: int | None) -> str:
    return "– (never)" if epoch is None else str(epoch)


def _failures(results: Results) -> list[str]:
    """Which arms diverged or did not train."""
    sentences = []
    for arm in results.arms:
        runs = results.of(arm)
        for outcome, word in (("diverged", "diverged"), ("not trained", "did not train")):
            failed = [run for run in runs if run.outcome == outcome]
            if failed:
                where = f" ({failed[0].message})" if failed[0].message else ""
                sentences.append(f"{_cap(arm)} {word} in {len(failed)} of {len(runs)} runs{where}.")
    return sentences


def _alone(results: Results) -> str:
    """A single arm in words."""
    found = test_score(results.of(results.baseline), results.score)
    if found is None:
        return f"{_cap(results.baseline)} was not tested."
    shown = results.metric(results.score).show(found)
    return f"{_cap(results.baseline)} has a test {results.score} of {shown}."


def _caveats(results: Results, told: Sequence[str]) -> list[str]:
    caveats = []
    if told and len(results.seeds) < ENOUGH_SEEDS:
        caveats.append(
            "With fewer than three seeds the intervals say how far other test tasks would move "
            "these numbers, not how far another seed would; repeat with seeds=3 (--seeds 3)."
        )
    if told and not results.controls:
        caveats.append(
            "There was no control. If an arm changes more than one thing at a time, such as the "
            "size of its steps, only a control that leaves one of them out shows which one matters."
        )
    tasks = min((len(v) for run in results.runs for v in run.test.values()), default=0)
    if 0 < tasks < FEW_TASKS:
        caveats.append(f"There were only {tasks} test tasks.")
    return caveats


def _cap(name: str) -> str:
    return name[:1].upper() + name[1:]
