"""RECIPES: published training recipes and the project's own, each citing its source."""

import fnmatch
from collections.abc import Callable

from zoo.suggest import did_you_mean
from zoo.training.published import PUBLISHED, bit_hyperrule
from zoo.training.recipe import Recipe

#: Largest image side in pixels for which the recipes for small images are the default.
SMALL_IMAGE = 64

_DISTORTIONS = ("affine(rotate=10, scale=0.1, shear=0.1, shift=2)",)
_CIFAR = ("pad_crop(pad=4)", "flip")
_IMAGENET = ("resized_crop", "flip")

RECIPES: dict[str, Recipe] = {
    # Small images on two CPU cores
    "default": Recipe(source="this project: a baseline for small networks"),
    "digits": Recipe(
        epochs=40, batch_size=64, learning_rate=3e-3, weight_decay=0.01, warmup_epochs=1,
        augment=("affine(rotate=8, scale=0.08, shear=0.08, shift=2)",),
        source="this project: small distortions; no flips, since a mirrored digit is a different symbol",
    ),
    "points": Recipe(
        epochs=40, batch_size=32, learning_rate=0.01,
        source="this project: small networks on a few hundred points in a plane",
    ),
    "mnist": Recipe(
        epochs=20, batch_size=128, learning_rate=2e-3, weight_decay=0.02, warmup_epochs=1, ema=0.999,
        augment=_DISTORTIONS,
        source="LeCun et al. 1998, section III: planar affine distortions of the training set; optimiser: this project",
    ),
    "mnist-plain": Recipe(
        epochs=20, batch_size=128, learning_rate=2e-3, weight_decay=0.05, warmup_epochs=1, ema=0.999,
        source="LeCun et al. 1998, section III, without distortions; the optimiser is this project's",
    ),
    "lenet5-1998": Recipe(
        epochs=20, batch_size=128, optimizer="adam", learning_rate=1e-3, warmup_epochs=1, ema=0.999,
        source="LeCun et al. 1998; Adam stands in for the stochastic diagonal Levenberg-Marquardt method",
    ),
    "small": Recipe(
        epochs=10, batch_size=64, learning_rate=2e-3, weight_decay=0.02, warmup_epochs=1, ema=0.995, augment=_CIFAR,
        source="this project: a short schedule for convolutional networks on images of 28 to 64 pixels",
    ),
    "small-resnet": Recipe(
        epochs=10, batch_size=64, optimizer="nesterov", learning_rate=0.1, schedule="one-cycle", l2=5e-4,
        augment=_CIFAR,
        source="this project: small for networks with batch norm; one-cycle schedule of Smith 2018 (arXiv:1803.09820)",
    ),
    "speed-run": Recipe(
        epochs=15, batch_size=128, image_size=32, progressive=(16, 24, 32), optimizer="nesterov", learning_rate=0.2,
        schedule="one-cycle", l2=5e-4, label_smoothing=0.1, ema=0.99, norm_lr_factor=4,
        eval_every_epochs=2, monitor="last",
        augment=("pad_crop(pad=2, reflect=1)", "flip"),
        source="this project, after Page 2018 (How to train your ResNet): few epochs on images of 28 to 32 pixels",
    ),
    "airbench": Recipe(
        epochs=12, batch_size=256, image_size=32, progressive=(16, 24, 32), optimizer="nesterov", learning_rate=0.6,
        momentum=0.85, schedule="one-cycle", l2=1.33e-3, label_smoothing=0.2, ema=0.98, norm_lr_factor=64,
        freeze=("whiten",), eval_every_epochs=2, monitor="last",
        augment=("pad_crop(pad=2, reflect=1)", "flip"),
        source="this project, after Jordan 2024 (arXiv:2404.00498): momentum, decay of kernels, smoothing, rate of "
        "norms, whitening and shifts of airbench94.py; unlike it, batches a quarter as large, growing images, a cosine "
        "cycle, averaged weights for lookahead, random flips for alternating ones, no bias after the whitening, no "
        "decay of biases",
    ),
    "photos": Recipe(
        epochs=30, batch_size=32, learning_rate=3e-4, weight_decay=0.05, warmup_epochs=5, clip_norm=1.0,
        label_smoothing=0.1,
        augment=_IMAGENET,
        source="this project: a cautious rate for networks of any family on photographs, from scratch",
    ),
    # From a checkpoint
    "fine-tune": Recipe(
        epochs=5, batch_size=32, min_epoch_steps=50, optimizer="adamw", learning_rate=1e-3, weight_decay=0.01,
        warmup_epochs=0.1, head_epochs=1, layer_decay=0.7, monitor="last",
        augment=("resized_crop(area=0.6)", "flip"),
        source="this project: a new head alone first, then all layers, earlier ones slower (Howard and Ruder 2018, "
        "arXiv:1801.06146)",
    ),
    "fine-tune-small": Recipe(
        epochs=5, batch_size=32, min_epoch_steps=50, optimizer="adamw", learning_rate=1e-3, weight_decay=0.01,
        warmup_epochs=0.1, head_epochs=1, layer_decay=0.7, monitor="last", augment=_CIFAR,
        source="this project: like fine-tune, for images of up to 64 pixels, which are shifted rather than resampled",
    ),
    "fine-tune-drawings": Recipe(
        epochs=5, batch_size=32, min_epoch_steps=50, optimizer="adamw", learning_rate=1e-3, weight_decay=0.01,
        warmup_epochs=0.1, head_epochs=1, layer_decay=0.7, monitor="last",
        augment=("affine(rotate=8, scale=0.08, shear=0.08)",),
        source="this project: fine-tune with small distortions; no flips, since a mirrored digit is a different symbol",
    ),
    **PUBLISHED,
}  # fmt: skip

