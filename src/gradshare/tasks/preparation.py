"""The options of a preparation: which fit, and what a store's record has of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradshare.errors import DataError
from gradshare.tasks.arrays import fingerprint
from gradshare.tasks.folder import ClassSplit
from gradshare.tasks.glyphs import GLYPHS
from gradshare.tasks.images import Resize
from gradshare.tasks.store import ImageStore


def given_options(
    path: Path | None,
    folder: bool,
    seed: int | None,
    split: ClassSplit | None,
    group: str | None,
    skip_bad: bool,
) -> dict[str, Any]:
    """The options that were given and that the content of a store depends on, for its record.

    Among them is a digest of the names, sizes and times of the files of own images.
    """
    options: dict[str, Any] = {
        "from": path and str(path.absolute()),
        "seed": seed,
        "group": group,
        "skip_bad": skip_bad or None,
    }
    if isinstance(split, str | Path):
        options["split"] = str(split)
    elif split is not None:
        options["split"] = ",".join(f"{share:g}" for share in split)
    if folder and path is not None:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        if isinstance(split, str | Path):
            files.append(Path(split).expanduser())
        seen = [file for file in files if file.is_file() and not file.name.startswith(".")]
        options["files"] = fingerprint(
            [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in seen]
        )
    return {name: value for name, value in options.items() if value is not None}


def require_same(store: ImageStore, options: Mapping[str, Any]) -> None:
    """Raise DataError if a store was prepared from other files, or with other options."""
    record, asked = dict(store.source), dict(options)
    if "from" in record:  # older versions recorded it as it was given
        record["from"] = str(Path(record["from"]).absolute())
    if "from" not in asked or "files" not in record:  # read from a download, or by an older version
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


def _shown(value: object) -> object:
    return {"None": "not given", "True": "given"}.get(str(value), value)


def require_arguments(
    name: str,
    data_root: Path,
    path: Path | None,
    folder: bool,
    resize: Resize,
    options: Mapping[str, Any],
) -> None:
    """Refuse arguments that would change nothing, or a path that is not there."""
    if name == GLYPHS.name:
        if path is not None:
            raise DataError(f"glyphs are drawn, not read: leave out {path}")
        if resize != "stretch":
            raise DataError(
                f"glyphs are drawn at their final size: leave out the resize {resize!r}"
            )
    elif path is None:
        raise DataError(
            f"dataset {name!r} is read from a file or folder; give its path (--from PATH), or "
            "--download if it is published"
        )
    elif folder and data_root.resolve().is_relative_to(path.resolve()):
        raise DataError(
            f"{path} is to be read, and the data root {data_root} is in it; give another "
            "--data-root"
        )
    elif not folder and not path.exists():
        raise DataError(f"there is no {path}; give the archive or folder of {name!r}")
    useless = ("split", "group", "skip_bad" if name == GLYPHS.name else "seed")
    for option in useless if not folder else ():
        if option in options:
            raise DataError(
                f"the splits of {name!r} are fixed, so --{option.replace('_', '-')} would change "
                "nothing; leave it out"
            )
