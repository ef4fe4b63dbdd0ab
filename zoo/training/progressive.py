"""Image sizes over a training run: growing during training, and another one for evaluation.

Progressive resizing trains on small images first, which is cheaper, and on large ones at the end (Howard 2018, fast.ai
entries to DAWNBench; Tan and Le 2021, arXiv:2104.00298, section 4, in equal parts). FixRes evaluates at a larger size
than in training: random crops magnify objects compared with centre crops, and a larger test image compensates (Touvron
et al. 2019, arXiv:1906.06423). Optimiser, schedule and state continue across changes of size.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import flax.linen as nn

from zoo import models
from zoo.data.images.preprocess import Preprocess
from zoo.data.images.tta import at_size
from zoo.training.recipe import Recipe
from zoo.training.timeline import Segment, Span


def image_size_spans(
    recipe: Recipe, preprocess: Preprocess, total_steps: int, steps_per_epoch: float
) -> tuple[Span, ...]:
    """Return spans of the Preprocess of training: one per size of `recipe.progressive`, without empty ones."""
    sizes = [at_size(preprocess, side) for side in recipe.progressive] or [preprocess]
    if recipe.progressive_at:
        inner = [min(round(epoch * steps_per_epoch), total_steps) for epoch in recipe.progressive_at]
    else:
        inner = [round(n * total_steps / len(sizes)) for n in range(1, len(sizes))]
    edges = pairwise([0, *inner, total_steps])
    return tuple(Span(*edge, size) for edge, size in zip(edges, sizes, strict=True) if edge[0] < edge[1])


def eval_preprocess(recipe: Recipe, preprocess: Preprocess) -> Preprocess:
    """Return the Preprocess of validation, test and the checkpoint for a training that ends with `preprocess`.

    `eval_crop` applies to images that are resized to the input and cropped; drawings and images that keep their pixels
    are shown whole.
    """
    result = at_size(preprocess, recipe.test_size) if recipe.test_size else preprocess
    padded = any(box < side for box, side in zip(preprocess.resize, preprocess.size, strict=True))
    if not recipe.eval_crop or preprocess.polarity is not None or padded:
        return result
    height, width = (math.floor(side / recipe.eval_crop + 1e-6) for side in result.size)  # as timm rounds
    return replace(result, resize=(height, width))


def require_sizes_supported(model: nn.Module, recipe: Recipe, preprocess: Preprocess) -> None:
    """Raise ValueError unless the model accepts every size of the recipe with the same parameters."""
    size, channels = preprocess.size, preprocess.num_channels
    expected = models.abstract_variables(model, preprocess.input_shape)
    for field, sides in (("progressive", recipe.progressive), ("test_size", (recipe.test_size,))):
        for side in sides:
            if not side or (side, side) == size:
                continue
            setting = f"recipe field {field}={getattr(recipe, field)!r}"
            try:
                same = models.abstract_variables(model, (side, side, channels)) == expected
            except ValueError as error:
                if "image_size" not in models.defining_fields(model):
                    raise ValueError(f"{setting}: {error}") from None
                same = False
            if not same:
                raise ValueError(
                    f"{setting}: the dense layers of {models.name_of(model)} take images of {size[0]}x{size[1]} pixels "
                    f"only, not {side}x{side}; networks with global average pooling, such as resnet18, take any size"
                )


def describe_sizes(segments: Sequence[Segment], final: Preprocess, steps_per_epoch: float) -> list[str]:
    """Return a line per image size of training and one for evaluation; none if all are the same."""
    if {segment.preprocess.size for segment in segments} == {final.size}:
        return []
    spans: list[Span] = []
    for segment in segments:
        start = spans.pop().start if spans and spans[-1].value == segment.preprocess.size else segment.start
        spans.append(Span(start, segment.stop, segment.preprocess.size))
    lines = [
        f"epochs {start / steps_per_epoch:.3g} to {stop / steps_per_epoch:.3g}: {height}x{width} pixels"
        for start, stop, (height, width) in spans
    ]
    return [*lines, "validation, test and checkpoint: {}x{} pixels".format(*final.size)]
