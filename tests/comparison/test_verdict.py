"""The words of a comparison, on results that nobody ran."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshare.comparison.results import ArmRun, MetricFacts, Outcome, Results
from gradshare.comparison.summary import arm_rows, as_text, verdict
from gradshare.training.metrics import Metric
from gradshare.training.statistics import Interval
from tests.comparison.builders import (
    ACCURACY,
    ERROR,
    arm_run,
    classification,
    regression,
    results_of,
)

TASKS = 300


def runs(arm: str, level: float, *, seeds: int = 3, outcome: Outcome = "trained") -> list[ArmRun]:
    """A run for each seed, whose test scores lie around a level; tasks are as hard for all."""
    made = []
    for seed in range(seeds):
        hard = np.random.default_rng(seed).normal(0, 0.05, TASKS)
        own = np.random.default_rng([seed, *arm.encode()]).normal(0, 0.02, TASKS)
        test = (level + hard + own).tolist()
        made.append(arm_run(arm, seed, validation=[0.3, level], test=test, outcome=outcome))
    return made


def compared(
    levels: dict[str, float], *controls: str, seeds: int = 3, facts: MetricFacts = ACCURACY
) -> Results:
    made = [run for arm, level in levels.items() for run in runs(arm, level, seeds=seeds)]
    return results_of(*made, controls=controls, facts=facts)


@pytest.mark.parametrize(
    ("levels", "controls", "headline"),
    [
        ({"base": 0.5, "new": 0.6, "control": 0.5}, ["control"],
         "“new” was better than “base”, and better than “control”."),
        ({"base": 0.5, "new": 0.6}, [],
         "“new” was better than “base”; no control was run, so it stays open why."),
        ({"base": 0.5, "new": 0.6, "control": 0.6}, ["control"],
         "“new” was better than “base”, but not distinguishably better than “control”, a control: "
         "the gain is not shown to come from what “new” adds."),
        ({"base": 0.5, "new": 0.6, "control": 0.7}, ["control"],
         "“new” was better than “base”, but “control”, a control, did better still."),
        ({"base": 0.5, "new": 0.6, "weak": 0.5, "strong": 0.7}, ["weak", "strong"],
         "“new” was better than “base”, but “strong”, a control, did better still."),
        ({"base": 0.5, "new": 0.4, "control": 0.5}, ["control"],
         "“new” was worse than “base”."),
        ({"base": 0.5, "new": 0.5}, [],
         "No difference between “new” and “base” can be told from these numbers."),
        ({"base": 0.5, "control": 0.6}, ["control"],
         "“control” was better than “base”."),
        ({"base": 0.5, "new": 0.6, "other": 0.4}, [],
         "“new” was better than “base”; no control was run, so it stays open why. “other” was "
         "worse than “base”."),
    ],
)  # fmt: skip
def test_the_headline_says_what_the_numbers_show(
    levels: dict[str, float], controls: list[str], headline: str
) -> None:
    assert verdict(compared(levels, *controls)).headline == headline


def test_low_is_better_where_the_metric_says_so() -> None:
    levels = {"base": 0.5, "new": 0.4}
    said = verdict(compared(levels, facts=MetricFacts(best="low", unit="mm", chance=None)))
    assert said.headline.startswith("“new” was better than “base”; ")
    assert said.sentences[0].startswith("“new” − “base” in accuracy: −0.0997 ± ")
    assert " mm over 3 seeds, distinguishable from zero." in said.sentences[0]


def test_one_arm_has_its_score() -> None:
    said = verdict(compared({"base": 0.5}))
    assert re.fullmatch(r"“base” has a test accuracy of 49\.6 ± \d\.\d %\.", said.headline)
    assert said.caveats == ()
    untested = results_of(arm_run("base", validation=[0.3]))
    assert verdict(untested).headline == "“base” was not tested."


def test_many_arms_are_summed_up_in_one_sentence() -> None:
    levels = {"base": 0.5, "a": 0.6, "b": 0.5, "c": 0.4, "d": 0.7}
    assert verdict(compared(levels)).headline == (
        "Of 4 arms compared with “base”: 2 better, 1 worse, 1 not distinguishable."
    )


def test_few_seeds_decide_nothing() -> None:
    said = verdict(compared({"base": 0.5, "new": 0.6}, seeds=1))
    assert said.headline.startswith("Too few seeds to decide. So far: “new” was better than “base”")
    assert "over the test tasks of one seed, distinguishable" in said.sentences[0]
    assert "Compare at least three (seeds=3, --seeds 3)" in said.caveats[0]
    enough = verdict(compared({"base": 0.5, "new": 0.6}))
    assert not any("at least three" in caveat for caveat in enough.caveats)


def test_a_comparison_without_a_control_says_so() -> None:
    (caveat,) = verdict(compared({"base": 0.5, "new": 0.6})).caveats
    assert caveat.startswith("There was no control.")
    caveats = verdict(compared({"base": 0.5, "new": 0.6, "c": 0.5}, "c")).caveats
    assert caveats == ()


def test_arms_that_failed_are_named_and_do_not_hide_the_others() -> None:
    diverged = [arm_run("wild", seed, validation=[], outcome="diverged") for seed in range(3)]
    late = runs("late", 0.2, outcome="not trained")
    results = results_of(*runs("base", 0.5), *diverged, *late, *runs("new", 0.6))
    said = verdict(results)
    assert said.headline == (
        "“wild” and “base” cannot be compared: no seed has both trained. “late” and “base” cannot "
        "be compared: no seed has both trained. “new” was better than “base”; no control was run, "
        "so it stays open why."
    )
    assert said.sentences[0] == "“wild” diverged in 3 of 3 runs (in epoch 2: the loss is nan)."
    assert said.sentences[1] == "“late” did not train in 3 of 3 runs."
    untrained = results_of(*runs("base", 0.5), *runs("new", 0.6), *diverged, controls=["wild"])
    assert verdict(untrained).headline == (
        "“new” was better than “base”; no control trained, so it stays open why."
    )


def test_an_undistinguished_difference_says_what_would_have_been_seen() -> None:
    said = verdict(compared({"base": 0.5, "new": 0.5}))
    assert re.search(
        r"^“new” − “base” in accuracy: .* points over 3 seeds, not distinguishable from zero "
        r"\(a difference of \d\.\d points would have been seen\)\.$",
        said.sentences[0],
    )


def test_arms_with_the_same_values_are_said_to_be_the_same() -> None:
    made = [arm_run(arm, validation=[0.3], test=[0.5, 0.7]) for arm in ("base", "new")]
    said = verdict(results_of(*made))
    assert said.sentences[0] == (
        "“new” − “base” in accuracy: none on any test task, over the test tasks of one seed."
    )


def test_a_difference_and_the_one_that_would_have_been_seen_have_the_same_digits() -> None:
    runs_of = {"base": [1.0, 2.0, 1.2], "new": [1.1, 1.9, 1.3]}
    made = [
        arm_run(arm, validation=[0.3], test=test, score="error") for arm, test in runs_of.items()
    ]
    said = verdict(results_of(*made, score="error", facts=ERROR)).sentences[0]
    assert "+0.03 ± 0.13 mm over" in said
    assert "(a difference of 0.19 mm would have been seen)" in said


def test_an_arm_that_failed_in_one_seed_is_compared_over_the_others_and_its_cells_say_so() -> None:
    wild = arm_run("new", 2, validation=[], outcome="diverged")
    results = results_of(*runs("base", 0.5), *runs("new", 0.6)[:2], wild)
    base, new = arm_rows(results)
    assert new["test accuracy"].endswith(" % (2 of 3 seeds)")
    assert new["− base"].endswith(" points (2 of 3 seeds)")
    assert "seeds" not in base["test accuracy"]
    said = verdict(results)
    assert said.headline.startswith(
        "Too few seeds to decide. So far: “new” was better than “base” (2 of 3 seeds); no control"
    )
    assert "over 2 seeds" in said.sentences[1]
    assert "at least three" in said.caveats[0]
    with_another = verdict(results_of(*results.runs, *runs("other", 0.4)))
    assert with_another.headline.startswith("“new” was better than “base” (2 of 3 seeds); no")
    assert with_another.headline.endswith("“other” was worse than “base”.")


def test_names_are_never_altered_and_never_markup_in_the_text() -> None:
    names = ["momentum", "[/x]", "比較のための腕", "{0} %s"]
    text = as_text(results_of(*(run for name in names for run in runs(name, 0.5))))
    assert all(name in text for name in names)
    assert "Momentum" not in text


PERCENT, PLAIN = Metric(max, unit="%"), Metric(max, unit="mm")


@pytest.mark.parametrize(
    ("metric", "mean", "half", "shown"),
    [
        (PERCENT, 0.0114, 0.0093, "+1.1 ± 0.9 points"),
        (PERCENT, -0.0114, 0.0093, "−1.1 ± 0.9 points"),
        (PERCENT, 0.0, 0.01, "0.0 ± 1.0 points"),
        (PERCENT, 0.00001, 0.01, "0.0 ± 1.0 points"),
        (PERCENT, 0.0504, 0.0501, "+5.04 ± 5.01 points"),
        (PERCENT, 0.05004, 0.05001, "+5.004 ± 5.001 points"),
        (PERCENT, 0.05, 0.05, "+5.0 ± 5.0 points"),
        (PERCENT, 0.02, None, "+2.0 points"),
        (PLAIN, -0.0123, 0.0045, "−0.0123 ± 0.0045 mm"),
        (PLAIN, 123.4, 45.6, "+123 ± 46 mm"),
        (PLAIN, float("nan"), float("nan"), "not finite"),
    ],
)
def test_a_difference_is_shown_with_its_sign_unit_and_as_many_digits_as_it_has_meaning_for(
    metric: Metric, mean: float, half: float | None, shown: str
) -> None:
    assert metric.show_difference(Interval(mean, half, 3)) == shown


@given(
    st.floats(-10, 10, allow_subnormal=False),
    st.floats(0, 10, allow_subnormal=False),
    st.booleans(),
    st.sampled_from([PERCENT, PLAIN]),
)
def test_distinguishable_is_never_said_beside_numbers_that_look_equal(
    mean: float, half: float, near: bool, metric: Metric
) -> None:
    mean = half * (1 + mean * 1e-6) if near else mean
    shown = metric.show_difference(Interval(mean, half, 3)).replace("−", "-").split()
    looks, halves = abs(float(shown[0])), float(shown[2])
    if abs(mean) > half * (1 + 1e-9) + 1e-12:
        assert looks > halves
    elif abs(mean) <= half:
        assert looks <= halves


def test_the_table_has_a_column_for_each_arm_and_what_a_reader_compares() -> None:
    results = compared({"base": 0.5, "new": 0.6, "control": 0.5}, "control")
    values = {"nearest class mean": {"accuracy": [0.25, 0.35]}}
    rows = arm_rows(results.model_copy(update={"yardsticks": values}))
    assert [row["arm"] for row in rows] == ["base", "new", "control", "nearest class mean"]
    assert [row["role"] for row in rows] == ["baseline", "", "control", "yardstick"]
    base, new, control, yardstick = rows
    assert re.fullmatch(r"59\.6 ± \d\.\d %", new["test accuracy"])
    assert new["− base"].startswith(("+10.", "+9."))
    assert (base["− base"], control["− control"]) == ("–", "–")
    assert new["best epoch"] == "2"
    assert new["epochs to 95 % of the baseline’s gain"] == "2, 2, 2"
    assert new["training time (h:mm:ss)"] == "0:00:12"
    assert new["trained"] == "3 of 3"
    assert yardstick["test accuracy"] == "30.0 ± 9.8 %"
    assert yardstick["trained"] == "–"
    first = as_text(results).splitlines()[0]
    assert first.split() == ["arm", "base", "new", "control"]


def test_columns_of_wide_letters_are_aligned() -> None:
    lines = as_text(results_of(*runs("比較", 0.5), *runs("ab", 0.5))).splitlines()
    assert lines[0].index("ab") + 2 == lines[2].index("4", lines[2].index("%"))


def test_the_table_of_a_regression_has_its_unit_and_no_percent() -> None:
    made = [
        arm_run(arm, validation=[2.0, test[0]], test=test, score="error")
        for arm, test in (("base", [1.0, 1.2]), ("new", [0.5, 0.6]))
    ]
    made.append(arm_run("wild", validation=[], score="error", outcome="diverged"))
    text = as_text(results_of(*made, score="error", facts=ERROR))
    assert "0.550 ± 0.098 mm" in text
    assert "−0.550 ± 0.098 mm" in text
    assert "0 of 1" in text
    assert "%" not in text.replace("95 % of the baseline’s gain", "")


@pytest.mark.parametrize(("easy", "said"), [(0.9, True), (0.1, False)])
def test_a_yardstick_that_is_better_than_each_arm_is_named(easy: float, said: bool) -> None:
    results = classification("base", "new", yardsticks={"class mean": {"accuracy": [easy] * 30}})
    sentence = (
        "“class mean”, which needs no meta-training, has a test accuracy of 90.0 ± 0.0 %: better "
        "than each arm."
    )
    assert (sentence in verdict(results).caveats) is said


def test_yardsticks_that_do_not_have_the_score_are_in_the_table_alone() -> None:
    facts = {"error": ERROR, "accuracy": ACCURACY}
    yardsticks = {"class mean": {"accuracy": [0.9] * 30}}
    results = regression("base", "new", metrics=facts, yardsticks=yardsticks)
    run = results.runs[0]
    runs = [run.model_copy(update={"test": {**run.test, "accuracy": [0.5] * 30}})] * 2
    text = as_text(results.model_copy(update={"runs": tuple(runs)}))
    assert "90.0 ± 0.0 %" in text
    assert "needs no meta-training" not in text
