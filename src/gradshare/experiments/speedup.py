"""How much sooner, and how much better: what a comparison derives from its arms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from gradshare.config import ORIGINAL, SHARING
from gradshare.experiments.results import Arm, Paired, Results, ShareOfGain, Validation
from gradshare.training.statistics import Z95, Interval, confidence95, student95

SHARES: Final[tuple[ShareOfGain, ...]] = ("80", "90", "95")


def judge(validation: Sequence[Validation], chance: float) -> Literal["trained", "not trained"]:
    """Whether a run that did not diverge has learned anything.

    It has not if the 95 % interval of its best validation accuracy reaches down to chance, and
    not if there was no validation, or one on a single task only. The best of many is the luckiest
    of them, so that its interval is widened by their number (Bonferroni's correction).
    """
    if not validation:
        return "not trained"
    best = max(validation, key=lambda point: point.accuracy)
    if best.ci95 is None:
        return "not trained"
    surer = NormalDist().inv_cdf(1 - 0.025 / len(validation)) / Z95
    learned = Interval(best.accuracy, surer * best.ci95, 0).above(chance)
    return "trained" if learned else "not trained"


def paper_speedup(original: Arm, sharing: Arm) -> float | None:
    """(Epoch_OG - Epoch_GS) / Epoch_GS of the epochs of the best validation accuracy (paper, §3).

    Returns:
        0.66 for the paper's "66 %"; None unless both arms trained.
    """
    if not (original.trained and sharing.trained):
        return None
    if original.best_epoch is None or sharing.best_epoch is None:
        return None
    return (original.best_epoch - sharing.best_epoch) / sharing.best_epoch


def level(original: Arm, share: ShareOfGain) -> float | None:
    """chance + share · (the original's best validation accuracy - chance).

    Returns:
        None if the original did not train: then there is no gain to have a share of.
    """
    if not original.trained or original.best is None:
        return None
    return original.chance + int(share) / 100 * (original.best.accuracy - original.chance)


def first_epoch(arm: Arm, accuracy: float) -> int | None:
    """The first epoch with at least this validation accuracy; None if there is none."""
    return next((v.epoch for v in arm.validation if v.accuracy >= accuracy), None)


def speedup_to_reach(original: Arm, sharing: Arm) -> dict[ShareOfGain, float | None]:
    """The paper's ratio for the first epochs at which both arms reach fixed levels.

    The epoch of a maximum hangs on the noise of a flat curve; the epoch at which a rising curve
    crosses a level does so much less.

    Returns:
        for each share of the original's gain over chance; None where sharing never reaches it or
        one of both did not train.
    """
    ratios: dict[ShareOfGain, float | None] = {}
    for share in SHARES:
        ratios[share] = None
        accuracy = level(original, share)
        if accuracy is None or not sharing.trained:
            continue
        slow, fast = first_epoch(original, accuracy), first_epoch(sharing, accuracy)
        if slow is not None and fast is not None:
            ratios[share] = (slow - fast) / fast
    return ratios


@dataclass(frozen=True)
class RatioInterval:
    """The geometric mean of ratios with its 95 % confidence interval.

    Attributes:
        ratio: the mean; 1.66 is a speed-up of 66 %.
        low: the interval's lower end; None for a single ratio, which does not say how much ratios
            differ.
        high: its upper end; None for a single ratio.
    """

    ratio: float
    low: float | None
    high: float | None


def ratio_interval(ratios: Sequence[float]) -> RatioInterval:
    """The geometric mean of ratios, one a seed, with Student's t interval of their logarithms.

    Half as fast and twice as fast make as fast, which they do not in the arithmetic mean; and the
    interval's ends, unlike mean ± half a width, are ratios too.

    Args:
        ratios: such as epochs of the original / epochs of sharing: speed-ups + 1.

    Raises:
        ValueError: there are no ratios, or one is not above 0.
    """
    if any(ratio <= 0 for ratio in ratios):
        raise ValueError(f"a ratio must be above 0, got {min(ratios):g}")
    logs = student95([math.log(ratio) for ratio in ratios])
    ratio = math.exp(logs.mean)
    if logs.ci95 is None:
        return RatioInterval(ratio, None, None)
    return RatioInterval(ratio, math.exp(logs.mean - logs.ci95), math.exp(logs.mean + logs.ci95))


def differences_by_task(first: Arm, second: Arm) -> npt.NDArray[np.float64] | None:
    """first - second on each test task (tasks,).

    Returns:
        None if an arm has no accuracies by task, or not for as many tasks as the other.
    """
    if first.test_accuracies is None or second.test_accuracies is None:
        return None
    one, two = np.asarray(first.test_accuracies), np.asarray(second.test_accuracies)
    if len(one) != len(two) or len(one) == 0:
        return None
    difference: npt.NDArray[np.float64] = one - two
    return difference


def paired_difference(first: Arm, second: Arm) -> Paired | None:
    """first - second, task by task: tasks differ far more in difficulty than arms do in skill.

    Returns:
        None if an arm has no accuracies by task, or not for as many tasks as the other.
    """
    by_task = differences_by_task(first, second)
    if by_task is None:
        return None
    difference = confidence95(by_task.tolist())
    return Paired(
        first=first.name,
        second=second.name,
        difference=difference.mean,
        ci95=difference.ci95,
        tasks=difference.n,
    )


def results_of(
    arms: Sequence[Arm],
    *,
    dataset: str,
    method: str,
    config: Mapping[str, JsonValue],
    environment: Mapping[str, JsonValue],
    command: str,
) -> Results:
    """The results of a comparison, or of one run: the arms and everything derived from them."""
    by_name = {arm.name: arm for arm in arms}
    original, sharing = by_name.get(ORIGINAL), by_name.get(SHARING)
    speedup: float | None = None
    to_reach: dict[ShareOfGain, float | None] = dict.fromkeys(SHARES)
    if original is not None and sharing is not None:
        speedup, to_reach = paper_speedup(original, sharing), speedup_to_reach(original, sharing)
    return Results(
        dataset=dataset,
        method=method,
        config=dict(config),
        environment=dict(environment),
        command=command,
        arms=tuple(arms),
        speedup=speedup,
        speedup_to_reach=to_reach,
        paired=_pairs(arms),
    )


def _pairs(arms: Sequence[Arm]) -> tuple[Paired, ...]:
    """Sharing against every other arm, then every control against the original."""
    sharing = [arm for arm in arms if arm.name == SHARING]
    original = [arm for arm in arms if arm.name == ORIGINAL]
    controls = [arm for arm in arms if arm.name not in (SHARING, ORIGINAL)]
    couples = [*product(sharing, original + controls), *product(controls, original)]
    differences = (paired_difference(first, second) for first, second in couples)
    return tuple(difference for difference in differences if difference is not None)
