"""`zoo.explain`: attribution maps of a checkpoint for images of any kind."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zoo import loading
from zoo.analysis import attribution
from zoo.analysis.features import endpoints
from zoo.arguments import check_types
from zoo.data.images.decode import decode_images, is_collection
from zoo.data.images.preprocess import Preprocess, images_to_input, normalise
from zoo.inference.calibrate import temperature_of
from zoo.inference.predict import Checkpoint, require_head
from zoo.inference.softmax import log_probabilities
from zoo.suggest import did_you_mean

METHODS = ("grad_cam", "saliency", "smooth_grad", "integrated_gradients", "occlusion")


@dataclass(frozen=True, eq=False)
class Explanation:
    """Attributions of one image, or of N images with a leading axis N on every array and N targets.

    Attributes:
        method: a name in METHODS.
        stage: the endpoint of Grad-CAM; "" for the other methods.
        target: name of the explained class, or a tuple of N names.
        probability: probability of the target, calibrated as in `Checkpoint.predict`, float32 [].
        heatmap: float32 [H, W] of the network's input size. Grad-CAM is upsampled and 0 or more; saliency and
            SmoothGrad are magnitudes; integrated gradients and occlusion are signed, positive where the image speaks
            for the class.
        attributions: the values before reduction: Grad-CAM [h, w] in the size of the stage, gradients [H, W, C],
            occlusion [H, W].
        image: the network's input before normalisation, uint8 [H, W, C].
    """

    method: str
    stage: str
    target: str | tuple[str, ...]
    probability: np.ndarray
    heatmap: np.ndarray
    attributions: np.ndarray
    image: np.ndarray


@check_types("method", "target")
def explain(
    checkpoint: Checkpoint | str | Path,
    image: Any,
    method: str = "grad_cam",
    target: str | int | Sequence[str | int] | None = None,
    *,
    stage: str | None = None,
    seed: int = 0,
) -> Explanation:
    """Explain why a checkpoint gives an image the score of a class.

    Args:
        checkpoint: a Checkpoint, or a folder or name that `load` takes.
        image: one image or several, whatever `Checkpoint.predict` takes.
        method: "grad_cam", "saliency", "smooth_grad", "integrated_gradients" or "occlusion"; see
            `zoo.analysis.attribution`.
        target: the class to explain, by name or index; one for each image, or one for all. None: the predicted class.
        stage: the endpoint of Grad-CAM; None for the last one that has positions.
        seed: seed of SmoothGrad's noise.

    Returns:
        The maps as arrays, and the image they belong to.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an unknown method, class or stage, outputs that are NaN, and images as in `Checkpoint.predict`.

    Example:
        >>> result = zoo.explain("lenet5-mnist", "digit.png", method="grad_cam", target="7")
        >>> result.heatmap.shape
        (32, 32)
    """
    loaded = loading.open_checkpoint(checkpoint, "explain", image)
    if method not in METHODS:
        hint = did_you_mean(str(method), METHODS) or f"choose from {', '.join(METHODS)}"
        raise ValueError(f"explain: unknown method {method!r}; {hint}")
    require_head(loaded.card)
    if method == "grad_cam":
        stage = resolve_stage(loaded, stage)
    elif stage is not None:
        raise ValueError(f"explain: stage={stage!r} is for grad_cam; {method} explains the pixels")
    pixels = images_to_input(decode_images(image, loaded.card.preprocess.white), loaded.card.preprocess)
    if not len(pixels):
        raise ValueError("explain: image is an empty list")
    result = explain_pixels(loaded, pixels, method, target, stage=stage or "", seed=seed)
    if is_collection(image):
        return result
    return Explanation(
        method, result.stage, result.target[0], result.probability[0], result.heatmap[0], result.attributions[0],
        result.image[0],
    )  # fmt: skip


def explain_pixels(
    checkpoint: Checkpoint,
    pixels: np.ndarray,
    method: str = "grad_cam",
    target: Any = None,
    *,
    stage: str = "",
    seed: int = 0,
) -> Explanation:
    """Explain preprocessed images, uint8 [N, H, W, C]: see `explain`. A stage must be given for Grad-CAM."""
    model, variables, card = checkpoint.model, checkpoint.variables, checkpoint.card
    images = normalise(pixels, card.preprocess)
    logits = np.asarray(attribution.logits_of(model, variables, images))
    if bad := int((~np.isfinite(logits)).any(axis=1).sum()):
        raise ValueError(f"{card.model}: the outputs for {bad} of {len(logits)} images are NaN; nothing explains them")
    targets = np.asarray(resolve_targets(card.classes, target, logits), np.int32)
    if method == "grad_cam":
        values = attribution.grad_cam(model, variables, images, targets, stage)
    elif method == "saliency":
        values = attribution.saliency(model, variables, images, targets)
    elif method == "smooth_grad":
        values = attribution.smooth_grad(model, variables, images, targets, jax.random.key(seed))
    elif method == "integrated_gradients":
        values = attribution.integrated_gradients(model, variables, images, targets, baseline_of(card.preprocess))
    else:
        patch, stride = occlusion_grid(card.preprocess.size)
        values = attribution.occlusion(model, variables, images, targets, baseline_of(card.preprocess), patch, stride)
    maps = attribution.heatmap(method, values)
    if method == "grad_cam":
        maps = attribution.upsample(maps, card.preprocess.size)
    logs = log_probabilities(np.asarray(logits), temperature_of(card.calibration))
    probabilities = np.exp(logs[np.arange(len(targets)), targets]).astype(np.float32)
    names = tuple(card.classes[k] for k in targets)
    return Explanation(method, stage, names, probabilities, maps, np.asarray(values), pixels)


def baseline_of(preprocess: Preprocess) -> jax.Array:
    """Return an image without information, float32 [1, 1, 1, C]: the background of drawings, else the mean colour."""
    fill = np.asarray(preprocess.fill, np.uint8).reshape(1, 1, 1, -1)
    return normalise(fill, preprocess)


def occlusion_grid(size: tuple[int, int]) -> tuple[int, int]:
    """Return the side of an occluding square and the distance between squares, in pixels: a fifth of the image."""
    patch = max(round(min(size) / 5), 1)
    return patch, max(patch // 2, 1)


def spatial_stages(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return the shape [h, w, F] of every stage that has positions, in order."""
    shapes = endpoints(checkpoint.model, checkpoint.card.preprocess)
    return {name: shapes[name] for name in checkpoint.model.stages if len(shapes.get(name, ())) == 3}


