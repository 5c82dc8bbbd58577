"""The settings of a run: name, type, default, bounds and help of each.

Nothing here needs torch.
"""

from __future__ import annotations

import functools
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
)

from gradshare.config.names import stored_name
from gradshare.errors import ConfigError

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

LARGEST = 2**31 - 1
"""The bound of counts that have no other."""

MOST_STEPS = 10_000
"""Inner steps; one task of more would take minutes."""

SharingControl = Literal[
    "rate-control", "learned-rates", "own-gradient", "unnormalized", "detached", "forgotten"
]


def home_path(value: Any) -> Path:
    """A path whose ~ is replaced by the user's home; no shell replaces it in `--out=~/runs`."""
    if value == "":  # it would be the current folder
        raise ValueError("it is empty; name a file or folder")
    if not isinstance(value, str | Path):
        raise ValueError("must be a path")  # noqa: TRY004  # pydantic reads no other
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"there is no user {str(value).split('/')[0].lstrip('~')!r}") from error


def _name(kind: str) -> AfterValidator:
    """A validator of a registered name or an import path."""
    return AfterValidator(functools.partial(stored_name, kind))


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
        raise ValueError("must be a text or a list of texts")  # noqa: TRY004
    parts = (text.split(",") if isinstance(text, str) else [text] for text in given)
    return tuple(word for words in parts for word in words)


def _size(least: int) -> BeforeValidator:
    """A validator of a whole number, or of a range such as "5-20", in a file also [5, 20]."""

    def validated(value: Any) -> Any:
        given = value.split("-") if isinstance(value, str) else value
        given = given if isinstance(given, list | tuple) else [given]
        bounds: Any = [int(b) if isinstance(b, str) and b.strip().isdecimal() else b for b in given]
        whole = all(type(b) is int and least <= b <= LARGEST for b in bounds)
        if not whole or len(bounds) not in (1, 2) or bounds[0] > bounds[-1]:
            raise ValueError(
                f"give a whole number from {least} to {LARGEST}, or a range such as 5-20"
            )
        return bounds[0] if bounds[0] == bounds[-1] else tuple(bounds)

    return BeforeValidator(validated)


Count = Annotated[int, Field(ge=1, le=LARGEST)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Span = Annotated[str, BeforeValidator(_span)]
"""The first part of a run: a number of iterations, or a percentage of the run."""
HomePath = Annotated[Path, BeforeValidator(home_path)]
Paths = tuple[HomePath, ...]
Metrics = Annotated[tuple[Annotated[str, _name("metric")], ...], BeforeValidator(_words)]
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


class Declared(BaseModel):
    """Options of a command: each is a field, and its docstring is the option's help.

    Raises:
        ConfigError: a value is of another type, or out of bounds.
    """

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(e) for e in error.errors())) from error


