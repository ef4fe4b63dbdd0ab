"""From an image to named classes: `Checkpoint.predict`."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from zoo.arguments import check_fields, check_types
from zoo.checkpoint import Card
from zoo.data.images.decode import decode_images, is_collection
from zoo.data.images.preprocess import Preprocess, image_to_input, images_to_input, normalise
from zoo.data.images.tta import VIEWS, check_views
from zoo.inference import evaluate
from zoo.inference.calibrate import is_unlike
from zoo.inference.intervals import format_accuracy
from zoo.models import count_parameters
from zoo.suggest import did_you_mean
from zoo.text import escape


class Prediction(NamedTuple):
    """The prediction for an image.

    Attributes:
        label: the most probable class.
        probability: its probability.
        top: (class, probability) pairs of the top few.
        unlike_training: True if the image is unlike those of training, so that no class may be right; None if the card
            has no threshold for it.
    """

    label: str
    probability: float
    top: tuple[tuple[str, float], ...]
    unlike_training: bool | None = None


_MEMBERS = ("model", "variables", "card", "history", "workdir", "predict")

#: What people look for as a member of a Checkpoint -> where it is.
_ELSEWHERE = {
    "evaluate": "zoo.evaluate(checkpoint, data)", "explain": "zoo.explain(checkpoint, image)",
    "features": "zoo.features(checkpoint, data)", "report": "zoo.report(checkpoint, data)",
    "preprocess": "zoo.preprocess(image, checkpoint)", "fit": "zoo.fit(init=checkpoint, data=data)",
    "save": "zoo.save(path, checkpoint.model, checkpoint.variables, checkpoint.card.classes, "
    "checkpoint.card.preprocess)",
    "params": 'checkpoint.variables["params"]', "weights": "checkpoint.variables",
    "apply": "checkpoint.model.apply(checkpoint.variables, images)", "classes": "checkpoint.card.classes",
    "class_names": "checkpoint.card.classes", "metrics": "checkpoint.card.metrics",
}  # fmt: skip


@check_fields
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

    @check_types("top")
    def predict(self, images: Any, top: int = 5, tta: str = "") -> list[Prediction]:
        """Classify images. Size, channels, normalisation and polarity follow the card.

        Args:
            images: a path, bytes, an open binary file, a PIL image, an array of any integer or float type of shape
                [H, W], [H, W, C], [N, H, W] or [N, H, W, C] with C = 1, 3 or 4, or a list of these, also of different
                sizes. They are decoded as in training and evaluation; see `zoo.data.images.decode`.
            top: number of (class, probability) pairs per image.
            tta: test-time augmentation, a name in VIEWS.

        Returns:
            One Prediction per image.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: for a file that is not an image, for an array of another shape, for pixel values whose range
                could mean two things, and for `top` below 1.
        """
        return predict(self.model, self.variables, self.card, images, top, tta)

    def __getattr__(self, name: str) -> Any:
        hint = f"write {_ELSEWHERE[name]}" if name in _ELSEWHERE else did_you_mean(name, _MEMBERS)
        raise AttributeError(f"a Checkpoint has no attribute {name!r}; {hint or 'it has ' + ', '.join(_MEMBERS)}")

    def __repr__(self) -> str:
        card, (height, width) = self.card, self.card.preprocess.size
        accuracies = [
            f"{split} accuracy {describe_accuracy(card.metrics[split])}"
            for split in ("validation", "test")
            if isinstance(card.metrics.get(split), dict) and card.metrics[split].get("accuracy") is not None
        ]
        names = ", ".join(map(escape, card.classes[:5])) + (", …" if len(card.classes) > 5 else "")
        lines = [
            f"Checkpoint of {card.model}, {count_parameters(self.variables):,} parameters",
            f"  input: {height}x{width} pixels, {card.preprocess.channels}",
            f"  classes: {len(card.classes)} ({names})",
        ]
        if accuracies:
            lines.append(f"  {', '.join(accuracies)}")
        if card.source:
            lines.append(f"  source: {escape(card.source)}")
        return "\n".join(lines)


def describe_accuracy(metrics: Mapping[str, Any]) -> str:
    """Format the accuracy in metrics of a card, with its interval if the number of examples is known."""
    accuracy, examples = metrics["accuracy"], metrics.get("examples")
    if not isinstance(accuracy, int | float):
        return "unknown"
    if isinstance(examples, int) and examples > 0 and 0 <= accuracy <= 1:
        return format_accuracy(accuracy, examples)
    return f"{100 * accuracy:.2f} %"


def predict(
    model: nn.Module, variables: dict, card: Card, images: Any, top: int = 5, tta: str = ""
) -> list[Prediction]:
    """Classify images: see `Checkpoint.predict`."""
    _require_positive(top)
    if tta:
        check_views(tta, card.preprocess)
    decoded = decode_images(images, card.preprocess.white)
    return classify(model, variables, card, [preprocess_image(image, card.preprocess, tta) for image in decoded], top)


@check_types("normalised")
def preprocess(image: Any, card: Card | Checkpoint | Preprocess, *, normalised: bool = True) -> np.ndarray:
    """Bring an image to a checkpoint's input, exactly as evaluation and prediction do.

    Args:
        image: one image or several, whatever `Checkpoint.predict` takes.
        card: a card, the checkpoint that has it, or its Preprocess.
        normalised: return the floats that `model.apply` takes; False returns the pixels that exported networks take.

    Returns:
        float32 [h, w, c] for one image, [N, h, w, c] for a list or a stack; uint8 if not normalised.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as `Checkpoint.predict`.

    Example:
        >>> checkpoint = zoo.load("lenet5-mnist")
        >>> images = zoo.preprocess(["a.png", "b.jpg"], checkpoint.card)
        >>> logits, endpoints = checkpoint.model.apply(checkpoint.variables, images)
    """
    how = card.card.preprocess if isinstance(card, Checkpoint) else card.preprocess if isinstance(card, Card) else card
    pixels = images_to_input(decode_images(image, how.white), how)
    inputs = np.asarray(normalise(pixels, how)) if normalised else pixels
    return inputs if is_collection(image) else inputs[0]


def preprocess_image(image: np.ndarray, preprocess: Preprocess, tta: str = "") -> np.ndarray:
    """Return the network's input for an image of any size: uint8 [h, w, c], or its views [V, h, w, c] with `tta`."""
    return VIEWS[tta].function(image, preprocess) if tta else image_to_input(image, preprocess)


