from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, get_args

import pytest

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING, from_settings, is_control
from gradshare.config.arms import SHARES_NOTHING, SharingControl
from gradshare.errors import RunError
from gradshare.experiments.results import Arm, Outcome, Results
from gradshare.experiments.table import comparison_rows
from gradshare.experiments.verdict import Verdict, pairing, verdict
from tests.experiments.synthetic_results import CONFIG, arm, comparison, usual

ONE_SEED = (
    "One seed: the intervals say how far other test tasks would move these numbers, not how far "
    "another seed would. Repeat with other seeds before building on them."
)


UNTRAINED: Final[Outcome] = "not trained"
DIVERGED: Final[Outcome] = "diverged"

FEW_SEEDS = "Too few seeds to decide. So far: "
NO_DIFFERENCE = "no difference between sharing and the original can be told from these numbers."


def wins(seed: int = 1) -> Results:
    return comparison(
        [
            arm(ORIGINAL, seed=seed, gain=0.25, pace=9),
            arm(SHARING, seed=seed, gain=0.29, pace=3),
            arm(RATE_CONTROL, seed=seed, gain=0.26, pace=7),
        ]
    )


def thrice(arms: Sequence[Arm]) -> list[Results]:
    """The same arms as if three seeds had come to the same: enough to decide."""
    return [
        comparison([one.model_copy(update={"seed": seed}) for one in arms]) for seed in (1, 2, 3)
    ]


def all_text(said: Verdict) -> str:
    return " ".join((said.headline, *said.sentences, *said.caveats))


def test_sharing_wins_against_the_original_and_its_control() -> None:
    said = verdict([wins()])
    assert said.headline == (
        "Too few seeds to decide. So far: sharing was sooner and more accurate than the "
        "original, and sooner and more accurate than the rate-control, which shares nothing."
    )
    assert said.sentences == (
        "Sharing reached 95 % of the original’s gain over chance in epoch 5, the original in "
        "epoch 18. By the paper’s measure, the epoch of the best validation accuracy (12 against "
        "20), the speed-up is 67 %.",
        "On 600 test tasks sharing has 48.4 ± 0.9 %, the original 41.9 ± 0.9 %; task by task the "
        "difference is +6.4 ± 0.6 points, distinguishable from zero.",
        "Against the rate-control, which learns the same gate λ but shares nothing: the "
        "difference is +4.5 ± 0.6 points, distinguishable from zero; sharing needed 5 epochs for "
        "95 % of the original’s gain, the rate-control needed 13 epochs.",
    )
    assert said.caveats == (
        ONE_SEED,
        "The best epoch of the original and the rate-control are the last: training longer would "
        "move it, and with it the paper’s speed-up.",
    )


def test_sharing_is_not_called_better_than_a_control_that_is_later_and_as_accurate() -> None:
    arms = [
        arm(ORIGINAL, gain=0.25, pace=9),
        arm(SHARING, gain=0.29, pace=3),
        arm(RATE_CONTROL, gain=0.29, pace=5),
    ]
    assert verdict(thrice(arms)).headline == (
        "Sharing was sooner and more accurate than the original, and sooner than the rate-control, "
        "which shares nothing."
    )


def test_a_control_that_does_as_well_takes_the_credit() -> None:
    said = verdict(thrice(usual().arms))
    assert said.headline == (
        "Sharing was sooner and more accurate than the original, but the rate-control, which "
        "shares nothing, did as well: sharing is not shown to be why."
    )
    assert (
        "the difference is 0.0 ± 0.6 points over 3 seeds, not distinguishable from zero"
        in said.sentences[2]
    )


def test_a_control_that_does_better_takes_the_credit() -> None:
    arms = [arm(ORIGINAL, gain=0.24, pace=9), arm(SHARING, gain=0.26), arm(RATE_CONTROL, pace=2)]
    assert verdict(thrice(arms)).headline == (
        "Sharing was sooner and more accurate than the original, but what was gained is not "
        "sharing: the rate-control, which shares nothing, did better still."
    )


