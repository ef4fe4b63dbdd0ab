"""Evaluation and prediction with given variables: exact over a split, one compilation per model and batch size."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from zoo.data.loader import eval_batches, on_device
from zoo.data.preprocess import Preprocess
from zoo.data.sources import Split
from zoo.data.views import VIEWS
from zoo.folding import fold, folded_on_device
from zoo.training import metrics
from zoo.training.parallel import compiled
from zoo.training.step import make_eval_step

BATCH_SIZE = 256


@lru_cache(maxsize=16)
def _eval_step(model: nn.Module, preprocess: Preprocess) -> Callable:
    return compiled(make_eval_step(model, preprocess))


def evaluate(
    model: nn.Module,
    variables: dict,
    split: Split,
    preprocess: Preprocess,
    class_names: Sequence[str],
    *,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], Any] | None = None,
    tta: str = "",
) -> dict[str, Any]:
    """Every metric of `metrics.summarise` over the whole split; each example counts once at any batch size.

    `on_batch` is called with the number of images done. `tta` names the VIEWS of each image that are averaged. Raises
    ValueError for an empty split.
    """
    step = _eval_step(model, preprocess)
    variables = jax.device_put(fold(model, variables, _shape(preprocess)))
    views = VIEWS[tta][1] if tta else 1
    size = min(max(1, batch_size // views), _power_of_two(len(split)))
    gather = len(split) * len(class_names) <= metrics.SCORE_LIMIT
    total, scores, done = None, [], 0

    def results():
        """What the device made of each batch, one batch late, so that the host reads on meanwhile."""
        late = None
        for batch in on_device(eval_batches(split, preprocess, batch_size=size, tta=tta)):
            now = (np.asarray(batch["weight"]) > 0, step(variables, batch))
            if late is not None:
                yield late
            late = now
        if late is not None:
            yield late

    for real, (sums, probabilities) in results():
        total = metrics.add(total, sums)
        if gather:
            scores.append(np.asarray(probabilities)[real])
        done += int(real.sum())
        if on_batch:
            on_batch(done)
    if total is None:
        raise ValueError("there is nothing to evaluate: the split has no examples")
    if not gather:
        return metrics.summarise(total, class_names)
    return metrics.summarise(total, class_names, np.concatenate(scores), np.asarray(split.labels))


def predict(
    model: nn.Module, variables: dict, images: np.ndarray, preprocess: Preprocess, batch_size: int = 0
) -> np.ndarray:
    """Probabilities float32 [N, K] for fitted images uint8 [N, H, W, C], or views of them [N, V, H, W, C].

    `batch_size`: of every batch, the last one filled up, so that calls with the same one share a compilation; 0: of
    `prediction_batch`, so that seven compilations do for any number of images.
    """
    step = _eval_step(model, preprocess)
    variables = folded_on_device(model, variables, _shape(preprocess))
    size = batch_size or prediction_batch(len(images))
    rows = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        padded = np.zeros((size, *part.shape[1:]), np.uint8)
        padded[: len(part)] = part
        batch = {"image": padded, "label": np.zeros(size, np.int32), "weight": np.zeros(size, np.float32)}
        rows.append(np.asarray(step(variables, batch)[1])[: len(part)])
    return np.concatenate(rows) if rows else np.zeros((0, model.num_classes or 0), np.float32)


def prediction_batch(count: int, limit: int = 64) -> int:
    """The batch for `count` images in all: the largest power of two, up to `limit`, that fills up at most a quarter."""
    size = limit
    while size > 1 and -count % size > count / 4:
        size //= 2
    return size


def _shape(preprocess: Preprocess) -> tuple[int, int, int]:
    return (*preprocess.size, preprocess.num_channels)


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
