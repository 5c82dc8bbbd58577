"""`gradshare serve`: a run as a page for the browser."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

import click

from gradshare.classifier.trained import Trained
from gradshare.cli.predict import classifier_options
from gradshare.errors import SIGNAL_STATUS, ConfigError, escaped


@click.command(name="serve")
@classifier_options
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at. 0.0.0.0 lets other computers in, without a password.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True)
def serve_command(run: Path, ensemble: int | None, device: str, host: str, port: int) -> None:
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
                f"`gradshare serve` needs {error.name}; run `pip install 'gradshare[serve]'`"
            ) from error
        _require_free(host, port)
        host = f"[{host}]" if ":" in host else host  # an IPv6 address, as gradio and URLs have it
        trained = Trained(run, ensemble, device)
        blocks = page.make_page(page.Page(trained), run.name)
        blocks.launch(
            server_name=host,
            server_port=port,
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
        click.echo(f"{escaped(run)} is served at http://{host}:{port} until Ctrl-C")
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