def resolve_stage(checkpoint: Checkpoint, stage: str | None = None) -> str:
    """Return the name of a stage that has positions: the given one, or the last.

    Raises:
        ValueError: for an unknown stage, or a network without such stages.
    """
    known = spatial_stages(checkpoint)
    if not known:
        raise ValueError(
            f"{checkpoint.card.model} has no stage with positions, which Grad-CAM requires; use saliency, "
            "integrated_gradients or occlusion"
        )
    if stage is None:
        return list(known)[-1]
    if stage not in known:
        hint = did_you_mean(stage, known) or f"it has {', '.join(known)}"
        raise ValueError(f"{checkpoint.card.model} has no stage {stage!r} with positions; {hint}")
    return stage


def resolve_targets(classes: Sequence[str], target: Any, logits: np.ndarray) -> list[int]:
    """Return a class index for every row of logits.

    Args:
        classes: names of the classes.
        target: name or index, a list of them, or None for the class with the highest logit.
        logits: [N, K].

    Raises:
        ValueError: for an unknown class, or another number of targets than images.
    """
    if target is None:
        return logits.argmax(-1).tolist()
    if isinstance(target, str) or not isinstance(target, Iterable) or getattr(target, "ndim", 1) == 0:
        return [_class_index(classes, target)] * len(logits)
    targets = [_class_index(classes, one) for one in target]
    if len(targets) != len(logits):
        raise ValueError(f"explain: {len(targets)} targets for {len(logits)} images; give one for each, or one for all")
    return targets


def _class_index(classes: Sequence[str], target: Any) -> int:
    """Return the index of a class by name, in any case, or by index. A name comes before an index."""
    if isinstance(target, str):
        if target in classes:
            return list(classes).index(target)
        same = [k for k, name in enumerate(classes) if name.casefold() == target.strip().casefold()]
        if len(same) == 1:
            return same[0]
        hint = did_you_mean(target, classes) or f"it has {', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}"
        raise ValueError(f"explain: the checkpoint has no class {target!r}; {hint}")
    try:
        number = -1 if isinstance(target, bool) else operator.index(target)  # of arrays without dimensions too
    except TypeError:
        number = -1
    if not 0 <= number < len(classes):
        raise ValueError(f"explain: target {target!r} is neither a class name nor an index below {len(classes)}")
    return number
