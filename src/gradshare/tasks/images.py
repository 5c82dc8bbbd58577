"""Decoding images of unknown origin to the form that a store holds."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gradshare.errors import DataError, require_choice
from gradshare.tasks.store import Images

# Cameras make photographs of 100 and 150 megapixels. What claims more is a decompression bomb:
# Pillow itself refuses 179 megapixels.
MAX_PIXELS = 175_000_000

# Pillow knows dozens of formats more, some of which hand the file to another program (EPS).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Those whose deepest grey has 16 bits, which Pillow may read into a mode of 32.
SIXTEEN_BITS = ("PNG", "PPM")
BITS_PER_SAMPLE = 258  # the tag of a TIFF

Resize = Literal["stretch", "center-crop"]


@dataclass(frozen=True)
class ImageFormat:
    """What every image of a store is turned into.

    Attributes:
        size: height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        resize: "stretch" resizes straight to the square, as the reference MAML++ loader does;
            "center-crop" resizes the shorter side to 1.5 · size and cuts out the middle, as
            torchmeta's CUB pipeline does.

    Raises:
        ConfigError: another `resize`.
    """

    size: int
    channels: int
    resize: Resize = "stretch"

    def __post_init__(self) -> None:
        require_choice("resize", self.resize, Resize)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.size, self.size


def read_image(image: Any, where: str, form: ImageFormat) -> Images:
    """Decode an image to uint8 (C, H, W).

    Args:
        image: the path of a file, the bytes of one (bytes, or uint8 (n,)), a Pillow image, or
            pixels, uint8 (H, W), (H, W, 3) or (H, W, 4).
        where: how an error names the image, if it is not a path.
        form: what to turn it into.

    Raises:
        DataError: no such file, not an image, truncated, larger than `MAX_PIXELS`, or of more than
            16 bits a channel.
    """
    if isinstance(image, Path):
        where = str(image)
    if isinstance(image, np.ndarray) and image.ndim > 1:
        _require_size(image.shape[1::-1], where, form)
        return _to_array(Image.fromarray(image), form)
    if isinstance(image, np.ndarray):
        image = image.tobytes()
    with open_image(image, where) as opened:
        _require_size(opened.size, where, form)
        return _to_array(opened, form)


@contextmanager
def open_image(data: Path | bytes | Image.Image, where: str) -> Iterator[Image.Image]:
    """Open an image file, or the bytes of one, of which only the header is read at first. A Pillow
    image stays open.

    Raises:
        DataError: no such file, not an image, or of more than 16 bits a channel; or Pillow raises
            an error while the image is in use.
    """
    if isinstance(data, Path) and data.exists() and not data.is_file():  # a pipe would never end
        raise DataError(f"{where} is not a file; give the path of an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bomb warning: MAX_PIXELS decides
            if isinstance(data, Image.Image):
                opened: AbstractContextManager[Image.Image] = nullcontext(data)
            else:
                file = io.BytesIO(data) if isinstance(data, bytes) else data
                opened = Image.open(file, formats=FORMATS)
            with opened as image:
                _check_depth(image, where)
                yield image
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged input
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(
                f"{where} cannot be read ({error.strerror}); correct the path, or give yourself "
                "permission to read it"
            ) from error
        cause = type(error).__name__
        if not isinstance(error, UnidentifiedImageError):  # which names an object in memory
            cause += f": {error}"
        raise DataError(
            f"{where} is not a readable image ({cause}); replace or remove it"
        ) from error


def _check_depth(image: Image.Image, where: str) -> None:
    """Refuse grey of more than 16 bits: nothing says which of its values are black and white."""
    if image.mode == "F" or (image.mode == "I" and image.format not in SIXTEEN_BITS):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit or signed integers"
        raise DataError(
            f"{where} holds {kind} (Pillow's mode {image.mode!r}), which have no fixed black and "
            "white; convert it to 8 or 16 bits a channel, or remove it"
        )


def _require_size(size: tuple[int, int], where: str, form: ImageFormat) -> None:
    """Refuse an image that has more than `MAX_PIXELS`, or would have on its way to a square."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{where} is {width}×{height} pixels, over the limit of {MAX_PIXELS:,}; make it "
            "smaller or remove it"
        )
    if form.resize == "center-crop" and max(size) * (1.5 * form.size) ** 2 > MAX_PIXELS * min(size):
        raise DataError(
            f"{where} is {width}×{height} pixels, too long and narrow to cut a square of "
            f"{form.size} out of its middle; crop or remove it, or use --resize stretch"
        )


def _to_array(image: Image.Image, form: ImageFormat) -> Images:
    """Bring a decoded image to a store's size and channels: uint8 (C, H, W)."""
    bits = 8
    if image.mode.startswith("I"):  # deep grey: 16 bits, or as many as the TIFF of a camera says
        (bits,) = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))
    image = ImageOps.exif_transpose(image)  # telephones store photographs sideways and say so
    if bits > 8:
        # Pillow clips deep grey to 255 instead of scaling it. (It scales a PGM's to 65535.)
        image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
    if image.has_transparency_data:
        on_white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(on_white, image.convert("RGBA"))
    image = image.convert("L" if form.channels == 1 else "RGB")
    if form.resize == "center-crop":
        scale = int(form.size * 1.5) / min(image.size)
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR
        )
        left, top = (image.width - form.size) // 2, (image.height - form.size) // 2
        image = image.crop((left, top, left + form.size, top + form.size))
    elif image.size != (form.size, form.size):
        image = image.resize((form.size, form.size), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if form.channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))
