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
    variables = jax.device_put(variables)
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
    model: nn.Module, variables: dict, images: np.ndarray, preprocess: Preprocess, batch_size: int = 64
) -> np.ndarray:
    """Probabilities float32 [N, K] for fitted images uint8 [N, H, W, C], or views of them [N, V, H, W, C].

    Batches are padded to powers of two, so that any number of images needs few compilations.
    """
    step = _eval_step(model, preprocess)
    variables = jax.device_put(variables)
    rows = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        size = min(_power_of_two(len(part)), batch_size)
        padded = np.zeros((size, *part.shape[1:]), np.uint8)
        padded[: len(part)] = part
        batch = {"image": padded, "label": np.zeros(size, np.int32), "weight": np.zeros(size, np.float32)}
        rows.append(np.asarray(step(variables, batch)[1])[: len(part)])
    return np.concatenate(rows) if rows else np.zeros((0, model.num_classes or 0), np.float32)


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
