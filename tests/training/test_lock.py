"""One process at a time in a folder, also on disks without `flock`."""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path

import pytest
from filelock import _unix

from gradshare.errors import RunError
from gradshare.training.lock import is_locked, locked


def test_a_folder_is_locked_until_the_end_of_the_block(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert not is_locked(folder)
    with locked(folder, doing="comparing"):
        assert is_locked(folder)
        with pytest.raises(RunError) as error, locked(folder, doing="comparing"):
            pass
    assert str(error.value) == (
        f"another process is comparing in {folder}; wait for it, or choose another folder (--out)"
    )
    assert not is_locked(folder)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "folder"
    with pytest.raises(RunError) as error, locked(folder, doing="training"):
        pass
    assert str(error.value) == (
        f"{folder} cannot be written: Not a directory; free space there, or choose another output "
        "folder (--out)"
    )
    assert not is_locked(folder)


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_where_flock_is_missing_the_message_names_the_holder_host_age_and_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_flock(descriptor: int) -> bool:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(_unix, "lock_fd_nonblocking", no_flock)
    path = tmp_path / ".lock"
    with locked(tmp_path, doing="training"):
        written = path.read_text(encoding="utf-8").split()
        assert written[:2] == [str(os.getpid()), socket.gethostname()]
    assert not path.exists()

    # Of a process that was killed on another machine, an hour ago.
    path.write_text("4711\nnode-3\n", encoding="utf-8")
    os.utime(path, (time.time() - 3600,) * 2)
    assert is_locked(tmp_path)
    with pytest.raises(RunError) as error, locked(tmp_path, doing="training"):
        pass
    assert str(error.value) == (
        f"another process is training in {tmp_path} (process 4711 on node-3, for 60 minutes; if it "
        f"was killed, delete {path}); wait for it, or choose another folder (--out)"
    )
    path.unlink()
    with locked(tmp_path, doing="training"):
        assert is_locked(tmp_path)
