"""A server to download from, in a thread of this process."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from tests.tasks.download_server import Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("pooch.core.time.sleep", lambda _seconds: None)  # before a second attempt
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    gc.collect()  # connections that broke off are closed here, and not in another test
