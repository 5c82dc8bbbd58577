"""The program as a shell starts it, by `gradshare` or `python -m gradshare`."""

from __future__ import annotations

import sys
from signal import SIGINT


def start() -> None:
    """Run the program. Ctrl-C is one line, while the program is imported too."""
    try:
        from gradshare.cli import program  # noqa: PLC0415

        program()
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        sys.exit(128 + SIGINT)


if __name__ == "__main__":
    start()
