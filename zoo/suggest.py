"""Hints for misspelt names."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return "did you mean X or Y?" for names similar to `word`; "" if there are none.

    A word of initials means the names that they abbreviate: "--lr" is --learning-rate. The beginning of names means
    these, and not others that are like it: "epoch" is epochs, not head_epochs.

    Args:
        word: the misspelt name.
        known: the valid names.
        cutoff: lowest similarity, from 0 to 1, of a name that is suggested.
    """
    known = list(known)
    letters = word.strip("-").lower()
    near = [name for name in known if len(letters) > 1 and _initials(name) == letters]
    begun = [name for name in known if len(letters) > 2 and name.lower().strip("-").startswith(letters)]
    near = near or difflib.get_close_matches(word, begun, n=3, cutoff=0)
    near = near or difflib.get_close_matches(word, known, n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else ""


def _initials(name: str) -> str:
    """Return the first letters of the parts of a name: "lr" for "--learning-rate" and learning_rate."""
    return "".join(part[0] for part in re.split("[-_]", name.lower()) if part)


def nearest_path(path: Path) -> str:
    """Return the existing path that a misspelt one may mean, "photos/cat" for "phtos/cat"; "" if there is none."""
    found = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        if not (found / part).exists():
            try:
                names = sorted(entry.name for entry in found.iterdir() if not entry.name.startswith("."))
            except OSError:
                return ""
            near = difflib.get_close_matches(part, names, n=1, cutoff=0.6)
            if not near:
                return ""
            part = near[0]
        found /= part
    return str(found)
