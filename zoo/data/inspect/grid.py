"""Grids of pictures with lines of text below each of them, as PNG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from zoo import fonts
from zoo.data.images.decode import Uint8
from zoo.files import atomic_writer
from zoo.text import printable

SIDE, GAP, TEXT_WIDTH = 160, 12, 180  # pixels: side of a picture, space between cells, width of a cell
FONT_SIZE, HEADING_SIZE = 13, 15  # pixels
MIN_COLUMNS, MAX_COLUMNS = 4, 10
INK, GREY, RED, GREEN = "#1a1a1a", "#6b6b6b", "#b3261e", "#1b6e2e"

CUT_END, CUT_MIDDLE = "end", "middle"


class Line(NamedTuple):
    """A line of text below a picture.

    Attributes:
        text: the text, which is shortened to the width of a cell.
        tail: text after it that is never cut, such as a probability.
        colour: colour of both.
        cut: CUT_END to shorten at the end, CUT_MIDDLE for file names, whose end matters.
    """

    text: str
    tail: str = ""
    colour: str = INK
    cut: str = CUT_END


class Cell(NamedTuple):
    """A picture, or several side by side, and the lines below."""

    pictures: Sequence[Uint8]
    lines: Sequence[Line]


def draw_grid(cells: Iterable[Cell], heading: Sequence[str], path: Path) -> None:
    """Draw cells row by row under the lines of a heading, and write them as PNG in one rename.

    Args:
        cells: the cells; none leaves the heading alone.
        heading: lines of text, wrapped to the width of the picture.
        path: the PNG to write.
    """
    from PIL import Image, ImageDraw

    drawn = [(_pictures(cell.pictures), cell.lines) for cell in cells]
    columns = min(MAX_COLUMNS, max(MIN_COLUMNS, math.ceil(math.sqrt(len(drawn)))))
    line_height = FONT_SIZE + 5
    text_height = line_height * max((len(lines) for _, lines in drawn), default=0)
    width = GAP + columns * (TEXT_WIDTH + GAP)
    lines = [part for line in heading for part in _wrapped(printable(line), width - 2 * GAP, HEADING_SIZE)]
    head = GAP + len(lines) * (HEADING_SIZE + 7) + GAP
    step = SIDE + 6 + text_height + GAP
    sheet = Image.new("RGB", (width, head + math.ceil(len(drawn) / columns) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for n, text in enumerate(lines):
        write_text(draw, (GAP, GAP + n * (HEADING_SIZE + 7)), text, INK, HEADING_SIZE)
    for n, (picture, below) in enumerate(drawn):
        left, top = GAP + n % columns * (TEXT_WIDTH + GAP), head + n // columns * step
        sheet.paste(picture, (left, top + SIDE - picture.height))
        for k, line in enumerate(below):
            text = _shortened(printable(line.text), TEXT_WIDTH - _width(line.tail, FONT_SIZE), line.cut)
            text = fonts.isolate(text) + line.tail
            write_text(draw, (left, top + SIDE + 6 + k * line_height), text, line.colour, FONT_SIZE)
    with atomic_writer(path) as stream:
        sheet.save(stream, "PNG")


def thumbnail(image: Uint8, width: int, height: int) -> Any:
    """Return an image as a PIL picture in RGB that fits into width x height pixels. Small images keep sharp pixels."""
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    scale = min(width / picture.width, height / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR)


def _pictures(images: Sequence[Uint8]) -> Any:
    """Return one picture of at most TEXT_WIDTH x SIDE pixels that holds all images, from left to right."""
    from PIL import Image

    share = (TEXT_WIDTH - 4 * (len(images) - 1)) // len(images)
    parts = [thumbnail(image, min(share, SIDE), SIDE) for image in images]
    if len(parts) == 1:
        return parts[0]
    joined = Image.new("RGB", (TEXT_WIDTH, max(part.height for part in parts)), "white")
    for n, part in enumerate(parts):
        joined.paste(part, (n * (share + 4), joined.height - part.height))
    return joined


@lru_cache(maxsize=32)
def _font(size: int, file: str = "", index: int = 0) -> Any:
    """Return a font; by default DejaVu Sans, which has Latin, Greek, Cyrillic, Hebrew and Arabic letters."""
    from PIL import ImageFont

    try:
        return ImageFont.truetype(file or str(fonts.default_file()), size, index)
    except (OSError, ImportError):  # ImportError: Pillow without FreeType
        return ImageFont.load_default()


def _font_and_text(text: str, size: int) -> tuple[Any, str]:
    """Return the font for a text, and the text, in which letters that the font lacks are spelt out."""
    font, spelling = fonts.choose_one(text)
    return (_font(size, font.file, font.face) if font else _font(size)), spelling


def _plain(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def _width(text: str, size: int) -> float:
    font, text = _font_and_text(text, size)
    try:
        return float(font.getlength(text))
    except UnicodeEncodeError:  # Pillow's own font has Latin letters only
        return float(font.getlength(_plain(text)))


def write_text(draw: Any, place: tuple[int, int], text: str, colour: str, size: int) -> None:
    """Write a line of text."""
    font, text = _font_and_text(text, size)
    try:
        draw.text(place, text, fill=colour, font=font)
    except UnicodeEncodeError:
        draw.text(place, _plain(text), fill=colour, font=font)


def _shortened(text: str, width: float, cut: str) -> str:
    """Return the text with an ellipsis in place of the characters that exceed the width in pixels."""
    text = " ".join(text.split())
    if _width(text, FONT_SIZE) <= width:
        return text
    text = text[:200] if cut == CUT_END else text[-200:]
    for keep in range(len(text) - 1, 0, -1):
        head = keep if cut == CUT_END else keep // 3
        short = text[:head] + "…" + text[len(text) - (keep - head) :]
        if _width(short, FONT_SIZE) <= width:
            return short
    return "…"


def _wrapped(text: str, width: float, size: int) -> list[str]:
    """Return the text in lines of at most `width` pixels, broken at blanks, and within words that are wider."""
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".strip()
        if _width(candidate, size) <= width:
            lines[-1] = candidate
            continue
        lines.append("")
        for letter in word:
            if _width(lines[-1] + letter, size) > width:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]
