"""The plans: which runs there are, and which of them a user picks."""

from __future__ import annotations

import pytest

from gradshare.errors import ConfigError
from reproduction.plan import (
    SCALES,
    Plan,
    Scale,
    load_plan,
    on_machine,
    paper_settings,
    pick,
)

TOY = Plan.model_validate(
    {
        "settings": {"ways": 3, "epochs": 2, "inner_lr": 0.1},
        "studies": {
            "first": {
                "title": "two by two",
                "settings": {"epochs": 4},
                "axes": {
                    "batch": {"batch-5": {"task_batch": 5}, "batch-1": {"task_batch": 1}},
                    "arm": {"original": {"sharing": False}, "gradient-sharing": {}},
                },
                "leave_out": [["batch-1", "gradient-sharing"]],
                "also": [
                    {"of": ["batch-1", "original"], "settings": {"epochs": 20, "inner_lr": 0.2}}
                ],
            },
            "second": {"title": "one", "axes": {"arm": {"original": {"sharing": False}}}},
        },
    }
)


def test_a_cell_for_every_combination_of_labels_in_their_order() -> None:
    assert [cell.name for cell in TOY.cells()] == [
        "first/batch-5/original",
        "first/batch-5/gradient-sharing",
        "first/batch-1/original",
        "second/original",
    ]


def test_settings_come_from_the_plan_the_study_the_labels_and_their_combinations() -> None:
    cells = {cell.name: cell.config for cell in on_machine(TOY.cells(), {"threads": 3})}
    assert [(c.epochs, c.inner_lr, c.task_batch, c.sharing) for c in cells.values()] == [
        (4, 0.1, 5, False),
        (4, 0.1, 5, True),
        (20, 0.2, 1, False),
        (2, 0.1, 5, False),
    ]
    assert {(c.ways, c.threads) for c in cells.values()} == {(3, 3)}


def test_settings_of_the_machine_have_to_fit_the_cells_they_are_for_and_no_others() -> None:
    cells = TOY.cells()
    fitting = pick(cells, ["first/batch-5"])
    assert {cell.config.workers for cell in on_machine(fitting, {"workers": 2})} == {2}
    with pytest.raises(ConfigError) as error:
        on_machine(cells, {"workers": 2})
    assert str(error.value) == (
        "cell first/batch-1/original: --workers 2 is more than the 1 tasks of a batch; use at most "
        "as many workers as --task-batch; pick others with --only or --except"
    )


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ((), 4),
        (("second",), ["second/original"]),
        (("original",), ["first/batch-5/original", "first/batch-1/original", "second/original"]),
        (("original", "batch-1, batch-5"), ["first/batch-5/original", "first/batch-1/original"]),
        (("first/batch-5",), ["first/batch-5/original", "first/batch-5/gradient-sharing"]),
        (("first/batch-1/original/",), ["first/batch-1/original"]),
    ],
)
def test_filters_narrow_down(only: tuple[str, ...], names: int | list[str]) -> None:
    picked = [cell.name for cell in pick(TOY.cells(), only)]
    assert picked == names or len(picked) == names


def test_a_word_that_fits_nothing_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as error:
        pick(TOY.cells(), ["orignal"])
    assert str(error.value) == (
        "--only 'orignal' fits no cell; did you mean 'original'? Studies and labels: first, "
        "batch-5, original, gradient-sharing, batch-1, second"
    )
    with pytest.raises(ConfigError) as error:
        pick(TOY.cells(), ["second", "batch-5"])
    assert str(error.value) == (
        "no cell fits --only second --only batch-5 together; leave one of them out"
    )


@pytest.mark.parametrize("scale", SCALES)
def test_every_cell_of_a_plan_is_one_run_with_a_name_of_its_own(scale: Scale) -> None:
    cells = load_plan(scale).cells()
    assert len({cell.name for cell in cells}) == len(cells)
    for study in load_plan(scale).studies:
        own = [cell for cell in cells if cell.study == study]
        assert len({cell.config.to_yaml() for cell in own}) == len(own), study
        words = [word for cell in own for word in {*cell.labels.values(), study}]
        assert not any("/" in word or "," in word for word in words)


def test_the_papers_grid_is_the_papers() -> None:
    cells = [cell for cell in load_plan("paper").cells() if cell.study == "grid"]
    assert len(cells) == 2 * 3 * 2 * 2 * 2 * 2
    epochs = {(c.config.dataset, c.config.task_batch): c.config.epochs for c in cells}
    assert epochs == {
        ("cub", 5): 150,
        ("cub", 1): 750,
        ("mini-imagenet", 5): 250,
        ("mini-imagenet", 1): 1250,
    }
    for cell in cells:
        config = cell.config
        assert (config.image_size, config.filters, config.ways, config.queries) == (84, 48, 5, 15)
        assert (config.inner_steps, config.inner_lr, config.outer_lr) == (5, 0.1, 0.001)
        assert (config.iterations_per_epoch, config.ensemble) == (1000, 5)
        assert (config.val_tasks, config.test_tasks) == (600, 600)
        assert config.inner_lr_scale == (10 if "rate-10x" in cell.name else 1)
        assert config.sharing == ("gradient-sharing" in cell.name)
        assert config.span(config.multi_step_loss) in (15_000, round(0.15 * config.iterations))
        assert (config.method == "maml++") == (config.multi_step_loss == "15000")


def test_the_preset_is_a_part_of_the_plan() -> None:
    settings = paper_settings("cub", 1, "maml++")
    (cell,) = pick(
        load_plan("paper").cells(), ["grid/cub/maml++/batch-1/shot-5/rate-1x/gradient-sharing"]
    )
    assert settings == {name: getattr(cell.config, name) for name in settings}
    assert not {"shots", "sharing", "inner_lr_scale"} & settings.keys()


def test_every_control_of_the_cpu_plan_is_what_its_label_says() -> None:
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


def test_cells_are_left_out() -> None:
    cells = TOY.cells()
    without = pick(cells, [], ["first"])
    assert {cell.study for cell in without} == {cell.study for cell in cells} - {"first"}
    assert pick(cells, ["first"], ["original"]) == [
        cell for cell in pick(cells, ["first"]) if cell.labels["arm"] != "original"
    ]
    with pytest.raises(ConfigError) as error:
        pick(cells, [], ["frist"])
    assert str(error.value).startswith("--except 'frist' fits no cell; did you mean 'first'? ")
    with pytest.raises(ConfigError) as error:
        pick(cells, ["first"], ["first"])
    assert str(error.value) == (
        "no cell fits --only first --except first together; leave one of them out"
    )