def test_a_control_in_the_middle_leaves_the_credit_open() -> None:
    arms = [
        arm(name, noise=0, gain=0.25, test_shift=shift)
        for name, shift in ((ORIGINAL, 0.0), (SHARING, 0.012), (RATE_CONTROL, 0.007))
    ]
    assert verdict(thrice(arms)).headline == (
        "Sharing was more accurate than the original, but not distinguishably better than the "
        "rate-control, which shares nothing: the gain cannot be credited to sharing."
    )


def test_a_control_with_other_strengths_is_told() -> None:
    arms = [
        arm(ORIGINAL, gain=0.25, pace=9),
        arm(SHARING, gain=0.28, pace=3),
        arm(RATE_CONTROL, gain=0.28, pace=7, test_shift=0.05),
    ]
    assert verdict(thrice(arms)).headline == (
        "Sharing was sooner and more accurate than the original; against the rate-control, which "
        "shares nothing, it was sooner but less accurate."
    )


def test_without_a_control_it_stays_open() -> None:
    said = verdict(thrice(wins().arms[:2]))
    assert said.headline == (
        "Sharing was sooner and more accurate than the original; without a control it stays open "
        "whether sharing is why."
    )
    assert said.sentences[-1].startswith("No control was run.")


def test_a_tie() -> None:
    arms = [arm(name, noise=0) for name in (ORIGINAL, SHARING, RATE_CONTROL)]
    said = verdict([comparison(arms)])
    assert said.headline == FEW_SEEDS + NO_DIFFERENCE
    assert said.sentences[0].startswith(
        "Sharing and the original both reached 95 % of the original’s gain over chance in epoch 14."
    )
    assert "−0.2 ± 0.6 points, not distinguishable from zero" in said.sentences[1]


def test_sharing_loses() -> None:
    arms = [arm(ORIGINAL, pace=3), arm(SHARING, gain=0.24, pace=8), arm(RATE_CONTROL)]
    said = verdict([comparison(arms)])
    assert said.headline == FEW_SEEDS + "sharing was later and less accurate than the original."
    assert said.sentences[0].startswith(
        "Sharing never reached 95 % of the original’s gain over chance; the original did in"
    )
    assert "the speed-up is −25 %" in said.sentences[0]


def test_a_trade_is_called_one() -> None:
    arms = [arm(ORIGINAL, pace=8), arm(SHARING, pace=3, test_shift=-0.1)]
    assert verdict(thrice(arms)).headline == (
        "Sharing was sooner but less accurate than the original."
    )


def test_sharing_trains_where_the_original_diverges() -> None:
    arms = [
        arm(ORIGINAL, epochs=4, outcome="diverged", message="loss nan in iteration 1,234."),
        arm(SHARING),
        arm(RATE_CONTROL, gain=0, noise=0),
    ]
    said = verdict([comparison(arms)])
    assert said.headline == FEW_SEEDS + "sharing trained where the original diverged."
    assert said.sentences == (
        "The original diverged after epoch 4 (loss nan in iteration 1,234).",
        "The rate-control did not train: its best validation accuracy, 20.0 ± 1.1 %, is not "
        "distinguishable from chance, 20.0 %.",
    )


def test_the_control_trains_too_where_the_original_does_not() -> None:
    arms = [arm(ORIGINAL, gain=0, noise=0), arm(SHARING), arm(RATE_CONTROL)]
    assert verdict([comparison(arms)]).headline == (
        FEW_SEEDS + "sharing trained where the original did not, but so did the rate-control, "
        "which shares nothing."
    )


def test_sharing_diverges() -> None:
    arms = [arm(ORIGINAL), arm(SHARING, epochs=0, outcome="diverged"), arm(RATE_CONTROL)]
    said = verdict([comparison(arms)])
    assert said.headline == FEW_SEEDS + "sharing diverged; the original trained."
    assert said.sentences == ("Sharing diverged in its first epoch.",)


def test_nothing_trains() -> None:
    arms = [arm(ORIGINAL, epochs=0, outcome="diverged"), arm(SHARING, gain=0, noise=0)]
    said = verdict([comparison(arms)])
    assert said.headline == (
        "Neither sharing nor the original trained: nothing can be said about sharing."
    )
    assert len(said.sentences) == 2


