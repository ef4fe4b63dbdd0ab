"""Lists of names, numbers and text from files of unknown origin, on their way to a program, terminal or spreadsheet."""

import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Control characters but tab and newline, and what reorders or breaks lines. A carriage return may begin or end a text,
# as in a counter that overwrites itself.
_CONTROL = re.compile(r"(?!\A\r|\r\Z)[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_LONG_WORD = re.compile(r"\S{1001,}")


def is_finite(number: float) -> bool:
    """Return True unless a number is NaN, infinite, or an integer beyond every float (an error of `math.isfinite`)."""
    return abs(number) <= sys.float_info.max


def first_few(items: Sequence[str], limit: int = 5) -> str:
    """Return the first items as text: "a, b, c and 7 more"."""
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest:,} more" if rest > 0 else "")


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, "1 image" or "2,000 images"; the plural is given if it is not noun + "s"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def printable(text: str) -> str:
    """Escape control characters, so that a name from a file cannot move the cursor or change a terminal."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def escape(text: str) -> str:
    """Return a name from a file as part of a line: line ends, control characters and undecodable bytes are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def one_line(message: object, limit: int = 600) -> str:
    """Return a message as one printable line, shortened in its middle to `limit` characters.

    Args:
        message: a text, or an exception, whose type is used if it has no message. It may quote a file.
        limit: number of characters.
    """
    line = escape(" ".join(str(message).split())) or type(message).__name__
    return line if len(line) <= limit else f"{line[: limit // 2]} … {line[-limit // 4 :]}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, printable and not too long, or its type if it has none."""
    return one_line((str(error).strip() or type(error).__name__).splitlines()[0])


@contextmanager
def one_line_errors(limit: int = 1000) -> Iterator[None]:
    """Turn the message of a ValueError in the block, which may quote a file, into one line; see `one_line`."""
    try:
        yield
    except ValueError as error:
        line = one_line(error, limit)
        if line == str(error):
            raise
        raise (ValueError if isinstance(error, UnicodeError) else type(error))(line) from None


def display_width(text: str) -> int:
    """Return the number of columns of a terminal that a text takes: 2 for wide characters, 0 for combining ones."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def pad(text: str, width: int) -> str:
    """Return a text with blanks after it, so that it takes at least `width` columns in a terminal."""
    return text + " " * (width - display_width(text))


def csv_cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula: text like one gets an apostrophe in front (OWASP)."""
    formula = isinstance(value, str) and value.startswith(_FORMULA) and not _NUMBER.fullmatch(value)
    return f"'{value}" if formula else value


def unescaped(stream: Any) -> Any:
    """Return the raw stream under one that escapes, for progress bars, which move the cursor."""
    return getattr(stream, "unescaped", stream)


def shorten_words(line: str) -> str:
    """Shorten words of more than a thousand characters in their middle, such as a value that a message quotes."""
    return _LONG_WORD.sub(lambda match: f"{match[0][:200]}…{match[0][-100:]}", line)


def error_line(error: BaseException) -> str:
    """Return the message of an error on one line; for an error of the operating system, the file first."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return shorten_words(escape(f"{error.filename}: {error.strerror.lower()}"))
    return shorten_words(escape(" ".join(str(error).split()))) or type(error).__name__


@contextmanager
def renamed_in_errors(name: str, shown: str) -> Iterator[None]:
    """Put `shown` in place of `name` in the errors of the block, such as an address in place of its local copy."""
    try:
        yield
    except (ValueError, OSError) as error:  # raised itself: types differ in arguments, and it may have a cause
        error.args = tuple(arg.replace(name, shown) if isinstance(arg, str) else arg for arg in error.args)
        if isinstance(error, OSError) and error.filename is not None:
            error.filename = str(error.filename).replace(name, shown)
            error.strerror = error.strerror and error.strerror.replace(name, shown)
        raise
