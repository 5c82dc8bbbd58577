"""Decoding images of unknown origin."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from gradshare.errors import ConfigError, DataError
from gradshare.tasks.images import MAX_PIXELS, ImageFormat, read_image

GREY, RGB = ImageFormat(8, 1), ImageFormat(8, 3)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_grey_and_colour_come_out_channels_first() -> None:
    image = Image.new("RGB", (30, 20), (250, 10, 20))
    assert read_image(encoded(image), "a.png", GREY).shape == (1, 8, 8)
    pixels = read_image(encoded(image), "a.png", RGB)
    assert pixels.shape == (3, 8, 8)
    assert pixels[:, 0, 0].tolist() == [250, 10, 20]


def test_sixteen_bit_grey_keeps_its_brightness() -> None:
    image = Image.fromarray(np.full((8, 8), 100 * 256, dtype=np.uint16))
    assert read_image(encoded(image), "a.png", GREY).mean() == 100


@pytest.mark.parametrize("bits", [12, 16])
def test_a_grey_tiff_of_a_camera_keeps_its_brightness(bits: int) -> None:
    rows, columns = 4, 8
    white = (1 << bits) - 1
    strip = (100 * white // 255).to_bytes(2, "little") * rows * columns
    if bits == 12:  # two values in three bytes
        value = 100 * white // 255
        strip = (value << 12 | value).to_bytes(3, "big") * (rows * columns // 2)
    tags = {256: columns, 257: rows, 258: bits, 259: 1, 262: 1, 273: 8, 278: rows, 279: len(strip)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    entries = entries.replace(struct.pack("<HH", 258, 4), struct.pack("<HH", 258, 3))
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    tiff = struct.pack("<2sHI", b"II", 42, 8 + len(strip)) + strip + directory
    assert abs(int(read_image(tiff, "scan.tif", ImageFormat(4, 1))[0, 0, 0]) - 100) <= 1


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_a_portable_greymap_of_more_than_eight_bits_keeps_its_brightness(bits: int) -> None:
    most = 2**bits - 1
    ramp = np.linspace(0, most, 64).round().astype(">u2")
    data = b"P5\n8 8\n%d\n" % most + ramp.tobytes()
    pixels = read_image(data, "a.pgm", GREY).reshape(-1).astype(int)
    assert np.abs(pixels - np.linspace(0, 255, 64)).max() <= 1


@pytest.mark.parametrize(
    ("pixels", "mode", "holds"),
    [
        (np.full((8, 8), 70_000, dtype=np.int32), "I", "32-bit or signed integers"),
        (np.full((8, 8), 0.5, dtype=np.float32), "F", "floating-point numbers"),
    ],
)
def test_grey_without_a_fixed_black_and_white_is_refused(
    pixels: npt.NDArray[Any], mode: str, holds: str
) -> None:
    with pytest.raises(DataError) as error:
        read_image(encoded(Image.fromarray(pixels), "TIFF"), "crows/7.tif", GREY)
    assert str(error.value) == (
        f"crows/7.tif holds {holds} (Pillow's mode {mode!r}), which have no fixed black and "
        "white; convert it to 8 or 16 bits a channel, or remove it"
    )


def test_a_file_that_cannot_be_opened_is_named_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "7.png"
    with pytest.raises(DataError) as error:
        read_image(path, "", GREY)
    assert str(error.value) == (
        f"{path} cannot be read (No such file or directory); correct the path, or give yourself "
        "permission to read it"
    )


def test_a_folder_a_device_or_a_pipe_is_no_image(tmp_path: Path) -> None:
    pipe = tmp_path / "7.png"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(DataError) as error:
            read_image(path, "", GREY)
        assert str(error.value) == f"{path} is not a file; give the path of an image"


def test_a_photograph_is_turned_the_way_its_camera_says() -> None:
    image = Image.new("L", (8, 8))
    image.paste(255, (0, 0, 8, 4))  # a white top
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    pixels = read_image(encoded(image, exif=exif), "a.png", GREY)[0]
    assert pixels[:, 6].mean() == 255
    assert pixels[:, 1].mean() == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
    assert read_image(encoded(image), "a.png", GREY).mean() == 255


def test_cyan_magenta_yellow_and_black_become_red_green_and_blue() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixels = read_image(encoded(image, "JPEG"), "a.jpg", RGB)[:, 4, 4].astype(int)
    assert np.abs(pixels - [255, 0, 0]).max() < 6


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_of_an_animation_or_several_pages_the_first_is_read(kind: str) -> None:
    frames = [Image.new("L", (8, 8), shade) for shade in (200, 20)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert abs(int(read_image(data, "a", GREY).mean()) - 200) <= 2


def test_a_photograph_of_a_hundred_megapixels_is_read() -> None:
    image = Image.new("L", (11648, 8736), 90)
    assert read_image(encoded(image, "BMP"), "a.bmp", GREY).mean() == 90


def test_a_centre_crop_is_the_middle_of_the_image_at_its_own_shape() -> None:
    pixels = np.zeros((24, 48), dtype=np.uint8)
    pixels[:, 18:30] = 255  # the middle 12 of 48 columns: 6 of 24, when 24 rows become 12
    form = ImageFormat(8, 1, "center-crop")
    result = read_image(encoded(Image.fromarray(pixels)), "a.png", form)[0]
    assert result.shape == (8, 8)
    assert result[4, 4] == 255
    assert result[4, 0] < 64  # a resized edge, not white


def test_an_unknown_resize_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        ImageFormat(8, 1, "centre-crop")  # type: ignore[arg-type]
    assert str(error.value) == "resize 'centre-crop' is unknown; use 'stretch' or 'center-crop'"


@pytest.mark.parametrize("data", [b"", b"<html>", encoded(Image.new("L", (99, 99)))[:60]])
def test_what_is_no_image_is_named(data: bytes) -> None:
    with pytest.raises(DataError) as error:
        read_image(data, "crows/7.png", GREY)
    assert str(error.value).startswith("crows/7.png is not a readable image (")
    assert str(error.value).endswith("; replace or remove it")


def test_a_decompression_bomb_is_refused_unopened(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    path = tmp_path / "bomb.png"
    Image.new("1", (side, side)).save(path)
    with pytest.raises(DataError) as error:
        read_image(path, str(path), GREY)
    assert str(error.value) == (
        f"{path} is {side}×{side} pixels, over the limit of 175,000,000; make it smaller or "
        "remove it"
    )


def test_a_long_and_narrow_image_does_not_grow_on_its_way_to_a_square() -> None:
    form = ImageFormat(84, 3, "center-crop")
    data = encoded(Image.new("L", (200_000, 2)))
    with pytest.raises(DataError) as error:
        read_image(data, "crows/7.png", form)
    assert str(error.value) == (
        "crows/7.png is 200000×2 pixels, too long and narrow to cut a square of 84 out of its "
        "middle; crop or remove it, or use --resize stretch"
    )
    assert read_image(data, "crows/7.png", ImageFormat(84, 3)).shape == (3, 84, 84)


def test_a_program_in_the_place_of_an_image_is_not_run() -> None:
    # Pillow would hand Encapsulated PostScript to Ghostscript.
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n"
    with pytest.raises(DataError, match=r"is not a readable image \(UnidentifiedImageError"):
        read_image(program, "crows/7.png", RGB)
