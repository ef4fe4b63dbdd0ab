"""RECIPES: published training recipes and the project's own, each citing its source."""

import fnmatch

from zoo.suggest import did_you_mean
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
    # The papers
    "alexnet-2012": Recipe(
        epochs=90, batch_size=128, optimizer="momentum", learning_rate=0.01, schedule="step",
        milestones=(0.4, 0.65, 0.85), l2=5e-4, decay_bias_and_norm=True, augment=_IMAGENET,
        source="Krizhevsky et al. 2012, sections 4 and 5; the paper divides the rate three times by hand, without "
        "the epochs, which are this project's, and crops at one size",
    ),
    "googlenet-2014": Recipe(
        epochs=250, batch_size=256, optimizer="momentum", learning_rate=0.01, schedule="exponential", decay_factor=0.96,
        decay_every_epochs=8, l2=2e-4, aux_weight=0.3, ema=0.9999, augment=_IMAGENET,
        source="Szegedy et al. 2014, section 6 (rate down 4 % every 8 epochs, averaged weights, patches of 8 to 100 % "
        "of the image); first rate, decay, batch and length are not in the paper and are Caffe's",
    ),
    "inception-v2": Recipe(
        epochs=40, batch_size=32, optimizer="momentum", learning_rate=0.045, schedule="exponential", decay_factor=0.5,
        decay_every_epochs=6, l2=4e-5, aux_weight=0.3, augment=_IMAGENET,
        source="Ioffe and Szegedy 2015, section 4.2: a rate 30 times GoogLeNet's that decays 6 times as fast, less L2",
    ),
    "inception-v3": Recipe(
        epochs=100, batch_size=32, optimizer="rmsprop", learning_rate=0.045, b2=0.9, epsilon=1.0,
        schedule="exponential", decay_factor=0.94, decay_every_epochs=2, clip_norm=2.0, label_smoothing=0.1,
        aux_weight=0.4, ema=0.9999, l2=4e-5, augment=_IMAGENET,
        source="Szegedy et al. 2015 (arXiv:1512.00567), sections 7 and 8 (50 replicas of batch 32; scale the rate with "
        "the batch); the auxiliary weight and L2 are those of the authors' code",
    ),
    "xception": Recipe(
        epochs=120, batch_size=256, optimizer="momentum", learning_rate=0.045, schedule="exponential",
        decay_factor=0.94, decay_every_epochs=2, l2=1e-5, ema=0.9999, augment=_IMAGENET,
        source="Chollet 2016 (arXiv:1610.02357), section 4.3 (dropout 0.5 before the classifier, averaged weights)",
    ),
    "he2015-imagenet": Recipe(
        epochs=120, batch_size=256, optimizer="momentum", learning_rate=0.1, schedule="step",
        milestones=(1 / 3, 2 / 3), l2=1e-4, decay_bias_and_norm=True, augment=_IMAGENET,
        source="He et al. 2015 (arXiv:1512.03385), section 3.4: 600,000 iterations; the rate falls when the "
        "error stalls, here after each third",
    ),
    "he2015-cifar": Recipe(
        epochs=64_000 * 128 / 45_000, batch_size=128, optimizer="momentum", learning_rate=0.1, schedule="step",
        milestones=(0.5, 0.75), l2=1e-4, decay_bias_and_norm=True, augment=_CIFAR,
        source="He et al. 2015 (arXiv:1512.03385), section 4.2: 64k iterations on 45k images, the rate divided by "
        "10 at 32k and 48k",
    ),
    "wide-resnet": Recipe(
        epochs=200, batch_size=128, optimizer="nesterov", learning_rate=0.1, schedule="step",
        milestones=(0.3, 0.6, 0.8), decay_factor=0.2, l2=5e-4, decay_bias_and_norm=True, augment=_CIFAR,
        source="Zagoruyko and Komodakis 2016 (arXiv:1605.07146), section 3",
    ),
    "highway": Recipe(
        epochs=100, batch_size=100, optimizer="momentum", learning_rate=0.05, schedule="exponential", decay_factor=0.97,
        source="Srivastava et al. 2015 (arXiv:1505.00387), section 3: SGD with momentum and an exponentially falling "
        "rate; the paper searched its numbers at random and does not print them",
    ),
    "rsb-a1": Recipe(
        epochs=600, batch_size=2048, image_size=224, optimizer="lamb", learning_rate=5e-3, weight_decay=0.01,
        warmup_epochs=5, loss="sigmoid", label_smoothing=0.1, epsilon=1e-6,
        augment=(*_IMAGENET, "rand_augment(number=2, magnitude=7)", "mixup_or_cutmix(mixup=0.2, cutmix=1)"),
        source="Wightman et al. 2021 (arXiv:2110.00476), table 2, A1 (without repeated augmentation; stochastic depth "
        "0.05 is a field of the model)",
    ),
    "rsb-a2": Recipe(
        epochs=300, batch_size=2048, image_size=224, optimizer="lamb", learning_rate=5e-3, weight_decay=0.02,
        warmup_epochs=5, loss="sigmoid", epsilon=1e-6,
        augment=(*_IMAGENET, "rand_augment(number=2, magnitude=7)", "mixup_or_cutmix(mixup=0.1, cutmix=1)"),
        source="Wightman et al. 2021 (arXiv:2110.00476), table 2, A2 (without repeated augmentation; stochastic depth "
        "0.05 is a field of the model)",
    ),
    "rsb-a3": Recipe(
        epochs=100, batch_size=2048, image_size=160, test_size=224, optimizer="lamb", learning_rate=8e-3,
        weight_decay=0.02, warmup_epochs=5, loss="sigmoid", epsilon=1e-6,
        augment=(*_IMAGENET, "rand_augment(number=2, magnitude=6)", "mixup_or_cutmix(mixup=0.1, cutmix=1)"),
        source="Wightman et al. 2021 (arXiv:2110.00476), table 2, A3 (trained at 160 pixels, tested at 224)",
    ),
    "torchvision-v2": Recipe(
        epochs=600, batch_size=1024, image_size=176, test_size=224, optimizer="momentum", learning_rate=0.5,
        warmup_epochs=5, l2=2e-5, label_smoothing=0.1, ema=0.99998,
        augment=(*_IMAGENET, "trivial_augment", "random_erasing(p=0.1)", "mixup_or_cutmix(mixup=0.2, cutmix=1)"),
        source="torchvision's second set of weights (its blog, 2021): trained at 176 pixels, tested at 224; without "
        "its repeated augmentation",
    ),
}  # fmt: skip

#: (model pattern, data pattern, recipe): the first row that matches is the default of `zoo train`.
DEFAULT_RECIPES: tuple[tuple[str, str, str], ...] = (
    ("lenet5_1998", "*mnist*", "lenet5-1998"),
    ("softmax", "*", "default"),
    ("mlp", "*", "default"),
    ("highway", "*", "default"),
    ("*", "digits", "digits"),
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
        ValueError: naming similar recipes.
    """
    if name not in RECIPES:
        hint = did_you_mean(name, RECIPES)
        raise ValueError(f"unknown recipe {name!r}; {f'{hint} ' if hint else ''}List all with `zoo list --recipes`.")
    return RECIPES[name]
