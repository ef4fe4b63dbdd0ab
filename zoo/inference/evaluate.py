"""Evaluation and prediction with given variables: exact over a split, one compilation per model and batch size."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoo.data.images.preprocess import Preprocess, normalise
from zoo.data.images.tta import VIEWS
from zoo.data.loader import eval_batches, prefetch_to_device
from zoo.data.splits import Split
from zoo.distributed.compile import jit_for_platform
from zoo.distributed.mesh import SINGLE_DEVICE, Parallelism, process_shard, replicated, shard_batch, shard_variables
from zoo.inference import metrics
from zoo.inference.folding import fold, folded_on_device

Batch = dict[str, Any]

BATCH_SIZE = 256
# From 2 to 8 images XLA:CPU, told what parallel.py tells it, takes seven times as long for a wide dense layer.
PREDICTION_BATCHES = (64, 32, 16, 1)


def make_eval_step(
    model: nn.Module, preprocess: Preprocess, *, axis_name: str | None = None
) -> Callable[[dict, Batch], tuple[metrics.Sums, jax.Array]]:
    """The pure function (variables, batch) -> (sums of metrics.batch_sums, probabilities [B, K]).

    The loss of evaluation is softmax cross-entropy, whatever the model was trained with, so that it can be compared.
    Where the batch's images are views [B, V, H, W, C], their probabilities are averaged.
    """

    def eval_step(variables: dict, batch: Batch):
        images = batch["image"]
        views = images.shape[1] if images.ndim == 5 else 1
        logits, _ = model.apply(variables, normalise(images.reshape(-1, *images.shape[-3:]), preprocess))
        if views > 1:  # the mean of their probabilities
            shares = jax.nn.softmax(logits).reshape(-1, views, logits.shape[-1]).mean(1)
            logits = jnp.log(jnp.maximum(shares, jnp.finfo(shares.dtype).tiny))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        sums = metrics.batch_sums(logits, batch["label"], batch["weight"], losses)
        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
        return sums, jax.nn.softmax(logits)

    return eval_step


@lru_cache(maxsize=16)
def _eval_step(model: nn.Module, preprocess: Preprocess, parallelism: Parallelism = SINGLE_DEVICE) -> Callable:
    step = make_eval_step(model, preprocess)
    return (
        jit_for_platform(step)
        if parallelism.is_single_device
        else jit_for_platform(step, out_shardings=replicated(parallelism))
    )


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
    parallelism: Parallelism = SINGLE_DEVICE,
) -> metrics.Metrics:
    """Every metric of `metrics.summarise` over the whole split; each example counts once at any batch size.

    `on_batch` is called with the number of images done. `tta` names the VIEWS of each image that are averaged. Every
    process gets the same result; pmap is treated as jit. Raises ValueError for an empty split.
    """
    parallelism = SINGLE_DEVICE if parallelism.is_single_device else dataclasses.replace(parallelism, method="jit")
    step = _eval_step(model, preprocess, parallelism)
    variables = shard_variables(parallelism, model, fold(model, variables, _shape(preprocess)))
    put = None if parallelism.is_single_device else partial(shard_batch, parallelism)
    views = VIEWS[tta].num_views if tta else 1
    size = min(max(1, batch_size // views), _power_of_two(len(split)))
    size = -(-size // parallelism.devices) * parallelism.devices
    gather = len(split) * len(class_names) <= metrics.SCORE_LIMIT
    total, scores, done = None, [], 0

    def results():
        """What the devices made of each batch, one batch late, so that the host reads on meanwhile."""
        late = None
        batches = eval_batches(split, preprocess, batch_size=size, shard=process_shard(parallelism), tta=tta)
        for batch in prefetch_to_device(batches, put):
            now = step(variables, batch)
            if late is not None:
                yield late
            late = now
        if late is not None:
            yield late

    for sums, probabilities in results():
        total = metrics.add(total, sums)
        real = min(size, len(split) - done)
        if gather:
            scores.append(np.asarray(probabilities)[:real])
        done += real
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
    `prediction_batch`, so that four compilations do for any number of images.
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


def prediction_batch(count: int, limit: int = PREDICTION_BATCHES[0]) -> int:
    """The batch for `count` images in all: the largest of PREDICTION_BATCHES that fills up at most a quarter."""
    return next(size for size in PREDICTION_BATCHES if size <= limit and -count % size <= count / 4)


def _shape(preprocess: Preprocess) -> tuple[int, int, int]:
    return preprocess.input_shape


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
