"""Spellings of class names: which of them mean one class."""

import re
import unicodedata
from collections.abc import Iterable

from zoo.text import escape

BLANKS = re.compile(r"[ \t\u00a0\u2000-\u200a\u202f\u3000]+")
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad"))  # zero-width characters and the soft hyphen
WHOLE = re.compile(r"\d+(\.0*)?", re.ASCII)


def clean_class_name(name: str) -> str:
    """Return a class name in Unicode form NFC, without invisible characters and superfluous blanks, printable."""
    composed = unicodedata.normalize("NFC", name).translate(INVISIBLE)
    return escape(BLANKS.sub(" ", composed).strip())


def class_key(name: str, is_number: bool = False) -> str:
    """Return a key that is equal for spellings of one class: "Cat" and "cat ", or "1", "01" and "1.0".

    Single letters keep their case, because the classes of handwritten letters differ in nothing else.
    """
    name = clean_class_name(name)
    if is_number:
        return name.split(".")[0].lstrip("0") or "0"
    return name if len(name) == 1 else clean_class_name(unicodedata.normalize("NFKC", name).casefold())


def are_numbers(names: Iterable[str]) -> bool:
    """Return True if all names are whole numbers, possibly written as decimals: "7", "07", "7.0"."""
    return all(WHOLE.fullmatch(name) for name in names)
