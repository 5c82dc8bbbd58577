"""What a comparison says, in words that its numbers bear out.

The same words stand at the head of the report and at the end of `gradshare compare`. What they
claim rests on two questions, asked of sharing against the original and against every control, in
the seeds in which both trained:

- Accuracy: does the paired interval of the test difference exclude zero? Over the test tasks for
  one seed, over the seeds and the test tasks, which they share, for several.
- Pace: were 80, 90 and 95 % of the original's gain over chance reached in fewer epochs? Never
  later and at least twice sooner, and that in every seed.

Fewer than three such seeds decide nothing, however long the runs: rounding alone, like another
seed, moves a run by more than its interval over test tasks says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING, is_control
from gradshare.experiments import wording
from gradshare.experiments.results import Arm, Results
from gradshare.experiments.seeds import (
    mean_difference,
    mean_of_tested,
    one_a_seed,
    runs_by_arm,
    trained_pair,
)
from gradshare.experiments.speedup import SHARES, first_epoch, level, ratio_interval
from gradshare.training.statistics import Interval

FEW_ITERATIONS: Final = 10_000
"""Below so many outer iterations a run shows early training alone; the paper's shortest has
150,000."""

PAPERS_EPOCH: Final = 1000
"""Outer iterations in an epoch, where the results do not say (appendix A.3)."""

FEW_TASKS: Final = 200
"""Below so many test tasks the interval is some ± 2 points or more; the paper tests on 600."""

ENOUGH_SEEDS: Final = 3
"""From so many seeds on, the interval over seeds says itself how much is decided; with fewer
nothing is."""

Judgement = Literal["better", "equal", "worse", "mixed"]


@dataclass(frozen=True)
class Verdict:
    """What a person should take away.

    Attributes:
        headline: one sentence that is true without the others.
        sentences: what it rests on, the most important first.
        caveats: what keeps it from saying more.
    """

    headline: str
    sentences: tuple[str, ...]
    caveats: tuple[str, ...]


def verdict(results: Sequence[Results]) -> Verdict:
    """Say what one comparison came to, from the results of one or several seeds.

    Raises:
        RunError: the results are not of one comparison.
    """
    results = one_a_seed(results)
    arms = runs_by_arm(results)
    original, sharing = arms.get(ORIGINAL, ()), arms.get(SHARING, ())
    counted = _counted(results)
    decides = len(counted) >= ENOUGH_SEEDS
    if original and sharing:
        headline, sentences = _compare(results, counted)
    else:
        headline, sentences = _describe(results)
    return Verdict(headline, tuple(sentences), tuple(_caveats(results, counted, decides)))


def _counted(results: Sequence[Results]) -> Sequence[Results]:
    """Those of the seeds that the comparison of sharing and the original rests on.

    A seed in which one of them did not train adds nothing to it, unless there is no other.
    """
    both = [one for one in results if trained_pair(one, SHARING, ORIGINAL) is not None]
    return both or _ran(results) or results


def _ran(results: Sequence[Results]) -> list[Results]:
    """Those of the seeds in which both sharing and the original were run."""
    names = (SHARING, ORIGINAL)
    return [one for one in results if all(one.arm(name) is not None for name in names)]


# One arm against another --------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairing:
    """One arm against another, over the seeds in which both trained.

    Attributes:
        first: an arm's name.
        second: another's.
        seeds: in how many both trained.
        accuracy: the test accuracy of first - second; None without tests.
        over: what the interval of `accuracy` is over: "tasks", or "seeds" and tasks.
        sooner: for each seed 1, 0 or -1: first was sooner than second, neither, later.
        reached: for each seed the epochs at which first and second reached 95 % of the original's
            gain over chance.
    """

    first: str
    second: str
    seeds: int
    accuracy: Interval | None
    over: str
    sooner: tuple[int, ...]
    reached: tuple[tuple[int | None, int | None], ...]

    @property
    def skill(self) -> int:
        """1 or -1 where the interval excludes zero, else 0."""
        if self.accuracy is None or self.accuracy.ci95 is None:
            return 0
        if abs(self.accuracy.mean) <= self.accuracy.ci95:
            return 0
        return 1 if self.accuracy.mean > 0 else -1

    @property
    def pace(self) -> int:
        """1 or -1 where every seed agrees, else 0."""
        return self.sooner[0] if len(set(self.sooner)) == 1 else 0

    @property
    def judgement(self) -> Judgement:
        """Accuracy and pace together."""
        signs = {self.skill, self.pace} - {0}
        if len(signs) == 2:
            return "mixed"
        if not signs:
            return "equal"
        return "better" if signs == {1} else "worse"

    @property
    def difference(self) -> str:
        """Such as "sooner and more accurate"; empty where there is none."""
        pace = {1: "sooner", 0: "", -1: "later"}[self.pace]
        skill = {1: "more accurate", 0: "", -1: "less accurate"}[self.skill]
        joint = " but " if self.judgement == "mixed" else " and "
        return joint.join(filter(None, (pace, skill)))


def pairing(results: Sequence[Results], first: str, second: str) -> Pairing:
    """Put the arms of these names against each other."""
    sooner: list[int] = []
    reached: list[tuple[int | None, int | None]] = []
    pairs = [(one, pair) for one in results if (pair := trained_pair(one, first, second))]
    for one, pair in pairs:
        original = one.arm(ORIGINAL)
        if original is not None and original.trained:
            epochs = _epochs_to_reach(original, *pair)
            sooner.append(_sooner(epochs))
            reached.append(epochs[-1])
    accuracy, tested = mean_difference(results, first, second) or (None, 0)
    over = "seeds" if tested > 1 else "tasks"
    return Pairing(first, second, len(pairs), accuracy, over, tuple(sooner), tuple(reached))


def _epochs_to_reach(original: Arm, mine: Arm, theirs: Arm) -> list[tuple[int | None, int | None]]:
    """The first epochs at 80, 90 and 95 % of the original's gain over chance."""
    pairs = []
    for share in SHARES:
        accuracy = level(original, share)
        if accuracy is not None:
            pairs.append((first_epoch(mine, accuracy), first_epoch(theirs, accuracy)))
    return pairs


