"""Checkpoints: what is read back, and what is refused."""

from __future__ import annotations

import errno
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gradshare.errors import RunError
from gradshare.training.checkpoint import (
    Checkpoint,
    DamagedError,
    load_checkpoint,
    save_checkpoint,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    save_checkpoint(
        path,
        Checkpoint(
            {"model.weight": torch.arange(6.0).view(2, 3).T},
            {"sharing.seen": torch.tensor([True, False])},
            {"run": "a", "iteration": 4},
            {"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"params": [0]}]},
        ),
    )
    return path


def test_what_was_saved_is_loaded(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    assert checkpoint.meta["model.weight"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert checkpoint.carried["sharing.seen"].tolist() == [True, False]
    assert checkpoint.progress == {"run": "a", "iteration": 4}
    assert checkpoint.optimizer == {
        "state": {0: {"step": torch.tensor(4.0)}},
        "param_groups": [{"params": [0]}],
    }


def test_an_epochs_model_has_no_optimiser(path: Path) -> None:
    save_checkpoint(path, Checkpoint({"w": torch.ones(1)}, {}, {}))
    assert load_checkpoint(path).optimizer is None


def test_one_tensor_under_two_names_is_saved_under_both(path: Path) -> None:
    mean = torch.ones(2)
    save_checkpoint(path, Checkpoint({"w": torch.ones(1)}, {"a": mean, "b": mean}, {}))
    assert load_checkpoint(path).carried["b"].tolist() == [1, 1]


OPTIMIZERS: dict[str, Any] = {
    "Adam": torch.optim.Adam,
    "Adam with AMSGrad": partial(torch.optim.Adam, amsgrad=True),
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "SGD with momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "AdamW": torch.optim.AdamW,
    "RMSprop": partial(torch.optim.RMSprop, centered=True, momentum=0.5),
    "Adagrad": torch.optim.Adagrad,
    "Adamax": torch.optim.Adamax,
    "Rprop": torch.optim.Rprop,
    "ASGD": torch.optim.ASGD,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimiser_goes_on_from_a_checkpoint_bit_for_bit(name: str, tmp_path: Path) -> None:
    def made() -> tuple[dict[str, Tensor], torch.optim.Optimizer]:
        tensors = {"a": torch.ones(3, 2), "b": torch.zeros(()), "c": torch.ones(2).double()}
        meta = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
        groups = [{"params": [meta["a"], meta["c"]], "lr": 0.3}, {"params": [meta["b"]]}]
        return meta, OPTIMIZERS[name](groups)

    def step(meta: dict[str, Tensor], optimizer: torch.optim.Optimizer, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        for tensor in meta.values():
            tensor.grad = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        optimizer.step()

    meta, optimizer = made()
    for number in range(3):
        step(meta, optimizer, number)
    save_checkpoint(tmp_path / "a", Checkpoint(meta, {}, {}, optimizer.state_dict()))
    saved = load_checkpoint(tmp_path / "a")
    other, again = made()
    for tensor_name, tensor in other.items():
        tensor.data.copy_(saved.meta[tensor_name])
    assert saved.optimizer is not None
    again.load_state_dict(saved.optimizer)
    for number in range(3, 6):
        step(meta, optimizer, number)
        step(other, again, number)
    for tensor_name, tensor in meta.items():
        assert torch.equal(tensor, other[tensor_name])
    assert again.param_groups[0]["lr"] == 0.3


def test_an_optimiser_whose_state_cannot_be_stored_is_named(path: Path) -> None:
    checkpoint = Checkpoint({}, {}, {}, {"state": {0: {"closure": print}}})
    with pytest.raises(RunError) as error:
        save_checkpoint(path, checkpoint)
    assert str(error.value) == (
        "the optimiser's state holds a builtin_function_or_method, which a checkpoint can't store; "
        "use an optimiser whose state is tensors and numbers"
    )
    assert load_checkpoint(path).progress["iteration"] == 4


def test_a_flipped_bit_is_found(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="is damaged: its checksum does not match"):
        load_checkpoint(path)


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_file_is_refused(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)


def test_a_file_without_permission_is_not_called_missing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:  # root may read everything
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RunError, match=r"cannot be read as a checkpoint: .*Permission denied"):
        load_checkpoint(path)


def test_a_foreign_file_and_other_formats_are_named(tmp_path: Path) -> None:
    foreign, newer = tmp_path / "foreign.safetensors", tmp_path / "newer.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(RunError, match=r"foreign.safetensors is not a checkpoint of gradshare"):
        load_checkpoint(foreign)
    for number, author in (("99", "3.2"), ("1", "0.1.0")):
        save_file({"x": torch.zeros(1)}, newer, {"format_version": number, "gradshare": author})
        with pytest.raises(RunError) as error:
            load_checkpoint(newer)
        assert str(error.value) == (
            f"{newer} has checkpoint format {number}, this gradshare reads 2; use gradshare "
            f"{author}, which wrote it"
        )


def test_a_file_that_cannot_be_written_leaves_the_old_one(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(RunError, match="cannot be written: No such file or directory; free"):
        save_checkpoint(path.parent / "absent" / "b", load_checkpoint(path))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]
