"""Names in people's data: usual and misspelt names of splits, spellings of one class, and what systems leave behind."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable

from zoo.data.dataset import Note
from zoo.data.spelling import are_numbers, class_key, clean_class_name, escape
from zoo.text import first_few

# Usual names of the splits, without "_", "-", ".", " " and one of SPLIT_ENDINGS
SPELLINGS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training", "trn", "tr"),
    "validation": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing", "tst", "te", "holdout"),
}
SPLIT_ENDINGS = ("", "set", "data", "images", "split")
MIN_TYPO_LENGTH = 3  # characters; shorter words are similar to everything
TYPO_SIMILARITY = 0.75  # of difflib; two exchanged letters in a word of four

# Folders of unlabelled images, as in the test split of a competition
UNLABELLED = frozenset({"all", "images", "unknown", "unlabelled", "unlabeled", "unclassified", "unsorted", "nolabel"})

# Files and folders that file systems, network storage and programs create, in lower case
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "picasa.ini", "autorun.inf"})
SYSTEM_FOLDERS = frozenset({
    "@eadir", "@tmp", "@sharebin", "@sharesnap", "#recycle", "#snapshot",  # Synology
    "@recycle", "@recently-snapshot", "@__thumb",  # QNAP
    "~snapshot", "lost+found", "network trash folder", "temporary items", "__macosx",
    "$recycle.bin", "$recycle", "$extend", "system volume information", "found.000", "_gsdata_",  # Windows
    "__pycache__", "cvs",
})  # fmt: skip


# --- files of the system ----------------------------------------------------------------------------------------------


def is_system_file(name: str) -> bool:
    """Return True for hidden files and for files that systems create, such as Thumbs.db."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def is_system_folder(name: str) -> bool:
    """Return True for hidden folders and for folders that systems create, such as @eaDir and $RECYCLE.BIN."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS or name == "RECYCLER"


def system_folder_in(path: str) -> str:
    """Return the first system folder on the way to a file ("/" between names), or "" if there is none."""
    return next((name for name in path.split("/")[:-1] if name not in ("", ".", "..") and is_system_folder(name)), "")


# --- splits -----------------------------------------------------------------------------------------------------------


def _plain(word: str) -> str:
    return "".join(c for c in word.lower() if c not in "_- .")


_SPLIT_OF = {
    spelling + ending: name for name, spellings in SPELLINGS.items() for spelling in spellings
    for ending in SPLIT_ENDINGS
}  # fmt: skip


def canonical_split(word: str) -> str:
    """Return "train", "validation" or "test" for any usual spelling of it, such as "val_set", else ""."""
    return _SPLIT_OF.get(_plain(word), "")


def similar_split(word: str) -> str:
    """Return the split of which `word` may be a misspelling, such as "train" for "trian", else ""."""
    plain = _plain(word)
    if plain in _SPLIT_OF or len(plain) < MIN_TYPO_LENGTH or not plain.isalpha():
        return ""
    usual = [spelling for spellings in SPELLINGS.values() for spelling in spellings if len(spelling) >= MIN_TYPO_LENGTH]
    for known in (usual, _SPLIT_OF):  # "tset" is "test" rather than "tr" and "set"
        if near := difflib.get_close_matches(plain, known, n=1, cutoff=TYPO_SIMILARITY):
            return _SPLIT_OF[near[0]]
    return ""


def describe_misspelt_split(word: str) -> str:
    """Return the question after a word that is not a split: which one was meant, or which ones there are."""
    split = similar_split(word)
    meant = f"Did you mean {split!r}?" if split else "Use train, val or test."
    return f"{escape(word)!r} is not a split name. {meant}"


# --- classes ----------------------------------------------------------------------------------------------------------


def unify_class_names(labels: Iterable[str]) -> tuple[dict[str, str], list[Note]]:
    """Find the labels that are spellings of one class.

    Labels are one class if they differ only in case, blanks, Unicode form or the format of a number. The class is
    called by the spelling that most images have. Whole numbers written as decimals, such as "7.0", lose the decimals.

    Args:
        labels: the label of every image.

    Returns:
        The class name of each distinct label, and a note if labels were joined or renamed.
    """
    counts = Counter(labels)
    cleaned = {label: clean_class_name(label) for label in counts}
    is_number = are_numbers(cleaned.values())
    decimals = is_number and any("." in name for name in cleaned.values())
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for label, count in counts.items():
        name = cleaned[label].split(".")[0] if decimals else cleaned[label]
        spellings[class_key(cleaned[label], is_number)][name] += count
    names = {key: min(names, key=lambda name: (-names[name], len(name), name)) for key, names in spellings.items()}
    notes = []
    variants: dict[str, list[str]] = defaultdict(list)
    for label, name in cleaned.items():
        variants[class_key(name, is_number)].append(unicodedata.normalize("NFC", label))
    joined = [
        f"{' and '.join(sorted({repr(v) for v in variants[key]}))} are {names[key]!r}"
        for key in sorted(variants)
        if len(set(variants[key])) > 1
    ]
    if joined:
        text = f"spellings of one class: {first_few(joined, 3)}; if they are different classes, give them other names"
        notes.append(Note("classes", text))
    elif decimals:
        notes.append(Note("classes", "class numbers written as decimals are whole numbers: 1.0 is 1"))
    letters = sorted({name.lower() for name in names.values() if len(name) == 1 and name.swapcase() in names.values()})
    if letters and (pairs := [f"{x.upper()} and {x}" for x in letters if x.upper() != x]):
        text = f"classes that differ in case only, taken to be different: {first_few(pairs, 3)}"
        notes.append(Note("classes", text))
    return {label: names[class_key(name, is_number)] for label, name in cleaned.items()}, notes


def joined_label(names: Iterable[str]) -> tuple[str, str, bool] | None:
    """Find a label that names several classes at once, such as "cat|dog" beside "cat|bird".

    Args:
        names: distinct class names.

    Returns:
        The label, its separator, and True if it cannot be the name of one class; None without such a label.
    """
    known = set(names)
    for separator in ("|", ";", ",", " ", "_", "-", "/", "+", "&", " and "):
        parts = {name: [part.strip() for part in name.split(separator)] for name in sorted(known) if separator in name}
        parts = {name: words for name, words in parts.items() if all(words)}
        first = Counter(words[0] for words in parts.values())
        later = Counter(word for words in parts.values() for word in words[1:])
        for name, words in parts.items():
            certain = False
            if separator in "|;":
                certain = any(word in known or first[word] + later[word] > 1 for word in words)
            elif separator == ",":  # "Smith, John" and "Smith, Jane" are two people
                certain = all(word in known or (first[word] and later[word]) for word in words)
            elif separator == " ":
                certain = are_numbers(words) and all(word in known for word in words)
            if certain or (any if separator == "," else all)(word in known for word in words):
                return name, separator, certain
    return None


def check_joined_labels(names: Iterable[str], source: str) -> list[Note]:
    """Return a note on class names that may join several classes.

    Raises:
        ValueError: a label that certainly joins several classes; the message begins with `source`.
    """
    names = list(names)
    listed = next((name for name in names if re.fullmatch(r"[\[(].+[,\s].+[\])]", name)), None)
    result = joined_label(names)
    if listed or (result and result[2]):
        label = listed or (result[0] if result else "")
        raise ValueError(
            f"{source}: the label {label!r} joins several classes; every image must have one: keep the main class of "
            "each, or leave such images out"
        )
    if not result:
        return []
    label, separator, _ = result
    parts = " and ".join(repr(part.strip()) for part in label.split(separator))
    return [
        Note("classes", f"{label!r} is a class of its own, beside {parts}; if its images show both, leave them out")
    ]
