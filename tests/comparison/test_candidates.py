"""Arms with candidates, of which the best on validation tasks is compared."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradshare as gs
from gradshare.comparison.compare import Comparison
from gradshare.comparison.plan import with_candidates
from gradshare.errors import ConfigError
from tests.comparison.small import assert_same, net, run_folders, small
from tests.comparison.test_compare import written
from tests.training.killing import records_in

pytestmark = pytest.mark.usefixtures("without_reports")


def maml(rate: float, *, sharing: bool = False) -> Any:
    return lambda: gs.maml(net(), steps=2, inner_lr=rate, sharing=sharing)


ARMS: dict[str, Any] = {
    "maml": {"rate 0.02": maml(0.02), "rate 0.3": maml(0.3), "rate 1e38": maml(1e38)},
    "sharing": {"rate 0.02": maml(0.02, sharing=True), "rate 0.3": maml(0.3, sharing=True)},
    "first order": lambda: gs.maml(net(), steps=2, second_order=False),
}


def here(out: Path, made: Any, **changes: Any) -> Comparison:
    changes = {"baseline": "maml", "controls": ["sharing"], **changes}
    return small(out, made, executor=ThreadPoolExecutor(1), **changes)


def best_validation(run: Path) -> float:
    return max(record.mean("accuracy") for record in records_in(run))


def test_the_candidate_that_validates_best_with_the_first_seed_is_compared_over_all_seeds(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    results = here(out, ARMS, seeds=[3, 5]).results
    kept = {}
    for arm in ("maml", "sharing"):
        pilots = {
            name: best_validation(next(out.glob(f"runs/{arm}-rate-{name}-*/seed-3")))
            for name in ("0.02", "0.3")
        }
        kept[arm] = max(pilots, key=pilots.__getitem__)
        both = {n: re.escape(f"{arm} [rate {n}] {100 * v:.1f} ±") for n, v in pilots.items()}
        assert re.search(f"{both['0.02']}.* %, {both['0.3']}", results.notes[-1])
    assert "maml [rate 1e38] diverged; sharing" in results.notes[-1]
    assert "best validation accuracy of seed 3" in results.notes[-1]
    names = tuple(f"{arm} [rate {rate}]" for arm, rate in kept.items())
    assert results.arms == (*names, "first order")
    assert (results.baseline, results.controls) == (names[0], names[1:])
    assert results.seeds == (3, 5)
    # A candidate that is not kept has no second seed: 6 pilots, and 3 further runs.
    assert len(run_folders(out)) == 9

    before = written(out)
    here(out, ARMS, seeds=[3, 5], resume="auto")
    assert written(out) == before

    # The kept candidates have the results that they have in a comparison of them alone.
    chosen = {f"{arm} [rate {kept[arm]}]": ARMS[arm][f"rate {kept[arm]}"] for arm in kept}
    whole = {**chosen, "first order": ARMS["first order"]}
    alone = here(
        tmp_path / "whole", whole, seeds=[3, 5], baseline=names[0], controls=names[1:]
    ).results
    assert [(run.arm, run.seed, run.test) for run in results.runs] == [
        (run.arm, run.seed, run.test) for run in alone.runs
    ]


def test_seeds_and_candidates_can_be_added_later_and_the_choice_is_printed_when_it_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"maml": {"0.02": maml(0.02)}, "first order": ARMS["first order"]}
    two = {**one, "maml": {"0.02": maml(0.02), "0.3": maml(0.3)}}
    here(tmp_path / "later", one, seeds=1, controls=())
    before = written(tmp_path / "later")
    capsys.readouterr()
    results = here(
        tmp_path / "later", two, seeds=2, controls=(), resume="auto", progress=True
    ).results
    assert f"\n{results.notes[-1]}\n" in capsys.readouterr().out
    after = written(tmp_path / "later")
    assert {name: when for name, when in after.items() if name in before} == before
    here(tmp_path / "at once", two, seeds=2, controls=())
    assert_same(tmp_path / "later", tmp_path / "at once")


def test_an_arm_without_candidates_and_a_baseline_that_is_no_arm_are_refused(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="the arm 'maml' has no candidates; give it at least one"):
        here(tmp_path / "out", {"maml": {}})
    with pytest.raises(ConfigError, match=r"the baseline 'mamel' is not an arm; .*'maml \[0.1\]'"):
        here(tmp_path / "out", {"maml": {"0.1": maml(0.1)}}, baseline="mamel")
    assert not (tmp_path / "out").exists()


@given(
    st.dictionaries(
        st.text("ab+", min_size=1),
        st.integers() | st.dictionaries(st.text("01", min_size=1), st.integers(), min_size=1),
        min_size=1,
    )
)
def test_each_candidate_has_one_name_and_each_arm_its_own(arms: Any) -> None:
    made, groups = with_candidates(arms)
    assert list(groups) == list(arms)
    assert [name for group in groups.values() for name in group] == list(made)
    for arm, group in groups.items():
        expected = arms[arm]
        found = [made[name] for name in group]
        assert found == (list(expected.values()) if isinstance(expected, dict) else [expected])
