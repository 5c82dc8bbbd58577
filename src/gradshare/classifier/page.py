"""A page for the browser: name classes, give examples of each, and see what new images are."""

from __future__ import annotations

import html
import itertools
import threading
from base64 import b64decode
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from gradshare.classifier.estimator import FewShotClassifier
from gradshare.classifier.trained import Trained
from gradshare.errors import ConfigError, DataError, GradshareError
from gradshare.tasks import ImageTasks
from gradshare.tasks.absent import AbsentImages
from gradshare.tasks.images import open_image, read_image
from gradshare.tasks.pictures import data_uri
from gradshare.tasks.store import Images

MOST_BYTES = 20 * 2**20  # of one upload
MOST_PIXELS = 50_000_000  # of one upload; each takes 4 bytes of memory while the image is read
MOST_IMAGES = 200  # examples of one user, and new images
LONGEST_NAME = 40
FEW_TASKS = 20  # of the calibration; so few that the first answer comes in seconds
INK = 0.74  # the share of an image's side that a drawing fills, as glyphs do on average

# Of Matplotlib: gradio's own palette has two oranges among the first four.
COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")

STYLE = ".gradio-container {max-width: 1200px !important; margin: 0 auto}"

PART = {"container": True, "show_label": True}

CANVAS = PART | {
    "html_template": "<canvas width=320 height=320></canvas><button>Clear</button>",
    "css_template": """padding-top: 20px;
canvas {width: 100%; background: white; border: 1px solid #ddd; touch-action: none}
button {background: none; padding: 0; font-size: 12px; color: gray; text-decoration: underline}
""",
    "js_on_load": Path(__file__).with_name("canvas.js").read_text(encoding="utf-8"),
}

THUMBNAILS = PART | {
    "html_template": """{{#each value}}<figure>
<img src="{{this.png}}"><figcaption>{{this.caption}}</figcaption>
</figure>{{/each}}""",
    "css_template": """display: flex; flex-wrap: wrap; gap: 8px; padding-top: 20px;
figure {margin: 0; width: 72px; cursor: pointer; font-size: 12px; text-align: center}
img {width: 72px; height: 72px; image-rendering: pixelated}
figcaption {overflow-wrap: anywhere; line-height: 1.2}
""",
    "js_on_load": """element.addEventListener('click', event => {
  const figure = event.target.closest('figure');
  if (!figure || event.detail > 1) return;  // a double click would remove the next example too
  trigger('select', {index: [...element.querySelectorAll('figure')].indexOf(figure)});
});""",
}

Example = tuple[str, Images]
"""The name of a class, and an image in the run's size and colours."""


class Page:
    """The page's callbacks. Each gets its user's images as arguments, so that users don't mix.

    Args:
        trained: a run on images.

    Raises:
        ConfigError: the run is on other inputs.
    """

    def __init__(self, trained: Trained) -> None:
        if trained.form is None:
            raise ConfigError("the page takes images, and this run takes other inputs")
        self.trained, self.form = trained, trained.form
        source = trained.source
        self._dark_ink = (
            isinstance(source, ImageTasks | AbsentImages)
            and np.mean(source.used_normalization.mean) > 1 / 2
        )
        self._tasks = 0 if trained.validation is None else FEW_TASKS
        self._one_at_a_time = threading.Lock()  # torch's generators belong to the process

    def add(
        self, name: str, examples: list[Example], drawing: str, files: list[str] | None
    ) -> tuple[list[Example], Any, Any]:
        """Add what is drawn and dropped to the examples of a class, and empty both fields."""
        name = name.strip()[:LONGEST_NAME]
        if not name or not (drawing or files):
            gr.Warning("Name a class, and draw or drop an example of it.")
            return examples, gr.skip(), gr.skip()
        images = [self.draw(drawing)] if drawing else []
        images += self._read(files, len(examples) + len(images))
        return [*examples, *((name, image) for image in images)][:MOST_IMAGES], "", None

    def remove(self, examples: list[Example], event: gr.EventData) -> list[Example]:
        """Remove the example that was clicked."""
        return [example for place, example in enumerate(examples) if place != event.index]

    def ask(
        self, asked: list[Images], files: list[str] | None
    ) -> tuple[list[Images], Images | None, None]:
        """Add new images that were dropped, choose the last, and empty the field."""
        asked = [*asked, *self._read(files, len(asked))]
        return asked, asked[-1] if asked else None, None

    def choose(self, asked: list[Images], event: gr.EventData) -> Images:
        """Choose the new image that was clicked."""
        chosen: Images = asked[event.index]
        return chosen

    def ask_drawn(self, asked: list[Images], drawing: str) -> Images | None:
        """Choose what is drawn; the last image that was dropped if the canvas is empty."""
        if drawing:
            return self.draw(drawing)
        return asked[-1] if asked else None

    def draw(self, drawing: str) -> Images:
        """A drawing as an image in the run's size, its ink in the middle."""
        ink = self._image(b64decode(drawing), "the drawing").convert("RGBA").getchannel("A")
        ink = ink.crop(ink.getbbox())
        side = round(max(ink.size) / INK)
        square = Image.new("L", (side, side))
        square.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
        return read_image(ImageOps.invert(square) if self._dark_ink else square, "", self.form)

    def answer(
        self, examples: list[Example], asked: list[Images], chosen: Images | None
    ) -> tuple[Any, Any, Any, Any, Any]:
        """Learn the examples, and classify the new images.

        Returns:
            The thumbnails of the examples, of the new images with their classes, and of the chosen
            image; its probabilities, and those after each inner step.
        """
        names = sorted({name for name, _ in examples})
        captions, shown, probabilities, steps = [""] * len(asked), thumbnails([]), None, None
        if len(names) > 1 and chosen is not None:
            try:
                by_step = self._by_step(examples, np.stack([*asked, chosen]))
            except GradshareError as error:
                warn(error)
            else:
                captions = [f"{names[p.argmax()]} {p.max():.0%}" for p in by_step[-1]]
                shown = thumbnails([("", chosen)])
                probabilities = dict(zip(names, by_step[-1, -1].tolist(), strict=True))
                table = [
                    # Numbers would have fractions on the axis; texts are sorted, so " 2" < "10".
                    (f"{step:3}", name, probability)
                    for step, of_step in enumerate(by_step[:, -1].tolist())
                    for name, probability in zip(names, of_step, strict=True)
                ]
                lines = pd.DataFrame(table, columns=["inner steps", "class", "probability"])
                colors = dict(zip(names, itertools.cycle(COLORS)))
                steps = gr.update(value=lines, color_map=colors)
        answered = zip(captions, asked, strict=False)
        return thumbnails(examples), thumbnails(answered), shown, probabilities, steps

    def _by_step(self, examples: list[Example], queries: Images) -> Any:
        with self._one_at_a_time:
            classifier = FewShotClassifier(self.trained, calibration_tasks=self._tasks)
            classifier.fit(np.stack([image for _, image in examples]), [n for n, _ in examples])
            return classifier.predict_proba_by_step(queries)

    def _read(self, files: list[str] | None, held: int) -> list[Images]:
        """The images in dropped files. The files are deleted, and bad ones are named."""
        images: list[Images] = []
        paths = [Path(file) for file in files or ()]
        if held + len(paths) > MOST_IMAGES:
            warn(f"A page holds {MOST_IMAGES} images; the others are left out.")
        for path in paths:
            try:
                if held + len(images) < MOST_IMAGES:
                    image = self._image(path.read_bytes(), path.name)
                    images.append(read_image(image, path.name, self.form))
            except FileNotFoundError:  # read already: the button was clicked twice
                continue
            except DataError as error:
                warn(error)
            path.unlink(missing_ok=True)
        return images

    def _image(self, data: bytes, where: str) -> Image.Image:
        with open_image(data, where) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(
                    f"{where} has {image.width}×{image.height} pixels, over this page's limit of "
                    f"{MOST_PIXELS:,}; make it smaller"
                )
            image.load()
        return image


