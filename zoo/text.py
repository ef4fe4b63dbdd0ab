"""Lists of names, and text from files of unknown origin on its way to a terminal or a spreadsheet."""

import re
from collections.abc import Sequence
from typing import Any

# Control characters but tab and newline, and what reorders or breaks lines. A carriage return may begin or end a text,
# as in a counter that overwrites itself.
_CONTROL = re.compile(r"(?!\A\r|\r\Z)[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def first_few(items: Sequence[str], limit: int = 5) -> str:
    """Return the first items as text: "a, b, c and 7 more"."""
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest:,} more" if rest > 0 else "")


def printable(text: str) -> str:
    """Escape control characters, so that a name from a file cannot move the cursor or change a terminal."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def csv_cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula: text like one gets an apostrophe in front (OWASP)."""
    formula = isinstance(value, str) and value.startswith(_FORMULA) and not _NUMBER.fullmatch(value)
    return f"'{value}" if formula else value


def unescaped(stream: Any) -> Any:
    """Return the raw stream under one that escapes, for progress bars, which move the cursor."""
    return getattr(stream, "unescaped", stream)


def error_line(error: BaseException) -> str:
    """Return the message of an error on one line; for an error of the operating system, the file first."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    return " ".join(str(error).split()) or type(error).__name__
