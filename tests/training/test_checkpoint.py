"""Checkpoints: what is read back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gradshare.errors import RunError
from gradshare.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    save_checkpoint(
        path,
        Checkpoint(
            {"model.weight": torch.randn(3, 2)},
            {"sharing.seen": torch.tensor([True, False])},
            {"model.weight/step": torch.tensor(4.0)},
            {"iteration": 4},
        ),
    )
    return path


def test_what_was_saved_is_loaded(path: Path) -> None:
    checkpoint = load_checkpoint(path, CPU)
    assert checkpoint.learned["model.weight"].shape == (3, 2)
    assert checkpoint.state["sharing.seen"].tolist() == [True, False]
    assert checkpoint.optimizer["model.weight/step"].item() == 4
    assert checkpoint.progress == {"iteration": 4}


def test_adams_count_of_steps_stays_on_the_cpu(path: Path) -> None:
    meta = torch.device("meta")  # stands for a GPU
    checkpoint = load_checkpoint(path, CPU)
    checkpoint.optimizer["model.weight/exp_avg"] = torch.zeros(3, 2)
    for moved in (checkpoint.to(meta), load_checkpoint(path, meta)):
        assert moved.optimizer["model.weight/step"].device == CPU
        assert moved.optimizer["model.weight/step"].item() == 4
        assert moved.learned["model.weight"].device == meta
        assert moved.state["sharing.seen"].device == meta
    assert checkpoint.to(meta).optimizer["model.weight/exp_avg"].device == meta


def test_a_flipped_bit_is_found(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match="is damaged: its checksum does not match"):
        load_checkpoint(path, CPU)


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_file_is_refused(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match="cannot be read as a checkpoint"):
        load_checkpoint(path, CPU)


def test_a_foreign_file_and_a_newer_format_are_named(tmp_path: Path) -> None:
    foreign, newer = tmp_path / "foreign.safetensors", tmp_path / "newer.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    save_file({"x": torch.zeros(1)}, newer, {"format_version": "99", "gradshare": "3.2"})
    with pytest.raises(RunError, match=r"foreign.safetensors is no checkpoint of gradshare"):
        load_checkpoint(foreign, CPU)
    with pytest.raises(RunError) as error:
        load_checkpoint(newer, CPU)
    assert str(error.value) == (
        f"{newer} has checkpoint format 99, this gradshare reads 1; use gradshare 3.2, which wrote "
        "it"
    )


def test_a_file_that_cannot_be_written_leaves_the_old_one(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(RunError, match="cannot be written: No such file or directory; free"):
        save_checkpoint(path.parent / "absent" / "b", load_checkpoint(path, CPU))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]
