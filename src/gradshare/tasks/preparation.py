"""The arguments that a store is prepared with: checks, and the record of them in the store."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gradshare.errors import DataError
from gradshare.tasks.arrays import fingerprint
from gradshare.tasks.glyphs import GLYPHS
from gradshare.tasks.images import Resize
from gradshare.tasks.readers.files import is_table, table_rows
from gradshare.tasks.readers.folder import ClassSplit
from gradshare.tasks.store import ImageStore


@dataclass(frozen=True)
class Preparation:
    """The arguments of `prepare_dataset` that the content of a store depends on."""

    path: Path | None
    folder: bool
    resize: Resize
    seed: int | None
    split: ClassSplit | None
    group: str | None
    skip_bad: bool

    @cached_property
    def record(self) -> dict[str, Any]:
        """The options that were given, for the store's `source`; with a digest of the names, sizes
        and times of the files of images of the user's own.
        """
        split = self.split
        if split is not None and not isinstance(split, str | Path):
            split = ",".join(f"{share:g}" for share in split)
        record = {
            "from": self.path and str(self.path.absolute()),
            "seed": self.seed,
            "split": None if split is None else str(split),
            "group": self.group,
            "skip_bad": self.skip_bad or None,
        }
        if self.folder and self.path is not None:
            files = sorted(self.path.rglob("*")) if self.path.is_dir() else [self.path]
            if is_table(self.path):
                rows = table_rows(self.path, ("path", "label"))
                files += [self.path.parent / str(row["path"]) for _, row in rows]
            if isinstance(self.split, str | Path):
                files.append(Path(self.split).expanduser())
            seen = [file for file in files if file.is_file() and not file.name.startswith(".")]
            record["files"] = fingerprint(
                [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in seen]
            )
        return {name: value for name, value in record.items() if value is not None}

    def require_same(self, store: ImageStore) -> None:
        """Raise DataError if a store was prepared from other files, or with other options."""
        record, asked = dict(store.source), dict(self.record)
        if "from" in record:  # older versions recorded it as it was given
            record["from"] = str(Path(record["from"]).absolute())
        if "from" not in asked or "files" not in record:  # a download, or an older version
            asked["files"] = record.get("files")
        asked.setdefault("from", record.get("from"))
        if "seed" in record:
            asked.setdefault("seed", 0)
        remedy = "prepare it anew with --force, or choose another name or --data-root"
        differing = [
            f"--{name.replace('_', '-')} {_shown(before)}, now {_shown(now)}"
            for name in ("from", "seed", "split", "group", "skip_bad")
            if (before := record.get(name)) != (now := asked.get(name))
        ]
        if differing:
            raise DataError(f"{store.path} was prepared with {'; '.join(differing)}: {remedy}")
        if record.get("files") != asked.get("files"):
            raise DataError(f"what {store.path} was prepared from has changed since: {remedy}")

    def require_use(self, name: str, data_root: Path) -> None:
        """Raise DataError if an argument would change nothing, or the path is not there."""
        path, is_drawn = self.path, name == GLYPHS.name
        if not self.folder:  # whose record takes a walk over all files
            given = {*self.record, *(["resize"] if self.resize != "stretch" else [])}
            unread = {"split", "group"} | ({"from", "resize", "skip_bad"} if is_drawn else {"seed"})
            if unused := sorted(given & unread):
                raise DataError(
                    f"--{unused[0].replace('_', '-')} changes nothing about dataset {name!r}, "
                    f"which is {'drawn' if is_drawn else 'read in its published split'}; leave it "
                    "out"
                )
        if path is None and not is_drawn:
            raise DataError(
                f"dataset {name!r} is read from a file or folder; give its path (--from PATH), or "
                "--download if it is published"
            )
        if path and not path.exists():
            raise DataError(f"there is no {path}; give the archive or folder of {name!r}")
        if self.folder and path and data_root.resolve().is_relative_to(path.resolve()):
            raise DataError(
                f"{path} is to be read, and the data root {data_root} is in it; give another "
                "--data-root"
            )


def _shown(value: object) -> object:
    return {"None": "not given", "True": "given"}.get(str(value), value)
