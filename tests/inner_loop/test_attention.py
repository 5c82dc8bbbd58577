"""Attention in a second-order inner loop."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.inner_loop import Tensors
from gradshare.inner_loop.attention import unfused_attention
from gradshare.methods import maml
from tests.problems import WAYS, tasks


class Attentive(nn.Module):
    """Attention between the rows of an image, by PyTorch's function or by its formula."""

    def __init__(self, *, by_formula: bool) -> None:
        super().__init__()
        self.by_formula = by_formula
        self.into = nn.Linear(2 * 16, 12)
        self.head = nn.Linear(4, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.into(x.transpose(1, 2).flatten(2)).chunk(3, -1)
        if self.by_formula:
            mixed = (query @ key.mT / 4**0.5).softmax(-1) @ value
        else:
            mixed = F.scaled_dot_product_attention(*(t[:, None] for t in (query, key, value)))[:, 0]
        y: Tensor = self.head(mixed.mean(1))
        return y


def fused() -> bool:
    """Whether attention may be computed by the fused kernels."""
    return bool(torch.backends.cuda.flash_sdp_enabled())  # type: ignore[no-untyped-call]


def outer_gradients(model: nn.Module, **options: Any) -> list[Tensor]:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    learner = maml(model.double(), steps=2, **options)
    meta, carried = learner.init()
    objective = learner.outer_step(meta, carried, tasks(2, 1), iteration=0).objective
    return list(torch.autograd.grad(objective.mean(), list(meta.values())))


# The query passes may use the fused kernels.
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("tasks_at_a_time", [1, None])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("second_order", [True, False])
def test_the_meta_gradients_of_fused_attention_are_those_of_its_formula(
    second_order: bool, recompute: bool, tasks_at_a_time: int | None
) -> None:
    options = {
        "second_order": second_order,
        "recompute": recompute,
        "tasks_at_a_time": tasks_at_a_time,
    }
    before = fused()
    ours = outer_gradients(Attentive(by_formula=False), **options)
    theirs = outer_gradients(Attentive(by_formula=True), **options)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() <= 1e-9 * other.norm() + 1e-13
    assert fused() == before


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(
    "layout",
    [{}, {"recompute": True}, {"tasks_at_a_time": None}],
    ids=["keep", "recompute", "vmap"],
)
def test_pytorchs_transformer_layer_has_finite_meta_gradients(layout: dict[str, Any]) -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.TransformerEncoderLayer(32, 2, 8, dropout=0.0, batch_first=True)
            self.head = nn.Linear(32, WAYS)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.mix(x.transpose(1, 2).flatten(2)).mean(1))
            return y

    assert all(gradient.isfinite().all() for gradient in outer_gradients(Rows(), **layout))


def test_threads_leave_pytorchs_choice_of_kernels_as_it_was() -> None:
    before = fused()

    def looking(params: Tensors, shared: Tensors, chunk: slice) -> Tensor:
        time.sleep(0.01)  # lets another thread in
        return torch.tensor(fused())

    def look(_: int) -> bool:
        with unfused_attention():
            return bool(looking({}, {}, slice(None)))

    with ThreadPoolExecutor(3) as pool:
        assert not any(pool.map(look, range(12)))
    assert fused() == before
