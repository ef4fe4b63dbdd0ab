"""Data sets from arrays in memory, in all usual layouts, types and ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from zoo.arguments import check_types
from zoo.data.dataset import Dataset, Note, create_missing_splits
from zoo.data.images.colour import composite
from zoo.data.images.decode import CHANNEL_COUNTS, array_white, as_numbers, channels_last, type_of
from zoo.data.images.levels import PixelRangeError, choose_array_white, require_unmasked, scale_to_8_bits, value_range
from zoo.data.sources.names import check_joined_labels, unify_class_names
from zoo.data.splits import ArraySplit, Labels, Pixels
from zoo.text import first_few, first_line, one_line

Arrays = tuple[Any, Any]
MISSING_LABELS = ("nan", "NaN", "<NA>", "NaT", "")  # as pandas and CSV files write missing values


@check_types("train", "validation", "test")
def from_arrays(
    train: Arrays,
    validation: Arrays | None = None,
    test: Arrays | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
) -> Dataset:
    """Make a data set of arrays in memory. Missing splits are held out of train.

    Args:
        train: a pair (images, labels). Images are [N, H, W], [N, H, W, C] or, if unambiguous, [N, C, H, W] with C = 1,
            3 (RGB) or 4 (RGBA). They are bool, uint8, integers or floats in 0..255, floats in 0..1, or integers of 10,
            12, 14 or 16 bits; uint8 images with channels last are not copied. Floats may overshoot by 5 % and are
            clipped. Labels are [N] or [N, 1] (integers or strings), or one-hot [N, K].
        validation: a pair like `train`, or None.
        test: a pair like `train`, or None.
        class_names: names of the labels 0..K-1. Without them, the distinct labels are sorted and become the classes.
        name: name of the data set in messages.

    Raises:
        ValueError: images or labels of another form, named with what is wrong.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (100, 28, 28), np.uint8)
        >>> dataset = from_arrays((images, np.arange(100) % 10))
        >>> {name: len(split) for name, split in dataset.splits.items()}
        {'train': 70, 'validation': 10, 'test': 20}
    """
    pairs = {"train": train, "validation": validation, "test": test}
    return dataset_from_pairs({split: pair for split, pair in pairs.items() if pair is not None}, class_names, name)


def dataset_from_pairs(pairs: Mapping[str, Arrays], class_names: Sequence[str] | None, name: str) -> Dataset:
    """Make a data set of pairs (images, labels) by split; see `from_arrays`."""
    arrays, labels = _check_pairs(pairs, name)
    images: dict[str, Pixels] = {}
    whites: dict[str, float | None] = {}
    notes = _layout_notes(pairs)
    for split, white in _choose_whites(arrays, name).items():
        images[split], remark = _to_pixels(arrays[split], white)
        whites[split] = _recorded(arrays[split], white)
        if remark:
            notes.append(Note("images", f"{split} images: {remark}", split))
    shapes = {split: x.shape[1:] for split, x in images.items()}
    if len({shape[-1] for shape in shapes.values()}) > 1:
        listed = ", ".join(f"{split} {shape}" for split, shape in shapes.items())
        raise ValueError(f"{name}: splits must have the same channels, not {listed}")
    if class_names is None and all(y.dtype.kind == "U" for y in labels.values()):
        labels, spelling = _unify_spellings(labels, name)
        notes += spelling
    numbers, names, renumbered = _to_classes(labels, class_names, name)
    splits, held_out = create_missing_splits(
        {split: ArraySplit(images[split], numbers[split], whites[split]) for split in pairs}, name
    )
    return Dataset(name, splits, names, (*notes, *renumbered, *held_out))


def evaluation_split(pair: Arrays, class_names: Sequence[str], white: float | None, name: str = "arrays") -> Dataset:
    """Make a data set of one split, "test", for a model: pixels are scaled and labels numbered by its card.

    Args:
        pair: (images, labels) as in `from_arrays`. Integer labels are class names if all are, else positions.
        class_names: of the model.
        white: the model's `Preprocess.white`.
        name: name of the data set in messages.

    Raises:
        ValueError: as `from_arrays`, and for labels that the model does not have.
    """
    arrays, labels = _check_pairs({"test": pair}, name)
    if labels["test"].dtype.kind == "i" and {str(v) for v in np.unique(labels["test"])} <= set(class_names):
        labels["test"] = labels["test"].astype(str)
    label_shape = np.shape(pair[1])
    if len(label_shape) == 2 and label_shape[1] not in (1, len(class_names)):
        raise ValueError(f"{name}: test labels: one-hot rows of {label_shape[1]} for {len(class_names)} classes")
    numbers, names, _ = _to_classes(labels, class_names, name)
    x = arrays["test"]
    try:
        pixels, remark = _to_pixels(x, array_white(x, white))
    except PixelRangeError as error:
        raise ValueError(f"{name}: test images: {error}") from None
    notes = [*_layout_notes({"test": pair}), *([Note("images", f"test images: {remark}", "test")] if remark else [])]
    return Dataset(name, {"test": ArraySplit(pixels, numbers["test"], white)}, names, tuple(notes))


def _layout_notes(pairs: Mapping[str, Arrays]) -> list[Note]:
    """Return notes on images with their channels first and on one-hot labels, which have been checked."""
    notes = []
    for split, (images, labels) in pairs.items():
        shape, label_shape = np.shape(images), np.shape(labels)
        if len(shape) == 4 and shape[3] not in CHANNEL_COUNTS:
            text = f"{split} images: shape {shape} is read as [N, channels, height, width]"
            notes.append(Note("images", text, split))
        if len(label_shape) == 2 and label_shape[1] > 1:
            text = f"{split} labels: one-hot rows of {label_shape[1]} are read as classes 0..{label_shape[1] - 1}"
            notes.append(Note("classes", text, split))
    return notes


def _check_pairs(pairs: Mapping[str, Arrays], name: str) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return images as numbers [N, H, W, C], and labels, by split."""
    images, labels = {}, {}
    for split, pair in pairs.items():
        splits = "; for several splits write zoo.from_arrays((images, labels), test=(images, labels))"
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            several = splits if isinstance(pair, tuple | list) and len(pair) > 2 else ""
            raise ValueError(f"{name}: {split} must be a pair (images, labels){several}")
        if all(isinstance(part, tuple) and len(part) == 2 and np.ndim(part[0]) > 1 for part in pair):
            raise ValueError(f"{name}: {split} has two pairs (images, labels){splits}")
        images[split] = _to_stack(pair[0], f"{name}: {split} images")
        labels[split] = _to_labels(pair[1], f"{name}: {split} labels")
        if len(images[split]) != len(labels[split]):
            raise ValueError(f"{name}: {split} has {len(images[split])} images but {len(labels[split])} labels")
    return images, labels


