"""What a person wants to know of a data set before training on it: classes, sizes, duplicates, what is wrong."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.data.dataset import ArraySplit, Dataset, EncodedSplit, content_keys
from zoo.data.sources.listing import Listing, leaks, record_name
from zoo.data.sources.scan import Scan

CLASSES_SHOWN = 30
SMALL = 64  # pixels up to which images are for the models made for small ones


def survey(dataset: Dataset, listing: Listing | None = None, found: Scan | None = None) -> dict[str, Any]:
    """The figures, as JSON has them.

    Args:
        dataset: opened.
        listing, found: what it was opened from, where it is a list of encoded images.

    Returns:
        "name"; "classes": {name: {split: count}}; "splits": {split: count}; "sizes": of the images, where known;
        "kinds": {"JPEG RGB": count}; "left_out", "wrongly_named", "leaks", "contradictions": lines; "repeated": how
        many images have another with the same content in their split; "notes": lines; "suggestion": options of
        `zoo train`; "command": with them.
    """
    keys = {name: content_keys(split) for name, split in dataset.splits.items()}
    counts = {name: np.bincount(split.labels, minlength=dataset.num_classes) for name, split in dataset.splits.items()}
    sizes = _sizes(dataset)
    names = enumerate(dataset.class_names)
    options = suggestion(dataset, sizes)
    words = [f"{flag} {shlex.quote(value)}" for flag, value in options.items()]
    return {
        "name": dataset.name,
        "classes": {label: {name: int(counts[name][k]) for name in dataset.splits} for k, label in names},
        "splits": {name: len(split) for name, split in dataset.splits.items()},
        "sizes": _size_figures(sizes),
        "kinds": dict(Counter(kind for kind in found.kinds if kind).most_common()) if found else {},
        "left_out": list(dataset.left_out),
        "wrongly_named": wrongly_named(listing, found) if listing and found else [],
        "leaks": leaks(dataset.splits, keys),
        "contradictions": contradictions(dataset, keys),
        "repeated": sum(len(part) - len(set(part)) for part in keys.values()),
        "notes": [note for note in dataset.notes if not note.startswith("LEAKAGE")],
        "suggestion": options,
        "command": " ".join(["zoo train" if "train" in dataset.splits else "zoo eval CKPT", *words]),
    }


def _sizes(dataset: Dataset) -> NDArray[np.int32]:
    """(height, width) of the images, int32 [N, 2]; of none where nobody knows without decoding them."""
    parts = [np.zeros((0, 2), np.int32)]
    for split in dataset.splits.values():
        if isinstance(split, ArraySplit):
            parts.append(np.tile(np.array(split.images.shape[1:3], np.int32), (len(split), 1)))
        elif isinstance(split, EncodedSplit) and split.sizes is not None:
            parts.append(split.sizes)
    return np.concatenate(parts)


def _size_figures(sizes: NDArray[np.int32]) -> dict[str, Any]:
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


def wrongly_named(listing: Listing, found: Scan) -> list[str]:
    """Lines for images whose names say another format than they have; they are used all the same."""
    from PIL import Image

    formats = {".jfif": "JPEG", ".jpe": "JPEG", **Image.registered_extensions()}
    alike = {"MPO": "JPEG", "APNG": "PNG"}
    lines = []
    for record, kind in enumerate(found.kinds):
        if not kind:
            continue
        name = listing.store.name(record)
        has = alike.get(kind.split()[0], kind.split()[0])
        suffix = os.path.splitext(name)[1].lower()
        if suffix and alike.get(formats.get(suffix, ""), formats.get(suffix, "")) != has:
            lines.append(f"{name}: is {has}")
    return sorted(lines)


def contradictions(dataset: Dataset, keys: Mapping[str, Sequence[bytes]]) -> list[str]:
    """Lines for images that occur under several classes."""
    first: dict[bytes, tuple[int, str, int]] = {}
    lines = []
    for name, split in dataset.splits.items():
        for i, key in enumerate(keys[name]):
            label = int(split.labels[i])
            known, where, other = first.setdefault(key, (label, name, i))
            if known != label:
                same = record_name(dataset.splits[where], other)
                lines.append(
                    f"{record_name(split, i)} is {dataset.class_names[label]}, {same} is {dataset.class_names[known]}"
                )
    return lines


def suggestion(dataset: Dataset, sizes: NDArray[np.int32]) -> dict[str, str]:
    """Options of `zoo train` that suit the data, as a start; what they leave open is what suits the model."""
    from zoo.data.images.polarity import measure_polarity

    options = {"--data": dataset.name}
    if "train" not in dataset.splits:
        return options
    side = float(np.median(sizes.min(axis=1))) if len(sizes) else 2.0 * SMALL
    if side > SMALL:
        size = "224" if side >= 200 else "128"
        return {**options, "--model": "resnet18", "--image-size": size, "--augment": "resized_crop,flip"}
    split = dataset.splits["train"]
    images = split.read(np.arange(min(100, len(split))) * len(split) // min(100, len(split)))
    return {**options, "--model": "resnet20" if measure_polarity(images) is None else "lenet5"}


def describe(figures: Mapping[str, Any]) -> list[str]:
    """The figures as lines to read."""
    splits = list(figures["splits"])
    lines = [f"{figures['name']}: {sum(figures['splits'].values()):,} images, {len(figures['classes']):,} classes", ""]
    width = max([len("class"), *(len(name) for name in list(figures["classes"])[:CLASSES_SHOWN])])
    lines.append(f"  {'class':{width}}" + "".join(f"{name:>12}" for name in splits))
    for name, counts in list(figures["classes"].items())[:CLASSES_SHOWN]:
        lines.append(f"  {name:{width}}" + "".join(f"{counts[split]:>12,}" for split in splits))
    if (rest := len(figures["classes"]) - CLASSES_SHOWN) > 0:
        lines.append(f"  … and {rest:,} more")
    lines += [f"  {'all':{width}}" + "".join(f"{count:>12,}" for count in figures["splits"].values()), ""]
    if sizes := figures["sizes"]:
        common = ", ".join(f"{w}x{h} ({count:,})" for h, w, count in sizes["common"])
        small, middle, large = (f"{w}x{h}" for h, w in (sizes["smallest"], sizes["median"], sizes["largest"]))
        lines.append(f"sizes (width x height): {small} to {large}, median {middle}; most often {common}")
    if figures["kinds"]:
        lines.append("formats: " + ", ".join(f"{kind} {count:,}" for kind, count in figures["kinds"].items()))
    if figures["repeated"]:
        lines.append(f"repeated: {figures['repeated']:,} images have the same content as another of their split")
    lines += [f"note: {note}" for note in figures["notes"]]
    for what, text in (
        ("wrongly_named", "named wrongly, and used all the same"),
        ("contradictions", "the same image under two classes"),
    ):
        if figures[what]:
            lines.append(f"{text}: {len(figures[what]):,} images")
            lines += [f"   {line}" for line in _first(figures[what])]
    lines += [f"*** {line}" for line in figures["leaks"]]
    return lines


def _first(lines: Sequence[str], limit: int = 10) -> list[str]:
    rest = len(lines) - limit
    return [*lines[:limit], *([f"… and {rest:,} more (--json has them all)"] if rest > 0 else [])]