class Settings(Declared):
    """The fields of `RunConfig`."""

    dataset: Annotated[str, _name("dataset")] = "glyphs"
    """A prepared dataset (see `gradshare data`), or the import path of a function that returns
    gradshare.Splits."""
    dataset_option: Options = {}
    """Option of the dataset, if it is an import path; repeat for more."""
    data_root: HomePath = Path("data")
    """Folder of prepared datasets."""
    image_size: Annotated[int, Field(ge=16, lt=2**15)] | None = None
    """Height and width of the images in pixels; default: the dataset's own."""
    resize: Resize = "stretch"
    """How the images were resized when they were prepared."""
    pixel_scaling: Literal["dataset", "imagenet", "unit"] = "dataset"
    """How pixels are scaled after division by 255: standardised with the mean and standard
    deviation of the dataset, with those of ImageNet (the reference MAML++ loader), or not
    standardised (unit; torchmeta)."""
    test_dataset: str | None = None
    """Test on this prepared dataset instead; its images are normalised as in training."""
    augment: Augment = ()
    """How training images are changed: flip (mirrored left to right), crop (moved by up to a tenth
    of their size), colour (brightness, contrast, saturation), or several like flip,crop. Use only
    changes that leave the labels right."""

    ways: Annotated[Size, _size(2)] = 5
    """Classes in a task, at least 2; of a range such as 5-20 each task draws its own number, which
    unicorn-maml, proto-maml and protonet can take."""
    shots: Annotated[Size, _size(1)] = 1
    """Support examples of each class, or a range such as 1-5."""
    queries: Count = 15
    """Query examples of each class."""
    task_batch: Count = 5
    """Tasks in an outer iteration (the paper's T)."""

    method: Annotated[str, _name("method")] = "maml"
    """Meta-learning method: maml, meta-sgd, maml++, unicorn-maml (the default on features), anil,
    boil, alfa, proto-maml, reptile, imaml, protonet, or an import path."""
    method_option: Options = {}
    """Option of the method, such as head=classifier; repeat for more."""
    model: Annotated[str, _name("model")] = "conv4"
    """Network: conv4, resnet12, mlp (for rows of numbers; the default on features), or an import
    path."""
    model_option: Options = {}
    """Option of the model, such as drop_rate=0.2; repeat for more."""
    init_from: HomePath | None = None
    """Start from the weights in this file: safetensors, or a state dictionary that torch.save
    wrote; a head of another shape starts as it is."""
    freeze: Names = ()
    """Name of a part of the network that stays as it is, such as features or layer[1-3]; repeat for
    more."""
    rule: Annotated[str, _name("rule")] | None = None
    """Inner optimiser before the multiplication by the inner learning rate: momentum, rmsprop,
    adam, or the import path of an update rule of your own."""
    rule_option: Options = {}
    """Option of the rule, such as beta1=0.5; repeat for more."""
    loss: Annotated[str, _name("loss")] = "cross-entropy"
    """Inner and outer loss: cross-entropy, mse, or an import path."""
    loss_option: Options = {}
    """Option of the loss, such as label_smoothing=0.1; repeat for more."""
    sharing: bool = True
    """Share gradients between tasks; off by default where --rule is given, and for reptile, imaml
    and protonet, which cannot share."""
    sharing_control: SharingControl | None = None
    """Replace sharing by a control. rate-control: the learned gate with nothing shared;
    learned-rates: one learned rate for each step; own-gradient: the task's own normalised gradient
    instead of ĝ; unnormalized: without the norm of Eq. 1; detached: no outer gradient through g;
    forgotten: ĝ = 0 at validation and test."""
    fixed_lambda: Share | None = None
    """Fix σ(λ) of every step at this value instead of learning λ."""
    fixed_m: Share | None = None
    """Fix σ(m) of every step at this value instead of learning m; with 1, only the tasks of the
    same batch share."""
    sharing_norm: Norm = "global"
    """Norm of Eq. 1: over all parameters together, or for each tensor."""
    inner_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = 5
    """Inner gradient steps (the paper's K); the default of imaml is 16."""
    inner_lr: Positive = 0.1
    """Inner learning rate, or the initial value of learned rates; the default of anil is 0.5."""
    inner_lr_scale: Positive = 1.0
    """Factor of --inner-lr (10 in the paper's tenfold experiment)."""
    order: Literal["second", "first"] = "second"
    """Whether the outer gradient passes through the inner gradients."""
    batch_norm: BatchNormMode = "auto"
    """Batch norm statistics of the queries: those of the support set (inductive), or those of all
    queries of the task together (transductive, as in the paper); auto: inductive if the model
    supports it, as conv4 and resnet12 do."""
    filters: Count = 48
    """Filters of each convolution of conv4."""
    activation: Activation = "leaky_relu"
    """Activation of conv4: leaky_relu (slope 0.01) as in the reference code, or relu as in the
    paper's text."""
    conv_bias: bool = False
    """Biases in the convolutions of conv4; batch norm cancels them."""

    multi_step_loss: Span = "15%"
    """How long the losses after all inner steps count, with weights that are annealed to the last
    step: iterations or a share of the run; 0 for never (the reference: 7500 of 50000)."""
    per_step_rates: bool = True
    """Learn an inner rate for each tensor and step."""
    per_step_batch_norm: bool = True
    """Learn a γ and β for each inner step."""

    start: Start = "random"
    """What the model starts from: random weights, or weights that were trained to tell all training
    classes apart (supervised; the default on features)."""
    start_iterations: Count = 300
    """Steps of the supervised start."""
    epochs: Count = 10
    """Epochs; each ends with a validation."""
    iterations_per_epoch: Count = 50
    """Outer iterations in an epoch."""
    patience: Count | None = None
    """End the training after this number of epochs in a row without a better validation score."""
    outer_lr: Annotated[float, Field(ge=0)] = 0.001
    """Learning rate of the outer Adam; 0 learns nothing."""
    first_order_for: Span = "0"
    """How long training is first order before it is second order (MAML++'s derivative-order
    annealing): iterations or a share of the run."""
    cosine_annealing_to: Annotated[float, Field(ge=0)] | None = None
    """Anneal the outer learning rate to this value by a cosine (MAML++ on Omniglot: 1e-5)."""
    clamp_gradients: Positive | None = None
    """Clamp each entry of the model's outer gradient to ± this value (the reference code: 10 on
    mini-ImageNet); m, λ and learned rates are never clamped."""
    clip_norm: Positive | None = None
    """Scale the outer gradient down to this norm if it is longer."""
    on_divergence: OnDivergence = "record"
    """What to do when a loss or gradient is not finite: stop with an error, skip the iteration, or
    end the run and record that as its result."""

    metric: Metrics = ()
    """What is measured: accuracy (the default for classes), loss (the default for other targets),
    mse, or an import path; repeat for more. The first one selects checkpoints."""
    metric_option: Options = {}
    """Option of the first metric that is an import path, such as best=low; repeat for more."""
    val_tasks: Count = 200
    """Validation tasks, the same after every epoch."""
    test_tasks: Count = 600
    """Test tasks, the same for every run."""
    ensemble: Annotated[int, Field(ge=1, le=1000)] = 5
    """How many of the best checkpoints are kept, and averaged in the test."""

    seed: Annotated[int, Field(ge=0, lt=SEEDS)] = 0
    """Seed of the initialisation and of the training tasks."""
    device: str = "auto"
    """auto (CUDA if there is one), cpu, cuda or cuda:N."""
    tasks: Literal["auto", "loop", "vmap"] = "auto"
    """Compute the tasks of a batch one after the other (loop) or all at once (vmap); auto: what is
    usually faster for this network on this device."""
    memory: Literal["auto", "keep", "recompute"] = "auto"
    """Keep the graphs of all inner steps for the backward pass, or recompute them in it, which
    takes memory that does not grow with --inner-steps; auto: keep if that takes at most 4 GiB on a
    CPU, 16 GiB on a GPU."""
    precision: Precision = "float32"
    """Precision of convolutions and matrix products: float32 or bfloat16 (mixed precision), which
    is faster on processors that have instructions for it, and changes results."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads of each process; 0: as many as PyTorch takes (OMP_NUM_THREADS, or all cores),
    shared out among several processes."""
    workers: Count = 1
    """Processes on this machine that share out the tasks of each batch."""


def option_name(field: str) -> str:
    """The command-line option of a field."""
    return "--" + field.replace("_", "-")


def _explain(error: Any) -> str:
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return str(message)
    message = message.replace("Input should be ", "must be ")
    return f"{option_name(str(error['loc'][0]))} {reprlib.repr(error['input'])}: {message}"
