"""The settings of a run: name, type, default, bounds and description of each.

A description is the option's `--help`. Nothing here needs torch.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from gradshare.config.names import stored_name

# The same as in the modules that they belong to, which import torch.
Norm = Literal["global", "per-tensor"]
Activation = Literal["leaky_relu", "relu"]
BatchNormMode = Literal["auto", "inductive", "transductive"]
Precision = Literal["float32", "bfloat16"]
Size = int | tuple[int, int]
Resize = Literal["stretch", "center-crop"]
OnDivergence = Literal["stop", "skip", "record"]
Start = Literal["random", "supervised"]
Augmentation = Literal["flip", "crop", "colour"]
SEEDS = 2**22

MOST_STEPS = 10_000
"""Inner steps; one task of more would take minutes."""

SharingControl = Literal[
    "rate-control", "learned-rates", "own-gradient", "unnormalized", "detached", "forgotten"
]


def home_path(value: Any) -> Any:
    """A path whose ~ is replaced by the user's home; no shell replaces it in `--out=~/runs`."""
    try:
        return Path(value).expanduser() if isinstance(value, str | Path) else value
    except RuntimeError as error:
        raise ValueError(f"there is no user {str(value).split('/')[0].lstrip('~')!r}") from error


def _span(value: object) -> str:
    text = str(value).strip()
    number = text.removesuffix("%")
    try:
        valid = 0 <= float(number) <= 100 if text.endswith("%") else 0 <= int(number) < 2**63
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("give a number of iterations like 7500, or a share of the run like 15%")
    return text


def _words(value: Any) -> Any:
    """The words of a text like "flip,crop", or of several texts."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        return value
    parts = (text.split(",") if isinstance(text, str) else [text] for text in given)
    return tuple(word for words in parts for word in words)


def _size(least: int) -> BeforeValidator:
    """A validator of a whole number, or of a range such as "5-20", in a file also [5, 20]."""

    def validated(value: Any) -> Any:
        given = value.split("-") if isinstance(value, str) else value
        given = given if isinstance(given, list | tuple) else [given]
        bounds: Any = [int(b) if isinstance(b, str) and b.strip().isdecimal() else b for b in given]
        whole = all(type(b) is int and least <= b < 2**31 for b in bounds)
        if not whole or len(bounds) not in (1, 2) or bounds[0] > bounds[-1]:
            raise ValueError(
                f"give a whole number from {least} to {2**31 - 1}, or a range such as 5-20"
            )
        return bounds[0] if bounds[0] == bounds[-1] else tuple(bounds)

    return BeforeValidator(validated)


Count = Annotated[int, Field(ge=1, lt=2**31)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Span = Annotated[str, BeforeValidator(_span)]
"""The first part of a run: a number of iterations, or a percentage of the run."""
HomePath = Annotated[Path, BeforeValidator(home_path)]
Metric = Annotated[str, AfterValidator(functools.partial(stored_name, "metric"))]
Metrics = Annotated[tuple[Metric, ...], BeforeValidator(_words)]
Augment = Annotated[tuple[Augmentation, ...], BeforeValidator(_words)]
Names = Annotated[tuple[str, ...], BeforeValidator(_words)]
Options = dict[str, JsonValue]

HEADINGS = {
    "dataset": "Data",
    "ways": "Tasks",
    "method": "Inner loop and sharing",
    "multi_step_loss": "Parts of MAML++ (read by --method maml++ only)",
    "start": "Outer loop",
    "metric": "Evaluation",
    "seed": "Machine and output",
}
"""The headings of the command line's help, each by the first setting under it."""

PLUS_FIELDS = ("multi_step_loss", "per_step_rates", "per_step_batch_norm")
MACHINE_FIELDS = ("data_root", "device", "threads", "workers")
"""Where and how fast a run goes; it may be continued with other values."""


def _options(kind: str, what: str) -> Any:
    return Field({}, description=f"option of the {kind}, {what}; repeat for more")


