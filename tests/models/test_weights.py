"""Weights from a file: what is loaded, what stays, and what is refused."""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.config import RunConfig, build, open_run, train
from gradshare.errors import ConfigError, RunError
from gradshare.models.weights import freeze, load_weights
from tests.own import Net
from tests.test_runs_by_name import SIGNALS


def net(classes: int, width: int = 4) -> Net:
    return Net(classes, channels=2, width=width)


def written(path: Path, tensors: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "meta/model."])
def test_all_weights_of_the_same_network_are_loaded(
    prefix: str, suffix: str, tmp_path: Path
) -> None:
    theirs, ours = net(3), net(3)
    tensors = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    load_weights(ours, written(tmp_path / f"weights{suffix}", tensors))
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


def test_a_norm_with_running_statistics_is_loaded_with_its_count_of_batches(tmp_path: Path) -> None:
    theirs, ours = (
        nn.Sequential(nn.ModuleDict({"norm": nn.BatchNorm1d(2)}), nn.Linear(2, 3)) for _ in range(2)
    )
    state = theirs.state_dict() | {"0.norm.num_batches_tracked": torch.tensor(7)}
    assert load_weights(ours, written(tmp_path / "weights.pt", state)) == {}
    assert ours.state_dict()["0.norm.num_batches_tracked"] == 7


@pytest.mark.parametrize("key", ["state_dict", "model", "params", "network"])
def test_the_state_dictionary_may_be_under_a_key(key: str, tmp_path: Path) -> None:
    theirs, ours = net(3), net(3)
    saved = {key: theirs.state_dict(), "epoch": 7}
    load_weights(ours, written(tmp_path / "weights.pt", saved))
    assert torch.equal(ours.head.weight, theirs.head.weight)


@pytest.mark.parametrize("without_head", [False, True])
def test_a_head_of_other_classes_stays_as_it_is(without_head: bool, tmp_path: Path) -> None:
    theirs, ours = net(64), net(3)
    before = ours.head.weight.detach().clone()
    tensors = theirs.state_dict()
    if without_head:
        del tensors["head.weight"], tensors["head.bias"]
    load_weights(ours, written(tmp_path / "weights.pt", tensors))
    assert torch.equal(ours.conv.weight, theirs.conv.weight)
    assert torch.equal(ours.head.weight, before)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            net(3, width=8).state_dict(),
            "does not fit Net: 'conv.weight' is of shape (8, 2, 3) and type torch.float32, and the "
            "network has (4, 2, 3) (2 of 2 tensors do not fit); give weights of the same network",
        ),
        ({"other": torch.ones(3)}, "does not fit Net: 'conv.weight' is missing"),
        ([1, 2], "does not fit Net: 'conv.weight' is missing"),
    ],
)
def test_weights_of_another_network_are_refused(tensors: Any, message: str, tmp_path: Path) -> None:
    path, ours = written(tmp_path / "weights.pt", tensors), net(3)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(ConfigError) as error:
        load_weights(ours, path)
    assert str(error.value).startswith(f"{path} {message}")
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("value", [math.nan, 1e300])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    tensors = {name: tensor.double() for name, tensor in net(3).state_dict().items()}
    tensors["conv.bias"][1] = value
    with pytest.raises(ConfigError, match=r"weights.pt: 'conv.bias' is not finite \(NaN or inf"):
        load_weights(net(3), written(tmp_path / "weights.pt", tensors))


def test_sparse_weights_are_loaded(tmp_path: Path) -> None:
    theirs, ours = net(3), net(3)
    tensors = {name: tensor.to_sparse() for name, tensor in theirs.state_dict().items()}
    load_weights(ours, written(tmp_path / "weights.pt", tensors))
    assert torch.equal(ours.conv.weight, theirs.conv.weight)


class Runs:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_file_that_cannot_be_read_is_refused_and_nothing_in_it_runs(tmp_path: Path) -> None:
    trap = tmp_path / "trap.pt"
    torch.save({"weight": Runs(tmp_path / "ran")}, trap)
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps(Runs(tmp_path / "ran"), protocol=2))
    junk = tmp_path / "junk.pt"
    junk.write_bytes(b"junk" * 9)  # "j" of a pickle is an item that was never put
    text, empty, cut = tmp_path / "text.pt", tmp_path / "empty.pt", tmp_path / "cut.safetensors"
    text.write_text("weights")
    empty.touch()
    cut.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    for path in (trap, plain, junk, text, empty, cut, tmp_path, tmp_path / "absent.safetensors"):
        with pytest.raises(ConfigError, match="cannot be read as weights") as error:
            load_weights(net(3), path)
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)
        assert str(error.value).count(str(path)) == 1
    assert not (tmp_path / "ran").exists()


