"""The plans: which runs there are, and which of them a user picks."""

from __future__ import annotations

import pytest

from gradshare import ConfigError
from reproduction.plan import SCALES, Plan, Scale, load_plan, on_machine, pick

TOY = Plan.model_validate(
    {
        "settings": {"ways": 3, "epochs": 2, "inner_lr": 0.1},
        "studies": {
            "first": {
                "title": "two by two",
                "settings": {"epochs": 4},
                "axes": {
                    "batch": {"batch-5": {"task_batch": 5}, "batch-1": {"task_batch": 1}},
                    "arm": {"original": {"sharing": False, "epochs": 20}, "gradient-sharing": {}},
                },
                "leave_out": [["batch-1", "gradient-sharing"]],
            },
            "second": {"title": "one", "axes": {"arm": {"original": {"sharing": False}}}},
        },
    }
)


def test_settings_come_from_the_plan_then_the_study_then_the_labels() -> None:
    cells = {cell.name: cell.config for cell in on_machine(TOY.cells(), {"threads": 3})}
    found = {n: (c.epochs, c.inner_lr, c.task_batch, c.sharing) for n, c in cells.items()}
    assert found == {
        "first/batch-5/original": (20, 0.1, 5, False),
        "first/batch-5/gradient-sharing": (4, 0.1, 5, True),
        "first/batch-1/original": (20, 0.1, 1, False),
        "second/original": (2, 0.1, 5, False),
    }
    assert {(c.ways, c.threads) for c in cells.values()} == {(3, 3)}


@pytest.mark.parametrize(
    ("only", "without", "places"),
    [
        ((), (), [0, 1, 2, 3]),
        (("second",), (), [3]),
        (("original", "batch-1, batch-5"), (), [0, 2]),
        (("first/batch-5",), (), [0, 1]),
        (("first/batch-1/original/",), (), [2]),
        ((), ("first",), [3]),
        (("first",), ("batch-1", "gradient-sharing"), [0]),
    ],
)
def test_filters_narrow_down(
    only: tuple[str, ...], without: tuple[str, ...], places: list[int]
) -> None:
    cells = TOY.cells()
    assert pick(cells, only, without) == [cells[place] for place in places]


@pytest.mark.parametrize(
    ("only", "without", "message"),
    [
        (
            ["orignal"],
            [],
            "--only 'orignal' fits no cell; did you mean 'original'? Studies and labels: first, "
            "batch-5, original, gradient-sharing, batch-1, second",
        ),
        ([], ["frist"], "--except 'frist' fits no cell; did you mean 'first'?"),
        (
            ["second", "batch-5"],
            [],
            "no cell fits --only second --only batch-5 together; leave one of them out",
        ),
        (
            ["first"],
            ["first"],
            "no cell fits --only first --except first together; leave one of them out",
        ),
    ],
)
def test_filters_that_leave_nothing_are_refused(
    only: list[str], without: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        pick(TOY.cells(), only, without)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("scale", SCALES)
def test_each_cell_of_a_plan_is_one_run_with_a_name_of_its_own(scale: Scale) -> None:
    cells = load_plan(scale).cells()
    assert len({cell.name for cell in cells}) == len(cells)
    for study in load_plan(scale).studies:
        own = [cell for cell in cells if cell.study == study]
        assert len({cell.config.to_yaml() for cell in own}) == len(own), study


def test_the_papers_grid_is_its_appendix_a() -> None:
    cells = [cell for cell in load_plan("paper").cells() if cell.study == "grid"]
    assert len(cells) == 2 * 3 * 2 * 2 * 2 * 2
    epochs = {"cub/5": 150, "cub/1": 750, "mini-imagenet/5": 250, "mini-imagenet/1": 1250}
    for cell in cells:
        config = cell.config
        assert config.epochs == epochs[f"{config.dataset}/{config.task_batch}"]
        assert (config.ways, config.image_size, config.filters) == (5, 84, 48)
        assert (config.inner_steps, config.inner_lr, config.outer_lr) == (5, 0.1, 0.001)
        assert (config.iterations_per_epoch, config.test_tasks, config.ensemble) == (1000, 600, 5)
        assert (config.queries, config.val_tasks) == (15, 600)
        assert (config.multi_step_loss == "15000") == (config.method == "maml++")
        assert config.inner_lr_scale == (10 if "rate-10x" in cell.name else 1)
        assert config.sharing == ("gradient-sharing" in cell.name)


def test_each_control_of_the_cpu_plan_is_what_its_label_says() -> None:
    cells = {c.labels["arm"]: c.config for c in load_plan("cpu").cells() if c.study == "controls"}
    arms = {label: (config.arm, config.inner_lr_scale) for label, config in cells.items()}
    assert arms == {
        "own-gradient": ("own-gradient", 1),
        "half-rate": ("original", 0.5),
        "learned-rates": ("learned-rates", 1),
        "lambda-0.5": ("gradient-sharing-lambda-0.5", 1),
        "lambda-0.25": ("gradient-sharing-lambda-0.25", 1),
        "m-1": ("gradient-sharing-m-1", 1),
        "m-0.02": ("gradient-sharing-m-0.02", 1),
        "detached": ("detached", 1),
        "unnormalized": ("unnormalized", 1),
        "forgotten": ("forgotten", 1),
    }