#: Recipes that depend on the data: functions of the number of training images and the median height and width of them.
RULES: dict[str, Callable[[int, float, float], Recipe]] = {"bit-hyperrule": bit_hyperrule}

#: (model pattern, data pattern, recipe): the first row that matches is the default of `zoo train`.
DEFAULT_RECIPES: tuple[tuple[str, str, str], ...] = (
    ("lenet5_1998", "*mnist*", "lenet5-1998"),
    ("*", "xor", "points"),
    ("*", "moons", "points"),
    ("softmax", "*", "default"),
    ("mlp", "*", "default"),
    ("highway", "*", "default"),
    ("*", "digits", "digits"),
    ("airbench", "*", "airbench"),
    ("lenet5", "tfds:mnist*", "mnist"),
    ("lenet5", "mnist", "mnist"),
    ("lenet5*", "*", "default"),
    ("alexnet*", "*", "small"),
    ("googlenet", "*", "small"),
    ("googlenet_small", "*", "small"),
    ("*", "*", "small-resnet"),
)


def default_recipe(model: str, data: str, image_size: int = 0) -> str:
    """Return the name of the default recipe for training a model from scratch on a data set.

    Args:
        model: name in MODELS.
        data: name of the data set.
        image_size: side in pixels of what the model sees, if known. Images of more than SMALL_IMAGE pixels are cropped
            in other sizes rather than shifted.
    """
    for model_pattern, data_pattern, name in DEFAULT_RECIPES:
        if fnmatch.fnmatch(model, model_pattern) and fnmatch.fnmatch(data, data_pattern):
            return "photos" if image_size > SMALL_IMAGE and RECIPES[name].augment == _CIFAR else name
    raise AssertionError("the last row of DEFAULT_RECIPES matches everything")


def find_recipe(name: str) -> Recipe:
    """Return RECIPES[name].

    Raises:
        ValueError: naming similar recipes, and for a name in RULES.
    """
    if name in RULES:
        raise ValueError(f"recipe {name!r} depends on the data; `zoo train` and zoo.fit take it by name")
    if name not in RECIPES:
        hint = did_you_mean(name, [*RECIPES, *RULES])
        every = "`zoo list --recipes` lists all"
        raise ValueError(f"unknown recipe {name!r}; {f'{hint} ' if hint else ''}{every}")
    return RECIPES[name]
