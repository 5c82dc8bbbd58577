"""Downloading a dataset's archives, with pooch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradshare.errors import DataError, reason
from gradshare.tasks.readers.dataset import Archive
from gradshare.tasks.readers.files import is_web_page

TIMEOUT_SECONDS = 30.0  # without a single byte
CHUNK_BYTES = 1 << 16

OnProgress = Callable[[int, int | None], None]
"""Called with how much is done and how much there is in all, None where that is not known."""


def download(archive: Archive, folder: Path, progress: OnProgress | None = None) -> Path:
    """The path of an archive, which is fetched into a folder unless it is there already.

    The file takes its name when it is complete and its checksum is right. A failed download is
    tried once more.

    Raises:
        DataError: the server cannot be reached, refuses, or answers with a web page; the checksum
            is not the published one; or the disk cannot be written to.
    """
    import pooch  # noqa: PLC0415 (it takes a while, and few programs download)
    from requests import RequestException  # noqa: PLC0415

    fetch = pooch.HTTPDownloader(
        progressbar=_Bar(progress) if progress else False,
        chunk_size=CHUNK_BYTES,
        timeout=TIMEOUT_SECONDS,
    )

    failed = f"cannot download {archive.url}"
    remedy = "try again later, or download it by hand and pass --from PATH"

    def fetch_file(url: str, path: str, fetcher: Any) -> None:
        fetch(url, path, fetcher)
        if is_web_page(Path(path)):
            raise DataError(
                f"{failed}: the server answered with a web page instead of the file; {remedy}"
            )

    fetcher = pooch.Pooch(
        folder,
        base_url="",
        registry={archive.filename: archive.md5 and f"md5:{archive.md5}"},
        urls={archive.filename: archive.url},
        retry_if_failed=1,
    )
    try:
        return Path(fetcher.fetch(archive.filename, downloader=fetch_file))
    except (RequestException, ValueError) as error:  # pooch raises ValueError for a wrong checksum
        raise DataError(f"{failed}: {error}; {remedy}") from error
    except OSError as error:
        raise DataError(
            f"cannot write {folder / archive.filename} ({reason(error)}); make room on "
            "the disk or choose another folder"
        ) from error


class _Bar:
    """A progress bar as pooch wants it."""

    def __init__(self, report: OnProgress) -> None:
        self.report = report
        self.done = self.total = 0

    def update(self, size: int) -> None:
        self.done += size
        self.report(min(self.done, self.total) if self.total else self.done, self.total or None)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass
