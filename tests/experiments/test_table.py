from __future__ import annotations

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from gradshare.experiments.table import arm_rows, comparison_rows
from tests.experiments.synthetic_results import CONFIG, arm, comparison, usual


def test_one_seed_is_one_row_of_table_1() -> None:
    assert comparison_rows([usual()]) == [
        {
            "method/tasks": "MAML/5",
            "original": "44.4 ± 0.9 %",
            "gradient-sharing": "48.4 ± 0.9 %",
            "rate-control": "48.4 ± 0.9 %",
            "difference": "+4.0 ± 0.6 points",
            "speed-up": "67 %",
            "speed-up to 95 %": "200 %",
            "batch norm": "transductive",
        }
    ]


def test_several_seeds_end_in_a_row_of_means() -> None:
    rows = comparison_rows([usual(seed) for seed in (1, 2, 3)])
    assert [row["seed"] for row in rows] == ["1", "2", "3", "mean of 3"]
    assert len({tuple(row) for row in rows}) == 1
    assert rows[-1]["original"] == "45.1 ± 1.6 %"  # over seeds alone it would be ± 1.5
    assert rows[-1]["difference"] == "+4.1 ± 0.5 points"  # over seeds alone it would be ± 0.3
    assert rows[-1]["speed-up"] == "33 % (−20 to 120 %)"


def test_the_mean_difference_leaves_out_the_seeds_in_which_one_did_not_train() -> None:
    failed = comparison([arm(ORIGINAL, seed=3, gain=0, noise=0), arm(SHARING, seed=3)])
    rows = comparison_rows([usual(1), usual(2), failed])
    assert rows[2]["original"].startswith("not trained")
    assert rows[2]["difference"] == "–"
    assert rows[-1]["original"].endswith("(2 of 3)")
    two = comparison_rows([usual(1), usual(2)])[-1]["difference"]
    assert rows[-1]["difference"] == f"{two} (2 of 3)"


def test_failed_arms_say_so() -> None:
    arms = [
        arm(ORIGINAL, epochs=2, outcome="diverged"),
        arm(SHARING),
        arm(RATE_CONTROL, gain=0, noise=0),
    ]
    (row,) = comparison_rows([comparison(arms)])
    assert row["original"] == "diverged"
    assert row["rate-control"] == "not trained (19.5 ± 0.9 %)"
    assert (row["difference"], row["speed-up"], row["speed-up to 95 %"]) == ("–", "–", "–")


def test_means_say_how_many_seeds_they_are_of() -> None:
    broken = comparison([arm(ORIGINAL, seed=2, epochs=0, outcome="diverged"), arm(SHARING, seed=2)])
    whole = comparison([arm(ORIGINAL), arm(SHARING)])
    rows = comparison_rows([whole, broken])
    assert rows[-1]["original"].endswith("% (1 of 2)")
    assert rows[-1]["speed-up"].endswith("(1 of 2)")
    assert rows[-1]["difference"] == rows[0]["difference"].split(" ±")[0] + " points (1 of 2)"


def test_a_single_arm_has_no_speedup() -> None:
    unknown = ("task_batch", "batch_norm")
    config = {key: value for key, value in CONFIG.items() if key not in unknown}
    (row,) = comparison_rows([comparison([arm(SHARING)], config=config)])
    assert row == {
        "method/tasks": "MAML",
        "gradient-sharing": "46.9 ± 0.9 %",
        "batch norm": "not recorded",
    }


def test_the_runs() -> None:
    rows = arm_rows([usual()])
    assert rows[1] == {
        "arm": "gradient-sharing",
        "outcome": "trained",
        "best validation": "50.4 ± 1.2 %",
        "best epoch": "12",
        "test, ensemble": "48.4 ± 0.9 % (5)",
        "test, single best": "47.6 ± 0.9 %",
        "epochs to 80 / 90 / 95 %": "4 / 5 / 5",
        "time": "11 min 31 s",
        "time an epoch": "34.5 s",
    }


def test_the_runs_of_several_seeds_stand_arm_by_arm() -> None:
    rows = arm_rows([usual(2), usual(1)])
    assert [(row["arm"], row["seed"]) for row in rows[:3]] == [
        (ORIGINAL, "1"),
        (ORIGINAL, "2"),
        (SHARING, "1"),
    ]


def test_a_run_that_never_began_has_dashes() -> None:
    (row,) = arm_rows([comparison([arm(ORIGINAL, epochs=0, outcome="diverged")])])
    assert row == {
        "arm": "original",
        "outcome": "diverged",
        "best validation": "–",
        "best epoch": "–",
        "test, ensemble": "–",
        "test, single best": "–",
        "epochs to 80 / 90 / 95 %": "–",
        "time": "0.0 s",
        "time an epoch": "–",
    }
