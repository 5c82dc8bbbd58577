"""ALFA's generated rates and weight decay."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gradshare.inner_loop.rule import Step, Tensors, UpdateRule, for_each_step, with_prefix
from gradshare.inner_loop.sgd import require_rate


class ALFA(UpdateRule):
    """Generate a rate and a weight decay for each tensor, task and step (Baik et al., 2020).

    A network g with one hidden layer gets the mean of each of the N tensors and of each gradient,
    and returns 2N numbers, a for the rates and b for the decay (Eqs. 3 to 6 of the paper):

        (a, b) = g(mean θ_1, …, mean θ_N, mean Δ_1, …, mean Δ_N)
        θ_n ← (1 - β_n b_n) θ_n - α_n a_n Δ_n

    The paper writes the first factor as one number; its code learns β_n as it is here. Unlike in
    the code, which starts g at random, a and b start at 1, so that ALFA starts as MAML; and in
    second order the outer gradient goes through g's inputs too, which the code treats as constants.

    Learned: `rate.NAME` and `decay.NAME` (K,), which are α_n and β_n; `hidden.weight`, (2N, 2N),
    `hidden.bias`, `output.weight` and `output.bias` of g.

    Args:
        lr: the initial value of each α_n.
        weight_decay: β_n starts at lr times this.

    Raises:
        ConfigError: lr is not a finite number of at least 0.
    """

    def __init__(self, lr: float, *, weight_decay: float = 5e-4) -> None:
        self.lr = require_rate(lr)
        self.weight_decay = weight_decay
        # `init` is called again when a run is opened: it must draw the same network each time.
        self._seed = int(torch.randint(2**31, ()))

    def init(self, params: Tensors, steps: int) -> tuple[Tensors, Tensors]:
        """α = lr, β = lr · weight_decay, and a network whose outputs are 1."""
        size, generator = 2 * len(params), torch.Generator().manual_seed(self._seed)

        def drawn(*shape: int) -> Tensor:
            """As `nn.Linear` does."""
            return torch.empty(shape).uniform_(-(size**-0.5), size**-0.5, generator=generator)

        rates = {name: for_each_step(params, steps, self.lr) for name in params}
        network = {
            "hidden.weight": drawn(size, size),
            "hidden.bias": drawn(size),
            "output.weight": torch.zeros(size, size),
            "output.bias": torch.ones(size),
        }
        return {
            **with_prefix("rate", rates),
            **with_prefix("decay", {n: self.weight_decay * rate for n, rate in rates.items()}),
            **{name: t.to(next(iter(rates.values()))) for name, t in network.items()},
        }, {}

    def update(
        self, gradients: Tensors, meta: Tensors, carried: Tensors, task: Tensors, step: Step
    ) -> tuple[Tensors, Tensors, Tensors]:
        """α a Δ + β b θ."""
        weights = {name: step.params[name] for name in gradients}
        tensors = (*weights.values(), *gradients.values())
        means = [t.reshape(len(t), -1).mean(1).to(meta["output.bias"].dtype) for t in tensors]
        inputs = torch.stack(means, dim=1)
        hidden = F.linear(inputs, meta["hidden.weight"], meta["hidden.bias"]).relu()
        generated = F.linear(hidden, meta["output.weight"], meta["output.bias"])
        a, b = generated.T.chunk(2)
        updates = {}
        for index, (name, g) in enumerate(gradients.items()):
            rate = (meta[f"rate.{name}"][step.k] * a[index]).to(g.dtype)
            decay = (meta[f"decay.{name}"][step.k] * b[index]).to(g.dtype)
            ones = (1,) * (g.ndim - 1)
            updates[name] = rate.view(-1, *ones) * g + decay.view(-1, *ones) * weights[name]
        return updates, carried, task