def classify(
    model: nn.Module, variables: dict, card: Card, pixels: Sequence[np.ndarray], top: int = 5, batch_size: int = 0
) -> list[Prediction]:
    """Return a Prediction per result of `preprocess_image`; `batch_size` as in `evaluate.predict_probabilities`."""
    if not pixels:
        return []
    require_head(card)
    outputs = evaluate.predict_outputs(model, variables, np.stack(pixels), card.preprocess, batch_size)
    probabilities = evaluate.probabilities_of(outputs, card.calibration)
    if not np.isfinite(probabilities).all():
        bad = int((~np.isfinite(probabilities).all(axis=1)).sum())
        raise ValueError(f"{card.model}: the outputs for {bad} of {len(pixels)} images are NaN; no class can be given")
    unlike = [is_unlike(energy, card.calibration) for energy in outputs.energy.tolist()]
    rows = zip(probabilities, outputs.logits, unlike, strict=True)
    return [_prediction(row, logits, card.classes, top, flag) for row, logits, flag in rows]


def require_head(card: Card) -> None:
    """Raise ValueError for a checkpoint without a head."""
    if not card.classes:
        raise ValueError(f"{card.model}: the checkpoint has no head; train one (zoo train --init) or use its features")


def _prediction(
    row: np.ndarray, logits: np.ndarray, classes: Sequence[str], top: int, unlike: bool | None
) -> Prediction:
    """Return the prediction for a row of probabilities. Logits rank it: rounding may make probabilities equal."""
    ranking = np.argsort(-logits, kind="stable")[:top]
    pairs = tuple((classes[i], float(row[i])) for i in ranking)
    return Prediction(*pairs[0], pairs, unlike)


def _require_positive(top: int) -> None:
    """Raise ValueError unless `top` is a whole number of at least 1."""
    try:
        valid = operator.index(top) >= 1 and not isinstance(top, bool)
    except TypeError:
        valid = False
    if not valid:
        raise ValueError(f"top={top!r}: must be a whole number of at least 1, the number of classes per image")
