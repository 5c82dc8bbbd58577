"""From a configuration to the parts of a run: that each setting arrives, and what building them
does to the process it happens in.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gradshare.config import Parts, RunConfig, build
from gradshare.config.parts import resolved
from gradshare.errors import ConfigError
from gradshare.inner_loop import Chain, Tensors
from gradshare.methods import MetaLearner, UnicornMAML
from gradshare.models import Conv4, ResNet12
from gradshare.tasks import ClassTasks, ImageTasks, Normalization
from gradshare.tasks.writing import ClassImages, write_store
from tests import own
from tests.oracle import Setting
from tests.problems import learner, perturbed, tasks

# What `Setting` and `RunConfig` are given alike: three steps of two iterations out of ten.
BASE: dict[str, Any] = {
    "dataset": "tests.own:pictures",
    "ways": 3,
    "filters": 4,
    "inner_steps": 3,
    "inner_lr": 0.4,
    "batch_norm": "transductive",
    "epochs": 2,
    "iterations_per_epoch": 5,
}
MAML = Setting("maml", "sharing", 3, 0.4)
META_SGD = replace(MAML, method="meta-sgd")
PLUS_PLUS = replace(MAML, method="maml++", multi_step_iterations=2, per_step_batch_norm=True)

# The settings of a run, and what they should come to.
ARRIVES: dict[str, tuple[dict[str, Any], Setting]] = {
    "inner_lr_scale": ({"inner_lr_scale": 10}, replace(MAML, inner_lr=4.0)),
    "inner_lr_scale of Meta-SGD": (
        {"method": "meta-sgd", "inner_lr_scale": 10},
        replace(META_SGD, inner_lr=4.0),
    ),
    "inner_lr_scale of MAML++": (
        {"method": "maml++", "inner_lr_scale": 10},
        replace(PLUS_PLUS, inner_lr=4.0),
    ),
    "inner_lr": ({"inner_lr": 0.7}, replace(MAML, inner_lr=0.7)),
    "inner_steps": ({"inner_steps": 2}, replace(MAML, steps=2)),
    "method meta-sgd": ({"method": "meta-sgd"}, META_SGD),
    "method maml++": ({"method": "maml++"}, PLUS_PLUS),
    "no sharing": ({"sharing": False}, replace(MAML, sharing="none")),
    **{
        control: ({"sharing_control": control}, replace(MAML, sharing=control))
        for control in (
            "rate-control",
            "learned-rates",
            "own-gradient",
            "unnormalized",
            "detached",
            "forgotten",
        )
    },
    "sharing_norm": ({"sharing_norm": "per-tensor"}, replace(MAML, per_tensor_norm=True)),
    **{
        f"sharing_norm of {control}": (
            {"sharing_control": control, "sharing_norm": "per-tensor"},
            replace(MAML, sharing=control, per_tensor_norm=True),
        )
        for control in ("own-gradient", "detached", "forgotten")
    },
    "fixed_lambda": ({"fixed_lambda": 0.25}, replace(MAML, fixed_lambda=0.25)),
    "fixed_m": ({"fixed_m": 0.02}, replace(MAML, fixed_m=0.02)),
    "order": ({"order": "first"}, replace(MAML, second_order=False)),
    "first_order_for": ({"first_order_for": "10%"}, replace(MAML, first_order_iterations=1)),
    "batch_norm": ({"batch_norm": "inductive"}, replace(MAML, inductive=True)),
    "batch_norm by default": ({"batch_norm": "auto"}, replace(MAML, inductive=True)),
    "activation": ({"activation": "relu"}, replace(MAML, negative_slope=0.0)),
    "conv_bias": ({"conv_bias": True}, MAML),
    "multi_step_loss": (
        {"method": "maml++", "multi_step_loss": "40%"},
        replace(PLUS_PLUS, multi_step_iterations=4),
    ),
    "per_step_rates": (
        {"method": "maml++", "per_step_rates": False},
        replace(PLUS_PLUS, per_step_rates=False),
    ),
    "per_step_batch_norm": (
        {"method": "maml++", "per_step_batch_norm": False},
        replace(PLUS_PLUS, per_step_batch_norm=False),
    ),
}


def consequences(built: MetaLearner, meta: Tensors) -> dict[str, Tensor]:
    """Of some meta-parameters: two outer iterations, and the logits of Algorithm 2 after them."""
    found: dict[str, Tensor] = {}
    carried = built.init()[1]
    for iteration in range(2):
        step = built.outer_step(meta, carried, tasks(3, seed=iteration), iteration=iteration)
        gradients = torch.autograd.grad(
            step.objective.mean(), list(meta.values()), allow_unused=True, materialize_grads=True
        )
        names = (f"{iteration}: {name}" for name in ("losses", *meta))
        found |= zip(names, (step.losses, *gradients), strict=True)
        carried = step.carried
    new = tasks(2, seed=9)
    return {**found, "logits": built.predict(meta, built.adapt(meta, carried, new), new).detach()}


def assert_same(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-9, atol=1e-12, msg=name)


def as_a_run_builds_it(settings: dict[str, Any]) -> MetaLearner:
    found = build(RunConfig(**{**BASE, **settings})).learner
    assert isinstance(found, MetaLearner)
    found.model.double()
    return found


@pytest.mark.parametrize("setting", ARRIVES)
def test_each_setting_arrives_at_the_learner(setting: str) -> None:
    settings, expected = ARRIVES[setting]
    theirs = learner(expected, conv_bias="conv_bias" in settings)
    ours = as_a_run_builds_it(settings)
    assert_same(ours.init()[0], theirs.init()[0])
    meta = perturbed(theirs.init()[0])
    expectation = consequences(theirs, meta)
    assert_same(consequences(ours, meta), expectation)

    # A setting that changed nothing here would not have to arrive.
    default = as_a_run_builds_it(dict(list(settings.items())[:-1]))
    with pytest.raises(AssertionError):
        assert_same(default.init()[0], theirs.init()[0])
        assert_same(consequences(default, meta), expectation)


@pytest.fixture
def colours(tmp_path: Path) -> dict[str, Any]:
    """Settings of a run on images whose channels differ in mean and spread."""
    random = np.random.default_rng(0)

    def images(split: str, index: int) -> ClassImages:
        noise = random.normal((40, 120, 200), (5, 10, 20), (4, 16, 16, 3)).transpose(0, 3, 1, 2)
        return ClassImages(split, f"{split}-{index}", noise.clip(0, 255).astype(np.uint8))

    write_store(
        tmp_path / "colours" / "16",
        [images(split, index) for split in ("train", "val", "test") for index in range(2)],
        name="colours",
        rotate_classes=False,
        source={},
    )
    return {
        "dataset": "colours",
        "data_root": tmp_path,
        "ways": 2,
        "queries": 2,
        "filters": 4,
        "device": "cpu",
    }


def test_pixels_are_scaled_as_the_setting_says(colours: dict[str, Any]) -> None:
    def normalization(**settings: Any) -> Normalization:
        parts = build(RunConfig(**colours, **settings))
        found = [s.normalization for s in (parts.train, parts.validation, parts.test) if s]  # type: ignore[attr-defined]
        assert found[1:] == found[:1] * 2
        return found[0]  # type: ignore[no-any-return]

    assert normalization(pixel_scaling="unit") == Normalization((0.0,) * 3, (1.0,) * 3)
    imagenet = normalization(pixel_scaling="imagenet")
    assert imagenet == Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    train = build(RunConfig(**colours)).train
    assert isinstance(train, ImageTasks)
    pixels = np.asarray(train.split.images)[:8] / 255  # of "train"
    assert normalization().mean == pytest.approx(pixels.mean((0, 2, 3)), rel=1e-9)
    assert normalization().std == pytest.approx(pixels.std((0, 2, 3)), rel=1e-9)


def test_the_scaling_of_imagenet_needs_colours(tiny: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        build(RunConfig(**tiny, pixel_scaling="imagenet"))
    assert str(error.value) == (
        "--pixel-scaling imagenet is for colour images, tiny has 1 channel; use dataset or unit"
    )


def test_classes_are_turned_in_training_only(tmp_path: Path) -> None:
    images = np.zeros((4, 1, 16, 16), dtype=np.uint8)
    classes = [
        ClassImages(split, f"{split}-{index}", images)
        for split in ("train", "val", "test")
        for index in range(2)
    ]
    write_store(tmp_path / "turned" / "16", classes, name="t", rotate_classes=True, source={})
    parts = build(
        RunConfig(dataset="turned", data_root=tmp_path, ways=2, queries=2, pixel_scaling="unit")
    )
    sources = (parts.train, parts.validation, parts.test)
    assert [s.rotate_classes for s in sources if isinstance(s, ImageTasks)] == [True, False, False]


def test_building_leaves_the_callers_generators_as_they_are(
    monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any]
) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError(seed)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = dict(Conv4(ways=3, image_size=16, channels=1, filters=4).named_parameters())
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    before = torch.get_rng_state()
    parts = build(RunConfig(**tiny, seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(parts.learner, MetaLearner)
    for name, tensor in parts.learner.model.named_parameters():
        assert torch.equal(tensor, expected[name])


def test_the_cosine_goes_from_the_outer_rate_to_its_end() -> None:
    settings = {**BASE, "outer_lr": 0.002, "cosine_annealing_to": 0.0005}
    factor = build(RunConfig(**settings)).options.factor
    assert [0.002 * factor(i) for i in (0, 5, 10)] == pytest.approx([0.002, 0.00125, 0.0005])
    assert build(RunConfig(**BASE)).options.schedule is None


SIGNALS: dict[str, Any] = {
    "dataset": "tests.own:signals",
    "model": "tests.own:Net",
    "ways": 3,
    "queries": 2,
}
SINES: dict[str, Any] = {"dataset": "tests.own:sines", "model": "tests.own:Curve", "loss": "mse"}


def parts_of(**settings: Any) -> Parts:
    return build(RunConfig(**settings))


def test_a_function_gets_what_its_signature_names_and_its_options() -> None:
    parts = parts_of(**SIGNALS, shots=2, model_option={"width": 6}, dataset_option={"noise": 0.1})
    assert isinstance(parts.train, ClassTasks)
    assert (parts.train.ways, parts.train.shots, parts.train.queries) == (3, 2, 2)
    found = parts.learner.model  # type: ignore[attr-defined]
    assert isinstance(found, own.Net)
    assert (found.conv.in_channels, found.conv.out_channels, found.head.out_features) == (2, 6, 3)
    quiet = parts_of(**SIGNALS, dataset_option={"noise": 0.0}).train.batch([0])
    assert torch.equal(quiet.support_x[0, 0], quiet.query_x[0, 0])


def test_a_default_of_ones_own_function_wins_unless_the_option_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my functions.py").write_text(
        "import gradshare as gs\n"
        "from tests import own\n"
        "def make(ways=4, shots=2, queries=3, data_root=None): "
        "return own.signals(ways, shots, queries)\n"
        "def method(model, steps=3, inner_lr=0.5, **options): "
        "return gs.maml(model, steps=steps, inner_lr=inner_lr, **options)\n"
    )
    monkeypatch.chdir(tmp_path)
    names = {
        "dataset": "my functions.py:make",
        "model": "tests.own:Net",
        "method": "my functions.py:method",
    }
    config = resolved(RunConfig(**names, ways=3, inner_lr_scale=2.0, sharing=False))
    assert (config.ways, config.shots, config.queries) == (3, 2, 3)
    assert (config.inner_steps, config.inner_lr) == (3, 0.5)
    parts = build(config)
    assert isinstance(parts.train, ClassTasks) and isinstance(parts.learner, MetaLearner)
    assert (parts.train.ways, parts.train.shots, parts.train.queries) == (3, 2, 3)
    assert parts.learner.steps == 3
    # Read from the run's folder, all of them are given.
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert resolved(RunConfig.from_yaml("config.yaml")) == config
    # An option equal to our default is an option.
    assert resolved(RunConfig(**names, shots=1, queries=15)).shots == 1


def test_a_default_of_ones_own_function_may_be_a_range_or_a_list(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def make(ways=(5, 20), shots=(1, 5), augment=['flip']): pass\n")
    config = resolved(RunConfig(dataset=f"{file}:make", shots=2))
    assert (config.ways, config.shots, config.augment) == ((5, 20), 2, ("flip",))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"method": "anil"}, (5, 0.5)),
        ({"method": "anil", "inner_lr": 0.1}, (5, 0.1)),
        ({"method": "imaml"}, (16, 0.1)),
        ({"method": "boil"}, (5, 0.1)),
    ],
)
def test_a_default_of_a_method_wins_unless_the_option_was_given(
    settings: dict[str, Any], expected: tuple[int, float]
) -> None:
    config = resolved(RunConfig(**settings))
    assert (config.inner_steps, config.inner_lr) == expected


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (("loss",), "--metric loss: --method tests.own:without_loss has no `loss`"),
        (
            ("tests.own:wrong", "tests.own_too:wrong"),
            "--metric tests.own_too:wrong: there are two metrics 'wrong'; rename one",
        ),
    ],
)
def test_a_metric_that_is_not_there_or_twice_is_refused(
    metrics: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "without_loss", lambda model: object(), raising=False)
    settings = {**SIGNALS, "method": "tests.own:without_loss", "sharing": False}
    with pytest.raises(ConfigError) as error:
        parts_of(**settings, metric=metrics)
    assert str(error.value) == message


def test_the_outer_gradient_may_be_clipped() -> None:
    options = parts_of(**SIGNALS, clip_norm=2.0, clamp_gradients=10).options
    assert (options.clip_norm, options.clamp_gradients) == (2.0, 10)


def test_an_option_comes_before_what_the_configuration_gives() -> None:
    parts = parts_of(**SIGNALS, model_option={"classes": 9}, method_option={"steps": 7})
    assert isinstance(parts.learner, MetaLearner)
    assert parts.learner.model.head.out_features == 9  # type: ignore[union-attr]
    assert parts.learner.steps == 7


def test_a_rule_stands_between_sharing_and_the_inner_rate() -> None:
    rule_of_ones_own = {"rule": "tests.own:Momentum", "rule_option": {"beta": 0.25}}
    parts = parts_of(**SIGNALS, **rule_of_ones_own, sharing=True)
    rule = parts.learner.rule  # type: ignore[attr-defined]
    assert isinstance(rule, Chain)
    assert list(rule.rules) == ["sharing", "rule", "sgd"]
    assert isinstance(rule.rules["rule"], own.Momentum)
    assert rule.rules["rule"].beta == 0.25


def test_a_method_gets_the_options_of_meta_learner_by_its_double_star() -> None:
    parts = parts_of(**SIGNALS, method="tests.own:plain", sharing=False, order="first")
    assert isinstance(parts.learner, MetaLearner)
    assert parts.learner.second_order is False
    assert (parts.learner.steps, parts.learner.loss) == (5, F.cross_entropy)


def test_registered_models_and_methods(tiny: dict[str, Any]) -> None:
    small = {"widths": [4, 4, 4, 4], "drop_rate": 0.0}
    settings = {**tiny, "model": "resnet12", "model_option": small, "filters": 48}
    parts = parts_of(**{**settings, "method": "unicorn-maml"})
    assert isinstance(parts.learner, UnicornMAML)
    assert isinstance(parts.learner.model, ResNet12)
    assert parts.learner.model.linear.out_features == 3
    assert next(parts.learner.model.parameters()).shape == (4, 1, 3, 3)


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"loss": "tests.own:doubled"}, 2),
        ({"loss": "tests.own:doubled", "loss_option": {"factor": 3}}, 3),
        ({"loss": "tests.own:Scaled", "loss_option": {"factor": 4}}, 4),
        ({}, 1),
    ],
)
def test_a_loss_is_a_function_or_a_class_of_functions(
    settings: dict[str, Any], factor: float
) -> None:
    outputs, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    loss = parts_of(**SIGNALS, **settings).learner.loss  # type: ignore[attr-defined]
    expected = factor * F.cross_entropy(outputs, targets)
    torch.testing.assert_close(loss(outputs, targets), expected)


def test_the_first_metric_is_the_score_and_the_loss_is_always_measured() -> None:
    options = parts_of(**SIGNALS).options
    assert options.metrics is None  # by the targets
    options = parts_of(**SIGNALS, metric=("tests.own:errors", "accuracy")).options
    assert options.metrics is not None
    assert list(options.metrics) == ["errors", "accuracy", "loss"]
    assert options.score is None  # the first
    assert options.metrics["errors"] is own.errors
    assert options.metrics["accuracy"].chance == pytest.approx(1 / 3)
    options = parts_of(**SINES, metric="mse").options
    assert options.metrics is not None
    assert {name: m.best for name, m in options.metrics.items()} == {"mse": "low", "loss": "low"}


def test_a_metric_that_is_a_function_takes_the_options_of_metric() -> None:
    settings = {"metric": ("loss", "tests.own:wrong"), "metric_option": {"best": "low"}}
    metrics = parts_of(**SIGNALS, **settings).options.metrics
    assert metrics is not None
    assert (metrics["wrong"].function, metrics["wrong"].best) == (own.wrong, "low")


def test_a_metric_of_ones_own_that_is_called_loss_is_the_one_that_is_measured(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def loss(outputs, targets): return 7.0\n")
    metrics = parts_of(**SIGNALS, metric=("accuracy", f"{file}:loss")).options.metrics
    assert metrics is not None
    assert list(metrics) == ["accuracy", "loss"]
    assert metrics["loss"].function(torch.zeros(1), None) == 7


def test_a_dataset_may_have_no_test() -> None:
    assert parts_of(**SINES).test is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"filters": 3},
            "--filters 3 is not read by --model tests.own:Net, which has no parameter 'filters'; "
            "leave it out",
        ),
        (
            {"image_size": 28},
            "--image-size 28 is not read by --dataset tests.own:signals, which has no parameter "
            "'image_size'; leave it out",
        ),
        (
            {"method": "tests.own:plain", "sharing": False, "inner_lr": 0.2},
            "--inner-lr 0.2 is not read by --method tests.own:plain, which has no parameter "
            "'inner_lr'; leave it out",
        ),
        (
            {"method": "tests.own:plain"},
            "--method tests.own:plain has no parameter 'sharing', so it cannot share gradients; "
            "add --no-sharing",
        ),
        (
            {"method": "tests.own:plain", "fixed_lambda": 0.5},
            "--fixed-lambda 0.5 is not read by --method tests.own:plain, which has no parameter "
            "'sharing'; leave it out",
        ),
        (
            {"model_option": {"wdth": 3}},
            "--model 'tests.own:Net': got an unexpected keyword argument 'wdth'; it takes classes, "
            "channels, width, as --model-option NAME=VALUE",
        ),
        (
            {"model": "conv4", "model_option": {"wdth": 3}},
            "--model 'conv4': got an unexpected keyword argument 'wdth'; it takes ways, "
            "image_size, channels, filters, activation, conv_bias, as --model-option NAME=VALUE",
        ),
        (
            {"loss_option": {"smoothing": 0.1}},
            "--loss 'cross-entropy': got an unexpected keyword argument 'smoothing'; it takes "
            "weight, size_average, ignore_index, reduce, reduction, label_smoothing, as "
            "--loss-option NAME=VALUE",
        ),
        (
            {"metric": "tests.own:wrong", "metric_option": {"worst": 1}},
            "--metric 'tests.own:wrong': got an unexpected keyword argument 'worst'; it takes "
            "function, best, unit, chance, as --metric-option NAME=VALUE",
        ),
        (
            {"metric": "tests.own:errors", "metric_option": {"best": "low"}},
            "--metric-option best: tests.own:errors is a Metric, which has its own; leave it out",
        ),
        (
            {"metric_option": {"best": "low"}},
            "--metric-option best needs a --metric that is an import path; leave it out",
        ),
        (
            {"model": "tests.own:Curve", "dataset": "tests.own:sines", "queries": 15, "ways": 5},
            "--loss cross-entropy needs classes, and the targets of tests.own:sines are real "
            "values; add --loss mse, or a loss of your own",
        ),
        (
            {"dataset": "tests.own:broken", "queries": 15, "ways": 5},
            "--dataset 'tests.own:broken': train is 3; give a source of tasks: an object with "
            "`batch(indices) -> TaskBatch`, such as gradshare.ClassTasks(x, y)",
        ),
        (
            {"dataset": "tests.own:nothing", "queries": 15, "ways": 5},
            "--dataset 'tests.own:nothing' returned 3; return gradshare.Splits(train, "
            "validation, test)",
        ),
        (
            {"dataset": "tests.own:sines", "queries": 15, "ways": 5},
            "--model 'tests.own:Net': missing a required argument: 'classes'; it takes classes, "
            "channels, width, as --model-option NAME=VALUE",
        ),
    ],
)
def test_what_is_not_read_or_does_not_fit_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        parts_of(**{**SIGNALS, **settings})
    assert str(error.value) == message


def test_a_prepared_dataset_takes_no_options(tiny: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        parts_of(**tiny, dataset_option={"noise": 1})
    assert str(error.value) == (
        "--dataset-option noise: the dataset 'tiny' takes no options; leave it out"
    )
