"""mini-ImageNet, tieredImageNet, CIFAR-FS and FC100, read in the layouts in which they circulate.

A copy may have fewer images a class than the original: the store's index records how many.
ImageNet's terms allow non-commercial research only.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from gradshare.tasks.dataset import Archive, Dataset
from gradshare.tasks.hdf5 import read_split
from gradshare.tasks.labelled import read_arrays
from gradshare.tasks.layouts import (
    CSV,
    Layout,
    by_split,
    class_folders_of,
    find,
    in_folder,
    parquet_of,
)
from gradshare.tasks.published import published_split


def _benchmark(name: str, title: str, *layouts: Layout, **attributes: Any) -> Dataset:
    folders = by_split("folders", in_folder, "{}/")  # as the MAML++ code has it
    return Dataset(
        name=name,
        channels=3,
        rotate_classes=False,
        read=partial(find, title, (*layouts, folders, class_folders_of(name))),
        split=published_split(name),
        **attributes,
    )


_pickle = partial(by_split, "pickle", read_arrays)
_FEW_SHOT_NPZ = by_split("npz", read_arrays, "few-shot-{}.npz")  # TADAM

# Images: Vinyals et al., "Matching Networks for One Shot Learning" (2016). Split: Ravi and
# Larochelle, "Optimization as a Model for Few-Shot Learning" (2017).
MINI_IMAGENET = _benchmark(
    "mini-imagenet",
    "mini-ImageNet",
    CSV,
    _pickle("mini-imagenet-cache-{}.pkl"),
    _pickle("miniImageNet_category_split_{}.pickle", train="train_phase_train"),  # MetaOptNet
    _FEW_SHOT_NPZ,
    by_split("hdf5", read_split, "{}_data.hdf5", "{}_labels.json", inside="miniimagenet"),
    parquet_of("mini-imagenet"),
    summary="100 classes of ImageNet, up to 600 photographs of each",
    image_size=84,
    # The record publishes checksums, but no copy of them could be compared with the files
    # themselves, and a wrong one would refuse the right file. A damaged pickle is noticed when
    # it is read.
    archives=tuple(
        Archive(f"https://zenodo.org/record/7978538/files/{name}", name, None)
        for name in (
            "mini-imagenet-cache-train.pkl",
            "mini-imagenet-cache-validation.pkl",
            "mini-imagenet-cache-test.pkl",
        )
    ),
)

# Ren et al., "Meta-Learning for Semi-Supervised Few-Shot Classification" (2018).
TIERED_IMAGENET = _benchmark(
    "tiered-imagenet",
    "tieredImageNet",
    by_split("png", read_arrays, "{}_images_png.pkl", "{}_labels.pkl"),
    by_split("npz", read_arrays, "{}_images.npz", "{}_labels.pkl"),
    summary="608 classes of ImageNet, 779,165 photographs",
    image_size=84,
)

# Bertinetto et al., "Meta-learning with differentiable closed-form solvers" (2019).
CIFAR_FS = _benchmark(
    "cifar-fs",
    "CIFAR-FS",
    _pickle("CIFAR_FS_{}.pickle"),
    _FEW_SHOT_NPZ,
    summary="the 100 classes of CIFAR-100, 600 photographs of each",
    image_size=32,
)

# Oreshkin et al., "TADAM: Task dependent adaptive metric for improved few-shot learning" (2018).
FC100 = _benchmark(
    "fc100",
    "FC100",
    _pickle("FC100_{}.pickle"),
    _FEW_SHOT_NPZ,
    summary="the 100 classes of CIFAR-100, whole superclasses held out",
    image_size=32,
)
