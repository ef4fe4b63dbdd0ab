"""Folds of a cross-validation: every image is in the test split of one fold, and validation is held out of the rest.

Folds are stratified by class and, like `hold_out_mask`, chosen by content and not at random: they do not depend on
seed, order or machine. Identical images, and images of one group such as a patient, stay together.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.data.dataset import (
    MAX_VALIDATION,
    VALIDATION_FRACTION,
    Dataset,
    Note,
    all_splits,
    content_keys,
    hold_out_mask,
    limited,
    subset,
)
from zoo.data.splits import record_columns
from zoo.suggest import did_you_mean

# Usual names of columns of groups, in lower case without "_", "-", spaces and a final "id" or "s"
GROUP_COLUMNS = (
    "group", "patient", "subject", "person", "participant", "individual", "donor", "animal", "case", "volunteer",
)  # fmt: skip
NO_GROUP = "none"
MISSING = ("", "nan", "<na>", "null", "none")


@dataclass(frozen=True)
class Fold:
    """One fold of a cross-validation.

    Attributes:
        index: its number, 1..count.
        count: number of folds.
        group: column of the table whose images stay together; "" for none.
    """

    index: int
    count: int
    group: str = ""

    def __str__(self) -> str:
        return f"fold {self.index} of {self.count}"

    def to_json(self) -> dict[str, str]:
        """Return the entries that describe the fold in a configuration or a card."""
        return {"fold": f"{self.index}/{self.count}", **({"group": self.group} if self.group else {})}

    @classmethod
    def from_json(cls, data: Any) -> Fold | None:
        """Return the fold that `to_json` describes among the entries of `data`, or None.

        Raises:
            ValueError: the entry is not a fold.
        """
        text, group = data.get("fold"), data.get("group", "")
        if text is None:
            return None
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text) if isinstance(text, str) else None
        if not match or not 1 <= int(match[1]) <= int(match[2]) or int(match[2]) < 2 or not isinstance(group, str):
            raise ValueError(f"{text!r} is not a fold such as '1/5'")
        return cls(int(match[1]), int(match[2]), group)


def choose_group_column(dataset: Dataset, requested: str | None = None) -> str:
    """Return the column whose images stay together: the one requested, or the only one with a usual name; else "".

    Args:
        dataset: the data.
        requested: name of a column, "none", or None.

    Raises:
        ValueError: there is no such column, or several with usual names.
    """
    columns = list(record_columns(all_splits(dataset)))
    if requested == NO_GROUP:
        return ""
    if requested:
        if requested in columns:
            return requested
        if not columns:
            raise ValueError(
                f"--group {requested}: {dataset.name} has no further columns; list the images in a .csv table with one"
            )
        hint = did_you_mean(requested, columns) or f"choose from {', '.join(columns)}"
        raise ValueError(f"--group {requested}: {dataset.name} has no such column; {hint}")
    usual = [name for name in columns if _is_group_name(name)]
    if len(usual) > 1:
        raise ValueError(
            f"{dataset.name}: columns {' and '.join(usual)} may both be groups; choose one with --group, or "
            f"--group {NO_GROUP}"
        )
    return usual[0] if usual else ""


def _is_group_name(column: str) -> bool:
    plain = re.sub(r"[_\- ]", "", column.lower())
    return plain.removesuffix("id").removesuffix("s") in GROUP_COLUMNS


def take_fold(dataset: Dataset, fold: Fold) -> Dataset:
    """Return the data set of one fold, with the splits train, validation and test.

    The splits of `dataset` are pooled, its own test split too.

    Raises:
        ValueError: there are too few images or groups for so many folds.
    """
    pool = all_splits(dataset)
    labels = np.asarray(pool.labels)
    keys = content_keys(pool)
    groups = _groups(dataset, record_columns(pool), fold)
    parts = connected_parts(keys, groups)
    (_require_images if groups is None else _require_groups)(parts, labels, fold, dataset)
    folds = assign_folds(parts, keys, labels, fold.count, grouped=groups is not None)
    test = folds == fold.index - 1
    validation = _hold_out_validation(parts, keys, labels, ~test)
    if not validation.any():
        raise ValueError(f"{dataset.name}: too few images for validation beside {fold.count} folds; add images")
    splits = {
        "train": subset(pool, ~test & ~validation), "validation": subset(pool, validation), "test": subset(pool, test),
    }  # fmt: skip
    together = ""
    if fold.group:
        together = f"; images of the same {fold.group} stay together ({len(np.unique(parts)):,} groups)"
    notes = [Note("splits", f"{fold}: every image is in the test split of one of them{together}", "test")]
    if [name for name in dataset.splits if not _is_held_out(dataset, name)] != ["train"]:
        counts = ", ".join(f"{name} {len(split):,}" for name, split in dataset.splits.items())
        notes.append(Note("splits", f"the splits of the data are pooled for the folds: {counts}"))
    kept = [note for note in dataset.notes if note.kind not in ("held_out", "leakage", "splits")]
    return replace(dataset, splits=splits, notes=(*kept, *notes))


def as_cross_validated(dataset: Dataset, entries: Mapping[str, Any]) -> Dataset:
    """Return the splits that a checkpoint was trained with: those of its fold, if its card's `data` has one.

    Raises:
        ValueError: the entry is not a fold, or the data have changed so that there is none.
    """
    fold, limit = Fold.from_json(entries), entries.get("limit")
    if fold is None:
        return dataset
    return take_fold(limited(dataset, limit) if isinstance(limit, int) and limit > 0 else dataset, fold)


def _is_held_out(dataset: Dataset, name: str) -> bool:
    return any(note.kind == "held_out" and note.split == name for note in dataset.notes)


def _groups(dataset: Dataset, columns: Any, fold: Fold) -> Sequence[str] | None:
    """Return the group of each image, "" for one by itself; None without a column."""
    if not fold.group:
        return None
    if fold.group not in columns:
        raise ValueError(f"{dataset.name}: has no column {fold.group!r}, which keeps the images of a fold together")
    return ["" if cell.strip().lower() in MISSING else cell.strip() for cell in columns[fold.group]]


def connected_parts(keys: Sequence[bytes], groups: Sequence[str] | None = None) -> NDArray[np.int64]:
    """Number the records so that those with equal content or an equal group, directly or through others, share one.

    Args:
        keys: a hash of each record's content, N of them.
        groups: the group of each record, "" for none; or None.

    Returns:
        int64 [N], numbers 0, 1, ….
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(keys)
    nodes: dict[Any, int] = {}
    edges = [(i, nodes.setdefault(key, count + len(nodes))) for i, key in enumerate(keys)]
    edges += [(i, nodes.setdefault(name, count + len(nodes))) for i, name in enumerate(groups or ()) if name]
    rows, columns = np.array(edges, np.int64).T
    size = count + len(nodes)
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(size, size))
    numbers = connected_components(graph, directed=False)[1][:count]
    return np.unique(numbers, return_inverse=True)[1].astype(np.int64)


