"""The size of images over a training: growing while it lasts, another one for its result.

Progressive resizing trains on small images first, which is cheaper, and on large ones in the end (Howard 2018, in the
DAWNBench entries of fast.ai; Tan and Le 2021, arXiv:2104.00298, section 4, in equal parts). FixRes tests at a larger
size than it trained at: random crops show objects larger than centre crops do, and a larger test image makes up for it
(Touvron et al. 2019, arXiv:1906.06423). The optimiser, its schedule and its state go on over every change of size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import flax.linen as nn

from zoo import models
from zoo.data.images.preprocess import Preprocess
from zoo.data.images.tta import at_size
from zoo.training.recipe import Recipe


@dataclass(frozen=True)
class Segment:
    """The steps from `start` to `stop` - 1, in which training sees images as `preprocess` says."""

    start: int
    stop: int
    preprocess: Preprocess


def stretches(recipe: Recipe, preprocess: Preprocess, total_steps: int, steps_per_epoch: float) -> tuple[Segment, ...]:
    """When training sees which size: `recipe.progressive`, or `preprocess` all the time. None is empty."""
    seen = [at_size(preprocess, side) for side in recipe.progressive] or [preprocess]
    if recipe.progressive_at:
        inner = [min(round(epoch * steps_per_epoch), total_steps) for epoch in recipe.progressive_at]
    else:
        inner = [round(n * total_steps / len(seen)) for n in range(1, len(seen))]
    edges = pairwise([0, *inner, total_steps])
    return tuple(Segment(*edge, each) for edge, each in zip(edges, seen, strict=True) if edge[0] < edge[1])


def tested(recipe: Recipe, preprocess: Preprocess) -> Preprocess:
    """What validation, test and the checkpoint's card have, where training ends with `preprocess`."""
    return at_size(preprocess, recipe.test_size) if recipe.test_size else preprocess


def check(model: nn.Module, recipe: Recipe, preprocess: Preprocess) -> None:
    """ValueError where the model does not take every size of the recipe with the same parameters."""
    size, channels = preprocess.size, preprocess.num_channels
    wanted = models.abstract_variables(model, preprocess.input_shape)
    for field, sides in (("progressive", recipe.progressive), ("test_size", (recipe.test_size,))):
        for side in sides:
            if not side or (side, side) == size:
                continue
            what = f"recipe field {field}={getattr(recipe, field)!r}"
            try:
                same = models.abstract_variables(model, (side, side, channels)) == wanted
            except ValueError as error:
                if "image_size" not in models.defining_fields(model):
                    raise ValueError(f"{what}: {error}") from None
                same = False
            if not same:
                raise ValueError(
                    f"{what}: {models.name_of(model)} has dense layers that fit images of {size[0]}x{size[1]} pixels "
                    f"alone, not {side}x{side}; networks that average over the image, such as resnet18, take any size"
                )


def describe(parts: Sequence[Segment], result: Preprocess, steps_per_epoch: float) -> list[str]:
    """A line on each size that training sees, and one on that of the result, where they are not all the same."""

    def pixels(preprocess: Preprocess) -> str:
        return "{}x{}".format(*preprocess.size)

    lines = [
        f"epochs {part.start / steps_per_epoch:.3g} to {part.stop / steps_per_epoch:.3g}: images of "
        f"{pixels(part.preprocess)} pixels"
        for part in parts
    ]
    if {part.preprocess.size for part in parts} == {result.size}:
        return []
    return [*lines, f"validation, test and the checkpoint: {pixels(result)} pixels"]
