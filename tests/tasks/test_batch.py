"""Task batches: what they may hold, how they are cut, and how they move between devices."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradshare.errors import DataError
from gradshare.tasks import TaskBatch
from gradshare.tasks.batch import Tree, first_leaf, leaves, tree_map

trees = st.recursive(
    st.integers(0, 9).map(torch.tensor),
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=6,
)


def batch_of(support: int, query: int) -> TaskBatch:
    """Tensors of so many tasks each, every entry the number of its task."""
    images = (
        torch.arange(count).reshape(-1, 1, 1, 1, 1).expand(-1, 2, 1, 4, 4)
        for count in (support, query)
    )
    support_x, query_x = images
    return TaskBatch(support_x, support_x[:, :, 0, 0, 0], query_x, query_x[:, :, 0, 0, 0])


def tokens_of(tasks: int) -> TaskBatch:
    """Tasks with two named inputs and two targets, padded to four queries."""
    ids = torch.arange(tasks)[:, None, None].expand(-1, 4, 7)
    x = {"ids": ids, "mask": ids > 0}
    y = (ids, ids[..., 0])
    return TaskBatch(x, y, x, y, query_n=list(range(1, tasks + 1)))


@pytest.mark.parametrize(("device", "may_return_early"), [("cpu", False), ("cuda:1", True)])
def test_the_host_waits_for_a_copy_to_the_cpu_and_for_none_to_a_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str, may_return_early: bool
) -> None:
    calls = []

    def to(tensor: Tensor, place: Any, *, non_blocking: bool) -> Tensor:
        calls.append((torch.device(place), non_blocking))
        return tensor

    monkeypatch.setattr(Tensor, "to", to)
    for place in (device, torch.device(device)):
        batch_of(1, 1).to(place)
    assert calls == 8 * [(torch.device(device), may_return_early)]


def test_a_slice_of_a_batch_is_a_batch_of_those_tasks() -> None:
    part = batch_of(4, 4)[1:3]
    assert len(part) == 2
    for tensor in (part.support_x, part.support_y, part.query_x, part.query_y):
        assert tensor.flatten(1)[:, 0].tolist() == [1, 2]


def test_a_slice_of_padded_tasks_with_several_inputs_has_their_inputs_and_sizes() -> None:
    part = tokens_of(4)[2:]
    assert len(part) == 2
    assert part.support_x["ids"][:, 0, 0].tolist() == [2, 3]
    assert part.support_x["mask"].dtype == torch.bool
    assert part.query_y[1].tolist() == [[2] * 4, [3] * 4]
    assert part.support_n is None
    assert part.query_n == [3, 4]


def test_a_function_reaches_each_tensor_and_leaves_the_sizes() -> None:
    batch = tokens_of(3).map(lambda tensor: tensor.float() + 1)
    assert {leaf.dtype for _, leaf in leaves((batch.query_x, batch.query_y))} == {torch.float32}
    assert batch.support_x["mask"][:, 0, 0].tolist() == [1, 2, 2]
    assert batch.query_n == [1, 2, 3]


@pytest.mark.parametrize("index", [0, torch.tensor([0, 1])])
def test_an_index_that_would_drop_the_tasks_dimension_is_refused(index: Any) -> None:
    with pytest.raises(TypeError) as caught:
        batch_of(3, 3)[index]
    assert str(caught.value) == (
        f"a task batch is indexed by slices, not by {index!r}: batch[2:3] is a batch of the third "
        "task alone"
    )


def test_an_array_in_the_place_of_a_tensor_is_named_with_its_place_in_the_tree() -> None:
    batch = tokens_of(2)
    with pytest.raises(DataError) as caught:
        dataclasses.replace(batch, query_y=batch.query_y[1].numpy())
    assert str(caught.value) == (
        "query_y of a task batch is a ndarray; give a tensor (torch.as_tensor)"
    )
    with pytest.raises(DataError, match=r"^support_x\['mask'\]\[1\] of a task batch is a float;"):
        dataclasses.replace(batch, support_x={"mask": (batch.query_x["mask"], 0.5)})


def test_tensors_of_differing_numbers_of_tasks_and_of_none_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        batch_of(3, 2)
    assert str(caught.value) == (
        "the tensors of a task batch are support_x (3, 2, 1, 4, 4), support_y (3, 2), query_x "
        "(2, 2, 1, 4, 4), query_y (2, 2); the first dimension must be the tasks, the same number "
        "in each and at least one: give a single task as x[None]"
    )
    with pytest.raises(DataError, match=r"are support_x \(0, 2, 1, 4, 4\), .* at least one"):
        batch_of(3, 3)[3:]
    scalar = torch.zeros(())
    with pytest.raises(DataError, match=r"are support_x \(\), support_y \(\)"):
        TaskBatch(scalar, scalar, scalar, scalar)
    with pytest.raises(DataError, match=r"support_x\['ids'\] \(2, 4, 7\), .*query_y\[0\] \(1,"):
        dataclasses.replace(tokens_of(2), query_y=tokens_of(1).query_y)


def test_a_batch_without_inputs_is_refused() -> None:
    with pytest.raises(DataError, match="holds no tensor; give at least one input"):
        len(dataclasses.replace(tokens_of(2), support_x=()))


def test_inputs_and_targets_have_the_same_number_of_examples_and_there_is_support() -> None:
    batch = batch_of(2, 2)
    words = "; the second dimension must be the examples, the same number in each and at least"
    for changes, found, least in (
        ({"support_y": batch.support_y[:, :1]}, "{'support_x': 2, 'support_y': 1}", 1),
        ({"query_x": batch.query_y[:, 0]}, "{'query_x': 0, 'query_y': 2}", 0),
        (
            {"support_x": batch.support_x[:, :0], "support_y": batch.support_y[:, :0]},
            "{'support_x': 0, 'support_y': 0}",
            1,
        ),
    ):
        with pytest.raises(DataError) as caught:
            dataclasses.replace(batch, **changes)
        assert str(caught.value) == f"the tasks of a batch have {found} examples{words} {least}"


@pytest.mark.parametrize("sizes", [[4, 4], [4, 4, 5], [4, 4, 0], [-1, 4, 4]], ids=str)
def test_sizes_that_are_not_those_of_the_tasks_are_refused(sizes: list[int]) -> None:
    with pytest.raises(DataError) as caught:
        TaskBatch(*(torch.zeros(3, 4),) * 4, support_n=sizes)
    assert str(caught.value) == (
        f"support_n is {sizes} for 3 tasks of 4 examples; give a number from 1 to 4 for each task"
    )


def test_batches_can_be_compared_and_be_keys() -> None:
    one, other = batch_of(2, 2), batch_of(2, 2)
    assert one != other
    assert len({one, other, one}) == 2


@given(trees)
def test_a_function_mapped_over_a_tree_reaches_each_leaf_and_keeps_the_paths(tree: Tree) -> None:
    before, after = list(leaves(tree, "x")), list(leaves(tree_map(lambda x: x + 1, tree), "x"))
    assert [path for path, _ in before] == [path for path, _ in after]
    assert [int(leaf) + 1 for _, leaf in before] == [int(leaf) for _, leaf in after]
    for path, leaf in before:
        assert eval(path, {"x": tree}) is leaf
    if before:
        assert first_leaf(tree) is before[0][1]
