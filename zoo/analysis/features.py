"""Features: the activations of one of a network's endpoints for every image of a data set, and the file of them."""

import json
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from zoo import loading, models
from zoo.arguments import check_types
from zoo.data.content_sketch import ContentSketch, sketch_of
from zoo.data.dataset import Dataset, limited
from zoo.data.images.measure import as_trained
from zoo.data.images.preprocess import Preprocess, normalise
from zoo.data.loader import eval_batches
from zoo.data.sources import from_arrays, open_dataset
from zoo.data.sources.names import canonical_split
from zoo.data.splits import images_in_memory, known_keys, record_name
from zoo.distributed.compile import jit_for_platform
from zoo.files import atomic_writer, require_regular
from zoo.inference import memory
from zoo.inference.evaluate import BATCH_SIZE
from zoo.inference.predict import Checkpoint
from zoo.text import escape, one_line
from zoo.training.finetune import InitCheckpoint

POOLS = ("mean", "flatten")

#: The endpoint that the head reads.
HEAD_INPUT = "features"


@dataclass(frozen=True)
class Origin:
    """The origin of features.

    Attributes:
        checkpoint: folder or name of the checkpoint; "" for one in memory.
        digest: sha256 of the network, its preprocessing and its variables.
        at: the endpoint.
        pool: reduction of endpoints of shape [H, W, C].
        data: name of the data set.
        limit: maximum number of records per split; 0: all.
    """

    checkpoint: str
    digest: str
    at: str
    pool: str
    data: str
    limit: int = 0


class Features(NamedTuple):
    """The features of a data set.

    Attributes:
        splits: name -> (features float32 [N, D], labels int32 [N]).
        class_names: one name per label.
        about: a line on their origin: endpoint, model and data set.
        files: name -> the file of each record, or "record N" for arrays. Empty if unknown.
        origin: the checkpoint and the data; None if unknown.
        sketches: name -> the sketch of the split's images, where it is known without reading them again.
    """

    splits: dict[str, tuple[np.ndarray, np.ndarray]]
    class_names: tuple[str, ...]
    about: str = ""
    files: dict[str, tuple[str, ...]] = {}  # noqa: RUF012 (a NamedTuple is immutable)
    origin: Origin | None = None
    sketches: dict[str, ContentSketch] = {}  # noqa: RUF012

    @check_types()
    def save(self, file: str | Path) -> None:
        """Write an .npz file.

        It holds "train_features", "train_labels" and "train_files" and so on for every split, "class_names", "about"
        and "origin" (JSON).

        Raises:
            OSError: if it cannot be written; an existing file then stays as it was.
        """
        arrays: dict[str, Any] = {
            f"{name}_{part}": array
            for name, pair in self.splits.items()
            for part, array in zip(("features", "labels"), pair, strict=True)
        }
        arrays |= {f"{name}_files": np.array(names, np.str_) for name, names in self.files.items()}
        arrays |= {f"{name}_sketch": np.array(json.dumps(s.to_json())) for name, s in self.sketches.items()}
        origin = "" if self.origin is None else json.dumps(asdict(self.origin))
        with atomic_writer(Path(file)) as stream:  # given a name, NumPy would append .npz to it
            np.savez(
                stream, **arrays, class_names=np.array(self.class_names), about=np.array(self.about),
                origin=np.array(origin),
            )  # fmt: skip


