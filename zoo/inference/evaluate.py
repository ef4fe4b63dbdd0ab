"""Exact evaluation over a split, and prediction, with one compilation per model and batch size."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.checkpoint.calibration import Calibration
from zoo.data.images.preprocess import Preprocess, normalise
from zoo.data.images.tta import VIEWS, check_views
from zoo.data.loader import eval_batches, prefetch_to_device
from zoo.data.splits import Split
from zoo.distributed.compile import jit_for_platform
from zoo.distributed.mesh import SINGLE_DEVICE, Parallelism, process_shard, replicated, shard_batch, shard_variables
from zoo.inference import memory, metrics
from zoo.inference.calibrate import temperature_of
from zoo.inference.collect import Collected
from zoo.inference.folding import fold, folded_on_device
from zoo.inference.softmax import log_probabilities

Batch = dict[str, Any]

BATCH_SIZE = 256
# No batches of 2 to 8 images: with the options of distributed/compile.py, XLA:CPU is seven times slower on wide dense
# layers at these sizes.
PREDICTION_BATCHES = (64, 32, 16, 1)


class Outputs(NamedTuple):
    """The network's outputs for a batch of B images and K classes.

    Attributes:
        probabilities: float [B, K], averaged over views.
        logits: float [B, K]; for views, the logarithm of the probabilities.
        energy: float [B], the log-sum-exp of the logits (Liu et al. 2020, arXiv:2010.03759, without their minus sign),
            averaged over views. Low for images unlike those of training.
    """

    probabilities: Any
    logits: Any
    energy: Any


def make_eval_step(
    model: nn.Module, preprocess: Preprocess, *, axis_name: str | None = None
) -> Callable[[dict, Batch], tuple[metrics.Sums, Outputs]]:
    """Build the pure evaluation step.

    The loss is softmax cross-entropy regardless of the training loss, so that models can be compared.

    Args:
        model: the network.
        preprocess: supplies the mean and standard deviation that normalise the images.
        axis_name: axis of `pmap` or `vmap` over which the sums are added up; None if there is none.

    Returns:
        A function of (variables, batch) that returns (the sums of `metrics.batch_sums`, Outputs). The images of a batch
        are uint8 [B, H, W, C], or [B, V, H, W, C] for views, whose probabilities are averaged.
    """

    compute_outputs = make_output_step(model, preprocess)

    def eval_step(variables: dict, batch: Batch):
        outputs = compute_outputs(variables, batch["image"])
        # As Optax does it, whose import would take a tenth of the time of `zoo predict`.
        label_logits = jnp.take_along_axis(outputs.logits, batch["label"][:, None], axis=-1)[:, 0]
        losses = jax.nn.logsumexp(outputs.logits, axis=-1) - label_logits
        sums = metrics.batch_sums(outputs.logits, batch["label"], batch["weight"], losses)
        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
        return sums, outputs

    return eval_step


def make_output_step(model: nn.Module, preprocess: Preprocess) -> Callable[[dict, Any], Outputs]:
    """Build the pure function from (variables, images) to Outputs; arguments and images as in `make_eval_step`."""

    def output_step(variables: dict, images: Any) -> Outputs:
        views = images.shape[1] if images.ndim == 5 else 1
        logits, _ = model.apply(variables, normalise(images.reshape(-1, *images.shape[-3:]), preprocess))
        energy = jax.nn.logsumexp(logits, axis=-1).reshape(-1, views).mean(1)
        if views > 1:
            probabilities = jax.nn.softmax(logits).reshape(-1, views, logits.shape[-1]).mean(1)
            logits = jnp.log(jnp.maximum(probabilities, jnp.finfo(probabilities.dtype).tiny))
        return Outputs(jax.nn.softmax(logits), logits, energy)

    return output_step


@lru_cache(maxsize=16)
def _output_step(model: nn.Module, preprocess: Preprocess) -> Callable:
    return jit_for_platform(make_output_step(model, preprocess))


@lru_cache(maxsize=16)
def _eval_step(model: nn.Module, preprocess: Preprocess, parallelism: Parallelism = SINGLE_DEVICE) -> Callable:
    shardings: dict[str, Any] = {} if parallelism.is_single_device else {"out_shardings": replicated(parallelism)}
    return jit_for_platform(make_eval_step(model, preprocess), **shardings)


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
    per_example: bool = False,
    calibration: Calibration | None = None,
    workers: int | None = None,
) -> metrics.Metrics:
    """Evaluate a model on a whole split. Every example counts once, at any batch size.

    With several processes all must call this, and all get the same result. With pmap the evaluation runs under jit.

    Args:
        model: the network, with a head.
        variables: {"params": …, "batch_stats": …}.
        split: the examples.
        preprocess: how an image becomes the network's input.
        class_names: one name per output.
        batch_size: images per batch, views included. Affects speed and memory only.
        on_batch: called with the number of images evaluated so far.
        tta: name in VIEWS for test-time augmentation, or "".
        parallelism: devices to evaluate on.
        per_example: also return the prediction for each example.
        calibration: the card's; its temperature divides the logits.
        workers: threads that read data which is not kept in memory.

    Returns:
        The metrics over the split.

    Raises:
        ValueError: if the split is empty.
        OutOfMemoryError: before anything is read, if a batch does not fit into memory.
    """
    if tta:
        check_views(tta, preprocess)
    collected = Collected(split, class_names, calibration, per_example)
    _collect(collected, model, variables, preprocess, batch_size, on_batch, tta, parallelism, workers)
    return collected.metrics()


def evaluate_and_calibrate(
    model: nn.Module,
    variables: dict,
    split: Split,
    preprocess: Preprocess,
    class_names: Sequence[str],
    name: str,
    *,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], Any] | None = None,
    parallelism: Parallelism = SINGLE_DEVICE,
    workers: int | None = None,
) -> tuple[metrics.Metrics, Calibration | None, str]:
    """Evaluate a model on a split and fit its calibration on the same outputs.

    Args:
        model: the network, with a head.
        variables: {"params": …, "batch_stats": …}.
        split: the examples, none of which was trained on.
        preprocess: how an image becomes the network's input.
        class_names: one name per output.
        name: name of the split.
        batch_size: images per batch.
        on_batch: called with the number of images evaluated so far.
        parallelism: devices to evaluate on.
        workers: threads that read data which is not kept in memory.

    Returns:
        The metrics with this calibration; the calibration, or None; a reason if it is None or its temperature is 1.
    """
    collected = Collected(split, class_names, keep_logits=True)
    _collect(collected, model, variables, preprocess, batch_size, on_batch, "", parallelism, workers)
    calibration, reason = collected.fit_calibration(name)
    return collected.metrics(), calibration, reason


def _collect(
    collected: Collected,
    model: nn.Module,
    variables: dict,
    preprocess: Preprocess,
    batch_size: int,
    on_batch: Callable[[int], Any] | None,
    tta: str,
    parallelism: Parallelism,
    workers: int | None,
) -> None:
    """Run a model on the split of `collected` and add the outputs to it."""
    split = collected.split
    parallelism = SINGLE_DEVICE if parallelism.is_single_device else dataclasses.replace(parallelism, method="jit")
    step = _eval_step(model, preprocess, parallelism)
    variables = shard_variables(parallelism, model, fold(model, variables, preprocess.input_shape))
    place = None if parallelism.is_single_device else partial(shard_batch, parallelism)
    size = _images_per_batch(len(split), batch_size, tta, parallelism.devices)
    require_memory(model, variables, len(split), preprocess, batch_size, tta, parallelism)
    batches = eval_batches(
        split, preprocess, batch_size=size, shard=process_shard(parallelism), workers=workers, tta=tta
    )
    results = (step(variables, batch) for batch in prefetch_to_device(batches, place))
    for sums, outputs in _one_step_behind(results):
        done = collected.add(sums, outputs)
        if on_batch:
            on_batch(done)


def require_memory(
    model: nn.Module,
    variables: dict,
    examples: int,
    preprocess: Preprocess,
    batch_size: int = BATCH_SIZE,
    tta: str = "",
    parallelism: Parallelism = SINGLE_DEVICE,
    images: str = "images",
    advice: str = "lower the batch size or the image size",
) -> None:
    """Raise OutOfMemoryError, with advice, if `evaluate` would not fit. The variables may be shapes and dtypes."""
    views = (VIEWS[tta].num_views,) if tta else ()
    rows = _images_per_batch(examples, batch_size, tta, parallelism.devices) // parallelism.devices
    batch = memory.abstract_batch((rows, *views, *preprocess.input_shape))
    step = _eval_step(model, preprocess, parallelism)
    memory.require_room(step, variables, batch, advice, parallelism, f"evaluating {{}} {images} of {{}} at a time")


def _images_per_batch(examples: int, batch_size: int, tta: str, devices: int) -> int:
    """Return the number of images per batch, a multiple of `devices`, such that views count towards `batch_size`."""
    views = VIEWS[tta].num_views if tta else 1
    power_of_two = 1 << max(examples - 1, 0).bit_length()
    return -(-min(max(1, batch_size // views), power_of_two) // devices) * devices


def _one_step_behind(results: Iterable[Any]) -> Iterator[Any]:
    """Yield every result after the next one was requested, so that the host reads on while the devices compute."""
    previous = None
    for result in results:
        if previous is not None:
            yield previous
        previous = result
    if previous is not None:
        yield previous


def predict_outputs(
    model: nn.Module, variables: dict, images: np.ndarray, preprocess: Preprocess, batch_size: int = 0
) -> Outputs:
    """Compute the outputs for preprocessed images.

    Args:
        model: the network, with a head.
        variables: {"params": …, "batch_stats": …}.
        images: uint8 [N, H, W, C] of the network's input size, or their views [N, V, H, W, C].
        preprocess: supplies the mean and standard deviation that normalise the images.
        batch_size: images per batch; the last batch is padded, so that calls with the same size share a compilation. 0:
            the size that `prediction_batch` returns, so that four compilations serve any number of images.

    Returns:
        The Outputs for N images, on the host.
    """
    step = _output_step(model, preprocess)
    variables = folded_on_device(model, variables, preprocess.input_shape)
    size = batch_size or prediction_batch(len(images))
    if len(images):
        size = memory.largest_batch(
            step, variables, (size, *(smaller for smaller in PREDICTION_BATCHES if smaller < size)),
            lambda count: jax.ShapeDtypeStruct((count, *images.shape[1:]), np.uint8), "use a machine with more memory",
        )  # fmt: skip
    rows = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        padded = np.zeros((size, *part.shape[1:]), np.uint8)
        padded[: len(part)] = part
        rows.append([np.asarray(output)[: len(part)] for output in step(variables, padded)])
    if not rows:
        empty = np.zeros((0, model.num_classes or 0), np.float32)
        return Outputs(empty, empty, np.zeros(0, np.float32))
    return Outputs(*(np.concatenate(part) for part in zip(*rows, strict=True)))


def predict_probabilities(
    model: nn.Module,
    variables: dict,
    images: np.ndarray,
    preprocess: Preprocess,
    batch_size: int = 0,
    calibration: Calibration | None = None,
) -> np.ndarray:
    """Compute class probabilities of preprocessed images: float32 [N, K], averaged over views.

    Arguments as in `predict_outputs`; `calibration` is the card's.
    """
    return probabilities_of(predict_outputs(model, variables, images, preprocess, batch_size), calibration)


def probabilities_of(outputs: Outputs, calibration: Calibration | None) -> np.ndarray:
    """Return the probabilities float32 [N, K], of logits divided by the calibration's temperature."""
    temperature = temperature_of(calibration)
    if temperature == 1:
        return np.asarray(outputs.probabilities)
    return np.exp(log_probabilities(outputs.logits, temperature)).astype(np.float32)


def prediction_batch(count: int, limit: int = PREDICTION_BATCHES[0]) -> int:
    """Return the largest of PREDICTION_BATCHES, up to `limit`, that pads `count` images by at most a quarter."""
    return next(size for size in PREDICTION_BATCHES if size <= limit and -count % size <= count / 4)
