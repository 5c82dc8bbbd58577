"""The embedded dataset: letters of some fifteen scripts, drawn with the fonts of matplotlib.

A class is a letter, a group of classes a script. Whole scripts are held out for validation and
test, so that new classes are new alphabets, as in Omniglot. Nothing is downloaded: the fonts
(DejaVu and STIX, both free) come with matplotlib.

Each image shows the letter in a random face, turned, sheared, scaled and shifted, with strokes
grown or thinned, blurred, light on dark at a random contrast, under noise. The images of a letter
depend on (seed, codepoint, size, samples) alone, not on which letters were drawn before.
"""

from __future__ import annotations

import tomllib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from gradshare.errors import DataError
from gradshare.tasks.readers.dataset import Dataset
from gradshare.tasks.store import Images, Split
from gradshare.tasks.writing import ClassImages

GLYPHS = Dataset(
    name="glyphs",
    summary="letters of fifteen scripts in many typefaces, generated on this machine",
    channels=1,
    image_size=28,
    characters=True,
)

FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
)
SAMPLES = 20  # images a class, as in Omniglot: enough for 5 shots and 15 queries

_LETTERS = Path(__file__).with_suffix(".toml")

OVERSAMPLING = 2  # letters are drawn this much larger and averaged down
MIN_SIZE = 8  # pixels; less shows no letter


@dataclass(frozen=True)
class Letter:
    """A class of the dataset."""

    codepoint: int
    script: str
    split: str  # of the script
    faces: tuple[str, ...]  # that have the letter

    @property
    def name(self) -> str:
        """The class's name, for example "Greek/GREEK SMALL LETTER ALPHA"."""
        return f"{self.script}/{unicodedata.name(chr(self.codepoint))}"


@cache
def letters() -> tuple[Letter, ...]:
    """The dataset's letters, in the order of the scripts in glyphs.toml and of Unicode.

    Raises:
        DataError: a font is missing from matplotlib's installation.
    """
    # Here, since it takes a moment, and only glyphs that are drawn need it.
    from matplotlib.ft2font import FT2Font  # noqa: PLC0415

    faces_of: dict[int, list[str]] = {}
    for face in FACES:
        for codepoint in FT2Font(str(_font_path(face))).get_charmap():
            faces_of.setdefault(codepoint, []).append(face)
    return tuple(
        Letter(codepoint, script, split, tuple(faces_of[codepoint]))
        for split, scripts in tomllib.loads(_LETTERS.read_text(encoding="utf-8")).items()
        for script, ranges in scripts.items()
        for codepoint in _codepoints(ranges)
    )


def generate(
    size: int, seed: int, samples: int = SAMPLES, chosen: Sequence[Letter] | None = None
) -> Iterator[ClassImages]:
    """Draw the dataset, or some chosen letters of it, a class at a time.

    The same seed gives the same bytes, with the same versions of the fonts, Pillow and numpy.

    Raises:
        DataError: the size is under `MIN_SIZE`.
    """
    if size < MIN_SIZE:
        raise DataError(f"letters cannot be told apart at {size}×{size}; use {MIN_SIZE} or more")
    for letter in letters() if chosen is None else chosen:
        yield ClassImages(letter.split, letter.name, _images(letter, size, seed, samples))


@cache
def drawn(split: str, size: int) -> Split:
    """The letters of one split, drawn in memory with seed 0."""
    found = list(generate(size, 0, chosen=[item for item in letters() if item.split == split]))
    counts = np.full(len(found), SAMPLES, dtype=np.int64)
    images = np.concatenate([item.images for item in found])
    names = tuple(item.name for item in found)
    return Split(split, images, names, np.arange(len(found)) * SAMPLES, counts)


def source(seed: int) -> dict[str, Any]:
    """What a store's record says of the letters in it."""
    return {
        "generator": "glyphs",
        "seed": seed,
        "samples": SAMPLES,
        "pillow": PIL.__version__,
        "matplotlib": version("matplotlib"),
        "numpy": np.__version__,
    }


def _font_path(face: str) -> Path:
    import matplotlib  # noqa: PLC0415

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    if not path.is_file():
        raise DataError(f"glyphs needs the font {path}, which is missing; reinstall matplotlib")
    return path


def _codepoints(ranges: str) -> Iterator[int]:
    """The codepoints of some ranges in hexadecimal, such as "0041-005A 0061"."""
    for word in ranges.split():
        first, _, last = word.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1)


@cache
def _reference_font(face: str) -> ImageFont.FreeTypeFont:
    # Basic layout: one codepoint, one glyph, whether or not Pillow was built with libraqm.
    return ImageFont.truetype(_font_path(face), 64, layout_engine=ImageFont.Layout.BASIC)


def _ink(codepoint: int, face: str, length: int) -> Image.Image:
    """A letter, white on black, cut to its ink, whose longer side is about `length` pixels."""
    character = chr(codepoint)
    reference = _reference_font(face)
    left, top, right, bottom = reference.getbbox(character)
    font = reference.font_variant(size=reference.size * length / max(right - left, bottom - top, 1))
    left, top, right, bottom = font.getbbox(character)
    width, height = max(1, round(right - left)), max(1, round(bottom - top))
    ink = Image.new("L", (width, height))
    ImageDraw.Draw(ink).text((-left, -top), character, fill=255, font=font)
    return ink