def _sooner(epochs: Sequence[tuple[int | None, int | None]]) -> int:
    signs = []
    for mine, theirs in epochs:
        one = math.inf if mine is None else mine
        two = math.inf if theirs is None else theirs
        signs.append((one < two) - (one > two))
    for sign in (1, -1):
        if signs.count(sign) >= 2 and -sign not in signs:
            return sign
    return 0


# Sharing and the original were both run -----------------------------------------------------------


def _compare(results: Sequence[Results], counted: Sequence[Results]) -> tuple[str, list[str]]:
    """Headline and sentences where there are both sharing and the original.

    Args:
        results: of one comparison, one a seed.
        counted: those of the seeds that it rests on.
    """
    arms = runs_by_arm(results)
    decides = len(counted) >= ENOUGH_SEEDS
    rivals = [
        pairing(results, SHARING, name)
        for name in arms
        if name not in (ORIGINAL, SHARING) and _trained(arms[name])
    ]
    controls = [rival for rival in rivals if is_control(rival.second)]
    main = pairing(results, SHARING, ORIGINAL)
    lead = _trained_counts(results)
    if main.seeds:
        headline = _headline(results, main, controls, decides)
        headline = headline if decides else _so_far(headline, counted)
        if lead:
            headline = f"{lead}. Where both trained, {_lowered(headline)}"
    elif not _trained(arms[SHARING] + arms[ORIGINAL]):
        headline = "Neither sharing nor the original trained: nothing can be said about sharing."
    elif _trained(arms[SHARING]) and _trained(arms[ORIGINAL]):
        headline = "No seed has both sharing and the original trained: they cannot be compared."
        headline = f"{lead}. {headline}" if lead else headline
    else:
        headline = f"{lead or _one_trained(arms, controls, decides)}."
        headline = headline if decides else _so_far(headline, counted)
    sentences = _outcomes(arms)
    if main.seeds:
        sentences += [_pace(results, main), _accuracy(results, main)]
    if _trained(arms[SHARING]):
        sentences += [_rival(rival) for rival in rivals]
        if not any(is_control(name) for name in arms):
            sentences.append(
                "No control was run. With λ = 0 at the start sharing halves a task’s own step, "
                "and a learned λ is a learned rate: only a rate-control can tell whether it is "
                "the sharing that matters."
            )
    return headline, [sentence for sentence in sentences if sentence]