def test_a_control_that_fails_is_no_rival() -> None:
    arms = [
        arm(ORIGINAL, gain=0.25, pace=9),
        arm(SHARING, gain=0.29, pace=3),
        arm(RATE_CONTROL, epochs=2, outcome="diverged"),
    ]
    assert verdict(thrice(arms)).headline == (
        "Sharing was sooner and more accurate than the original; the rate-control diverged."
    )


def test_one_epoch_decides_little() -> None:
    said = verdict([usual(epochs=1)])
    assert said.headline == (
        "Too small a run to decide. So far: sharing was more accurate than the original, but the "
        "rate-control, which shares nothing, did as well."
    )
    assert said.caveats[0] == (
        "This decides little: 1,000 outer iterations and one seed. The paper trains for 150,000 "
        "iterations or more and tests on 600 tasks."
    )


def test_few_tasks_decide_little() -> None:
    arms = [arm(ORIGINAL, tasks=60), arm(SHARING, tasks=60)]
    assert (
        verdict([comparison(arms)])
        .caveats[0]
        .startswith("This decides little: 60 test tasks and one seed.")
    )


def test_three_seeds_of_short_runs_decide_something() -> None:
    said = verdict([usual(seed, epochs=5) for seed in (1, 2, 3)])
    assert "sharing is not shown to be why" in said.headline
    assert not said.headline.startswith("Too small")
    assert said.caveats[0].startswith("These are short runs: 5,000 outer iterations. The paper")


def test_seeds_in_which_one_did_not_train_decide_nothing() -> None:
    seeds = [
        comparison(
            [
                arm(ORIGINAL, seed=seed, epochs=5, outcome=None if seed == 1 else "not trained"),
                arm(SHARING, seed=seed, epochs=5, gain=0.4),
            ]
        )
        for seed in (1, 2, 3)
    ]
    said = verdict(seeds)
    assert said.headline == (
        "Sharing trained in 3 of 3 seeds, the original in 1 of 3. Where both trained, too small a "
        "run to decide. So far: sharing was sooner and more accurate than the original; without a "
        "control it stays open whether sharing is why."
    )
    assert said.caveats[0].startswith(
        "This decides little: 5,000 outer iterations and one seed in which both trained."
    )


def failing(*outcomes: Sequence[Outcome | None]) -> list[Results]:
    """A seed for each triple of outcomes, of the original, sharing and the rate-control."""
    traits: list[tuple[str, dict[str, Any]]] = [
        (ORIGINAL, {"gain": 0.25, "pace": 9}),
        (SHARING, {"gain": 0.29, "pace": 3}),
        (RATE_CONTROL, {"gain": 0.26, "pace": 7}),
    ]
    return [
        comparison(
            [
                arm(name, seed=seed, outcome=outcome, **trait)
                for (name, trait), outcome in zip(traits, triple, strict=False)
            ]
        )
        for seed, triple in enumerate(outcomes, start=1)
    ]


def test_a_headline_leads_with_the_seeds_that_failed() -> None:
    original = verdict(failing((None, None), (DIVERGED, None), (DIVERGED, None)))
    assert original.headline.startswith(
        "Sharing trained in 3 of 3 seeds, the original in 1 of 3. Where both trained, too few "
        "seeds to decide. So far: sharing was sooner and more accurate than the original; without"
    )
    assert original.caveats[0] == ONE_SEED.replace("One seed", "One seed in which both trained")
    sharing = verdict(failing((None, None), (None, DIVERGED), (None, DIVERGED)))
    assert sharing.headline.startswith(
        "Sharing trained in 1 of 3 seeds, the original in 3 of 3. Where both trained, too few "
        "seeds to decide. So far: sharing was sooner"
    )
    enough = verdict(failing(*[(None, None)] * 3, (DIVERGED, None)))
    assert enough.headline.startswith(
        "Sharing trained in 4 of 4 seeds, the original in 3 of 4. Where both trained, sharing was "
        "sooner and more accurate than the original; without"
    )


def test_a_control_that_trains_where_the_original_fails_is_in_the_lead() -> None:
    said = verdict(failing((None, None, None), *[(UNTRAINED, None, None)] * 2))
    assert said.headline.startswith(
        "Sharing trained in 3 of 3 seeds, the original in 1 of 3, but the rate-control, which "
        "shares nothing, in 3 of 3: sharing is not shown to be why. Where both trained, too few"
    )
    never = verdict(failing(*[(UNTRAINED, None, DIVERGED)] * 3))
    assert never.headline == "Sharing trained in 3 of 3 seeds, the original in 0 of 3."


