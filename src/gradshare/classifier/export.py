"""A fitted classifier as one file that runs without gradshare: ONNX, or .pt2 of `torch.export`.

The file maps pixels, or rows, to calibrated probabilities. The names of the classes, and the form
of the pixels, are in its metadata, as JSON under the key "gradshare".
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gradshare.backbones import OnnxNetwork, preprocessed
from gradshare.classifier.calibration import COVERAGES, Calibration, threshold
from gradshare.classifier.trained import Fitted, Trained
from gradshare.config.runs import SHIPPED
from gradshare.errors import ConfigError, GradshareError
from gradshare.models import BatchNorm2d
from gradshare.models.layers import use_plain_layers
from gradshare.tasks import TaskBatch
from gradshare.tasks.features import FeatureTasks, Preprocessing
from gradshare.tasks.source import prepared
from gradshare.training.files import write_atomically
from gradshare.training.randomness import isolated

Predict = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
"""Maps inputs (n, …) to probabilities (n, classes)."""


def export(
    path: Path,
    fitted: Fitted,
    classes: list[Any],
    calibration: Calibration | None,
    predict_proba: Predict,
) -> None:
    """Write a classifier; see `FewShotClassifier.export`.

    Args:
        path: of the new file.
        fitted: the checkpoints after the support set.
        classes: the names of the classes.
        calibration: of the probabilities; None if they are not calibrated.
        predict_proba: gives the probabilities that those of the file are compared with.
    """
    require_ending(path)
    trained = fitted.trained
    if trained.transductive:
        raise ConfigError(
            "this run cannot be exported, since its answer to one input depends on the others, by "
            "transductive batch norm; train with --batch-norm inductive"
        )
    inputs = _examples(fitted)
    parts = [inputs, *np.split(inputs, len(inputs))]  # all together, and each alone
    expected = np.tile(predict_proba(inputs), (2, 1))
    metadata = _metadata(trained, classes, calibration)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is missing
    try:
        with (
            TemporaryDirectory() as folder,
            warnings.catch_warnings(action="ignore"),  # of torch about its own exporters
            isolated(torch.device("cpu")),
            torch.no_grad(),
        ):
            file = Path(folder, path.name.lower())  # torch knows .pt2 alone
            temperature = 1.0 if calibration is None else calibration.temperature
            stages: list[nn.Module]
            stages = [_Answers(fitted, len(classes), temperature)]
            if isinstance(trained.source, FeatureTasks):
                pixels = _Pixels(trained.source.store.backbone.preprocessing)
                stages = [pixels, trained.backbone.network, *stages]
            elif trained.form is not None:
                stages = [_Pixels(None), *stages]
            write = _write_onnx if path.suffix.lower() == ".onnx" else _write_pt2
            answer = write(stages, torch.from_numpy(inputs[:2]), file, metadata)
            found = np.concatenate([answer(part) for part in parts])
            data = file.read_bytes()
    except GradshareError:
        raise
    except ImportError as error:
        raise ConfigError(
            f"{path} needs packages that cannot be imported ({error}); run "
            "`pip install onnx onnxruntime onnxscript`"
        ) from error
    except Exception as error:  # of the exporters, or of a user's module
        cause = str(error).partition("\n")[0]
        raise ConfigError(
            f"this run cannot be exported to {path.suffix}: torch.export or ONNX does not support "
            f"its network ({cause:.300}); change the network, or try the other format"
        ) from error
    # Logarithms are compared, since the probabilities of support examples are near 0 and 1.
    # Probabilities then differ by at most 1e-4.
    found, expected = (np.log(np.maximum(p, 1e-37)) for p in (found, expected))
    if not np.allclose(found, expected, rtol=1e-4, atol=1e-4):
        raise ConfigError(
            f"{path} is not written: its log-probabilities differ from the classifier's by up to "
            f"{np.abs(found - expected).max():.1g}; export takes neither bfloat16 nor a batch norm "
            "of your own that has the statistics of the support set"
        )
    write_atomically(path, data)


def require_ending(path: Path) -> None:
    """Raise ConfigError if `export` has no format for the name of this file."""
    if path.suffix.lower() not in (".onnx", ".pt2"):
        raise ConfigError(f"{path} has another ending than .onnx or .pt2; give it one of them")


def _examples(fitted: Fitted) -> npt.NDArray[Any]:
    """Inputs to check the file on: the support set, or random pictures for a backbone."""
    trained, support_x = fitted.trained, fitted.support.support_x
    if isinstance(trained.source, FeatureTasks):
        channels, *size = trained.source.store.form.shape
        random = np.random.default_rng(0)
        return random.integers(0, 256, (8, *size, channels), dtype=np.uint8)
    if not isinstance(support_x, Tensor):
        raise ConfigError("this run cannot be exported, since its inputs are not one array")
    inputs: npt.NDArray[Any] = support_x[0].cpu().numpy()
    return inputs if trained.form is None else np.moveaxis(inputs, 1, -1).copy()


def _metadata(trained: Trained, classes: list[Any], calibration: Calibration | None) -> str:
    """What the user of a file must know, as JSON."""
    shipped = trained.path.parent == SHIPPED  # it has a name, and a folder of this machine
    run = trained.path.name if shipped else str(trained.path)
    found: dict[str, Any] = {"gradshare": version("gradshare"), "run": run, "classes": classes}
    if calibration is not None:
        found["temperature"] = calibration.temperature
        # A prediction set has the most probable class, and those of at least this probability.
        found["least_probability"] = {
            share: 1 - threshold(calibration.misses, calibration.units, share)
            for share in COVERAGES
        }
    if trained.form is not None:
        found |= asdict(trained.form)
    if isinstance(trained.source, FeatureTasks):
        known = {"version", "sha256", "preprocessing"}  # and no folders of this machine
        found["backbone"] = trained.source.store.backbone.model_dump(mode="json", include=known)
    return json.dumps(found)


class _Pixels(nn.Module):
    """Maps images, uint8 (n, H, W, C), to what the backbone takes, or the run if it has none."""

    def __init__(self, preprocessing: Preprocessing | None) -> None:
        super().__init__()
        self.preprocessing = preprocessing

    def forward(self, images: Tensor) -> Tensor:
        images = images.permute(0, 3, 1, 2)
        return images if self.preprocessing is None else preprocessed(images, self.preprocessing)


class _Answers(nn.Module):
    """Maps inputs as the run's source gives them, or features, to probabilities (n, classes)."""

    def __init__(self, fitted: Fitted, classes: int, temperature: float) -> None:
        super().__init__()
        trained = fitted.trained
        self.source, self.classes, self.temperature = trained.source, classes, temperature
        learner: Any = trained.learner
        networks = [
            learner.module(meta, own).cpu()
            for (meta, _), own in zip(trained.models, fitted.adapted, strict=True)
        ]
        inputs = prepared(trained.source, fitted.support).support_x[0].cpu()
        if getattr(learner, "inductive", False):
            for network in networks:
                _fix_statistics(network, inputs)
        finite = [network for network in networks if network(inputs).isfinite().all()]
        self.networks = nn.ModuleList(finite)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.source, FeatureTasks) and x.ndim == 4:
            x = x.mean((2, 3))
        none = torch.zeros(1, x.shape[0], dtype=torch.int64)
        x = prepared(self.source, TaskBatch(x[None], none, x[None], none)).query_x[0]
        logits = torch.stack([network(x) for network in self.networks]).mean(0)
        return torch.softmax(logits[:, : self.classes] / self.temperature, 1)