def _so_far(headline: str, counted: Sequence[Results]) -> str:
    """What a headline is worth that rests on too few seeds."""
    too = "Too small a run" if _weaknesses(counted) else "Too few seeds"
    return f"{too} to decide. So far: {_lowered(headline)}"


def _trained_counts(results: Sequence[Results]) -> str:
    """In how many seeds sharing and the original trained; empty where in as many, or of one seed.

    What is then compared leaves out the seeds in which one of them failed.
    """
    ran = _ran(results)
    arms = {name: _count(ran, name) for name in runs_by_arm(ran)} if ran else {}
    if len(ran) < 2 or arms[SHARING] == arms[ORIGINAL]:
        return ""
    (mine, seeds), (theirs, _) = arms[SHARING], arms[ORIGINAL]
    text = f"Sharing trained in {mine} of {seeds} seeds, the original in {theirs} of {seeds}"
    for name, (trained, run) in arms.items():
        if mine > theirs and is_control(name) and trained / run >= mine / seeds:
            text += f", but {_called(name)}, which shares nothing, in {trained} of {run}"
            text += ": sharing is not shown to be why" if run >= ENOUGH_SEEDS else ""
            break
    return text


def _count(results: Sequence[Results], name: str) -> tuple[int, int]:
    """In how many seeds an arm trained, and in how many it was run."""
    runs = [run for one in results if (run := one.arm(name)) is not None]
    return sum(run.trained for run in runs), len(runs)


def _one_trained(
    arms: Mapping[str, Sequence[Arm]], controls: Sequence[Pairing], decides: bool
) -> str:
    """Headline where sharing trained and the original did not, or the other way round."""
    original, sharing = arms[ORIGINAL], arms[SHARING]
    if not _trained(sharing):
        return f"Sharing {_failure(sharing)}; the original trained"
    failed = "did not" if _failure(original) == "did not train" else _failure(original)
    headline = f"Sharing trained where the original {failed}"
    as_good = [rival for rival in controls if rival.judgement != "better"]
    if as_good:
        headline += f", but so did {_called(as_good[0].second)}, which shares nothing"
        headline += ": sharing is not shown to be why" if decides else ""
    return headline


def _headline(
    results: Sequence[Results], main: Pairing, controls: Sequence[Pairing], decides: bool
) -> str:
    """Headline where sharing and the original both trained."""
    if main.judgement == "equal":
        return "No difference between sharing and the original can be told from these numbers."
    credit = ""
    if main.judgement == "better":
        credit = _credit(results, controls, decides) if controls else _without_control(results)
    return f"Sharing was {main.difference} than the original{credit}."