def assign_folds(
    parts: NDArray[np.int64], keys: Sequence[bytes], labels: NDArray[Any], count: int, *, grouped: bool
) -> NDArray[np.int64]:
    """Return the fold 0..count-1 of each record, stratified by class; records of one part are in one fold.

    Args:
        parts: the part of each record, int64 [N], as `connected_parts` numbers them.
        keys: a hash of each record's content.
        labels: integers [N].
        count: number of folds.
        grouped: balance parts by their numbers of records; otherwise every part counts as one image.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    numbers = parts.tolist()
    smallest = _smallest_keys(numbers, keys)
    order = np.array(sorted(range(len(keys)), key=lambda i: (smallest[numbers[i]], keys[i], labels[i])), np.int64)
    if not grouped:  # one record of each part
        order = order[np.sort(np.unique(parts[order], return_index=True)[1])]
    ranks = {part: rank for rank, part in enumerate(dict.fromkeys(parts[order].tolist()))}
    groups = [ranks[part] for part in parts[order].tolist()]  # numbers that do not depend on the order of the records
    splitter = StratifiedGroupKFold(count) if grouped else StratifiedKFold(count)
    folds = np.zeros(len(smallest), np.int64)
    with warnings.catch_warnings():
        # An image with two labels is one of a single class here, so that class may have fewer images than folds.
        warnings.simplefilter("ignore", UserWarning)
        for k, (_, test) in enumerate(splitter.split(order[:, None], labels[order], groups)):
            folds[parts[order[test]]] = k
    return folds[parts]


def _smallest_keys(parts: Sequence[int], keys: Sequence[bytes]) -> dict[int, bytes]:
    """Return the smallest key of each part, which does not depend on the order of the records."""
    smallest: dict[int, bytes] = {}
    for part, key in zip(parts, keys, strict=True):
        smallest[part] = min(smallest.get(part, key), key)
    return smallest


def _require_images(parts: NDArray[np.int64], labels: NDArray[Any], fold: Fold, dataset: Dataset) -> None:
    """Raise ValueError if a class has fewer different images than there are folds."""
    number, k = min((len(np.unique(parts[labels == k])), k) for k in np.unique(labels).tolist())
    if number < fold.count:
        advice = "add images of it or remove the class"
        if number > 1:
            advice = f"use at most {number} folds (--folds {number})"
        raise ValueError(
            f"{dataset.name}: {fold.count} folds need as many different images of every class, but "
            f"{dataset.class_names[k]!r} has {number}; {advice}"
        )


def _require_groups(parts: NDArray[np.int64], labels: NDArray[Any], fold: Fold, dataset: Dataset) -> None:
    """Raise ValueError if there are fewer groups than folds, or a class has images of a single group only."""
    groups = len(np.unique(parts))
    if groups < fold.count:
        advice = f"use at most {groups} folds (--folds {groups}), or no column" if groups > 1 else "use no column"
        raise ValueError(
            f"{dataset.name}: column {fold.group!r} has {groups} groups, too few for {fold.count} folds; {advice} "
            f"(--group {NO_GROUP})"
        )
    for k in np.unique(labels).tolist():
        if len(np.unique(parts[labels == k])) < 2:
            raise ValueError(
                f"{dataset.name}: all images of class {dataset.class_names[k]!r} are in one group of column "
                f"{fold.group!r}, so they cannot be both trained on and tested; add groups, or use no column "
                f"(--group {NO_GROUP})"
            )


def _hold_out_validation(
    parts: NDArray[np.int64], keys: Sequence[bytes], labels: NDArray[Any], rest: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Choose the validation split from the records that are not tested, by whole parts; see `hold_out_mask`."""
    members = np.flatnonzero(rest)
    count = max(1, min(round(VALIDATION_FRACTION * len(members)), MAX_VALIDATION))
    own = parts[members].tolist()
    smallest = _smallest_keys(own, [keys[i] for i in members.tolist()])
    chosen = hold_out_mask([smallest[part] for part in own], labels[members], count)
    mask = np.zeros(len(rest), bool)
    mask[members[chosen]] = True
    return mask
