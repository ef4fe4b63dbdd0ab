"""Fonts for names in any script: fonts of the system for letters that DejaVu Sans, which matplotlib brings, lacks.

Without such a font a name is spelt out ("neko" for two letters of Hiragana, "U+732B" for a Chinese one), so that a
picture never shows boxes alone.
"""

import contextlib
import importlib.util
import os
import sys
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

#: Families that are looked at first, because they have many scripts or are made for screens.
FAMILIES = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans CJK TC", "Noto Sans SC", "Noto Sans JP",
    "Noto Sans KR", "Source Han Sans SC", "Source Han Sans", "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo",
    "Microsoft YaHei", "Yu Gothic", "Meiryo", "Malgun Gothic", "MS Gothic", "SimHei", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "IPAGothic", "TakaoGothic", "NanumGothic", "Noto Sans",
    "Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Bengali", "Noto Sans Tamil", "Lohit Devanagari", "Nirmala UI",
    "Arial Unicode MS", "Noto Emoji", "Symbola", "FreeSans", "Unifont",
)  # fmt: skip
#: Families of other fonts whose letters are looked at, at most.
MAX_OTHERS = 200
#: A font of boxes that matplotlib brings.
BOXES = "Last Resort"
ADVICE = (
    "No installed font has all letters of these names, so they are spelt out; a font such as Noto Sans CJK has them."
)


class Font(NamedTuple):
    """A font: its family, its file, and the number of its face in a file of several."""

    family: str
    file: str
    face: int


def import_matplotlib() -> None:
    """Import matplotlib, also if MPLBACKEND names a backend that is not installed.

    Jupyter sets it for all processes that are started from a notebook. No backend is needed here.
    """
    backend = os.environ.get("MPLBACKEND")
    if backend is None or "matplotlib" in sys.modules:
        return
    del os.environ["MPLBACKEND"]  # matplotlib fails to import with an unknown backend, and then a second time too
    try:
        import matplotlib
    finally:
        os.environ["MPLBACKEND"] = backend
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = backend  # as matplotlib does, for the caller's own figures


@lru_cache(maxsize=1)
def default_file() -> Path:
    """Return the file of DejaVu Sans, without importing matplotlib."""
    found = importlib.util.find_spec("matplotlib")
    folder = Path(found.origin).parent if found and found.origin else Path()
    return folder / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"


def fonts_for(text: str) -> tuple[Font, ...]:
    """Return installed fonts that together have the letters of a text that DejaVu Sans lacks, or most of them."""
    return _search(_lacking(text))[0]


def spell_out(text: str) -> str:
    """Return a text with letters that no installed font has spelt out."""
    return _spelt(text, _search(_lacking(text))[1])


def choose_one(text: str) -> tuple[Font | None, str]:
    """Choose one font for a text, where each text has a single font, as in Pillow.

    Returns:
        The font that has most of its letters, None for DejaVu Sans, and the text with the others spelt out.
    """
    lacking = _lacking(text)
    chosen: tuple[Font | None, str] = None, _spelt(text, lacking)
    fewest = len(lacking)
    for font in fonts_for(text):
        known = _letters(font.file, font.face)
        absent = frozenset(letter for letter in text if _is_drawn(letter) and ord(letter) not in known)
        spelling = _spelt(text, absent)
        if len(absent) < fewest and all(ord(letter) in known for letter in spelling if _is_drawn(letter)):
            chosen, fewest = (font, spelling), len(absent)
    return chosen


def isolate(name: str) -> str:
    """Return a name so that what follows stays to its right, also after letters that are read from right to left."""
    rightwards = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in name)
    return f"\u200e{name}\u200e" if rightwards else name


def has_all(text: str) -> bool:
    """Return True if DejaVu Sans has all letters of a text."""
    return not _lacking(text)


def _lacking(text: str) -> frozenset[str]:
    if text.isascii():
        return frozenset()
    known = _letters(str(default_file()), 0)
    return frozenset(letter for letter in text if ord(letter) not in known and _is_drawn(letter))


def _is_drawn(letter: str) -> bool:
    return letter.isprintable() and not letter.isspace()


def _spelt(text: str, absent: frozenset[str]) -> str:
    return "".join(_spelling(letter) if letter in absent else letter for letter in text)


@lru_cache(maxsize=256)
def _search(letters: frozenset[str]) -> tuple[tuple[Font, ...], frozenset[str]]:
    """Return (fonts, letters that none of them has)."""
    chosen: list[Font] = []
    for font in _installed() if letters else ():
        known = _letters(font.file, font.face)
        if any(ord(letter) in known for letter in letters):
            chosen.append(font)
            letters = frozenset(letter for letter in letters if ord(letter) not in known)
        if not letters:
            break
    return tuple(chosen), letters


@lru_cache(maxsize=1)
def _installed() -> tuple[Font, ...]:
    """Return a font of each installed family, those of FAMILIES first, of regular weight where there is one."""
    import_matplotlib()
    from matplotlib.font_manager import fontManager

    families: dict[str, Any] = {}
    for entry in fontManager.ttflist:
        before = families.get(entry.name)
        if before is None or _plainness(entry) < _plainness(before):
            families[entry.name] = entry
    others = sorted(name for name in families if name not in FAMILIES and not name.startswith((BOXES, "DejaVu")))
    names = [*(name for name in FAMILIES if name in families), *others[:MAX_OTHERS]]
    return tuple(Font(name, families[name].fname, getattr(families[name], "index", 0)) for name in names)


def _plainness(entry: Any) -> tuple[bool, int]:
    weight = entry.weight if isinstance(entry.weight, int) else 400
    return entry.style != "normal", abs(weight - 400)


@lru_cache(maxsize=MAX_OTHERS)
def _letters(file: str, face: int) -> frozenset[int]:
    """Return the code points that a font has; none for a file that cannot be read."""
    import_matplotlib()
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file, face_index=face) if face else FT2Font(file)
        return frozenset(font.get_charmap())
    except (OSError, RuntimeError, TypeError):  # TypeError: a matplotlib that reads the first font of a file only
        return frozenset()


def _spelling(letter: str) -> str:
    """Return the sound or the name of a letter by the Unicode Standard, or its code point."""
    name = unicodedata.name(letter, "")
    for word in ("SYLLABLE", "LETTER", "CHARACTER", "SIGN"):
        if f" {word} " in name:
            return name.rpartition(f" {word} ")[2].replace(" ", "").lower()
    return f"U+{ord(letter):04X}" if not name or name.startswith("CJK") else f"[{name.lower()}]"