def _as_array(values: Any, title: str) -> NDArray[Any]:
    try:
        require_unmasked(values)
    except ValueError as error:
        raise ValueError(f"{title}: {error}") from None
    try:
        return np.asarray(values)
    except Exception as error:  # the arrays of other libraries raise errors of any type
        shapes = [str(shape) for shape in dict.fromkeys(map(np.shape, values))] if _is_listed(values) else []
        if len(shapes) > 1:
            raise ValueError(f"{title}: are not one array: shapes {first_few(shapes, 3)}; give all one shape") from None
        raise ValueError(f"{title}: are not one array ({first_line(error)})") from None


def _is_listed(values: Any) -> bool:
    """Return True for a list or tuple of arrays, the shapes of which can be compared."""
    return isinstance(values, list | tuple) and all(isinstance(value, np.ndarray) for value in values)


def _to_stack(images: Any, title: str) -> NDArray[Any]:
    """Check images and return them as numbers [N, H, W, C]."""
    x = _as_array(images, title)
    if x.dtype == object:
        what = "of Python objects" if x.ndim else f"a {type(images).__name__}"
        raise ValueError(f"{title}: must be one array of numbers, with images of one size, not {what}")
    if x.dtype.kind in "US":
        raise ValueError(f"{title}: must be numbers, not text; for image files give a folder or a table of paths")
    try:
        x = as_numbers(x)
    except ValueError:
        raise ValueError(f"{title}: must be numbers, not {x.dtype}") from None
    if x.ndim == 2:
        raise ValueError(f"{title}: are flattened, or one image (shape {x.shape}); reshape them to [N, height, width]")
    if x.ndim not in (3, 4):
        raise ValueError(f"{title}: must have shape [N, height, width] or [N, height, width, channels], not {x.shape}")
    if 0 in x.shape:
        raise ValueError(f"{title}: are empty (shape {x.shape})")
    return channels_last(x, title) if x.ndim == 4 else x[..., None]


