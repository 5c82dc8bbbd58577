"""The embedded dataset: letters of some fifteen scripts, drawn with the fonts of matplotlib.

A class is a letter, a group of classes a script. Whole scripts are held out for validation and
test, so that new classes are new alphabets, as in Omniglot. Nothing is downloaded: the fonts
(DejaVu and STIX, both free) come with matplotlib.

Each image shows the letter in a random face, turned, sheared, scaled and shifted, with strokes
grown or thinned, blurred, light on dark at a random contrast, under noise. The images of a letter
depend on (seed, codepoint, size, samples) alone, not on which letters were drawn before.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
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
from gradshare.tasks.store import SPLITS, Images, Split
from gradshare.tasks.writing import ClassImages

GLYPHS = Dataset(
    name="glyphs",
    summary="letters of fifteen scripts in many typefaces, generated on this machine",
    channels=1,
    image_size=28,
    characters=True,
)

# Latin, Greek and Cyrillic look alike and stay together; the scripts held out resemble no other.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "train": (
        *("Latin", "Greek", "Cyrillic", "Coptic", "Old Italic", "Lisu"),
        *("Canadian Syllabics", "Arabic"),
    ),
    "val": ("Armenian", "Tifinagh", "Lao", "Ogham"),
    "test": ("Georgian", "Hebrew", "Nko"),
}
# The first face has nearly every letter; letters are compared with each other in it.
FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
)
SAMPLES = 20  # images a class, as in Omniglot: enough for 5 shots and 15 queries

# Two letters whose pictures, each scaled to fill its frame, have a larger cosine are one shape:
# A and Α, but also C and c, and É and È, which nobody tells apart at 28×28 under noise.
MAX_COSINE = 0.95

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
    """The dataset's letters, in the order of `SCRIPTS` and of Unicode.

    A letter is taken if Unicode calls it a letter and not a variant of one (a ligature or a
    positional form), if the first face and another have it, and if it does not look like a letter
    taken before it. Letters without diacritics are taken first.

    Raises:
        DataError: a font is missing from matplotlib's installation.
    """
    # Here, since it takes a moment, and only glyphs that are drawn need it.
    from matplotlib.ft2font import FT2Font  # noqa: PLC0415

    split_of = {script: split for split in SPLITS for script in SCRIPTS[split]}
    order = list(split_of)
    faces_of: dict[int, list[str]] = {}
    for face in FACES:
        for codepoint in FT2Font(str(_font_path(face))).get_charmap():
            faces_of.setdefault(codepoint, []).append(face)
    candidates = []
    for codepoint, faces in faces_of.items():
        script = _script(chr(codepoint), order)
        if script is not None and FACES[0] in faces and len(faces) > 1:
            candidates.append(Letter(codepoint, script, split_of[script], tuple(faces)))

    def priority(letter: Letter) -> tuple[int, int, int]:
        parts = unicodedata.normalize("NFD", chr(letter.codepoint))
        return len(parts), order.index(letter.script), letter.codepoint

    distinct = _distinct(sorted(candidates, key=priority))
    return tuple(sorted(distinct, key=lambda letter: priority(letter)[1:]))


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
    counts = {split: Counter(x.script for x in letters() if x.split == split) for split in SPLITS}
    return {
        "generator": "glyphs",
        "seed": seed,
        "samples": SAMPLES,
        "pillow": PIL.__version__,
        "matplotlib": version("matplotlib"),
        "numpy": np.__version__,
        "unicode": unicodedata.unidata_version,
        "faces": list(FACES),
        "scripts": {split: dict(of_split) for split, of_split in counts.items()},
    }


def _font_path(face: str) -> Path:
    import matplotlib  # noqa: PLC0415

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    if not path.is_file():
        raise DataError(f"glyphs needs the font {path}, which is missing; reinstall matplotlib")
    return path


def _script(character: str, scripts: Sequence[str]) -> str | None:
    """The script of a character that can be a class, else None."""
    is_variant = unicodedata.decomposition(character).startswith("<")  # a ligature, form or width
    if is_variant or unicodedata.category(character) not in ("Lu", "Ll", "Lo"):
        return None
    name = unicodedata.name(character)
    return next((script for script in scripts if name.startswith(script.upper() + " ")), None)


def _distinct(candidates: Sequence[Letter]) -> list[Letter]:
    """The letters that look unlike every letter kept before them."""
    side = 28
    # float64, so that rounding in the matrix product cannot carry a cosine across the limit
    pictures = np.zeros((len(candidates), (side + 4) ** 2))
    for picture, letter in zip(pictures, candidates, strict=True):
        ink = _ink(letter.codepoint, FACES[0], 4 * side)
        scale = side / max(ink.size)
        width, height = (max(1, round(length * scale)) for length in ink.size)
        frame = Image.new("L", (side + 4, side + 4))
        corner = ((frame.width - width) // 2, (frame.height - height) // 2)
        frame.paste(ink.resize((width, height), Image.Resampling.BOX), corner)
        picture[:] = np.asarray(frame.filter(ImageFilter.GaussianBlur(1))).ravel()
    # A letter that a font draws blank (it has none today) has a zero picture and is left out.
    norms = np.linalg.norm(pictures, axis=1, keepdims=True)
    pictures /= np.maximum(norms, 1)
    cosines = pictures @ pictures.T
    kept: list[int] = []
    for i in np.flatnonzero(norms).tolist():
        if not (cosines[i, kept] > MAX_COSINE).any():
            kept.append(i)
    return [candidates[i] for i in kept]


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
