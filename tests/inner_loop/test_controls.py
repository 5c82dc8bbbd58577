"""Controls for gradient sharing: what they refuse. Their numbers: see test_parity."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gradshare.errors import ConfigError
from gradshare.inner_loop import SGD, GradientSharing, Held, OwnGradient, RateControl, UpdateRule

LIKE = {"w": torch.zeros(2)}


@pytest.mark.parametrize(
    ("rule", "gate", "learns"),
    [
        (GradientSharing(), "lamda", "'m' and 'lambda'"),
        (RateControl(), "m", "'lambda'"),
        (SGD(0.1), "lambda", "nothing"),
    ],
)
def test_a_held_gate_must_be_one_that_the_rule_learns(
    rule: UpdateRule, gate: str, learns: str
) -> None:
    with pytest.raises(ConfigError) as error:
        Held(rule, {gate: 0.5}).init(LIKE, 5)
    assert str(error.value) == (
        f"{type(rule).__name__} does not learn {gate!r}, which is to be held; it learns {learns}"
    )


@pytest.mark.parametrize("value", [-0.1, 1.5, math.inf, math.nan])
def test_a_held_gate_must_be_the_value_of_a_sigmoid(value: float) -> None:
    with pytest.raises(ConfigError) as error:
        Held(GradientSharing(), {"m": value})
    assert str(error.value) == f"the gate 'm' is held at {value}; give a value from 0 to 1"


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_what_is_held_is_not_learned(value: float) -> None:
    meta, _ = Held(GradientSharing(), {"lambda": value}).init(LIKE, 5)
    assert list(meta) == ["m"]


@pytest.mark.parametrize("rule", [GradientSharing, OwnGradient])
def test_a_norm_that_equation_1_does_not_have_is_refused(rule: Any) -> None:
    with pytest.raises(ConfigError) as error:
        rule(norm="per_tensor")
    assert str(error.value) == "norm 'per_tensor' is unknown; use 'global' or 'per-tensor'"
