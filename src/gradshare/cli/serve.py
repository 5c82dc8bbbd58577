"""`gradshare serve`: a run as a page for the browser."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import click
from pydantic import Field

from gradshare.classifier.trained import Trained
from gradshare.cli.options import options_of
from gradshare.cli.predict import Classify, run_argument
from gradshare.errors import SIGNAL_STATUS, ConfigError, escaped


class Serve(Classify):
    """The options of `gradshare serve`."""

    host: str = "127.0.0.1"
    """Address to listen at. 0.0.0.0 lets other computers in, without a password."""
    port: Annotated[int, Field(ge=1, le=65535)] = 7860
    """Port to listen at."""


@click.command(name="serve")
@run_argument
@options_of(Serve)
def serve_command(run: Path, asked: Serve) -> None:
    """Open a page on which a RUN learns classes from a few examples of each.

    Images are dropped, or drawn if the run is on grey images. Ctrl-C ends it.
    """
    with tempfile.TemporaryDirectory(prefix="gradshare-") as uploads:
        # Both are read when gradio is imported.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}
        try:
            import gradio as gr  # noqa: PLC0415

            from gradshare.classifier import page  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"`gradshare serve` needs {error.name}; run `pip install gradio`"
            ) from error
        _require_free(asked.host, asked.port)
        host = f"[{asked.host}]" if ":" in asked.host else asked.host  # as gradio and URLs have it
        trained = Trained(run, asked.ensemble, asked.device)
        blocks = page.make_page(page.Page(trained), run.name)
        blocks.launch(
            server_name=host,
            server_port=asked.port,
            theme=gr.themes.Default(font="system-ui", font_mono="monospace"),
            css=page.STYLE,
            footer_links=[],
            max_file_size=page.MOST_BYTES,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
        )
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(SIGNAL_STATUS + number))
        click.echo(f"{escaped(run)} is served at http://{host}:{asked.port} until Ctrl-C")
        threading.Event().wait()


def _require_free(host: str, port: int) -> None:
    """Raise ConfigError if no server can listen at an address."""
    try:
        family, *_ = socket.getaddrinfo(host.strip() or "empty", port, type=socket.SOCK_STREAM)[0]
        socket.create_server((host, port), family=family).close()
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"the page cannot be served at --host {host!r} --port {port} ({error}); give an "
            "address of this computer, such as 127.0.0.1, and a free port"
        ) from error
