"""A batch of tasks: the one form in which data reaches the rest of the system."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradshare.errors import DataError

Tree = Any
"""A tensor, or a tuple or dictionary of trees. A model gets a tuple as positional arguments and a
dictionary as keyword arguments."""

PARTS = ("support_x", "support_y", "query_x", "query_y")
SHORT = (torch.uint8, torch.uint16, torch.uint32, torch.int8, torch.int16, torch.int32)


@dataclass(frozen=True, eq=False)
class TaskBatch:
    """T tasks (the paper's 𝓑). Each tensor has the tasks as its first dimension, the examples of a
    task as its second, and any shape and type behind them.

    Tasks of unequal size are padded to the largest. `support_n` and `query_n` then say how many
    examples of each task are real; the others reach neither the model nor the loss.

    Attributes:
        support_x: (T, n, …) inputs to adapt on; a tensor, or a tuple or dictionary of tensors.
        support_y: (T, n, …) their targets: classes, or real values. Whole numbers become int64,
            which losses of torch need.
        query_x: (T, q, …) inputs that are predicted after adaptation.
        query_y: (T, q, …) their targets.
        support_n: T numbers of support examples; None if all tasks have n.
        query_n: T numbers of queries; None if all tasks have q.

    Raises:
        DataError: the batch is empty; its tensors differ in the number of tasks; a part holds
            something else than tensors; or `support_n` or `query_n` does not fit them.
    """

    support_x: Tree
    support_y: Tree
    query_x: Tree
    query_y: Tree
    support_n: Sequence[int] | None = None
    query_n: Sequence[int] | None = None

    def __post_init__(self) -> None:
        shapes = {}
        for name in PARTS:
            for path, leaf in leaves(getattr(self, name), name):
                if not isinstance(leaf, Tensor):
                    raise DataError(
                        f"{path} of a task batch is a {type(leaf).__name__}; give a tensor "
                        "(torch.as_tensor)"
                    )
                shapes[path] = leaf.shape
                if path in ("support_y", "query_y") and leaf.dtype in SHORT:
                    object.__setattr__(self, name, leaf.long())
        counts = {shape[:1] for shape in shapes.values()}
        if len(counts) != 1 or counts & {torch.Size([]), torch.Size([0])}:
            found = ", ".join(f"{path} {tuple(shape)}" for path, shape in shapes.items())
            raise DataError(
                f"the tensors of a task batch are {found}; the first dimension must be the tasks, "
                "the same number in each and at least one: give a single task as x[None]"
            )
        for name, least in (("support", 1), ("query", 0)):  # predictions may be for no input
            examples = {
                path: shape[1] if len(shape) > 1 else 0
                for path, shape in shapes.items()
                if path.startswith(name)
            }
            most = min(examples.values())
            if most < least or most != max(examples.values()):
                raise DataError(
                    f"the tasks of a batch have {examples} examples; the second dimension must be "
                    f"the examples, the same number in each and at least {least}"
                )
            sizes = getattr(self, f"{name}_n")
            if sizes is not None and (
                len(sizes) != len(self) or not all(least <= size <= most for size in sizes)
            ):
                raise DataError(
                    f"{name}_n is {list(sizes)} for {len(self)} tasks of {most} examples; give a "
                    f"number from {least} to {most} for each task"
                )

    def __len__(self) -> int:
        """T, the number of tasks."""
        return len(first_leaf(self.support_x))

    def __getitem__(self, tasks: slice) -> TaskBatch:
        """Some of the tasks, at least one.

        Raises:
            TypeError: the index is not a slice, so that it would drop the tasks' dimension.
        """
        if not isinstance(tasks, slice):
            raise TypeError(
                f"a task batch is indexed by slices, not by {tasks!r}: batch[2:3] is a batch of "
                "the third task alone"
            )
        return replace(
            self,
            **{name: tree_map(lambda tensor: tensor[tasks], getattr(self, name)) for name in PARTS},
            support_n=None if self.support_n is None else self.support_n[tasks],
            query_n=None if self.query_n is None else self.query_n[tasks],
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> TaskBatch:
        """The same tasks with a function applied to each tensor."""
        return replace(self, **{name: tree_map(function, getattr(self, name)) for name in PARTS})

    def to(self, device: torch.device | str) -> TaskBatch:
        """The same tasks on another device.

        Towards CUDA the host does not wait for the copy: work on the GPU waits its turn. Towards
        the CPU it does, since nothing would stop a reader from reading too early.
        """
        non_blocking = torch.device(device).type == "cuda"
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))


def tree_map(function: Callable[[Tensor], Any], tree: Tree) -> Any:
    """Apply a function to each tensor of a tree."""
    if isinstance(tree, Mapping):
        return {key: tree_map(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(tree_map(function, value) for value in tree)
    return function(tree)


def leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a tree, each with the path that leads to it: `support_x['mask']`."""
    if isinstance(tree, Mapping | tuple):
        items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, value in items:
            yield from leaves(value, f"{path}[{key!r}]")
    else:
        yield path, tree


def first_leaf(tree: Tree) -> Tensor:
    """The first tensor of a tree.

    Raises:
        DataError: the tree is an empty tuple or dictionary.
    """
    for _, leaf in leaves(tree):
        tensor: Tensor = leaf
        return tensor
    raise DataError("a part of the task batch holds no tensor; give at least one input")


def task_of(tree: Tree, task: int, sizes: Sequence[int] | None = None) -> Tree:
    """One task of a tree of (T, n, …) tensors, without its padding.

    Args:
        tree: of all tasks.
        task: which one.
        sizes: T numbers of real examples; None for all.
    """
    real = slice(None if sizes is None else sizes[task])
    return tree_map(lambda tensor: tensor[task][real], tree)


def each_task(
    function: Callable[[Tensor, Any], Any], outputs: Tensor, targets: Any, sizes: Any = None
) -> list[Any]:
    """Call a function with each task's outputs and targets, without padding.

    Args:
        function: of (n, …) outputs and targets.
        outputs: (T, n, …).
        targets: (T, n, …), a tree of tensors.
        sizes: T numbers of real examples; None for all.
    """
    values = []
    for task, own in enumerate(taken_apart(outputs)):
        real = slice(None if sizes is None else sizes[task])
        values.append(function(own[real], task_of(targets, task, sizes)))
    return values


def taken_apart(tensor: Tensor) -> Sequence[Tensor]:
    """The parts of a (T, …) tensor; of one task a view, whose derivative is a view too."""
    return [tensor.squeeze(0)] if len(tensor) == 1 else tensor.unbind()


def put_together(tensors: Sequence[Tensor]) -> Tensor:
    """The reverse of `taken_apart`."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))
