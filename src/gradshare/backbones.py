"""Frozen backbones: pretrained networks that turn images into rows of features.

A backbone is a torch module by its import path, an ONNX file, or a model of timm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.config.names import call, is_import_path, stored_name
from gradshare.errors import ConfigError, DataError, is_out_of_memory
from gradshare.models.weights import digest, read_weights
from gradshare.tasks.arrays import Array
from gradshare.tasks.download import OnProgress
from gradshare.tasks.features import (
    RECORD,
    BackboneRecord,
    FeatureStore,
    Preprocessing,
    is_feature_store,
)
from gradshare.tasks.images import ImageFormat
from gradshare.tasks.store import ImageStore, Split, first_mistake
from gradshare.tasks.writing import NEW, writing

TIMM = "timm:"

CHUNK = 64
"""Images that go through the network at a time."""


class Backbone:
    """A frozen network from images to features.

    Outputs (n, D, H, W) are averaged over H and W.

    Args:
        name: `package.module:Name` or `file.py:Name` of a function or class that returns a
            `torch.nn.Module`; the path of an `.onnx` file, whose first output is used (needs
            onnxruntime); or `timm:MODEL` (needs timm).
        options: arguments of the function or class, or of `timm.create_model`.
        weights: a file with the module's state dictionary, from safetensors or `torch.save`.
        preprocessing: changes of the backbone's own preprocessing: size, crop, interpolation, mean
            and std, see `Preprocessing`. An ONNX file has the size of its input, a model of timm
            all of them; else images keep their size and are normalised as ImageNet's.

    Attributes:
        network: a module, on a GPU if there is one.
        record: what it was made from, and the digest of its weights.

    Raises:
        ConfigError: the backbone cannot be loaded, or the weights do not fit it.
    """

    def __init__(
        self,
        name: str,
        *,
        options: Mapping[str, Any] | None = None,
        weights: str | Path | None = None,
        preprocessing: Mapping[str, Any] | None = None,
    ) -> None:
        options = dict(options or {})
        weights = None if weights is None else Path(weights).expanduser().resolve()
        if name.lower().endswith(".onnx"):
            if options or weights:
                raise ConfigError(
                    f"--backbone {name}: an ONNX file has its own weights and takes no options; "
                    "leave them out"
                )
            name = str(Path(name).expanduser().resolve())
            network, own, package = _load_onnx(Path(name))
        elif name.startswith(TIMM):
            network, own, package = _load_timm(name, {"pretrained": weights is None, **options})
        elif is_import_path(name):
            try:
                name = stored_name("backbone", name)
            except ValueError as error:
                raise ConfigError(f"--backbone {name!r}: {error}") from error
            network, own, package = _load_module(name, options)
        else:
            raise ConfigError(
                f"there is no backbone {name!r}; give an import path like my_file.py:Name, an "
                ".onnx file, or timm:MODEL"
            )
        if weights is not None:
            _load_weights(network, name, weights)
        if isinstance(network, OnnxNetwork):
            sha256 = network.sha256()
        else:
            sha256 = digest(network.state_dict())
        self.network = network.eval().to(_device())
        self.record = BackboneRecord(
            name=name,
            options=options,
            weights=None if weights is None else str(weights),
            preprocessing=_preprocessing({**own, **(preprocessing or {})}),
            version=package,
            sha256=sha256,
        )

    @classmethod
    def of(cls, record: BackboneRecord) -> Backbone:
        """The backbone of a store of features, for images that are to be predicted.

        Raises:
            ConfigError: it cannot be made again, or has other weights by now.
        """
        backbone = cls(
            record.name,
            options=record.options,
            weights=record.weights,
            preprocessing=record.preprocessing.model_dump(),
        )
        if backbone.record.sha256 != record.sha256:
            raise ConfigError(
                f"the backbone {record.name} has other weights now than when it made the features "
                f"(SHA-256 {backbone.record.sha256:.12}…, then {record.sha256:.12}…); put them "
                "back, or make the features again"
            )
        return backbone

    def __call__(self, images: Tensor) -> Tensor:
        """Images, uint8 (n, C, H, W) with one or three channels, to features, float32 (n, D).

        Raises:
            ConfigError: the network does not take them, or gives something else than features.
        """
        return torch.cat([self._features(chunk) for chunk in torch.split(images, CHUNK)])

    def _features(self, images: Tensor) -> Tensor:
        inputs = preprocessed(images, self.record.preprocessing)
        try:
            with torch.no_grad():
                outputs = self.network(inputs.to(_device()))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ConfigError(
                f"--backbone {self.record.name} does not take images {tuple(inputs.shape)} "
                f"({type(error).__name__}: {error!s:.200}); give another --preprocess size=…"
            ) from error
        if isinstance(outputs, Tensor) and outputs.ndim == 4:
            outputs = outputs.mean((2, 3))
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(images):
            found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ConfigError(
                f"--backbone {self.record.name} gives {found} for {len(images)} images; make it "
                "return one tensor, (images, features)"
            )
        return outputs.float().cpu()


def write_features(
    store: ImageStore,
    backbone: Backbone,
    path: Path | str,
    *,
    force: bool = False,
    progress: OnProgress | None = None,
) -> FeatureStore:
    """Put the images of a dataset through a backbone, and write what comes out as a store.

    Args:
        store: the prepared dataset.
        backbone: a frozen network.
        path: the folder of the new store.
        force: replace a store that exists.
        progress: called after each class.

    Raises:
        DataError: the folder exists, features are not finite, or the folder cannot be written.
    """
    path = Path(path).expanduser()
    channels, size, _ = store.image_shape
    total, done = sum(len(split.class_names) for split in store.splits.values()), 0
    try:
        with writing(path) as workspace:
            if path.exists() and not (force and is_feature_store(path)):
                raise DataError(
                    f"{path} is there already and is not overwritten; delete it, or write to "
                    "another path"
                )
            new = workspace / NEW
            for name, split in store.splits.items():
                rows = []
                of_class = zip(split.class_names, split.starts, split.counts, strict=True)
                for label, start, count in of_class:
                    images = split.images.take(np.arange(start, start + count), axis=0)
                    rows.append(backbone(torch.from_numpy(np.asarray(images))).numpy())
                    if not np.isfinite(rows[-1]).all():
                        raise DataError(
                            f"the backbone {backbone.record.name} gives features of class "
                            f"{label!r} that are not finite; check its weights and preprocessing"
                        )
                    done += 1
                    if progress is not None:
                        progress(done, total)
                _write_split(new / name, split, np.concatenate(rows))
            train = np.load(new / "train" / "x.npy")
            deviation = train.std(0, dtype=np.float64)
            content = FeatureStore(
                name=store.name,
                form=ImageFormat(size, channels, store.source.get("resize", "stretch")),
                backbone=backbone.record,
                mean=tuple(train.mean(0, dtype=np.float64).tolist()),
                std=tuple(np.where(deviation > 0, deviation, 1.0).tolist()),
                source=dict(store.source),
            )
            (new / RECORD).write_text(content.model_dump_json(), encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"cannot write the features to {path} ({error}); free space there, or choose a folder "
            "you may write to"
        ) from error
    return FeatureStore.open(path)


def _write_split(folder: Path, split: Split, rows: Array) -> None:
    """Write a split in the layout that `ClassTasks.load` reads."""
    folder.mkdir(parents=True)
    np.save(folder / "x.npy", rows)
    np.save(folder / "y.npy", np.repeat(split.class_names, split.counts))
    if split.groups is not None:
        of_class = zip(split.starts, split.counts, strict=True)
        groups = [split.groups[start : start + count] for start, count in of_class]
        np.save(folder / "groups.npy", np.concatenate(groups))


def preprocessed(images: Tensor, how: Preprocessing) -> Tensor:
    """uint8 (n, C, H, W) with one or three channels to float32 (n, 3, size, size)."""
    pixels = images.float().div(255).expand(-1, 3, -1, -1)
    size = how.size or images.shape[-1]
    before = round(size / how.crop)
    if pixels.shape[-2:] != (before, before):
        pixels = F.interpolate(
            pixels, (before, before), mode=how.interpolation, antialias=True, align_corners=False
        ).clamp(0, 1)
    edge = (before - size) // 2
    pixels = pixels[..., edge : edge + size, edge : edge + size]
    mean, std = (torch.tensor(values)[:, None, None] for values in (how.mean, how.std))
    return (pixels - mean) / std


_Loaded = tuple[nn.Module, dict[str, Any], str]
"""A network, its own preprocessing, and the version of its package."""


def _load_module(name: str, options: dict[str, Any]) -> _Loaded:
    module = call("backbone", name, options, {})
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"--backbone {name} returned a {type(module).__name__}; return a torch.nn.Module that "
            "maps images (n, 3, H, W) to features (n, D)"
        )
    return module, {}, _version(name)


def _load_timm(name: str, options: dict[str, Any]) -> _Loaded:
    try:
        import timm  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"--backbone {name} needs timm, which cannot be imported ({error}); run "
            "`pip install timm`"
        ) from error
    try:
        module = timm.create_model(name.removeprefix(TIMM), **{"num_classes": 0, **options})
        config = timm.data.resolve_model_data_config(module)
    except Exception as error:
        raise ConfigError(
            f"--backbone {name}: timm cannot make it ({error!s:.300}); `timm.list_models()` has "
            "the names"
        ) from error
    preprocessing = {key: config[key] for key in ("interpolation", "mean", "std")}
    preprocessing |= {"size": config["input_size"][-1], "crop": config["crop_pct"]}
    return module, preprocessing, f"timm {timm.__version__}"


def _load_onnx(path: Path) -> _Loaded:
    try:
        import onnxruntime  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"--backbone {path} needs onnxruntime, which cannot be imported ({error}); run "
            "`pip install onnxruntime`"
        ) from error
    if not path.is_file():
        raise ConfigError(f"--backbone {path}: there is no such file; correct the path")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors, which it raises too
    try:
        session = onnxruntime.InferenceSession(
            path, options, providers=onnxruntime.get_available_providers()
        )
    except Exception as error:  # onnxruntime has its own
        raise ConfigError(
            f"--backbone {path} cannot be read as an ONNX model ({error!s:.200}); give another "
            "file, or put its weights beside it if they are in a file of their own, .onnx.data"
        ) from error
    given, *others = session.get_inputs()
    shape = given.shape
    takes_images = len(shape) == 4 and (shape[1] == 3 or not isinstance(shape[1], int))
    if others or given.type != "tensor(float)" or not takes_images:
        raise ConfigError(
            f"--backbone {path} takes {given.type} {shape}; give a model of one float input "
            "(n, 3, H, W)"
        )
    size = {"size": shape[-1]} if isinstance(shape[-1], int) else {}
    return OnnxNetwork(path, session), size, f"onnxruntime {onnxruntime.__version__}"


class OnnxNetwork(nn.Module):
    """An ONNX file, open in onnxruntime, as a module."""

    def __init__(self, path: Path, session: Any) -> None:
        super().__init__()
        self.path, self._session = path, session
        self.given, self.output = session.get_inputs()[0].name, session.get_outputs()[0].name

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, 3, H, W) to features (n, D) or (n, D, H, W), on the CPU."""
        fixed = self._session.get_inputs()[0].shape[0]
        chunks = torch.split(images.cpu(), fixed if isinstance(fixed, int) else len(images))
        rows = [self._session.run([self.output], {self.given: c.numpy()})[0] for c in chunks]
        return torch.cat([torch.from_numpy(row) for row in rows])

    def sha256(self) -> str:
        """The digest of the file, and of the files beside it with the weights of a large model:
        model.onnx.data, model.onnx_data.
        """
        sha256 = hashlib.sha256()
        for file in sorted(self.path.parent.iterdir()):
            if file.name.startswith(self.path.name) and file.is_file():
                sha256.update(file.read_bytes())
        return sha256.hexdigest()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _load_weights(network: nn.Module, name: str, weights: Path) -> None:
    state = read_weights(weights)
    try:
        network.load_state_dict(state)
    except Exception as error:  # a file of something else raises nearly anything
        raise ConfigError(
            f"--weights {weights} are not those of --backbone {name} ({error!s:.300}); give the "
            "state dictionary of this network"
        ) from error


def _version(name: str) -> str:
    """The version of the package of an import path; that of torch if it is a file."""
    module = name.partition(":")[0]
    # The look at all packages takes a quarter of a second.
    known = {} if module.endswith(".py") else packages_distributions()
    found = known.get(module.partition(".")[0])
    return f"{found[0]} {version(found[0])}" if found else f"torch {torch.__version__}"


def _preprocessing(asked: Mapping[str, Any]) -> Preprocessing:
    try:
        return Preprocessing.model_validate(asked)
    except ValidationError as error:
        raise ConfigError(
            f"--preprocess {first_mistake(error)}; there are "
            f"{', '.join(Preprocessing.model_fields)}"
        ) from error
