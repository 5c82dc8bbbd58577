"""`gradshare serve` in a browser."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

import gradshare as gs
from gradshare.classifier.trained import Trained
from gradshare.errors import ConfigError
from tests.classifier.conftest import rows_run
from tests.cli.test_runs import Program, program

__all__ = ["program", "rows_run"]  # fixtures

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

ELL = ((0.3, 0.2), (0.3, 0.8), (0.7, 0.8))
VEE = ((0.2, 0.2), (0.5, 0.8), (0.8, 0.2))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the shipped model is served, from a folder without any dataset. Ctrl-C ends it."""
    pytest.importorskip("gradio")
    home = tmp_path_factory.mktemp("home")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "gradshare", "serve", "glyphs", "--device=cpu", f"--port={port}"],
        cwd=home,
        env={**os.environ, "TMPDIR": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    url = f"http://127.0.0.1:{port}"
    line = process.stdout.readline()
    assert line == f"glyphs is served at {url} until Ctrl-C\n", process.communicate()
    yield url
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + signal.SIGINT, "stopped\n")
    assert not list(home.iterdir())  # neither uploads nor a dataset


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def session(browser: Any, address: str) -> Iterator[Callable[[], Any]]:
    """Opens the page for another user. It asks nothing of any other machine."""
    contexts, asked = [], []

    def opened() -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 1060})
        contexts.append(context)
        context.set_default_timeout(60_000)
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.goto(address)
        page.locator("canvas").first.wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert asked
    assert all(url.startswith((address, "data:", "blob:")) for url in asked), asked