def load_features(file: str | Path) -> Features:
    """Read a file that `Features.save` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file of another kind.
    """
    if not Path(file).exists():
        raise FileNotFoundError(f"{escape(str(file))}: no such file")
    require_regular(Path(file))
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("not an .npz archive")
        with warnings.catch_warnings(), open(file, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            warnings.simplefilter("ignore")  # NumPy's, on the headers of damaged arrays
            names = [key.removesuffix("_features") for key in arrays.files if key.endswith("_features")]
            splits = {name: (arrays[f"{name}_features"], arrays[f"{name}_labels"]) for name in names}
            _require_rows(arrays, [*(f"{name}_files" for name in names), "class_names"])
            files = {name: tuple(arrays[f"{name}_files"].tolist()) for name in names if f"{name}_files" in arrays}
            origin = json.loads(str(arrays["origin"])) if "origin" in arrays and str(arrays["origin"]) else None
            read = {
                name: ContentSketch.from_json(json.loads(str(arrays[f"{name}_sketch"])))
                for name in names
                if f"{name}_sketch" in arrays
            }
            class_names = tuple(map(str, arrays["class_names"].tolist()))
            _check_features(splits, len(class_names))
            return Features(
                splits, class_names, one_line(arrays["about"]), files,
                None if origin is None else Origin(**origin), {name: s for name, s in read.items() if s is not None},
            )  # fmt: skip
    except Exception as error:  # NumPy parses headers as Python, and raises nearly any type for damaged ones
        raise ValueError(f"{escape(str(file))}: was not written by `zoo features` ({one_line(error, 200)})") from None


def _require_rows(arrays: Any, keys: Sequence[str]) -> None:
    """Raise ValueError for a list of names that is no single row: one of shape [N, 0] may claim any number of rows."""
    for key in keys:
        if key in arrays and arrays[key].ndim != 1:
            raise ValueError(f"{key} has shape {arrays[key].shape}")


def require_finite(features: Features, splits: Sequence[str]) -> None:
    """Raise ValueError if rows of these splits hold NaN or infinity, which no classifier or projection can use."""
    for split in splits:
        rows = features.splits[split][0]
        if bad := len(rows) - int(np.isfinite(rows).all(axis=1).sum()):
            raise ValueError(
                f"{features.about}: the features of {bad:,} of {len(rows):,} images of the {split} split are NaN or "
                "infinite; check the checkpoint with `zoo verify`"
            )


def _check_features(splits: dict[str, tuple[np.ndarray, np.ndarray]], num_classes: int) -> None:
    """Raise ValueError unless every split has rows of numbers and as many labels in 0..num_classes - 1."""
    for name, (rows, labels) in splits.items():
        if rows.ndim != 2 or rows.dtype.kind != "f" or labels.shape != rows.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(f"{name}: {rows.dtype} {rows.shape} and labels {labels.dtype} {labels.shape}")
        if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(f"{name}: labels {labels.min()} to {labels.max()} for {num_classes} classes")


def endpoints(model: nn.Module, preprocess: Preprocess) -> dict[str, tuple[int, ...]]:
    """Return the shape of every endpoint for one image, by name: the stages first, in order."""
    shape = preprocess.input_shape
    images = jax.ShapeDtypeStruct((1, *shape), np.float32)

    def forward(images):
        return model.init_with_output(jax.random.key(0), images)[0][1]

    shapes = {name: end.shape[1:] for name, end in jax.eval_shape(forward, images).items()}
    order = [
        *(stage for stage in model.stages if stage in shapes),
        *(name for name in shapes if name not in model.stages),
    ]
    return {name: shapes[name] for name in order}


@check_types("at")
def features(
    checkpoint: Checkpoint | str | Path,
    data: str | Path | Dataset | tuple[Any, Any],
    at: str = "features",
    *,
    splits: Sequence[str] | None = None,
    pool: str = "mean",
    data_dir: str | Path | None = None,
    limit: int = 0,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], Any] | None = None,
    source: str = "",
) -> Features:
    """Compute the activations of an endpoint for every image of a data set, in evaluation mode.

    Args:
        checkpoint: a Checkpoint, or a folder or name that `load` takes. Its card decides how images are preprocessed.
        data: a data set, its name or folder, or arrays (images, labels). Its classes may differ from the checkpoint's.
        at: the endpoint: a stage, "features" or "logits".
        splits: names of the splits; all by default.
        pool: reduction of endpoints of shape [H, W, C]: "mean" over positions gives C features, "flatten" H * W * C.
        data_dir: folder of TensorFlow Datasets.
        limit: maximum number of records per split; 0: all.
        batch_size: images per batch; fewer if these do not fit into memory.
        on_batch: called with the number of images done so far.
        source: folder or name of a Checkpoint that was loaded before, to record with the features.

    Returns:
        The features of every split.

    Raises:
        ValueError: for an unknown endpoint, split or pooling, naming the known ones.
    """
    loaded = loading.open_checkpoint(checkpoint, "features", data)
    if isinstance(data, tuple):
        data = from_arrays(data)
    dataset = data if isinstance(data, Dataset) else open_dataset(data, data_dir)
    if limit:
        dataset = limited(dataset, limit)
    dataset = as_trained(dataset, loaded.card.preprocess)
    arrays = compute_features(
        loaded.model, loaded.variables, loaded.card.preprocess, dataset, at,
        splits=splits, pool=pool, batch_size=batch_size, on_batch=on_batch,
    )  # fmt: skip
    files = {name: _record_names(dataset.splits[name]) for name in arrays}
    about = f"{at} of {loaded.card.model} on {dataset.name}"
    spec = str(checkpoint) if isinstance(checkpoint, (str, Path)) else source
    origin = Origin(spec, digest_of(loaded), at, pool, dataset.name, limit)
    known = {name: split for name, split in dataset.splits.items() if name in arrays and _is_hashed(split)}
    sketches = {name: sketch_of(split) for name, split in known.items()}
    return Features(arrays, tuple(dataset.class_names), about, files, origin, sketches)


