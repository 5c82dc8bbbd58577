"""report.html: one file that says what a comparison came to, and shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from pydantic import JsonValue

from gradshare.config import ORIGINAL, PLUS, RATE_CONTROL, SHARING, heading_of
from gradshare.experiments import figures, wording
from gradshare.experiments.drawing import GRID, INK, PALE, STYLES, Drawing, save_all
from gradshare.experiments.results import Results
from gradshare.experiments.seeds import one_a_seed, runs_by_arm, seeds_of
from gradshare.experiments.table import BATCH_NORM, arm_rows, batch_norm, comparison_rows
from gradshare.experiments.verdict import verdict
from gradshare.training.files import write_atomically

FILENAME: Final = "report.html"

PAPER: Final = "#ffffff"

# The colours of the figures that the page may change, for a dark screen.
COLORS: Final = {
    INK: "--ink",
    PALE: "--pale",
    GRID: "--grid",
    PAPER: "--paper",
    STYLES[ORIGINAL].color.lower(): "--original",
    STYLES[SHARING].color.lower(): "--sharing",
    STYLES[RATE_CONTROL].color.lower(): "--control",
}


def write_report(results: Sequence[Results], folder: Path) -> Path:
    """Write `report.html` and `figures/*.png|svg` into a folder.

    Args:
        results: of one comparison: of one seed, or of several, which are then averaged too.
        folder: is made if it is not there.

    Returns:
        The path of the page.

    Raises:
        RunError: the results are not of one comparison, or the folder cannot be written.
    """
    results = one_a_seed(results)
    drawings = figures.draw_all(results)
    path = folder / FILENAME
    save_all(drawings, folder / "figures")
    write_atomically(path, _page(results, drawings).encode())
    return path


def _page(results: Sequence[Results], drawings: Sequence[Drawing]) -> str:
    first = results[0]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["tied"] = _tied
    environment.filters["prose"] = _prose
    template = files("gradshare.experiments").joinpath("report.html.j2").read_text("utf-8")
    mode = batch_norm(first)
    arms = runs_by_arm(results)
    return environment.from_string(template).render(
        title=f"{wording.method(first.method)} on {first.dataset}",
        setting=_setting(first),
        seeds=seeds_of(results),
        verdict=verdict(results),
        compared=ORIGINAL in arms and SHARING in arms,
        comparison=comparison_rows(results),
        arms=arm_rows(results),
        all_trained=all(run.trained for runs in arms.values() for run in runs),
        batch_norm=mode,
        batch_norm_meaning=BATCH_NORM.get(mode, ""),
        figures={drawing.name: _inline(drawing) for drawing in drawings},
        band_note=figures.band_note(results),
        settings=_grouped(first.config),
        environments=_environments(results),
        commands=tuple(dict.fromkeys(line for one in results for line in _lines(one.command))),
    )


def _setting(one: Results) -> str:
    """Such as "5-way 1-shot, K = 5"; empty where the settings do not say."""
    ways, shots = one.config.get("ways"), one.config.get("shots")
    steps = one.config.get("inner_steps")
    parts = []
    if ways is not None and shots is not None:
        parts.append(f"{ways}-way {shots}-shot")
    if steps is not None:
        parts.append(f"{steps} inner steps")
    return ", ".join(parts)


def _grouped(config: Mapping[str, JsonValue]) -> dict[str, list[tuple[str, str]]]:
    """The settings that the method reads, under the headings of the command line's help."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for key, value in config.items():
        group = heading_of(key)
        if group == PLUS and config.get("method") != "maml++":
            continue
        # What the help says of a group in brackets is about its options.
        groups.setdefault(group.split(" (")[0], []).append((key, _value(value)))
    return groups


def _environments(results: Sequence[Results]) -> list[tuple[str, str]]:
    """What the runs ran on; where seeds differ, every value."""
    values: dict[str, list[str]] = {}
    for one in results:
        for key, value in one.environment.items():
            values.setdefault(key, []).append(_value(value))
    return [(key, "; ".join(dict.fromkeys(said))) for key, said in values.items()]


def _value(value: JsonValue) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _tied(text: str) -> str:
    """The same text without line breaks inside a number: "45.1 ± 1.2 %"."""
    space = "\N{NO-BREAK SPACE}"
    return text.replace(" ± ", f"{space}±{space}").replace(" %", f"{space}%")


def _prose(text: str) -> Markup:
    """A sentence, with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(_tied(text)))))


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _inline(drawing: Drawing) -> Markup:
    """A figure's SVG as part of the page: its colours follow the page's, its ids are its own."""
    svg = drawing.svg(with_note=False)
    body = svg[svg.index("<svg") :]
    head, _, rest = body.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    prefix = f"{drawing.name}-"
    rest = re.sub(r'\bid="', f'id="{prefix}', rest)
    rest = re.sub(r"url\(#", f"url(#{prefix}", rest)
    rest = re.sub(r'xlink:href="#', f'href="#{prefix}', rest)
    for color, variable in COLORS.items():
        rest = re.sub(rf"(: ?){color}\b", rf"\1var({variable})", rest, flags=re.IGNORECASE)
    label = escape(drawing.description)
    return Markup(f'<svg {box[0] if box else ""} role="img" aria-label="{label}">{rest}')