def _choose_whites(arrays: Mapping[str, NDArray[Any]], name: str) -> dict[str, float]:
    """Return the value of white of each split. Integers of more than 8 bits have one for all splits."""
    kinds = {split: type_of(x) for split, x in arrays.items()}
    ranges = {}
    for split, x in arrays.items():
        try:
            ranges[split] = value_range(x)
        except PixelRangeError:
            raise ValueError(f"{name}: {split} images: contain NaN or infinity") from None
    deep = max((ranges[split][1] for split, kind in kinds.items() if kind == "integer"), default=0.0)
    whites = {}
    for split, kind in kinds.items():
        low, peak = ranges[split]
        if low == peak == 0:  # black in any range
            continue
        if kind == "bool" or (kind == "uint8" and peak > 1):
            whites[split] = 1.0 if kind == "bool" else 255.0
            continue
        try:
            joint = deep if kind == "integer" and deep > 255 and peak > 1 else peak
            whites[split] = choose_array_white(low, joint, "float" if kind == "float" else "integer")
        except PixelRangeError:
            extent = f"values range from {low:g} to {peak:g}"
            advice = ", neither 0..1 nor 0..255; scale them to one of these"
            advice = advice if low >= 0 and peak <= 255 else "; scale them to 0..255 or 0..1"
            raise ValueError(f"{name}: {split} images: {extent}{advice}") from None
    if len(set(whites.values())) > 1:
        listed = ", ".join(f"{split} 0..{white:g}" for split, white in whites.items())
        raise ValueError(f"{name}: splits must have the same range of pixel values: {listed}")
    common = next(iter(whites.values()), 255.0)
    return {split: whites.get(split, common) for split in arrays}


def _recorded(x: NDArray[Any], white: float) -> float | None:
    """Return the value of white that a card records: None where type and values say it."""
    kind = type_of(x)
    usual = kind == "bool" or (kind == "float" and white == 1) or (kind != "float" and white == 255)
    return None if usual else white


def _to_pixels(x: NDArray[Any], white: float) -> tuple[Pixels, str]:
    """Scale numbers [N, H, W, C] to uint8 [N, H, W, 1 or 3]; returns them with a remark on the conversion or ""."""
    remark = ""
    if x.dtype == bool:
        pixels = x.astype(np.uint8) * np.uint8(255)
    elif x.dtype == np.uint8 and white == 255:
        pixels, peak = x, int(x.max())
        remark = "" if peak >= 64 else f"the brightest pixel is {peak} of 255"
    else:
        pixels = scale_to_8_bits(x, white)
    if white == 1:
        remark = "floats in 0..1, scaled to 0..255" if x.dtype.kind == "f" else "two-valued, scaled to 0 and 255"
    elif white not in (1, 255):
        remark = f"scaled from the range 0..{white:g}, which the checkpoint keeps"
    if pixels.shape[-1] == 4:
        pixels = np.stack([composite(image) for image in pixels])
        remark = remark or "transparency is composited over white"
    return np.ascontiguousarray(pixels), remark


def _to_labels(labels: Any, title: str) -> NDArray[Any]:
    """Check labels and return them as int64 or strings [N]."""
    if isinstance(labels, list | tuple):
        labels = [None if label is np.ma.masked else label for label in labels]
    is_flat = isinstance(labels, list) and not any(isinstance(v, list | tuple | np.ndarray) for v in labels)
    y = np.empty(len(labels), object) if is_flat else _as_array(labels, title)
    if y.ndim == 0:
        raise ValueError(f"{title}: must be an array or a list, one label per image, not {_kind_of_scalar(labels)}")
    if is_flat:
        y[:] = labels  # np.asarray would make numbers beside words to words
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim > 1 and y.size == 0:  # may claim any number of rows
        raise ValueError(f"{title}: are empty (shape {y.shape})")
    if y.dtype.kind == "S":
        y = y.astype(object)
    if y.dtype == object and y.ndim:
        y = _labels_of_objects(y.ravel().tolist(), title).reshape(y.shape)
    if y.dtype.kind not in "biufU":
        raise ValueError(f"{title}: must be integers or strings, not {y.dtype}")
    if y.ndim == 2 and y.dtype.kind != "U":
        if not (np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()):
            raise ValueError(f"{title}: shape {y.shape} is not one-hot; give one class per image")
        return cast(NDArray[Any], y.argmax(axis=1))
    if y.ndim != 1:
        raise ValueError(f"{title}: must have shape [N], [N, 1] or one-hot [N, classes], not {y.shape}")
    if y.dtype.kind == "U":
        for missing in np.flatnonzero(np.isin(y, MISSING_LABELS))[:1].tolist():
            raise ValueError(
                f"{title}: {str(y[missing]) or repr('')} at index {missing} is a missing value; leave such images out"
            )
        return y
    if y.dtype.kind == "f":
        if not (np.isfinite(y).all() and (y == np.rint(y)).all()):
            raise ValueError(f"{title}: contain fractions or NaN; classes must be integers or strings")
        if len(y) and (largest := float(np.abs(y).max())) >= 2**53:
            raise ValueError(f"{title}: {largest:g} is too large for a class number; give integers or strings")
    if y.dtype.kind == "u" and len(y) and y.max() >= 2**63:
        raise ValueError(f"{title}: {y.max()} is too large for a class number; give numbers below 2**63, or strings")
    return y.astype(np.int64)