def _is_hashed(split: Any) -> bool:
    """Return True if the content of a split can be hashed without reading its records again."""
    return known_keys(split) is not None or images_in_memory(split) is not None


def digest_of(checkpoint: Checkpoint) -> str:
    """Return the sha256 of a checkpoint's network, classes, preprocessing and variables."""
    return InitCheckpoint("", checkpoint.card, jax.device_get(checkpoint.variables)).digest()


def _record_names(split: Any) -> tuple[str, ...]:
    return tuple(record_name(split, index) for index in range(len(split)))


def compute_features(
    model: nn.Module,
    variables: dict,
    preprocess: Preprocess,
    dataset: Dataset,
    at: str = HEAD_INPUT,
    *,
    splits: Sequence[str] | None = None,
    pool: str = "mean",
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], Any] | None = None,
    workers: int | None = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return {split: (features float32 [N, D], labels int32 [N])}.

    Args:
        model: the network.
        variables: its variables.
        preprocess: from an image to its input.
        dataset: the data.
        at, splits, pool, batch_size, on_batch: see `features`.
        workers: threads that read images; None for one per processor.

    Raises:
        ValueError: for an unknown endpoint, split or pooling, naming the known ones.
    """
    known = endpoints(model, preprocess)
    if at not in known:
        raise ValueError(f"{models.name_of(model)} has no endpoint {at!r}; it has {', '.join(known)}")
    if pool not in POOLS:
        raise ValueError(f"pool {pool!r}: choose from {', '.join(POOLS)}")
    step, variables = feature_step(model, preprocess, at, pool), jax.device_put(variables)
    smaller = [2**n for n in range(batch_size.bit_length() - 1, -1, -1) if 2**n < batch_size]
    batch_size = memory.largest_batch(
        step, variables, [batch_size, *smaller],
        lambda count: jax.ShapeDtypeStruct((count, *preprocess.input_shape), np.uint8),
        "use a checkpoint for smaller images",
    )  # fmt: skip
    done, arrays = 0, {}
    if splits is not None and not len(splits):
        raise ValueError(f"splits is empty; choose from {', '.join(dataset.splits)}, or None for all")
    for name in dataset.splits if splits is None else [canonical_split(name) or name for name in splits]:
        if name not in dataset.splits:
            raise ValueError(f"{dataset.name}: has no split {name!r}; it has {', '.join(dataset.splits)}")
        rows, split = [], dataset.splits[name]
        for batch in eval_batches(split, preprocess, batch_size=batch_size, workers=workers):
            count = int((batch["weight"] > 0).sum())
            rows.append(np.asarray(step(variables, batch["image"]))[:count])
            done += count
            if on_batch:
                on_batch(done)
        arrays[name] = np.concatenate(rows), np.asarray(split.labels, np.int32)
    return arrays


@lru_cache(maxsize=8)
def feature_step(model: nn.Module, preprocess: Preprocess, at: str, pool: str) -> Callable:
    """Return the compiled function of (variables, images uint8 [B, H, W, C]) that returns features [B, D]."""

    def forward(variables, images):
        _, ends = model.apply(variables, normalise(images, preprocess))
        end = ends[at].astype(np.float32)
        return end.mean((1, 2)) if end.ndim == 4 and pool == "mean" else end.reshape(len(end), -1)

    return jit_for_platform(forward)