def test_too_few_seeds_with_a_control_leave_the_credit_open() -> None:
    said = verdict(failing((None, None, None), *[(None, None, DIVERGED)] * 2))
    assert said.headline == (
        "Sharing was sooner and more accurate than the original; too few seeds have the "
        "rate-control, which shares nothing, trained to tell whether sharing is why."
    )


def test_seeds_that_have_nothing_in_common_are_not_compared() -> None:
    headline = "No seed has both sharing and the original trained: they cannot be compared."
    crossed = verdict(failing((None, DIVERGED), (DIVERGED, None)))
    apart = verdict([comparison([arm(ORIGINAL, seed=1)]), comparison([arm(SHARING, seed=2)])])
    for said in (crossed, apart):
        assert said.headline == headline
        assert "0 of 0" not in all_text(said)
    uneven = verdict(failing((None, DIVERGED), (DIVERGED, None), (None, DIVERGED)))
    assert uneven.headline == (
        f"Sharing trained in 1 of 3 seeds, the original in 2 of 3. {headline}"
    )


@pytest.mark.parametrize("name", [ORIGINAL, SHARING])
def test_a_single_training_run_is_described(name: str) -> None:
    said = verdict([comparison([arm(name)])])
    called = "sharing" if name == SHARING else "the original"
    other = "the original" if name == SHARING else "sharing"
    assert said.headline.lower().startswith(f"{called} has 4")
    assert said.headline.endswith("± 0.9 % on 600 test tasks.")
    assert "in epoch 20 of 20." in said.sentences[0]
    assert said.sentences[1].startswith(f"There is no run of {other} here, so nothing can be said")
    assert said.caveats == (ONE_SEED,)


def test_a_single_run_that_fails_is_described() -> None:
    said = verdict([comparison([arm(SHARING, epochs=3, outcome="diverged", message="m is inf")])])
    assert said.headline == "Sharing diverged."
    assert said.sentences[0] == "Sharing diverged after epoch 3 (m is inf)."


def test_a_run_without_a_test_is_described() -> None:
    untested = arm(SHARING).model_copy(update={"test": None, "test_accuracies": None})
    assert verdict([comparison([untested])]).headline == "Sharing trained and was not tested."
    other = arm(ORIGINAL).model_copy(update={"test": None, "test_accuracies": None})
    sentences = verdict([comparison([untested, other])]).sentences
    assert any(sentence.startswith("The arms were not tested") for sentence in sentences)


def test_several_seeds() -> None:
    said = verdict([wins(seed) for seed in (1, 2, 3)])
    assert said.headline == (
        "Sharing was sooner and more accurate than the original, and sooner and more accurate than "
        "the rate-control, which shares nothing."
    )
    assert said.sentences[0].startswith(
        "Sharing came to 80, 90 and 95 % of the original’s gain over chance sooner in 3 of 3 seeds "
        "and later in 0. The mean speed-up to 95 % is "
    )
    assert said.sentences[1].startswith(
        "Over 3 seeds and the test tasks that they share, the mean difference in test "
        "accuracy, sharing − original, is +6."
    )
    assert "over 3 seeds, distinguishable from zero" in said.sentences[2]
    assert not any("seed" in caveat for caveat in said.caveats)


def test_seeds_that_disagree_are_no_gain() -> None:
    slow = comparison([arm(ORIGINAL, seed=2, pace=3), arm(SHARING, seed=2, gain=0.25, pace=9)])
    fast = comparison([arm(ORIGINAL, seed=1, gain=0.25, pace=9), arm(SHARING, seed=1, pace=3)])
    said = verdict([slow, fast])
    assert said.headline == FEW_SEEDS + NO_DIFFERENCE
    assert said.caveats[0] == "Two seeds: repeat with others before building on them."
    assert "sooner in 1 of 2 seeds and later in 1" in said.sentences[0]
    assert "(1 of 2 seeds reached it)" in said.sentences[0]