class _FixedNorm(nn.BatchNorm2d):
    """Batch norm by constants, with the signature of our `BatchNorm2d`."""

    def forward(self, x: Tensor, statistics_from: int | None = None) -> Tensor:
        return super().forward(x)


def _fix_statistics(network: nn.Module, support: Tensor) -> None:
    """Make the statistics of the support set constants of the network's batch norms."""
    norms = {name: m for name, m in network.named_modules() if isinstance(m, BatchNorm2d)}
    given: dict[nn.Module, Tensor] = {}
    for norm in norms.values():
        norm.register_forward_pre_hook(lambda norm, inputs: given.update({norm: inputs[0]}))
    network(support, support)  # all inputs together have the statistics of the support set
    for name, norm in norms.items():
        fixed = _FixedNorm(len(norm.weight), norm.eps).eval()
        fixed.weight, fixed.bias = norm.weight, norm.bias
        fixed.running_mean = given[norm].mean((0, 2, 3))
        fixed.running_var = given[norm].var((0, 2, 3), correction=0)
        parent, _, own_name = name.rpartition(".")
        setattr(network.get_submodule(parent), own_name, fixed)


def _write_pt2(stages: list[nn.Module], example: Tensor, path: Path, metadata: str) -> Predict:
    if any(isinstance(stage, OnnxNetwork) for stage in stages):
        raise ConfigError("a backbone from an ONNX file cannot be exported to .pt2; give .onnx")
    torch.export.save(_traced(stages, example), path, extra_files={"gradshare": metadata})
    program = torch.export.load(path).module()
    return lambda x: program(torch.from_numpy(x)).numpy()


def _write_onnx(stages: list[nn.Module], example: Tensor, path: Path, metadata: str) -> Predict:
    import onnx  # noqa: PLC0415
    import onnxruntime  # noqa: PLC0415

    joins = any(isinstance(stage, OnnxNetwork) for stage in stages)
    model = _joined(stages, example) if joins else _onnx(stages, example)
    onnx.helper.set_model_props(model, {"gradshare": metadata})
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def _joined(stages: list[nn.Module], example: Tensor) -> Any:
    """The ONNX model of three stages, the second of which is an ONNX file."""
    from onnx import compose, load, version_converter  # noqa: PLC0415

    pixels, network, answers = stages
    assert isinstance(network, OnnxNetwork)
    front, back = _onnx([pixels], example), _onnx([answers], network(pixels(example)))
    opset = front.opset_import[0].version
    backbone = version_converter.convert_version(load(network.path), opset)
    backbone.ir_version = front.ir_version
    # Names must differ. The last ones keep theirs, of which the output is one.
    front, backbone = compose.add_prefix(front, "a/"), compose.add_prefix(backbone, "b/")
    given, features = f"b/{network.given}", f"b/{network.output}"
    joined = compose.merge_models(
        front, backbone, [(front.graph.output[0].name, given)], outputs=[features]
    )
    model = compose.merge_models(joined, back, [(features, back.graph.input[0].name)])
    del model.graph.value_info[:]  # where the backbone may say how many images it takes
    return model


def _onnx(stages: list[nn.Module], example: Tensor) -> Any:
    program = torch.onnx.export(
        _traced(stages, example), dynamo=True, verbose=False, output_names=["probabilities"]
    )
    assert program is not None
    return program.model_proto


def _traced(stages: list[nn.Module], example: Tensor) -> torch.export.ExportedProgram:
    """The stages as one program for any number of inputs."""
    module = copy.deepcopy(nn.Sequential(*stages)).cpu().requires_grad_(False)
    use_plain_layers(module)  # which the exporters know
    sizes = ({0: torch.export.Dim("n")},)
    program = torch.export.export(module, (example,), dynamic_shapes=sizes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # which names folders of this machine
    return program