def thumbnails(images: Iterable[Example]) -> list[dict[str, str]]:
    """Images as the network sees them, with their captions, for `THUMBNAILS`."""
    found = []
    for caption, image in images:
        png = BytesIO()
        Image.fromarray(np.moveaxis(image, 0, -1).squeeze()).save(png, "png")
        found.append({"caption": caption, "png": data_uri("png", png.getvalue())})
    return found


def warn(message: object) -> None:
    """Show a message on the page. It may quote the name of a file, which must not be markup."""
    gr.Warning(html.escape(str(message)))


def make_page(page: Page, title: str) -> gr.Blocks:
    """Lay out a page under the name of its run."""
    draws = page.form.channels == 1
    dropped = {"file_count": "multiple", "height": 130}
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        examples, asked, chosen = gr.State([]), gr.State([]), gr.State(None)
        gr.Markdown(
            f"# {html.escape(title)}\nTeach it classes of your own by a few examples of each. "
            "Images stay on the computer that serves this page."
        )
        with gr.Row():
            with gr.Column(min_width=240):
                gr.Markdown("### 1. Examples")
                name = gr.Textbox(label="Class", max_length=LONGEST_NAME)
                drawn = gr.HTML("", label="Draw an example", visible=draws, **CANVAS)
                files = gr.File(label="Drop examples", **dropped)
                add = gr.Button("Add to the class", variant="primary")
                known = gr.HTML([], label="Click an example to remove it", **THUMBNAILS)
            with gr.Column(min_width=240):
                gr.Markdown("### 2. New images")
                drawing = gr.HTML("", label="Draw a new one", visible=draws, **CANVAS)
                new = gr.File(label="Drop new ones", **dropped)
                found = gr.HTML([], label="Click an image for details", **THUMBNAILS)
            with gr.Column(min_width=240):
                gr.Markdown("### 3. Answer")
                shown = gr.HTML([], label="Of this image", **THUMBNAILS)
                label = gr.Label(label="Probabilities", num_top_classes=5)
                axes = {"x": "inner steps", "y": "probability", "color": "class", "y_lim": [0, 1]}
                steps = gr.LinePlot(label="After each inner step", **axes)
        for happened in (
            add.click(page.add, [name, examples, drawn, files], [examples, drawn, files]),
            known.select(page.remove, [examples], [examples]),
            new.upload(page.ask, [asked, new], [asked, chosen, new]),
            drawing.input(page.ask_drawn, [asked, drawing], [chosen]),
            found.select(page.choose, [asked], [chosen]),
        ):
            # A plot keeps the classes that it was drawn with, so it is emptied first.
            emptied = happened.then(lambda: None, None, [steps])
            answer = [known, found, shown, label, steps]
            emptied.then(page.answer, [examples, asked, chosen], answer)
    return blocks