def test_a_tie_over_seeds_is_no_mean_speed_up() -> None:
    # Best epochs 20, 10 and 5 of the original against 5, 10 and 20 of sharing.
    seeds = [
        usual(seed).model_copy(
            update={"speedup": slow / fast - 1, "speedup_to_reach": {"95": gain}}
        )
        for seed, slow, fast, gain in ((1, 20, 5, 1.0), (2, 10, 10, 0.0), (3, 5, 20, -0.5))
    ]
    pace = verdict(seeds).sentences[0]
    assert "The mean speed-up to 95 % is 0 % (−82 to 460 %). By the paper’s measure" in pace
    assert pace.endswith("the epoch of the best validation accuracy, it is 0 % (−97 to 3031 %).")
    means = comparison_rows(seeds)[-1]
    assert means["speed-up"] == "0 % (−97 to 3031 %)"
    assert means["speed-up to 95 %"] == "0 % (−82 to 460 %)"


def test_a_seed_that_diverges_is_told_and_left_out() -> None:
    broken = comparison(
        [
            arm(ORIGINAL, seed=3, epochs=2, outcome="diverged", message="loss inf"),
            arm(SHARING, seed=3),
            arm(RATE_CONTROL, seed=3),
        ]
    )
    said = verdict([usual(1), usual(2), broken])
    assert said.sentences[0] == (
        "The original trained in 2 of 3 seeds: seed 3 diverged after epoch 2 (loss inf). It is "
        "compared in the seeds in which both arms trained."
    )
    assert "in 2 of 2 seeds" in said.sentences[1]


def test_stored_pairs_serve_where_accuracies_by_task_were_left_out() -> None:
    full = wins()
    slim = full.model_copy(
        update={"arms": tuple(a.model_copy(update={"test_accuracies": None}) for a in full.arms)}
    )
    assert pairing([slim], SHARING, ORIGINAL) == pairing([full], SHARING, ORIGINAL)
    assert verdict([slim]) == verdict([full])


def test_another_arm_is_compared_but_is_no_control() -> None:
    arms = [*wins().arms, arm("per-tensor-norm", gain=0.32, pace=2)]
    said = verdict([comparison(arms)])
    assert "per-tensor-norm" not in said.headline
    assert any(sentence.startswith("Against the per-tensor-norm:") for sentence in said.sentences)


@pytest.mark.parametrize("control", ["own-gradient", "learned-rates", "own-gradient-lambda-0.5"])
def test_every_control_that_shares_nothing_takes_the_credit(control: str) -> None:
    arms = [*wins().arms, wins().arms[1].model_copy(update={"name": control})]
    said = verdict(thrice(arms))
    assert said.headline == (
        f"Sharing was sooner and more accurate than the original, but the {control} control, which "
        "shares nothing, did as well: sharing is not shown to be why."
    )
    assert any(
        sentence.startswith(f"Against the {control} control, which shares nothing: ")
        for sentence in said.sentences
    )
    assert "No control was run" not in all_text(verdict([comparison([*arms[:2], arms[3]])]))


@pytest.mark.parametrize("control", get_args(SharingControl))
@pytest.mark.parametrize("held", [None, 0.5, 1e-05])
def test_controls_are_known_by_the_names_that_runs_give_them(
    control: SharingControl, held: float | None
) -> None:
    if held is not None and control == "learned-rates":
        return
    name = from_settings({"sharing_control": control, "fixed_lambda": held}).arm
    assert is_control(name) is (control in SHARES_NOTHING)


@pytest.mark.parametrize("name", [ORIGINAL, SHARING, "gradient-sharing-lambda-0.5", "my-control"])
def test_other_arms_are_no_controls(name: str) -> None:
    assert not is_control(name)


def test_results_of_two_comparisons_have_no_verdict() -> None:
    other = comparison(list(wins(2).arms), config={**CONFIG, "inner_steps": 1, "seed": 2})
    with pytest.raises(RunError, match="inner_steps is 5 in one and 1 in another"):
        verdict([wins(1), other])


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_the_words_hold_no_python(seeds: int) -> None:
    text = all_text(verdict([usual(seed) for seed in range(1, seeds + 1)]))
    for stray in ("None", "nan", "()", "{", "  ", " .", ".."):
        assert stray not in text
