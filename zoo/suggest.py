"""Hints for misspelt names."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return "did you mean X or Y?" for names similar to `word`; "" if there are none.

    Args:
        word: the misspelt name.
        known: the valid names.
        cutoff: lowest similarity, from 0 to 1, of a name that is suggested.
    """
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else ""
