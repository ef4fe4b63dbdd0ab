"""From an image to named classes: `Checkpoint.predict`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from zoo.checkpoint import Card
from zoo.data.images.decode import read_image
from zoo.data.images.preprocess import Preprocess, image_to_input
from zoo.data.images.tta import VIEWS, check_views
from zoo.inference import evaluate as evaluation
from zoo.models import count_parameters


class Prediction(NamedTuple):
    """The most probable class of an image, its probability, and the (class, probability) pairs of the top few."""

    label: str
    probability: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint:
    """A network with its variables and metadata, as `zoo.load` and `zoo.fit` return it.

    Attributes:
        model: the network; `model.apply(variables, images)` returns (logits, endpoints).
        variables: {"params": …, "batch_stats": …}, on the device.
        card: its metadata.
        history: rows of metrics.jsonl, if it was just trained.
        workdir: folder of the run, if it was just trained.
    """

    model: nn.Module
    variables: dict
    card: Card
    history: tuple[dict[str, Any], ...] = ()
    workdir: Path | None = None

    def predict(self, images: Any, top: int = 5, tta: str = "") -> list[Prediction]:
        """Classify images. Size, channels, normalisation and polarity follow the card.

        Args:
            images: a path; an array, uint8 or float in [0, 1], of shape [H, W], [H, W, C] or [N, H, W, C]; or a list.
            top: number of (class, probability) pairs per image.
            tta: test-time augmentation, a name in VIEWS.

        Returns:
            One Prediction per image.

        Raises:
            ValueError: for a file that is not an image or an array of another shape.
        """
        return predict(self.model, self.variables, self.card, images, top, tta)

    def __repr__(self) -> str:
        card, (height, width) = self.card, self.card.preprocess.size
        accuracies = [
            f"{split} accuracy {100 * card.metrics[split]['accuracy']:.2f} %"
            for split in ("validation", "test")
            if isinstance(card.metrics.get(split), dict) and "accuracy" in card.metrics[split]
        ]
        names = ", ".join(card.classes[:5]) + (", …" if len(card.classes) > 5 else "")
        lines = [
            f"Checkpoint of {card.model}, {count_parameters(self.variables):,} parameters",
            f"  input: {height}x{width} pixels, {card.preprocess.channels}",
            f"  classes: {len(card.classes)} ({names})",
        ]
        if accuracies:
            lines.append(f"  {', '.join(accuracies)}")
        if card.source:
            lines.append(f"  source: {card.source}")
        return "\n".join(lines)


def predict(
    model: nn.Module, variables: dict, card: Card, images: Any, top: int = 5, tta: str = ""
) -> list[Prediction]:
    """Classify images: see `Checkpoint.predict`."""
    if tta:
        check_views(tta, card.preprocess)
    return classify(
        model, variables, card, [preprocess_image(image, card.preprocess, tta) for image in _images(images)], top
    )


def preprocess_image(image: np.ndarray, preprocess: Preprocess, tta: str = "") -> np.ndarray:
    """Return the network's input for an image of any size: uint8 [h, w, c], or its views [V, h, w, c] with `tta`."""
    transform = VIEWS[tta].function if tta else image_to_input
    return transform(image, preprocess, match_polarity=True)


def classify(
    model: nn.Module, variables: dict, card: Card, pixels: Sequence[np.ndarray], top: int = 5, batch_size: int = 0
) -> list[Prediction]:
    """Return a Prediction per result of `preprocess_image`; `batch_size` as in `zoo.inference.evaluate.predict`."""
    if not pixels:
        return []
    require_head(card)
    probabilities = evaluation.predict(model, variables, np.stack(pixels), card.preprocess, batch_size)
    return [_prediction(row, card.classes, top) for row in probabilities]


def require_head(card: Card) -> None:
    """Raise ValueError for a checkpoint without a head."""
    if not card.classes:
        raise ValueError(f"{card.model}: the checkpoint has no head; train one (zoo train --init) or use its features")


def _prediction(row: np.ndarray, classes: Sequence[str], top: int) -> Prediction:
    ranking = np.argsort(-row, kind="stable")[:top]
    pairs = tuple((classes[i], float(row[i])) for i in ranking)
    return Prediction(*pairs[0], pairs)


def _images(images: Any) -> list[np.ndarray]:
    """Convert the argument of `predict` to a list of uint8 images [H, W, C]."""
    if isinstance(images, (str, Path)):
        return [read_image(images)]
    if isinstance(images, (list, tuple)):
        return [image for item in images for image in _images(item)]
    array = np.asarray(images)
    if array.ndim == 2:
        array = array[None, :, :, None]
    elif array.ndim == 3:
        if array.shape[-1] not in (1, 3):
            raise ValueError(
                f"an array of shape {array.shape} is ambiguous: pass one image as [H, W] or [H, W, C] with 1 or 3 "
                "channels, or several as [N, H, W, C]"
            )
        array = array[None]
    elif array.ndim != 4:
        raise ValueError(f"expected an array of shape [H, W], [H, W, C] or [N, H, W, C], got {array.shape}")
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    if array.dtype != np.uint8:
        if not np.isfinite(array).all() or array.min(initial=0) < 0 or array.max(initial=0) > 255:
            raise ValueError(
                f"pixels must be uint8, or lie in [0, 1] or [0, 255]; got {array.dtype} values outside these ranges"
            )
        scale = 255.0 if np.issubdtype(array.dtype, np.floating) and array.max(initial=0) <= 1 else 1.0
        array = np.rint(array * scale).astype(np.uint8)
    return list(array)