def draw(page: Any, canvas: int, points: Sequence[tuple[float, float]]) -> None:
    """Draw a line on a canvas, in shares of its width and height."""
    box = page.locator("canvas").nth(canvas).bounding_box()
    (start, *others) = [
        (box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points
    ]
    page.mouse.move(*start)
    page.mouse.down()
    for point in others:
        page.mouse.move(*point, steps=5)
    page.mouse.up()


def add(page: Any, name: str) -> None:
    """Add what was drawn or dropped to a class."""
    examples = page.locator("figure").count()
    page.get_by_label("Class", exact=True).fill(name)
    page.get_by_role("button", name="Add to the class").click()
    page.locator("figure").nth(examples).wait_for()


def highest(page: Any) -> str:
    """The class whose line ends highest in the plot."""
    lines = page.locator(".vega-embed [aria-roledescription='line mark']")
    lines.first.wait_for()
    ends: dict[str, float] = {
        line.get_attribute("aria-label").partition("class: ")[2]: float(
            line.get_attribute("d").rpartition(",")[2]
        )
        for line in lines.all()
    }
    return min(ends, key=lambda name: ends[name])


def drop(page: Any, field: int, **files: bytes) -> None:
    """Drop files on the field of examples (0) or of new images (1)."""
    uploads = [
        {"name": f"{name}.png", "mimeType": "image/png", "buffer": data}
        for name, data in files.items()
    ]
    page.locator("input[type=file]").nth(field).set_input_files(uploads)


def png(shade: int, width: int = 30, height: int = 30) -> bytes:
    """A grey image with a line across it."""
    image = Image.new("L", (width, height), shade)
    image.paste(255, (0, height // 2, width, height // 2 + 4))
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


@pytest.mark.long
def test_a_drawing_is_classified_at_once_and_after_each_step(session: Callable[[], Any]) -> None:
    page, other = session(), session()
    for points, name in ((ELL, "ell"), (VEE, "vee <i>")):
        draw(page, 0, points)
        add(page, name)
    draw(page, 1, ELL)
    expect = page.get_by_test_id("label-output-value")
    expect.wait_for()
    assert expect.inner_text() == "ell"
    assert page.get_by_test_id("ell-confidence-set").inner_text().startswith("ell")
    page.locator(".vega-embed").wait_for()
    # The plot shows a class that comes later, and forgets one that is removed.
    draw(page, 0, ((0.2, 0.5), (0.8, 0.5)))
    add(page, "bar")
    in_plot = page.locator(".vega-embed text").get_by_text("bar", exact=True)
    in_plot.wait_for()
    page.locator("figure").nth(2).click()
    in_plot.wait_for(state="detached")
    # It is of the image that was answered last.
    page.get_by_role("button", name="Clear").nth(1).click()
    draw(page, 1, VEE)
    expect.filter(has_text="vee").wait_for()
    assert highest(page) == "vee <i>"
    # Another user sees none of it, and one class is not enough for an answer.
    draw(other, 0, VEE)
    add(other, "mine")
    assert other.locator("figcaption").all_inner_texts() == ["mine"]
    assert other.get_by_test_id("label-output-value").count() == 0
    # A class without examples is gone, and the answer with it.
    assert page.locator("figcaption").all_inner_texts() == ["ell", "vee <i>", ""]
    page.locator("figure").nth(0).dblclick()
    expect.wait_for(state="detached")
    assert page.locator("figcaption").all_inner_texts() == ["vee <i>"]


@pytest.mark.long
def test_dropped_images_are_bounded_and_bad_ones_are_named(session: Callable[[], Any]) -> None:
    page = session()

    def message(words: str) -> str:
        found = page.get_by_test_id("toast-body").filter(has_text=words)
        found.wait_for()
        return str(found.inner_text())

    drop(page, 0, dark=png(0), torn=png(1)[:60], words=b"no image")
    add(page, "dark")
    assert "torn.png is not a readable image" in message("torn.png")
    assert "words.png is not a readable image" in message("words.png")
    drop(page, 0, light=png(200))
    add(page, "light")
    drop(page, 1, new=png(10), bomb=png(0, 8000, 7000))
    assert "bomb.png has 8000×7000 pixels, over this page's limit" in message("bomb.png")
    page.locator("figure").nth(2).wait_for()
    drop(page, 1, huge=bytes(21 * 2**20))
    assert "huge.png" in message("maximum allowed size")


def test_a_page_holds_a_bounded_number_of_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("gradio")
    page = importlib.import_module("gradshare.classifier.page")
    said: list[str] = []
    monkeypatch.setattr(page, "warn", said.append)
    monkeypatch.setattr(page, "MOST_IMAGES", 3)
    served = page.Page(Trained("glyphs", None, "cpu"))

    def files() -> list[str]:
        paths = [tmp_path / f"{number}.png" for number in range(2)]
        for path in paths:
            path.write_bytes(png(100))
        return list(map(str, paths))

    examples, _, _ = served.add("a", [], "", files())
    examples, _, _ = served.add("b", examples, "", files())
    assert [name for name, _ in examples] == ["a", "a", "b"]
    assert said == ["A page holds 3 images; the others are left out."]
    asked, chosen, _ = served.ask([], files())
    assert len(asked) == 2
    assert chosen is asked[-1]
    assert not list(tmp_path.iterdir())  # uploads are not kept
    assert served.ask([], [str(tmp_path / "0.png")])[0] == []  # as when a button is clicked twice
    assert served.ask_drawn(asked, "") is chosen
    assert served.ask_drawn([], "") is None
    _, answered, shown, probabilities, steps = served.answer(examples, asked, chosen)
    assert [set(item) for item in answered] == [{"caption", "png"}] * 2
    assert shown == [{"caption": "", "png": answered[-1]["png"]}]
    assert served.answer(examples[:1], asked, chosen)[2] == []  # there is no answer
    assert sum(probabilities.values()) == pytest.approx(1)
    assert list(steps["color_map"]) == ["a", "b"]
    assert list(steps["value"]) == ["inner steps", "class", "probability"]
    assert [*map(int, sorted(set(steps["value"]["inner steps"])))] == [0, 1, 2, 3, 4, 5]
    twelve = np.full((13, len(asked) + 1, 2), 0.5)
    monkeypatch.setattr(served, "_by_step", lambda *_: twelve)
    *_, steps = served.answer(examples, asked, chosen)
    in_order = steps["value"]["inner steps"].unique()  # the plot sorts texts
    assert [int(step) for step in sorted(in_order)] == list(range(13))
    monkeypatch.undo()
    renamed = {"a": "probability", "b": "inner steps"}  # as columns of the table are called
    *_, steps = served.answer([(renamed[n], image) for n, image in examples], asked, chosen)
    assert steps["value"]["class"].value_counts().to_dict() == {"probability": 6, "inner steps": 6}


@pytest.mark.parametrize("host", ["", "no host", "192.0.2.7", "127.0.0.1"])
def test_an_address_that_cannot_be_listened_at_is_refused(program: Program, host: str) -> None:
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = program("serve", "glyphs", f"--host={host}", f"--port={port}")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: the page cannot be served at --host {host!r} --port {port} (")
    assert err.endswith("; give an address of this computer, such as 127.0.0.1, and a free port\n")


def test_an_address_of_ipv6_stands_in_brackets(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio")
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as free:
            port = free.getsockname()[1]
    except OSError:
        pytest.skip("this machine has no IPv6")
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):  # which the command sets
        monkeypatch.setenv(name, "")
    page = Mock()
    monkeypatch.setattr("gradshare.classifier.page.make_page", lambda *_: page)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("gradshare.cli.serve.threading", Mock())  # it waits for ever
    code, out, _ = program("serve", "glyphs", "--device=cpu", "--host=::1", f"--port={port}")
    # Without brackets gradio takes a part of it for the port.
    assert (code, page.launch.call_args.kwargs["server_name"]) == (0, "[::1]")
    assert out == f"glyphs is served at http://[::1]:{port} until Ctrl-C\n"


def test_the_page_needs_gradio_and_a_run_on_images(
    program: Program, rows_run: gs.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert program("serve", "glyphs") == (
        1,
        "",
        "error: `gradshare serve` needs gradio; run `pip install gradio`\n",
    )
    monkeypatch.undo()
    pytest.importorskip("gradio")
    page = importlib.import_module("gradshare.classifier.page")
    with pytest.raises(ConfigError, match="the page takes images, and this run takes other"):
        page.Page(Trained(rows_run, None, "cpu"))