def _kind_of_scalar(labels: Any) -> str:
    return "None" if labels is None else f"a {type(labels).__name__}"


def _labels_of_objects(values: Sequence[Any], title: str) -> NDArray[Any]:
    """Return labels that are Python objects, all text or all numbers, as strings or int64 [N]."""
    labels: list[Any] = []
    examples: dict[str, Any] = {}
    for i, value in enumerate(values):
        if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # a NumPy or JAX scalar
            value = value.item()
        if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
            raise ValueError(f"{title}: {value} at index {i} is a missing value; leave such images out")
        if isinstance(value, bytes):
            try:
                value = value.decode("utf-8")
            except UnicodeDecodeError:
                raise ValueError(f"{title}: {value!r} at index {i} is not text in UTF-8") from None
        kind = "text" if isinstance(value, str) else "truth values" if isinstance(value, bool) else "numbers"
        if kind == "numbers":
            if not isinstance(value, int | float):
                raise ValueError(f"{title}: must be integers or strings, not {type(value).__name__} (index {i})")
            if isinstance(value, float) and not value.is_integer():
                raise ValueError(f"{title}: contain fractions ({value}); classes must be integers or strings")
            if not -(2**63) <= value < 2**63 or (isinstance(value, float) and abs(value) >= 2**53):
                raise ValueError(f"{title}: {one_line(value, 40)} is too large for a class number; give strings")
        examples.setdefault(kind, value)
        labels.append(value)
    if len(examples) > 1:
        mixed = " and ".join(f"{kind} ({value!r})" for kind, value in examples.items())
        raise ValueError(f"{title}: mix {mixed}; give all of them as strings or all as integers")
    return np.array(labels, np.str_ if "text" in examples else np.int64)


def _unify_spellings(labels: Mapping[str, NDArray[Any]], name: str) -> tuple[dict[str, NDArray[Any]], list[Note]]:
    """Return labels that are strings with one spelling for each class, and notes."""
    values = {split: y.tolist() for split, y in labels.items()}
    spellings, notes = unify_class_names([label for part in values.values() for label in part])
    notes = [*notes, *check_joined_labels(sorted(set(spellings.values())), name)]
    return {split: np.array([spellings[label] for label in part], np.str_) for split, part in values.items()}, notes


def _to_classes(
    labels: Mapping[str, NDArray[Any]], class_names: Sequence[str] | None, name: str
) -> tuple[dict[str, Labels], tuple[str, ...], list[Note]]:
    """Number the labels 0..K-1. The classes are those of `class_names`, or else the labels of the train split.

    Returns:
        The labels by split, the class names, and a note if the numbers differ from the labels.
    """
    reference = labels["train"] if "train" in labels else np.concatenate(list(labels.values()))
    distinct = np.unique(reference)
    if "train" in labels and len(distinct) < 2:
        raise ValueError(f"{name}: the train labels are all {distinct[0]!s}; at least two classes are needed")
    if class_names is not None:
        names = tuple(n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in class_names)
        if len(set(names)) != len(names) or len(names) < 2:
            raise ValueError(f"{name}: class_names must be two or more different names, not {names}")
        values = np.array(names) if reference.dtype.kind == "U" else np.arange(len(names))
    else:
        values = distinct
        names = tuple(str(v) for v in values)
    numbered: dict[str, Labels] = {}
    order = np.argsort(values, kind="stable")
    for split, y in labels.items():
        if y.dtype.kind != values.dtype.kind:
            raise ValueError(f"{name}: {split} labels have another type than the train labels or class names")
        position = np.minimum(np.searchsorted(values, y, sorter=order), len(values) - 1)
        number = order[position]
        unknown = np.unique(y[values[number] != y])
        if len(unknown):
            known = "those of train" if class_names is None else first_few(names, 5)
            known = f"0..{len(values) - 1}" if class_names is not None and y.dtype.kind == "i" else known
            listed = ", ".join(str(v) for v in unknown[:5]) + (", …" if len(unknown) > 5 else "")
            raise ValueError(f"{name}: {split} labels {listed} are not among the classes ({known})")
        numbered[split] = number.astype(np.int32)
    notes = []
    if values.dtype.kind == "U" or not np.array_equal(values, np.arange(len(values))):
        pairs = [f"{v!s} -> {k}" for k, v in enumerate(names)]
        pairs = [*pairs[:3], "…", pairs[-1]] if len(pairs) > 5 else pairs
        order_of = "in sorted order" if class_names is None else "as class_names lists them"
        notes.append(Note("classes", f"labels numbered {order_of}: {', '.join(pairs)}"))
    return numbered, names, notes
