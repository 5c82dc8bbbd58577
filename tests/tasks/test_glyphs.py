"""The embedded dataset: its letters, and the images drawn of them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageFont

from gradshare.errors import DataError
from gradshare.tasks import glyphs
from gradshare.tasks.glyphs import Letter
from gradshare.tasks.writing import ClassImages

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def some_letters(every: int) -> list[Letter]:
    return list(glyphs.letters()[::every])


def digest(classes: list[ClassImages]) -> dict[str, bytes]:
    return {item.name: item.images.tobytes() for item in classes}


def coverage(letter: Letter, samples: int = 20, size: int = 28) -> npt.NDArray[np.float32]:
    random = np.random.default_rng([5, letter.codepoint])
    return glyphs._coverage(letter, size, samples, random)


def test_whole_scripts_are_held_out() -> None:
    classes = Counter(letter.split for letter in glyphs.letters())
    assert classes == {"train": 1319, "val": 148, "test": 175}
    split_of = {letter.script: letter.split for letter in glyphs.letters()}
    for letter in glyphs.letters():
        assert split_of[letter.script] == letter.split
    assert Counter(split_of.values()) == {"train": 8, "val": 4, "test": 3}


def test_class_names_are_unique_and_say_the_script() -> None:
    names = [letter.name for letter in glyphs.letters()]
    assert len(set(names)) == len(names)
    assert "Greek/GREEK SMALL LETTER ALPHA" in names
    for name in names:
        script, _, letter = name.partition("/")
        assert letter.startswith(script.upper() + " ")


def test_letters_are_letters() -> None:
    for letter in glyphs.letters():
        assert unicodedata.category(chr(letter.codepoint)) in ("Lu", "Ll", "Lo")
        assert not unicodedata.combining(chr(letter.codepoint))


@pytest.mark.parametrize("alike", ["AΑАᎪ", "CcСс", "ÉÈ", "ΩΩ"])
def test_of_letters_that_look_alike_one_is_kept(alike: str) -> None:
    kept = [letter for letter in glyphs.letters() if chr(letter.codepoint) in alike]
    assert len(kept) == 1


def test_letters_that_look_different_are_kept() -> None:
    kept = {chr(letter.codepoint) for letter in glyphs.letters()}
    assert set("AaBbDdEeGgQqRr") <= kept
    assert set("ΔΞΠΦΨΩαβζξφψ") <= kept
    assert set("ДЖЩЮЯ") <= kept


@pytest.mark.parametrize("face", glyphs.FACES)
def test_no_letter_is_drawn_as_a_missing_glyph(face: str) -> None:
    charmap = FT2Font(str(FONTS / f"{face}.ttf")).get_charmap()
    font = ImageFont.truetype(FONTS / f"{face}.ttf", 40, layout_engine=ImageFont.Layout.BASIC)
    missing = bytes(font.getmask("\U000e0fff"))
    having = [letter for letter in glyphs.letters() if face in letter.faces]
    assert len(having) > 300
    for letter in having:
        assert charmap[letter.codepoint] != 0
        assert bytes(font.getmask(chr(letter.codepoint))) not in (missing, b"")


def test_most_letters_have_many_faces() -> None:
    faces = [len(letter.faces) for letter in glyphs.letters()]
    assert min(faces) >= 2
    assert np.mean(np.array(faces) >= 4) > 0.9


def test_one_seed_gives_the_same_bytes_whatever_else_is_drawn() -> None:
    chosen = some_letters(60)
    first = digest(list(glyphs.generate(28, 3, chosen=chosen)))
    again = digest(list(glyphs.generate(28, 3, chosen=chosen)))
    backwards = digest(list(glyphs.generate(28, 3, chosen=chosen[::-1])))
    alone = digest(list(glyphs.generate(28, 3, chosen=chosen[7:8])))
    assert len(first) == len(chosen)
    assert first == again == backwards
    assert alone[chosen[7].name] == first[chosen[7].name]


def test_another_seed_gives_other_images_of_every_letter() -> None:
    chosen = some_letters(60)
    one = digest(list(glyphs.generate(28, 0, chosen=chosen)))
    other = digest(list(glyphs.generate(28, 1, chosen=chosen)))
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one)


def test_letters_are_not_all_distorted_alike() -> None:
    """The median pixel of an image is its background, which is drawn for each image."""
    chosen = [letter for letter in glyphs.letters() if chr(letter.codepoint) in "ABG"]
    backgrounds = [
        np.median(item.images, axis=(1, 2, 3)) for item in glyphs.generate(28, 0, chosen=chosen)
    ]
    assert len(backgrounds) == 3
    for a, b in pairwise(backgrounds):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.8


@pytest.mark.parametrize("size", [14, 28, 84])
def test_images_have_the_size_asked_for(size: int) -> None:
    for item in glyphs.generate(size, 0, samples=3, chosen=some_letters(400)):
        assert item.images.shape == (3, 1, size, size)
        assert item.images.dtype == np.uint8


def test_the_images_of_a_class_all_differ() -> None:
    for item in glyphs.generate(28, 0, chosen=some_letters(60)):
        assert len({image.tobytes() for image in item.images}) == glyphs.SAMPLES


@pytest.mark.parametrize("size", [28, 84])
def test_letters_lie_inside_the_frame_and_can_be_seen(size: int) -> None:
    for letter in some_letters(12 if size == 28 else 120):
        ink = coverage(letter, size=size)
        border = np.ones((size, size), dtype=bool)
        border[1:-1, 1:-1] = False
        # A blurred stroke may fade out on the border, but is not cut by it.
        assert ink[:, border].max() < 0.5, letter.name
        assert (ink.max(axis=(1, 2)) > 0.5).all(), letter.name
        assert (ink.mean(axis=(1, 2)) > 0.01).all(), letter.name


def test_letters_vary_in_place_and_extent() -> None:
    rows = np.arange(28)
    for letter in some_letters(120):
        ink = coverage(letter)
        mass = ink.sum(axis=(1, 2))
        centre = (ink.sum(axis=2) * rows).sum(axis=1) / mass
        assert centre.std() > 0.5, letter.name
        assert mass.max() > 1.3 * mass.min(), letter.name


def test_letters_can_be_told_from_each_other() -> None:
    """The nearest of five blurred pictures is right far more often than one time in five."""

    def picture(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        rows, columns = (np.flatnonzero((image > 128).any(axis=axis)) for axis in (1, 0))
        if len(rows) and len(columns):
            image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        small = np.asarray(Image.fromarray(image).resize((10, 10), Image.Resampling.BOX), float)
        return np.asarray((small - small.mean()) / (small.std() + 1e-9)).ravel()

    classes = [
        np.stack([picture(image[0]) for image in item.images])
        for item in glyphs.generate(28, 0, samples=6, chosen=some_letters(16))
    ]
    hits = []
    for start in range(0, len(classes) - 4, 5):
        of_task = classes[start : start + 5]
        supports = np.stack([pictures[0] for pictures in of_task])
        for way, pictures in enumerate(of_task):
            hits += [int((supports @ query).argmax() == way) for query in pictures[1:]]
    assert np.mean(hits) > 0.45


def test_the_record_has_what_the_bytes_depend_on() -> None:
    source = glyphs.source(seed=4)
    assert source["seed"] == 4
    assert source["samples"] == 20
    assert source["matplotlib"] == matplotlib.__version__
    assert source["pillow"]
    assert source["numpy"] == np.__version__


def test_letters_are_ordered_by_script_and_codepoint() -> None:
    scripts = list(dict.fromkeys(letter.script for letter in glyphs.letters()))
    assert scripts[:3] == ["Latin", "Greek", "Cyrillic"]
    keys = [(scripts.index(letter.script), letter.codepoint) for letter in glyphs.letters()]
    assert all(a < b for a, b in pairwise(keys))


def test_a_size_that_shows_no_letters_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        list(glyphs.generate(7, 0))
    assert str(caught.value) == "letters cannot be told apart at 7×7; use 8 or more"


def test_a_missing_font_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(DataError) as caught:
        glyphs.letters.__wrapped__()
    assert str(caught.value) == (
        f"glyphs needs the font {tmp_path / 'fonts' / 'ttf' / 'DejaVuSans.ttf'}, which is "
        "missing; reinstall matplotlib"
    )