def test_a_run_starts_from_the_weights_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = net(64)
    written(tmp_path / "weights.pt", theirs.state_dict())
    learner = build(RunConfig(**SIGNALS, init_from="weights.pt")).learner
    meta: dict[str, Tensor] = learner.init()[0]
    assert torch.equal(meta["model.conv.weight"], theirs.conv.weight)


# Checkpoints of the MAML++ code: the names and shapes of `few_shot_learning_system.py` and
# `meta_neural_network_architectures.py` in AntreasAntoniou/HowToTrainYourMAMLPytorch.

TINY = {"ways": 3, "filters": 4, "inner_steps": 2, "image_size": 16, "batch_norm": "transductive"}


def reference_checkpoint(path: Path, *, per_step: bool = True) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    rows = (2,) if per_step else ()
    network = {}
    for layer in range(4):
        home = f"classifier.layer_dict.conv{layer}"
        network[f"{home}.conv.weight"] = drawn(4, 4 if layer else 1, 3, 3)
        network[f"{home}.conv.bias"] = drawn(4)
        for name in ("running_mean", "running_var", "bias", "weight"):
            network[f"{home}.norm_layer.{name}"] = drawn(*rows, 4)
    network["classifier.layer_dict.linear.weights"] = drawn(3, 4)
    network["classifier.layer_dict.linear.bias"] = drawn(3)
    rates = [n for n in network if "norm" not in n]
    for name in rates:
        key = name.removeprefix("classifier.").replace(".", "-")
        network[f"inner_loop_optimizer.names_learning_rates_dict.{key}"] = 0.1 * drawn(3).abs()
    state = {"best_val_acc": np.float64(0.5), "val_loss_mean": np.float32(1), "current_iter": 500}
    torch.save({**state, "best_epoch": np.int64(3), "network": network}, path)
    return network


def of_the_reference(data_root: Path, path: Path) -> RunConfig:
    data = {"dataset": "tiny", "data_root": data_root, "queries": 4}
    return RunConfig(**data, **TINY, init_from=path, method="maml++", sharing=False)


def literal_reference(network: dict[str, Tensor], tasks: Any) -> Tensor:
    """The logits of the queries after the inner loop, as the MAML++ code computes them."""
    start = "classifier.layer_dict."
    fast = {n.removeprefix(start): t for n, t in network.items() if n.startswith(start)}
    fast = {n: t.requires_grad_() for n, t in fast.items() if "norm" not in n}

    def outputs(weights: dict[str, Tensor], x: Tensor, step: int) -> Tensor:
        for layer in range(4):
            conv = f"conv{layer}.conv"
            x = F.conv2d(x, weights[f"{conv}.weight"], weights[f"{conv}.bias"], padding=1)
            norm = f"{start}conv{layer}.norm_layer"
            gamma, beta = network[f"{norm}.weight"][step], network[f"{norm}.bias"][step]
            x = F.batch_norm(x, None, None, gamma, beta, training=True)
            x = F.max_pool2d(F.leaky_relu(x), 2)
        return F.linear(x.flatten(1), weights["linear.weights"], weights["linear.bias"])

    for step in range(2):
        loss = F.cross_entropy(outputs(fast, tasks.support_x[0], step), tasks.support_y[0])
        gradients = torch.autograd.grad(loss, list(fast.values()))
        rates = [
            network[
                f"inner_loop_optimizer.names_learning_rates_dict.layer_dict-{n.replace('.', '-')}"
            ]
            for n in fast
        ]
        fast = {
            name: (w - rate[step] * g).detach().requires_grad_()
            for (name, w), rate, g in zip(fast.items(), rates, gradients, strict=True)
        }
    return outputs(fast, tasks.query_x[0], 1)