def _credit(results: Sequence[Results], controls: Sequence[Pairing], decides: bool) -> str:
    """Whether the controls, which share nothing, leave sharing the credit for what was gained."""
    strictness: tuple[Judgement, ...] = ("worse", "equal", "mixed", "better")
    rival = min(controls, key=lambda control: strictness.index(control.judgement))
    control = f"{_called(rival.second)}, which shares nothing"
    if decides and rival.seeds < ENOUGH_SEEDS:
        return f"; too few seeds have {control}, trained to tell whether sharing is why"
    if rival.judgement == "better":
        # "Better" would say more than that it was an epoch sooner, and no more accurate.
        return f", and {rival.difference} than {control}"
    if rival.judgement == "mixed":
        return f"; against {control}, it was {rival.difference}"
    not_sharing = "but what was gained is not sharing:" if decides else "but"
    if rival.judgement == "worse":
        return f", {not_sharing} {control}, did better still"
    if decides and pairing(results, rival.second, ORIGINAL).judgement != "better":
        credit = "the gain cannot be credited to sharing"
        return f", but not distinguishably better than {control}: {credit}"
    # An equal is no proof: the interval may leave room for a share that was not seen.
    unshown = ": sharing is not shown to be why" if decides else ""
    return f", but {control}, did as well{unshown}"


def _without_control(results: Sequence[Results]) -> str:
    """Why no control says whether sharing has the credit: it failed, or there is none."""
    arms = runs_by_arm(results)
    failed = [f"; {_called(name)} {_failure(arms[name])}" for name in arms if is_control(name)]
    return failed[0] if failed else "; without a control it stays open whether sharing is why"


def _pace(results: Sequence[Results], main: Pairing) -> str:
    """How soon sharing and the original came to the same accuracy."""
    if len(main.reached) == 1:
        return _pace_of_one_seed(results, main)
    seeds = len(main.sooner)
    won = main.sooner.count(1)
    lost = main.sooner.count(-1)
    text = (
        f"Sharing came to 80, 90 and 95 % of the original’s gain over chance sooner in {won} of "
        f"{seeds} seeds and later in {lost}"
    )
    to_95 = [1 + gain for one in results if (gain := one.speedup_to_reach.get("95")) is not None]
    if to_95:
        text += f". The mean speed-up to 95 % is {wording.speedup_range(ratio_interval(to_95))}"
        text += f" ({len(to_95)} of {seeds} seeds reached it)" if len(to_95) < seeds else ""
    ratios = [1 + one.speedup for one in results if one.speedup is not None]
    if ratios:
        text += (
            ". By the paper’s measure, the epoch of the best validation accuracy, it is "
            f"{wording.speedup_range(ratio_interval(ratios))}"
        )
    return f"{text}."


def _pace_of_one_seed(results: Sequence[Results], main: Pairing) -> str:
    mine, theirs = main.reached[0]
    goal = "95 % of the original’s gain over chance"
    if mine is None:
        text = f"Sharing never reached {goal}; the original did in epoch {theirs}."
    elif mine == theirs:
        text = f"Sharing and the original both reached {goal} in epoch {mine}."
    else:
        text = f"Sharing reached {goal} in epoch {mine}, the original in epoch {theirs}."
    for one in results:
        sharing, original = one.arm(SHARING), one.arm(ORIGINAL)
        if one.speedup is not None and sharing is not None and original is not None:
            return (
                f"{text} By the paper’s measure, the epoch of the best validation accuracy "
                f"({sharing.best_epoch} against {original.best_epoch}), the speed-up is "
                f"{wording.speedup(one.speedup)}."
            )
    return text


def _accuracy(results: Sequence[Results], main: Pairing) -> str:
    """The test accuracies and whether they differ."""
    if main.accuracy is None:
        return "The arms were not tested on the same tasks, so their accuracies are not compared."
    if main.over == "seeds":
        return (
            f"Over {main.accuracy.n} seeds and the test tasks that they share, the mean difference "
            f"in test accuracy, sharing {wording.MINUS} original, is "
            f"{wording.points(main.accuracy)}, {_zero(main)}."
        )
    text = f"On {wording.counted(main.accuracy.n, 'test task')} "
    for one in results:
        tests = [arm.test for arm in (one.arm(SHARING), one.arm(ORIGINAL)) if arm and arm.trained]
        shown = [wording.accuracy(test.interval) for test in tests if test is not None]
        if len(shown) == 2:
            text += f"sharing has {shown[0]}, the original {shown[1]}; task by task "
    return f"{text}the difference is {wording.points(main.accuracy)}, {_zero(main)}."