class Settings(BaseModel):
    """The fields of `RunConfig`."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )

    dataset: str = Field(
        "glyphs",
        description="a prepared dataset (see `gradshare data`), or the import path of a function "
        "that returns gradshare.Splits",
    )
    dataset_option: Options = _options("dataset", "if it is an import path")
    data_root: HomePath = Field(Path("data"), description="folder of prepared datasets")
    image_size: Annotated[int, Field(ge=16, lt=2**15)] | None = Field(
        None, description="height and width of the images in pixels; default: the dataset's own"
    )
    resize: Resize = Field(
        "stretch", description="how the images were brought to that size when they were prepared"
    )
    pixel_scaling: Literal["dataset", "imagenet", "unit"] = Field(
        "dataset",
        description="how pixels are scaled after division by 255: standardised with the mean and "
        "standard deviation of the dataset, with those of ImageNet (the reference MAML++ loader), "
        "or not standardised (unit; torchmeta)",
    )
    test_dataset: str | None = Field(
        None,
        description="test on this prepared dataset instead; its images are normalised as in "
        "training",
    )
    augment: Augment = Field(
        (),
        description="how training images are changed: flip (mirrored left to right), crop (moved "
        "by up to a tenth of their size), colour (brightness, contrast, saturation), or several "
        "like flip,crop. Only if it leaves a label what it was",
    )

    ways: Annotated[Size, _size(2)] = Field(
        5,
        description="classes in a task; of a range such as 5-20 each task draws its own number, "
        "which unicorn-maml, proto-maml and protonet can take",
    )
    shots: Annotated[Size, _size(1)] = Field(
        1, description="support examples of each class, or a range such as 1-5"
    )
    queries: Count = Field(15, description="query examples of each class")
    task_batch: Count = Field(5, description="tasks in an outer iteration (the paper's T)")

    method: str = Field(
        "maml",
        description="meta-learning method: maml, meta-sgd, maml++, unicorn-maml (the default on "
        "features), anil, boil, alfa, proto-maml, reptile, imaml, protonet, or an import path",
    )
    method_option: Options = _options("method", "such as head=classifier")
    model: str = Field(
        "conv4",
        description="network: conv4, resnet12, mlp (for rows of numbers; the default on features), "
        "or an import path",
    )
    model_option: Options = _options("model", "such as drop_rate=0.2")
    init_from: HomePath | None = Field(
        None,
        description="start from the weights in this file: safetensors, or a state dictionary that "
        "torch.save wrote; a head of another shape starts as it is",
    )
    freeze: Names = Field(
        (),
        description="name of a part of the network that stays as it is, such as features or "
        "layer[1-3]; repeat for more",
    )
    rule: str | None = Field(
        None,
        description="inner optimiser before the multiplication by the inner learning rate: "
        "momentum, rmsprop, adam, or the import path of an update rule of your own",
    )
    rule_option: Options = _options("rule", "such as beta1=0.5")
    loss: str = Field(
        "cross-entropy", description="inner and outer loss: cross-entropy, mse, or an import path"
    )
    loss_option: Options = _options("loss", "such as label_smoothing=0.1")
    sharing: bool = Field(
        True,
        description="share gradients between tasks; off by default where --rule is given, and for "
        "reptile, imaml and protonet, which cannot share",
    )
    sharing_control: SharingControl | None = Field(
        None,
        description="replace sharing by a control. rate-control: the learned gate with nothing "
        "shared; learned-rates: one learned rate for each step; own-gradient: the task's own "
        "normalised gradient instead of ĝ; unnormalized: without the norm of Eq. 1; detached: no "
        "outer gradient through g; forgotten: ĝ = 0 at validation and test",
    )
    fixed_lambda: Share | None = Field(
        None, description="fix σ(λ) of every step at this value instead of learning λ"
    )
    fixed_m: Share | None = Field(
        None,
        description="fix σ(m) of every step at this value instead of learning m; with 1, only the "
        "tasks of the same batch share",
    )
    sharing_norm: Norm = Field(
        "global", description="norm of Eq. 1: over all parameters together, or for each tensor"
    )
    inner_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = Field(
        5, description="inner gradient steps (the paper's K); imaml has 16 unless told otherwise"
    )
    inner_lr: Positive = Field(
        0.1,
        description="inner learning rate, or the initial value of learned rates; anil has 0.5 "
        "unless told otherwise",
    )
    inner_lr_scale: Positive = Field(
        1.0, description="factor of --inner-lr (10 in the paper's tenfold experiment)"
    )
    order: Literal["second", "first"] = Field(
        "second", description="whether the outer gradient passes through the inner gradients"
    )
    batch_norm: BatchNormMode = Field(
        "auto",
        description="batch norm statistics of the queries: those of the support set (inductive), "
        "or those of all queries of the task together (transductive, as in the paper); auto: "
        "inductive if the model can, as conv4 and resnet12",
    )
    filters: Count = Field(48, description="filters of each convolution of conv4")
    activation: Activation = Field(
        "leaky_relu",
        description="activation of conv4: leaky_relu (slope 0.01) as in the reference code, or "
        "relu as in the paper's text",
    )
    conv_bias: bool = Field(
        False, description="biases in the convolutions of conv4; batch norm cancels them"
    )

    multi_step_loss: Span = Field(
        "15%",
        description="how long the losses after all inner steps count, with weights that are "
        "annealed to the last step: iterations or a share of the run; 0 for never (the reference: "
        "7500 of 50000)",
    )
    per_step_rates: bool = Field(True, description="learn an inner rate for each tensor and step")
    per_step_batch_norm: bool = Field(True, description="learn a γ and β for each inner step")

    start: Start = Field(
        "random",
        description="what the model starts from: random weights, or weights that were trained to "
        "tell all training classes apart (supervised; the default on features)",
    )
    start_iterations: Count = Field(300, description="steps of the supervised start")
    epochs: Count = Field(10, description="epochs; each ends with a validation")
    iterations_per_epoch: Count = Field(50, description="outer iterations in an epoch")
    patience: Count | None = Field(
        None,
        description="end the training after so many epochs in a row without a better validation "
        "score",
    )
    outer_lr: Annotated[float, Field(ge=0)] = Field(
        0.001, description="learning rate of the outer Adam; 0 learns nothing"
    )
    first_order_for: Span = Field(
        "0",
        description="how long training is first order before it is second order (MAML++'s "
        "derivative-order annealing): iterations or a share of the run",
    )
    cosine_annealing_to: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="anneal the outer learning rate to this value by a cosine (MAML++ on "
        "Omniglot: 1e-5)",
    )
    clamp_gradients: Positive | None = Field(
        None,
        description="clamp each entry of the model's outer gradient to ± this value (the reference "
        "code: 10 on mini-ImageNet); m, λ and learned rates are never clamped",
    )
    clip_norm: Positive | None = Field(
        None, description="scale the outer gradient down to this norm if it is longer"
    )
    on_divergence: OnDivergence = Field(
        "record",
        description="what to do when a loss or gradient is not finite: stop with an error, skip "
        "the iteration, or end the run and record that as its result",
    )

    metric: Metrics = Field(
        (),
        description="what is measured: accuracy, loss, mse, or an import path; repeat for more. "
        "The first one selects checkpoints. Default: accuracy for classes, else the loss",
    )
    metric_option: Options = _options(
        "metric", "such as best=low; of the first one that is an import path"
    )
    val_tasks: Count = Field(200, description="validation tasks, the same after every epoch")
    test_tasks: Count = Field(600, description="test tasks, the same for every run")
    ensemble: Annotated[int, Field(ge=1, le=1000)] = Field(
        5, description="how many of the best checkpoints are kept, and averaged in the test"
    )

    seed: Annotated[int, Field(ge=0, lt=SEEDS)] = Field(
        0, description="seed of the initialisation and of the training tasks"
    )
    device: str = Field("auto", description="auto (CUDA if there is one), cpu, cuda or cuda:N")
    tasks: Literal["auto", "loop", "vmap"] = Field(
        "auto",
        description="compute the tasks of a batch one after the other (loop) or all at once "
        "(vmap); auto: what is usually faster for this network on this device",
    )
    memory: Literal["auto", "keep", "recompute"] = Field(
        "auto",
        description="keep the graphs of all inner steps for the backward pass, or recompute them "
        "in it, which takes memory that does not grow with --inner-steps; auto: keep if that takes "
        "at most 4 GiB on a CPU, 16 GiB on a GPU",
    )
    precision: Precision = Field(
        "float32",
        description="of convolutions and matrix products: float32, or bfloat16 (mixed precision), "
        "which is faster on processors that have instructions for it and changes results",
    )
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(
        0,
        description="CPU threads of each process; 0: as many as PyTorch takes (OMP_NUM_THREADS, or "
        "all cores), shared out among several processes",
    )
    workers: Count = Field(
        1, description="processes on this machine that share out the tasks of each batch"
    )
