"""From a configuration to the parts of a run: data, samplers, model, meta-learner."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gradshare.config import RunConfig, SharingControl
from gradshare.errors import ConfigError
from gradshare.inner_loop import (
    DetachedSharing,
    ForgottenAtTest,
    GradientSharing,
    Held,
    LearnedRates,
    OwnGradient,
    RateControl,
    UnnormalizedSharing,
    UpdateRule,
)
from gradshare.methods import MetaLearner, maml, maml_plus_plus, meta_sgd
from gradshare.models import Conv4
from gradshare.tasks import EpisodeSampler, ImageStore, Normalization
from gradshare.tasks.datasets import open_dataset
from gradshare.training.distributed import OneProcess
from gradshare.training.layout import Layout, choose_layout

# Of the validation and test tasks: the same for every seed, so that runs differ in their training
# alone and can be compared task by task.
EVALUATION_SEED = 0

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Setup:
    """The parts of a run.

    Attributes:
        learner: the meta-learner, its model on `device`.
        normalization: from stored images to what the model takes.
        train: sampler of training tasks.
        val: sampler of validation tasks.
        test: sampler of test tasks.
        device: where it all runs.
        image_shape: (C, H, W).
        images_sha256: of all the dataset's images.
        layout: how the work is laid out there.
        processes: that the run is shared by.
    """

    learner: MetaLearner
    normalization: Normalization
    train: EpisodeSampler
    val: EpisodeSampler
    test: EpisodeSampler
    device: torch.device
    image_shape: tuple[int, int, int]
    images_sha256: str
    layout: Layout
    processes: OneProcess = field(default_factory=OneProcess)

    @property
    def images(self) -> int:
        """How many the dataset has, in all splits."""
        return sum(int(s.split.counts.sum()) for s in (self.train, self.val, self.test))


def set_up(config: RunConfig, processes: OneProcess | None = None) -> Setup:
    """Open the data and build the learner, initialised from the seed.

    On a GPU this turns TF32 off, for the whole process.

    Args:
        config: of the run.
        processes: that the run is shared by; None for one alone.

    Raises:
        DataError: the dataset is unknown, not prepared, damaged, or too small for these tasks.
        ConfigError: the device or the pixel scaling cannot be used.
    """
    processes = processes or OneProcess()
    device = _device_of_run(config.device, processes)
    store = open_dataset(config.dataset, config.data_root, config.image_size, config.resize)

    def sampler(split: str, seed: int) -> EpisodeSampler:
        return EpisodeSampler(
            store.splits[split],
            ways=config.ways,
            shots=config.shots,
            queries=config.queries,
            seed=seed,
            rotate_classes=store.rotate_classes and split == "train",
        )

    learner, layout = build_learner(config, store.image_shape, device)
    learner.model.to(device)
    return Setup(
        learner=learner,
        normalization=_normalization(config, store),
        train=sampler("train", config.seed),
        val=sampler("val", EVALUATION_SEED),
        test=sampler("test", EVALUATION_SEED),
        device=device,
        image_shape=store.image_shape,
        images_sha256=store.sha256,
        processes=processes,
        layout=layout,
    )


def build_learner(
    config: RunConfig, image_shape: Sequence[int], device: torch.device
) -> tuple[MetaLearner, Layout]:
    """The meta-learner of a configuration for (C, H, W) images, laid out for a device, and how.

    Its model is on the CPU still.
    """
    channels, size, _ = image_shape
    # The model's first parameters are drawn on the CPU. `torch.manual_seed` would seed every GPU's
    # generator too, which `fork_rng` does not put back here.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = Conv4(
            ways=config.ways,
            image_size=size,
            channels=channels,
            filters=config.filters,
            activation=config.activation,
            conv_bias=config.conv_bias,
        )
    layout = choose_layout(config, model, image_shape, device)
    options: dict[str, Any] = {
        "steps": config.inner_steps,
        "inner_lr": config.inner_rate,
        "sharing": _sharing(config),
        "second_order": config.order == "second",
        "first_order_iterations": config.span(config.first_order_for),
        "batch_norm": config.batch_norm,
        "tasks_at_a_time": layout.tasks_at_a_time,
        "recompute": layout.recompute,
        "precision": config.precision,
    }
    if config.method == "maml":
        return maml(model, **options), layout
    if config.method == "meta-sgd":
        return meta_sgd(model, **options), layout
    plus_plus = maml_plus_plus(
        model,
        multi_step_iterations=config.span(config.multi_step_loss),
        per_step_rates=config.per_step_rates,
        per_step_batch_norm=config.per_step_batch_norm,
        **options,
    )
    return plus_plus, layout


def choose_device(name: str) -> torch.device:
    """The device that a name stands for; "auto" is CUDA where there is one.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigError(f"--device {name!r} is unknown; use auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--device {name!r} cannot be used here ({reason}); use another"
        ) from error
    return device


def _device_of_run(name: str, processes: OneProcess) -> torch.device:
    """The device that a process of a run computes on, made ready."""
    device = _own_device(choose_device(name), processes)
    keep_float32(device)
    return device


def keep_float32(device: torch.device) -> None:
    """Turn TF32 off, for the whole process: on newer GPUs PyTorch lets cuDNN round float32 to it,
    with 10 bits after the point, in convolutions. That would be another precision than the one that
    a configuration names.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def _own_device(device: torch.device, processes: OneProcess) -> torch.device:
    """Of the GPUs of a machine each process takes its own."""
    if device.type == "cpu" or processes.local_size == 1:
        return device
    count = torch.cuda.device_count()
    if device.index is not None or processes.local_size > count:
        raise ConfigError(
            f"{processes.local_size} processes on this machine need a GPU each, and --device "
            f"{device} has {count if device.index is None else 1}; start fewer processes, or use "
            "--device cpu"
        )
    return torch.device("cuda", processes.local_rank)


def _sharing(config: RunConfig) -> UpdateRule | None:
    if not config.sharing:
        return None
    steps, norm = config.inner_steps, config.sharing_norm
    rules: dict[SharingControl | None, Callable[[], UpdateRule]] = {
        None: lambda: GradientSharing(steps, norm=norm),
        "rate-control": lambda: RateControl(steps),
        "learned-rates": lambda: LearnedRates(steps),
        "own-gradient": lambda: OwnGradient(steps, norm=norm),
        "unnormalized": lambda: UnnormalizedSharing(steps),
        "detached": lambda: DetachedSharing(steps, norm=norm),
        "forgotten": lambda: ForgottenAtTest(steps, norm=norm),
    }
    rule = rules[config.sharing_control]()
    gates = {"lambda": config.fixed_lambda, "m": config.fixed_m}
    held = {name: gate for name, gate in gates.items() if gate is not None}
    return Held(rule, held) if held else rule


def _normalization(config: RunConfig, store: ImageStore) -> Normalization:
    channels = store.image_shape[0]
    if config.pixel_scaling == "unit":
        return Normalization((0.0,) * channels, (1.0,) * channels)
    if config.pixel_scaling == "imagenet":
        if channels != len(IMAGENET_MEAN):
            raise ConfigError(
                f"--pixel-scaling imagenet is for colour images, {store.name} has {channels} "
                "channel; use dataset or unit"
            )
        return Normalization(IMAGENET_MEAN, IMAGENET_STD)
    return Normalization(store.mean, store.std)