def test_a_checkpoint_of_the_maml_plus_plus_code_predicts_as_it_did_there(
    data_root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "train_model_latest"
    network = reference_checkpoint(path)
    config = of_the_reference(data_root, path)
    parts = build(config)
    meta, carried = parts.learner.init()
    tasks = parts.train.batch([0])
    tasks = parts.train.prepare(tasks)  # type: ignore[attr-defined]
    adapted = parts.learner.adapt(meta, carried, tasks)
    found = parts.learner.predict(meta, adapted, tasks)[0]
    torch.testing.assert_close(found, literal_reference(network, tasks), rtol=1e-4, atol=1e-4)
    for wrong in ({"method": "maml"}, {"inner_steps": 5}):
        with pytest.raises(ConfigError) as error:
            build(config.model_copy(update=wrong))
        assert str(error.value) == (
            f"{path} has a γ and β for each of 2 inner steps; use --method maml++ with "
            "--inner-steps 2"
        )


def test_a_checkpoint_of_the_maml_plus_plus_code_without_its_parts_loads_into_maml(
    data_root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "train_model_latest"
    network = reference_checkpoint(path, per_step=False)
    config = RunConfig(dataset="tiny", data_root=data_root, queries=4, **TINY, init_from=path)
    meta, _ = build(config).learner.init()
    for ours, theirs in (
        ("blocks.2.conv.weight", "conv2.conv.weight"),
        ("blocks.2.norm.weight", "conv2.norm_layer.weight"),
        ("linear.weight", "linear.weights"),
        ("linear.bias", "linear.bias"),
    ):
        assert torch.equal(meta[f"model.{ours}"], network[f"classifier.layer_dict.{theirs}"])


def test_a_frozen_part_uses_its_running_statistics_and_no_dropout() -> None:
    frozen = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout())
    other = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model = nn.Sequential(frozen, other, nn.Linear(3, 2))
    freeze(model, ["0", "1.[01].bias"])
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable == ["1.0.weight", "1.1.weight", "2.weight", "2.bias"]
    assert not any(module.training for module in frozen.modules())
    assert all(module.training for module in other.modules())


def test_a_pattern_that_fits_nothing_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError) as error:
        freeze(net(3), ["con"])
    assert str(error.value) == (
        "freeze 'con' fits no parameter of Net; its parameters are ['conv.weight', 'conv.bias', "
        "'head.weight', 'head.bias']"
    )


def test_a_run_with_a_frozen_part_is_continued_and_opened_with_the_same_part_alone(
    tmp_path: Path,
) -> None:
    weights = written(tmp_path / "weights.pt", net(64).state_dict())
    settings = {**SIGNALS, "init_from": weights, "freeze": ["conv"]}
    whole = train(RunConfig(**settings), tmp_path / "whole")
    train(RunConfig(**{**settings, "epochs": 1}), tmp_path / "parts")
    parts = train(RunConfig(**settings), tmp_path / "parts", resume=True)
    assert parts.test == whole.test
    meta = open_run(whole.path).tensors()[0]
    assert not any("conv" in name for name in meta)
    written(weights, net(64).state_dict())  # other weights in the same place
    with pytest.raises(RunError, match="was trained with frozen parameters"):
        open_run(whole.path)
    with pytest.raises(RunError, match="holds a run that differs in its frozen parameters"):
        train(RunConfig(**{**settings, "epochs": 3}), whole.path, resume=True)


def test_a_checkpoint_of_several_gpus_of_the_maml_plus_plus_code_is_read(
    data_root: Path, tmp_path: Path
) -> None:
    network = reference_checkpoint(tmp_path / "one")
    parallel = {n.replace("classifier.", "classifier.module.", 1): t for n, t in network.items()}
    torch.save({"network": parallel}, tmp_path / "several")
    starts = [
        build(of_the_reference(data_root, tmp_path / name)).learner.init()[0]
        for name in ("one", "several")
    ]
    torch.testing.assert_close(*starts, rtol=0, atol=0)


@pytest.mark.parametrize("rate", [torch.tensor(0.1), torch.ones(1), torch.ones(3, 2)])
def test_rates_of_other_steps_are_refused(data_root: Path, tmp_path: Path, rate: Tensor) -> None:
    network = reference_checkpoint(tmp_path / "checkpoint")
    network["inner_loop_optimizer.names_learning_rates_dict.layer_dict-linear-bias"] = rate
    torch.save({"network": network}, tmp_path / "checkpoint")
    said = (
        rf"rate.linear.bias' of shape {re.escape(str(tuple(rate.shape)))}, and 2 inner steps need"
    )
    with pytest.raises(ConfigError, match=said):
        build(of_the_reference(data_root, tmp_path / "checkpoint"))


def test_weights_of_another_type_are_refused(tmp_path: Path) -> None:
    integers = {name: tensor.long() for name, tensor in net(3).state_dict().items()}
    with pytest.raises(ConfigError, match=r"of shape .* and type torch.int64, and the network has"):
        load_weights(net(3), written(tmp_path / "weights.pt", integers))