def _images(letter: Letter, size: int, seed: int, samples: int) -> Images:
    """The images of a letter: uint8 (samples, 1, size, size)."""
    random = np.random.default_rng([seed, letter.codepoint])
    coverage = _coverage(letter, size, samples, random)
    dark = random.uniform(0.0, 0.3, (samples, 1, 1))
    light = random.uniform(0.6, 1.0, (samples, 1, 1))
    noise = random.uniform(0.0, 0.08, (samples, 1, 1))
    grey = dark + (light - dark) * coverage + noise * random.standard_normal(coverage.shape)
    return np.asarray(np.rint(grey.clip(0, 1) * 255), dtype=np.uint8)[:, None]


def _coverage(
    letter: Letter, size: int, samples: int, random: np.random.Generator
) -> npt.NDArray[np.float32]:
    """How much of each pixel is ink: (samples, size, size) in [0, 1]."""
    side = size * OVERSAMPLING
    unit = side / 56  # distances below were chosen at 28×28
    faces = random.integers(len(letter.faces), size=samples)
    maps = _linear_maps(samples, random)
    lengths = random.uniform(0.62, 0.85, samples) * side
    places = random.uniform(size=(samples, 2))
    blurs = [ImageFilter.GaussianBlur(r * unit) for r in random.uniform(0.5, 1.6, samples).tolist()]
    inks: dict[int, tuple[Image.Image, npt.NDArray[np.float64]]] = {}
    canvases = np.empty((samples, side, side), dtype=np.float32)
    for number, face in enumerate(faces.tolist()):
        if face not in inks:
            ink = _ink(letter.codepoint, letter.faces[face], round(0.8 * side))
            inks[face] = ink, _outline(ink)
        ink, outline = inks[face]
        placement = _place(outline, maps[number], lengths[number], places[number], side)
        image = ink.transform(
            (side, side), Image.Transform.AFFINE, placement, Image.Resampling.BILINEAR
        )
        canvases[number] = np.asarray(image.filter(blurs[number]))
    canvases /= canvases.max(axis=(1, 2), keepdims=True)
    # Cutting the blurred letter at a low level thickens its strokes, at a high level thins them.
    level = random.uniform(0.28, 0.62, (samples, 1, 1)).astype(np.float32)
    sharpness = random.uniform(1.2, 4.0, (samples, 1, 1)).astype(np.float32)
    strokes = ((canvases - level) * sharpness + 0.5).clip(0, 1)
    pixels = strokes.reshape(samples, size, OVERSAMPLING, size, OVERSAMPLING)
    return np.asarray(pixels.mean(axis=(2, 4)), dtype=np.float32)


def _outline(ink: Image.Image) -> npt.NDArray[np.float64]:
    """The first and last inked pixel of each row, as (points, 2) of x, y: they span the ink."""
    inked = np.asarray(ink) > 0
    rows = np.flatnonzero(inked.any(axis=1))
    first = inked[rows].argmax(axis=1)
    last = inked.shape[1] - 1 - inked[rows, ::-1].argmax(axis=1)
    return np.concatenate([np.stack([first, rows], 1), np.stack([last, rows], 1)]).astype(float)


def _linear_maps(samples: int, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Random rotations of shears of stretches: (samples, 2, 2)."""
    angle = random.uniform(-0.26, 0.26, samples)  # radians: ±15°
    shear = random.uniform(-0.25, 0.25, samples)
    stretch = np.exp(random.uniform(-0.18, 0.18, samples))
    turns = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shears = np.array([[stretch, shear], [np.zeros(samples), 1 / stretch]])
    return np.asarray(turns.transpose(2, 0, 1) @ shears.transpose(2, 0, 1))


def _place(
    outline: npt.NDArray[np.float64],
    linear: npt.NDArray[np.float64],
    length: float,
    place: npt.NDArray[np.float64],
    side: int,
) -> tuple[float, ...]:
    """The affine map that draws some ink in a frame of `side` pixels, wholly inside it.

    Args:
        outline: (points, 2), of the ink.
        linear: (2, 2), what to do to the ink before it is scaled and shifted.
        length: of the longer side of the ink's bounding box after that, in pixels.
        place: (2,) in [0, 1], where in the space that is left.
        side: of the frame.

    Returns:
        As `Image.transform` wants it, from the frame's pixels to the ink's.
    """
    placed = outline @ linear.T
    low, high = placed.min(axis=0), placed.max(axis=0)
    scale = length / (high - low).max()
    margin = side / 14  # blur and thick strokes reach beyond the outline
    shift = margin - scale * low + place * (side - 2 * margin - scale * (high - low))
    (a, b), (c, d) = (linear * scale).tolist()
    x, y = shift.tolist()
    determinant = a * d - b * c
    return (
        *(d / determinant, -b / determinant, (b * y - d * x) / determinant),
        *(-c / determinant, a / determinant, (c * x - a * y) / determinant),
    )
