"""What a control for sharing refuses. Its numbers: see test_parity."""

from __future__ import annotations

import math

import pytest
import torch

from gradshare.errors import ConfigError
from gradshare.inner_loop import SGD, GradientSharing, Held, RateControl, UpdateRule


@pytest.mark.parametrize(
    ("rule", "gate", "learns"),
    [
        (GradientSharing(5), "lamda", "'m' and 'lambda'"),
        (RateControl(5), "m", "'lambda'"),
        (SGD(0.1), "lambda", "nothing"),
    ],
)
def test_a_gate_that_the_rule_does_not_learn(rule: UpdateRule, gate: str, learns: str) -> None:
    with pytest.raises(ConfigError) as error:
        Held(rule, {gate: 0.5}).init({"w": torch.zeros(2)})
    assert str(error.value) == (
        f"{type(rule).__name__} does not learn {gate!r}, which is to be held; it learns {learns}"
    )


@pytest.mark.parametrize("value", [-0.1, 1.5, math.inf, math.nan])
def test_a_gate_held_where_no_sigmoid_is(value: float) -> None:
    with pytest.raises(ConfigError) as error:
        Held(GradientSharing(5), {"m": value})
    assert str(error.value) == f"the gate 'm' is held at {value}; give a value from 0 to 1"


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_what_is_held_is_not_learned(value: float) -> None:
    learned, _ = Held(GradientSharing(5), {"lambda": value}).init({"w": torch.zeros(2)})
    assert list(learned) == ["m"]
