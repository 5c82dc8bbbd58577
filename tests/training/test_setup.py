"""From a configuration to the parts of a run: that every setting arrives, and what building them
does to the process it happens in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradshare.config import RunConfig
from gradshare.errors import ConfigError
from gradshare.inner_loop import Tensors
from gradshare.methods import MetaLearner
from gradshare.models import Conv4
from gradshare.tasks.store import ClassImages, write_store
from gradshare.training.distributed import OneProcess
from gradshare.training.setup import _device_of_run, build_learner, choose_device, set_up
from tests.oracle import Setting
from tests.problems import learner, perturbed, tasks

CPU = torch.device("cpu")

# What `Setting` and `RunConfig` are given alike: three steps of two iterations out of ten.
BASE = {
    "ways": 3,
    "filters": 4,
    "inner_steps": 3,
    "inner_lr": 0.4,
    "epochs": 2,
    "iterations_per_epoch": 5,
    "tasks": "loop",
    "memory": "keep",
}
MAML = Setting("maml", "sharing", 3, 0.4)
META_SGD = replace(MAML, method="meta-sgd")
PLUS_PLUS = replace(MAML, method="maml++", multi_step_iterations=2, per_step_batch_norm=True)

# The settings of a run, and what they are to come to.
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


def consequences(built: MetaLearner, outer: Tensors) -> dict[str, Tensor]:
    """Of some outer parameters: two outer iterations, and the logits of Algorithm 2 after them."""
    found: dict[str, Tensor] = {}
    state = built.init()[1]
    for iteration in range(2):
        step = built.outer_step(outer, state, tasks(3, seed=iteration), iteration=iteration)
        gradients = torch.autograd.grad(
            step.losses.mean(), list(outer.values()), allow_unused=True, materialize_grads=True
        )
        found |= {
            f"{iteration}: {name}": tensor
            for name, tensor in zip(
                ("losses", *outer), (step.losses.detach(), *gradients), strict=True
            )
        }
        state = step.state
    new = tasks(2, seed=9)
    adapted = built.adapt(outer, state, new).params[-1]
    logits = built.predict(outer, adapted, new, updates=built.steps)
    return {**found, "logits": logits.detach()}


def assert_same(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-9, atol=1e-12, msg=name)


def as_a_run_builds_it(settings: dict[str, Any]) -> MetaLearner:
    found, _ = build_learner(RunConfig(**{**BASE, **settings}), (2, 16, 16), CPU)
    found.model.double()
    return found


@pytest.mark.parametrize("setting", ARRIVES)
def test_every_setting_arrives_at_the_learner(setting: str) -> None:
    settings, expected = ARRIVES[setting]
    theirs = learner(expected, conv_bias="conv_bias" in settings)
    ours = as_a_run_builds_it(settings)
    assert_same(ours.init()[0], theirs.init()[0])
    outer = perturbed(theirs.init()[0])
    expectation = consequences(theirs, outer)
    assert_same(consequences(ours, outer), expectation)

    # A setting that changed nothing here would not have to arrive.
    default = as_a_run_builds_it(dict(list(settings.items())[:-1]))
    with pytest.raises(AssertionError):
        assert_same(default.init()[0], theirs.init()[0])
        assert_same(consequences(default, outer), expectation)


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
    def scaled(**settings: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        found = set_up(RunConfig(**colours, **settings)).normalization
        return tuple(found.mean), tuple(found.std)

    assert scaled(pixel_scaling="unit") == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert scaled(pixel_scaling="imagenet") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    pixels = np.asarray(set_up(RunConfig(**colours)).train.split.images)[:8] / 255  # of "train"
    mean, std = scaled()
    assert mean == pytest.approx(pixels.mean((0, 2, 3)), rel=1e-9)
    assert std == pytest.approx(pixels.std((0, 2, 3)), rel=1e-9)


def test_building_a_learner_leaves_the_callers_generators_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError(seed)

    config, shape = RunConfig(seed=3, filters=4), (1, 16, 16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = dict(Conv4(ways=5, image_size=16, channels=1, filters=4).named_parameters())
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    before = torch.get_rng_state()
    learner, _ = build_learner(config, shape, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in learner.model.named_parameters():
        assert torch.equal(tensor, expected[name])


def test_a_device_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*size: int, device: torch.device) -> Tensor:
        raise RuntimeError(f"no {device} here\nand a trace of where that was noticed")

    monkeypatch.setattr(torch, "empty", missing)
    with pytest.raises(ConfigError) as error:
        choose_device("cuda:7")
    assert str(error.value) == (
        "--device 'cuda:7' cannot be used here (no cuda:7 here); use another"
    )


TF32: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)


@pytest.fixture
def tf32() -> Iterator[None]:
    """TF32 is on, and afterwards as it was."""
    before = [place.allow_tf32 for place in TF32]
    for place in TF32:
        place.allow_tf32 = True
    yield
    for place, was in zip(TF32, before, strict=True):
        place.allow_tf32 = was


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_float32_on_a_gpu_is_no_tf32(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
    assert _device_of_run("auto", OneProcess()).type == kind
    assert [place.allow_tf32 for place in TF32] == [kind == "cpu"] * 2
