"""A survey of a data set before training: classes, sizes, formats, duplicates and faults."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.data.dataset import Dataset
from zoo.data.inspect.advice import (
    MODELS,
    PRETRAINED,
    describe_few_images,
    describe_imbalance,
    kind_of_images,
    known_sizes,
    median_side,
)
from zoo.data.sources.listing import Listing, contradictions, leakage
from zoo.data.sources.scan import Scan
from zoo.data.splits import content_keys
from zoo.text import counted, display_width, pad

ONE_CLASS = "All images are of one class: training needs at least two classes."
MAX_CLASSES = 30  # classes listed
MAX_LINES = 10  # lines listed of each kind of problem


def survey(
    dataset: Dataset, listing: Listing | None = None, scanned: Scan | None = None, fine_tuned: bool = False
) -> dict[str, Any]:
    """Return figures about a data set that can be written as JSON.

    Args:
        dataset: the data set.
        listing: the listing from which it was opened, if it is a list of encoded images.
        scanned: the result of scanning the listing.
        fine_tuned: leave out the advice to fine-tune.

    Returns:
        A dict with these keys:
            name: name of the data set.
            classes: {class: {split: count}}.
            splits: {split: count}.
            sizes: smallest, median, largest and most common (height, width); empty if unknown.
            kinds: {format and mode, such as "JPEG RGB": count}.
            left_out: lines about images that cannot be read.
            wrongly_named: lines about files with the suffix of another format.
            leaks: lines about images that are in several splits.
            contradictions: lines about images that have several classes.
            repeated: number of images that repeat another one in their split.
            notes: other notes on the data set.
            advice: lines on too few images and on unbalanced classes.
            suggestion: options of `zoo train`.
            command: a command line with these options.
    """
    keys = {name: content_keys(split) for name, split in dataset.splits.items()}
    counts = {name: np.bincount(split.labels, minlength=dataset.num_classes) for name, split in dataset.splits.items()}
    sizes = known_sizes(dataset)
    names = enumerate(dataset.class_names)
    options, trainable = suggestion(dataset), "train" in dataset.splits and dataset.num_classes > 1
    advice = ["" if fine_tuned else describe_few_images(dataset), describe_imbalance(dataset)]
    advice = advice if dataset.num_classes > 1 else [ONE_CLASS]
    words = [f"{flag} {shlex.quote(value)}" for flag, value in options.items()]
    return {
        "name": dataset.name,
        "classes": {label: {name: int(counts[name][k]) for name in dataset.splits} for k, label in names},
        "splits": {name: len(split) for name, split in dataset.splits.items()},
        "sizes": _size_figures(sizes),
        "kinds": dict(Counter(kind for kind in scanned.kinds if kind).most_common()) if scanned else {},
        "left_out": list(dataset.left_out),
        "wrongly_named": wrongly_named(listing, scanned) if listing and scanned else [],
        "leaks": [str(note) for note in leakage(dataset.splits, keys)],
        "contradictions": contradictions(dataset.splits, keys, dataset.class_names),
        "repeated": sum(len(part) - len(set(part)) for part in keys.values()),
        "notes": [str(note) for note in dataset.notes if note.kind not in ("contradiction", "leakage")],
        "advice": [line for line in advice if line],
        "suggestion": options,
        "command": " ".join(["zoo train" if trainable else "zoo eval CKPT", *words]),
    }


def _size_figures(sizes: NDArray[np.int32]) -> dict[str, Any]:
    """Return smallest, median, largest and most common sizes."""
    if not len(sizes):
        return {}
    order = np.argsort(sizes.astype(np.int64).prod(axis=1), kind="stable")
    common = Counter(map(tuple, sizes.tolist())).most_common(3)
    return {
        "smallest": sizes[order[0]].tolist(),
        "median": np.median(sizes, axis=0).round().astype(int).tolist(),
        "largest": sizes[order[-1]].tolist(),
        "common": [[*size, count] for size, count in common],
    }


def wrongly_named(listing: Listing, scanned: Scan) -> list[str]:
    """Return a line for every image with the suffix of another format. These images are used nevertheless."""
    from PIL import Image

    formats = {".jfif": "JPEG", ".jpe": "JPEG", **Image.registered_extensions()}
    equivalent = {"MPO": "JPEG", "APNG": "PNG"}
    lines = []
    for record, kind in enumerate(scanned.kinds):
        if not kind:
            continue
        name = listing.store.name(record)
        actual = equivalent.get(kind.split()[0], kind.split()[0])
        suffix = os.path.splitext(name)[1].lower()
        named = formats.get(suffix, "")
        if suffix and equivalent.get(named, named) != actual:
            lines.append(f"{name}: is {actual}")
    return sorted(lines)


def suggestion(dataset: Dataset) -> dict[str, str]:
    """Return options of `zoo train` that suit the data. Options that are not in it have suitable defaults."""
    options = {"--data": dataset.name}
    if "train" not in dataset.splits or dataset.num_classes < 2:
        return options
    kind = kind_of_images(dataset)
    if describe_few_images(dataset):
        return {**options, "--init": PRETRAINED[kind]}
    if kind == "photographs":
        size = "224" if median_side(dataset) >= 200 else "128"
        return {**options, "--model": MODELS[kind], "--image-size": size, "--augment": "resized_crop,flip"}
    return {**options, "--model": MODELS[kind]}


def describe(figures: Mapping[str, Any]) -> list[str]:
    """Format the figures of `survey` as lines of text."""
    splits, images = list(figures["splits"]), counted(sum(figures["splits"].values()), "image")
    lines = [f"{figures['name']}: {images}, {counted(len(figures['classes']), 'class', 'classes')}", ""]
    width = max(map(display_width, ["class", *list(figures["classes"])[:MAX_CLASSES]]))
    lines.append(f"  {'class':{width}}" + "".join(f"{name:>12}" for name in splits))
    for name, counts in list(figures["classes"].items())[:MAX_CLASSES]:
        lines.append(f"  {pad(name, width)}" + "".join(f"{counts[split]:>12,}" for split in splits))
    if (rest := len(figures["classes"]) - MAX_CLASSES) > 0:
        lines.append(f"  … and {rest:,} more")
    lines += [f"  {'total':{width}}" + "".join(f"{count:>12,}" for count in figures["splits"].values()), ""]
    if sizes := figures["sizes"]:
        common = ", ".join(f"{w}x{h} ({count:,})" for h, w, count in sizes["common"])
        smallest, median, largest = (f"{w}x{h}" for h, w in (sizes["smallest"], sizes["median"], sizes["largest"]))
        lines.append(f"sizes (width x height): {smallest} to {largest}, median {median}; most common: {common}")
    if figures["kinds"]:
        lines.append("formats: " + ", ".join(f"{kind} {count:,}" for kind, count in figures["kinds"].items()))
    if figures["repeated"]:
        repeated = counted(figures["repeated"], "image")
        lines.append(f"repeated: {repeated} with the same content as another one in their split")
    lines += [f"note: {note}" for note in figures["notes"]]
    for key, title in (
        ("wrongly_named", "suffix of another format (used nevertheless)"),
        ("contradictions", "same image in two classes"),
    ):
        if figures[key]:
            lines.append(f"{title}: {counted(len(figures[key]), 'image')}")
            lines += [f"   {line}" for line in _first_lines(figures[key])]
    lines += figures["advice"]
    lines += [f"*** {line}" for line in figures["leaks"]]
    return lines


def _first_lines(lines: Sequence[str]) -> list[str]:
    rest = len(lines) - MAX_LINES
    return [*lines[:MAX_LINES], *([f"… and {rest:,} more (--json lists all)"] if rest > 0 else [])]