def _rival(rival: Pairing) -> str:
    """Sharing against an arm other than the original."""
    text = f"Against {_called(rival.second)}"
    if rival.second == RATE_CONTROL:
        text += ", which learns the same gate λ but shares nothing"
    elif is_control(rival.second):
        text += ", which shares nothing"
    parts = []
    if rival.accuracy is not None:
        over = f" over {rival.accuracy.n} seeds" if rival.over == "seeds" else ""
        parts.append(f"the difference is {wording.points(rival.accuracy)}{over}, {_zero(rival)}")
    if len(rival.reached) == 1:
        mine, theirs = rival.reached[0]
        did = "never reached" if mine is None else f"needed {wording.counted(mine, 'epoch')} for"
        others = "never did" if theirs is None else f"needed {wording.counted(theirs, 'epoch')}"
        parts.append(f"sharing {did} 95 % of the original’s gain, {_called(rival.second)} {others}")
    elif rival.sooner:
        parts.append(
            f"sharing was sooner in {rival.sooner.count(1)} of {len(rival.sooner)} seeds and later "
            f"in {rival.sooner.count(-1)}"
        )
    return f"{text}: {'; '.join(parts)}." if parts else ""


def _zero(found: Pairing) -> str:
    if found.accuracy is None or found.accuracy.ci95 is None:
        return f"from a single one of its {found.over}: it has no interval"
    return f"{'' if found.skill else 'not '}distinguishable from zero"


# Everything else ----------------------------------------------------------------------------------


def _describe(results: Sequence[Results]) -> tuple[str, list[str]]:
    """Headline and sentences where sharing or the original is missing: nothing is compared."""
    arms = runs_by_arm(results)
    said = []
    for name, runs in arms.items():
        tests = [run.test for run in runs if run.test is not None and run.trained]
        mean = mean_of_tested([run for run in runs if run.trained])
        if not _trained(runs):
            said.append(f"{_called(name)} {_failure(runs)}")
        elif len(tests) == 1:
            tasks = wording.counted(tests[0].tasks, "test task")
            said.append(f"{_called(name)} has {wording.accuracy(tests[0].interval)} on {tasks}")
        elif mean is not None:
            accuracy = wording.accuracy(mean)
            said.append(
                f"{_called(name)} has {accuracy} on the test tasks, over {len(tests)} seeds"
            )
        else:
            said.append(f"{_called(name)} trained and was not tested")
    headline = "; ".join(said)
    sentences = _outcomes(arms)
    for name, runs in arms.items():
        best = runs[0].best
        if len(runs) == 1 and best is not None and runs[0].trained:
            accuracy = wording.accuracy(Interval(best.accuracy, best.ci95, 0))
            sentences.append(
                f"The best validation accuracy of {_called(name)} is {accuracy}, in epoch "
                f"{best.epoch} of {runs[0].epochs}."
            )
    missing = [name for name in (ORIGINAL, SHARING) if name not in arms]
    sentences.append(
        f"There is no run of {wording.listing([_called(name) for name in missing])} here, so "
        "nothing can be said about what sharing changes; `gradshare compare` trains both on the "
        "same episodes."
    )
    return f"{headline[0].upper()}{headline[1:]}.", sentences


def _outcomes(arms: dict[str, tuple[Arm, ...]]) -> list[str]:
    """A sentence for each arm of which a run did not train or diverged."""
    sentences = []
    for name, runs in arms.items():
        failed = [run for run in runs if not run.trained]
        if not failed:
            continue
        subject = _called(name)
        subject = f"{subject[0].upper()}{subject[1:]}"
        if len(runs) == 1:
            sentences.append(f"{subject} {_what_happened(failed[0])}.")
            continue
        seeds = wording.listing([f"seed {run.seed} {_what_happened(run)}" for run in failed])
        sentences.append(
            f"{subject} trained in {len(runs) - len(failed)} of {len(runs)} seeds: {seeds}. It is "
            "compared in the seeds in which both arms trained."
        )
    return sentences


