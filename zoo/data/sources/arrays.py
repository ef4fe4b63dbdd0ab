"""A data set from arrays in memory, of whatever form people keep them in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from zoo.data.dataset import ArraySplit, Dataset, Labels, Pixels, complete
from zoo.data.images.decode import composite

Arrays = tuple[Any, Any]


def from_arrays(
    train: Arrays,
    validation: Arrays | None = None,
    test: Arrays | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
) -> Dataset:
    """A data set from arrays in memory.

    Args:
        train, validation, test: pairs (images, labels). Images are [N, H, W], [N, H, W, C] or, where it is unambiguous,
            [N, C, H, W] with C of 1, 3 (RGB) or 4 (RGBA), uint8, or integers or floats in 0..255, or floats in 0..1.
            They are not copied where they are already what is needed. Labels are [N] or [N, 1] (integers or strings) or
            one-hot [N, K].
        class_names: the meaning of labels 0..K-1. Without it labels may be anything, and are sorted into classes.
        name: for messages.

    Raises:
        ValueError: anything else, by name and with what was found.
    """
    raw = {"train": train, "validation": validation, "test": test}
    given = {key: pair for key, pair in raw.items() if pair is not None}
    return splits_from_arrays(given, class_names, name)


def splits_from_arrays(given: Mapping[str, Arrays], class_names: Sequence[str] | None, name: str) -> Dataset:
    images: dict[str, Pixels] = {}
    labels: dict[str, NDArray[Any]] = {}
    factors: dict[str, float] = {}
    notes: list[str] = []
    for split, pair in given.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"{name}: {split} must be a pair (images, labels)")
        x, y = (np.asarray(part) for part in pair)
        images[split], factors[split], scaling = _to_pixels(x, f"{name}: {split} images")
        labels[split] = _to_labels(y, f"{name}: {split} labels")
        if len(images[split]) != len(labels[split]):
            raise ValueError(f"{name}: {split} has {len(images[split])} images but {len(labels[split])} labels")
        if scaling:
            notes.append(f"{split} images: {scaling}")
    shapes = {split: x.shape[1:] for split, x in images.items()}
    if len({shape[-1] for shape in shapes.values()}) > 1:
        raise ValueError(f"{name}: splits differ in channels: {', '.join(f'{k} {v}' for k, v in shapes.items())}")
    if len(set(factors.values())) > 1:
        ranges = ", ".join(f"{k} 0..{'1' if f > 1 else '255'}" for k, f in factors.items())
        raise ValueError(f"{name}: splits differ in the range of their pixel values: {ranges}")
    numbers, names, mapped = _to_classes(labels, class_names, name)
    splits, held = complete({split: ArraySplit(images[split], numbers[split]) for split in given})
    return Dataset(name, splits, names, tuple(notes + mapped + held))


def _to_pixels(x: NDArray[Any], what: str) -> tuple[Pixels, float, str]:
    """Check and convert to uint8 [N, H, W, C]; with the factor that did it, and a remark if it needs one."""
    if x.dtype == object:
        raise ValueError(f"{what}: sizes differ or entries are no numbers; a rectangular array is needed")
    if x.dtype.kind not in "buif":
        raise ValueError(f"{what}: must be numbers, not {x.dtype}")
    if x.ndim == 2:
        raise ValueError(f"{what}: are flattened to {x.shape}; reshape them to [number, height, width]")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4:
        raise ValueError(f"{what}: have the shape {x.shape}; [number, height, width(, channels)] is needed")
    if 0 in x.shape:
        raise ValueError(f"{what}: are empty (shape {x.shape})")
    first, last = x.shape[1] in (1, 3, 4), x.shape[3] in (1, 3, 4)
    if not last and not first:
        raise ValueError(f"{what}: have the shape {x.shape}; channels come last and are 1 (grey), 3 (RGB) or 4 (RGBA)")
    if first and last and x.shape[1] != x.shape[2]:
        raise ValueError(f"{what}: in {x.shape} channels may be first or last; use [number, height, width, channels]")
    if first and not last:
        x = x.transpose(0, 2, 3, 1)
    pixels, factor, remark = _to_levels(x, what)
    if pixels.shape[-1] == 4:
        pixels, remark = np.stack([composite(image) for image in pixels]), remark or "transparency is laid over white"
    return np.ascontiguousarray(pixels), factor, remark


def _to_levels(x: NDArray[Any], what: str) -> tuple[Pixels, float, str]:
    """Numbers of any kind to uint8 0..255, by a factor of 1 or 255."""
    low, high = x.min(), x.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{what}: contain values that are not finite (NaN or infinity)")
    if x.dtype == np.uint8 and high > 1:
        return x, 1.0, "" if high >= 64 else f"the brightest pixel is {high} of 255"
    found = f"values range from {low:g} to {high:g}"
    if low < 0 or high > 255:
        raise ValueError(f"{what}: {found}; 0..255 or 0..1 is needed")
    if 1 < high < 128:
        raise ValueError(f"{what}: {found}, which is neither 0..1 nor 0..255; scale them to one of these")
    factor = 1.0 if high > 1 else 255.0
    out = np.empty(x.shape, np.uint8)
    for start in range(0, len(x), 1024):  # floats of a whole data set twice would be a lot of memory
        out[start : start + 1024] = np.rint(x[start : start + 1024].astype(np.float64) * factor)
    return out, factor, "two-valued, scaled to 0 and 255" if factor > 1 and x.dtype.kind != "f" else ""


def _to_labels(y: NDArray[Any], what: str) -> NDArray[Any]:
    """Check and bring to [N], integers or strings."""
    if y.dtype == object:
        y = np.array([str(v) if isinstance(v, str | bytes) else v for v in y.ravel()]).reshape(y.shape)
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind not in "biufU":
        raise ValueError(f"{what}: must be integers or strings, not {y.dtype}")
    if y.ndim == 2 and y.dtype.kind != "U":
        if not (np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()):
            raise ValueError(f"{what}: of shape {y.shape} are not one-hot; one class per image is needed")
        return cast(NDArray[Any], y.argmax(axis=1))
    if y.ndim != 1:
        raise ValueError(f"{what}: have the shape {y.shape}; [N], [N, 1] or one-hot [N, classes] is needed")
    if y.dtype.kind == "f":
        if not (np.isfinite(y).all() and (y == np.rint(y)).all()):
            raise ValueError(f"{what}: contain fractions or NaN; classes are integers or strings")
        y = y.astype(np.int64)
    return y.astype(np.int64) if y.dtype.kind in "bui" else y


def _to_classes(
    labels: Mapping[str, NDArray[Any]], class_names: Sequence[str] | None, name: str
) -> tuple[dict[str, Labels], tuple[str, ...], list[str]]:
    """Labels as 0..K-1, the classes' names, and a remark if labels were changed. The train split says what there is."""
    reference = labels["train"] if "train" in labels else np.concatenate(list(labels.values()))
    seen = np.unique(reference)
    if "train" in labels and len(seen) < 2:
        raise ValueError(f"{name}: the train labels are all {seen[0]!s}; at least two classes are needed")
    if class_names is not None:
        names = tuple(str(n) for n in class_names)
        if len(set(names)) != len(names) or len(names) < 2:
            raise ValueError(f"{name}: class_names must be two or more different names, not {names}")
        index = np.array(names) if reference.dtype.kind == "U" else np.arange(len(names))
    else:
        index = seen
        if seen.dtype.kind == "i" and seen[0] == 0 and len(seen) > 1:
            index = np.arange(int(seen[-1]) + 1) if int(seen[-1]) + 1 == len(seen) else seen
        names = tuple(str(v) for v in index)
    out: dict[str, Labels] = {}
    order = np.argsort(index, kind="stable")
    for split, y in labels.items():
        if y.dtype.kind != index.dtype.kind:
            raise ValueError(f"{name}: {split} labels are of another type than those of train")
        place = np.minimum(np.searchsorted(index, y, sorter=order), len(index) - 1)
        number = order[place]
        unknown = np.unique(y[index[number] != y])
        if len(unknown):
            known = f"0..{len(index) - 1}" if class_names is not None and y.dtype.kind == "i" else "those of train"
            listed = ", ".join(str(v) for v in unknown[:5]) + (", …" if len(unknown) > 5 else "")
            raise ValueError(f"{name}: {split} labels {listed} are not among the classes ({known})")
        out[split] = number.astype(np.int32)
    remark = []
    if index.dtype.kind == "U" or not np.array_equal(index, np.arange(len(index))):
        shown = [f"{v!s} -> {k}" for k, v in enumerate(names)]
        shown = [*shown[:3], "…", shown[-1]] if len(shown) > 5 else shown
        remark.append(f"labels are numbered in sorted order: {', '.join(shown)}")
    return out, names, remark