def _what_happened(run: Arm) -> str:
    if run.outcome == "diverged":
        when = f"after epoch {run.epochs}" if run.epochs else "in its first epoch"
        why = f" ({run.message.rstrip('.')})" if run.message else ""
        return f"diverged {when}{why}"
    if run.best is None:
        return "did not train: it was never validated"
    best = wording.accuracy(Interval(run.best.accuracy, run.best.ci95, 0))
    return (
        f"did not train: its best validation accuracy, {best}, is not distinguishable from "
        f"chance, {wording.percent(run.chance)}"
    )


def _failure(runs: Sequence[Arm]) -> str:
    """What an arm did that trained with no seed."""
    return "diverged" if any(run.outcome == "diverged" for run in runs) else "did not train"


def _weaknesses(results: Sequence[Results]) -> list[str]:
    """Why the runs are too small to decide anything, besides the number of their seeds."""
    runs = [run for one in results for run in one.arms]
    epochs = max(run.epochs for run in runs)
    tasks = [run.test.tasks for run in runs if run.test is not None]
    an_epoch = results[0].config.get("iterations_per_epoch")
    iterations = epochs * (an_epoch if isinstance(an_epoch, int) else PAPERS_EPOCH)
    weak = []
    if iterations < FEW_ITERATIONS:
        weak.append(wording.counted(iterations, "outer iteration"))
    if tasks and min(tasks) < FEW_TASKS:
        weak.append(wording.counted(min(tasks), "test task"))
    return weak


def _caveats(results: Sequence[Results], counted: Sequence[Results], decides: bool) -> list[str]:
    """What keeps the results from saying more.

    Args:
        results: of one comparison, one a seed.
        counted: those of the seeds that the comparison of sharing and the original rests on.
        decides: whether there are enough of them.
    """
    caveats = []
    weak = _weaknesses(counted)
    seeds = "" if decides else ("one seed", "two seeds")[len(counted) - 1]
    if seeds and len(counted) < len(results):
        trained = trained_pair(counted[0], SHARING, ORIGINAL) is not None
        seeds += f" in which both {'trained' if trained else 'were run'}"
    if weak:
        weak += [seeds] if seeds else []
        caveats.append(
            f"{'These are short runs' if decides else 'This decides little'}: "
            f"{wording.listing(weak)}. The paper trains for 150,000 iterations or more and tests "
            "on 600 tasks."
        )
    elif len(counted) == 1:
        caveats.append(
            f"{seeds.capitalize()}: the intervals say how far other test tasks would move these "
            "numbers, not how far another seed would. Repeat with other seeds before building on "
            "them."
        )
    elif not decides:
        caveats.append(f"{seeds.capitalize()}: repeat with others before building on them.")
    rising = [
        _called(name)
        for name, runs in runs_by_arm(results).items()
        if any(run.trained and run.best_epoch == run.epochs for run in runs)
    ]
    if rising and any(one.speedup is not None for one in results):
        are = "is" if len(rising) == 1 else "are"
        caveats.append(
            f"The best epoch of {wording.listing(rising)} {are} the last: training longer would "
            "move it, and with it the paper’s speed-up."
        )
    return caveats


def _trained(runs: Sequence[Arm]) -> bool:
    """Whether an arm trained in any seed."""
    return any(run.trained for run in runs)


def _called(name: str) -> str:
    """An arm in the middle of a sentence."""
    if name == SHARING:
        return "sharing"
    return f"the {name} control" if is_control(name) and "control" not in name else f"the {name}"


def _lowered(sentence: str) -> str:
    """A sentence after a colon or a comma."""
    return f"{sentence[0].lower()}{sentence[1:]}"
