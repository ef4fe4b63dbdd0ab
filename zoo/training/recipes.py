"""Recipe: how to train, as one frozen dataclass. RECIPES: the published ones, each citing its paper.

A recipe is plain data: it is written into every run and every checkpoint, and `--set field=value` reaches each field.
Lengths are in epochs (passes over the training split, or longer: see `min_epoch_steps`); decays and penalties are per
step, as in the papers.
"""

import dataclasses
import difflib
import fnmatch
import math
import types
import typing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

Optimizer = Literal["sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "lion", "lars", "lamb"]
Schedule = Literal["constant", "step", "exponential", "cosine", "linear", "one-cycle"]
Monitor = Literal["loss", "accuracy", "macro_f1", "roc_auc", "last"]


@dataclass(frozen=True)
class Recipe:
    """How to train. Raises ValueError naming the field where a value makes no sense."""

    # How long, and on how much at a time
    epochs: float = 20.0
    batch_size: int = 64
    """Images per step over all devices. 1 is single-sample gradient descent, 0 the whole training split at once."""
    micro_batch: int = 0
    """Images per forward pass; gradients are accumulated over the batch. 0: the batch in one pass."""
    min_epoch_steps: int = 0
    """An epoch has at least this many steps: over few images it is several passes."""
    image_size: int = 0
    """Side in pixels of what the model sees. 0: the model's native size, or that of the checkpoint it starts from."""
    progressive: tuple[int, ...] = ()
    """Sides in pixels that training grows through, in equal parts; the last one is `image_size` (Tan and Le 2021)."""
    progressive_at: tuple[float, ...] = ()
    """The epochs at which the second size of `progressive`, the third, … begin. (): equal parts."""
    test_size: int = 0
    """Side in pixels that validation, test and the checkpoint see, often larger than in training (Touvron et al. 2019,
    arXiv:1906.06423). 0: as training, in its end."""
    channels: Literal["", "L", "RGB", "BGR"] = ""
    """What the model sees of an image: grey or colour. "": what the data have, or the checkpoint it starts from."""

    # The optimiser
    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    """Momentum of sgd's kin, LARS and RMSProp; the decay of the first moment in Adam's kin."""
    second_moment: float = 0.999
    """Decay of the second moment in Adam's kin and of the mean square in RMSProp."""
    epsilon: float = 1e-8
    schedule: Schedule = "cosine"
    warmup_epochs: float = 0.0
    """The rate rises linearly from zero to its peak over these epochs, which count as part of `epochs`."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Schedule "step": the fractions of the training at which the rate is multiplied by `decay_factor`."""
    decay_factor: float = 0.1
    decay_every_epochs: float = 1.0
    """Schedule "exponential": the rate is multiplied by `decay_factor` each time this many epochs have passed."""
    final_rate: float = 0.0
    """Schedules "cosine", "linear" and "one-cycle": the last rate as a fraction of the peak."""

    # Regularisation
    l1: float = 0.0
    """Penalty l1 * sum |w| added to the loss, over weights (never biases, norm scales) unless `decay_all`."""
    l2: float = 0.0
    """Penalty l2 / 2 * sum w^2 added to the loss, over weights unless `decay_all`: the classic weight decay of SGD."""
    weight_decay: float = 0.0
    """Decoupled decay (Loshchilov and Hutter 2019), times the learning rate, over weights unless `decay_all`; of any
    optimiser, so adam with it is adamw."""
    decay_all: bool = False
    """Penalties and decay also act on biases and norm scales, as in He et al. 2015."""
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    """The gradient's global norm is clipped to this. 0: not clipped."""
    augment: tuple[str, ...] = ()
    """What is done to each training batch on the device, in order: see AUGMENTATIONS in zoo/data/augment.py."""
    ema: float = 0.0
    """Decay per step of an exponential moving average of the variables, which is then what is evaluated. 0: none."""
    class_weights: Literal["none", "balanced"] = "none"
    """"balanced": each example's loss times N / (K * count of its class)."""

    # Fine-tuning: parts are named by stage, as "body" (all but the heads), or by regular expressions for paths
    head_epochs: float = 0.0
    """Starting from a checkpoint with other classes: the head alone is trained for these first epochs."""
    freeze: tuple[str, ...] = ()
    """Parts that keep their parameters; a batch norm in them normalises with its stored statistics and keeps them."""
    unfreeze_at: float = 0.0
    """The epoch at which what `freeze` lists joins. 0: never."""
    layer_decay: float = 1.0
    """Each stage learns at this times the rate of the stage after it (Howard and Ruder 2018, arXiv:1801.06146)."""
    head_lr: float = 0.0
    """Peak learning rate of the head and the auxiliary heads. 0: `learning_rate`."""

    # The loss
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Cross-entropy over a softmax, or K binary ones over sigmoids (Wightman et al. 2021)."""
    aux_weight: float = 0.3
    """Weight of each auxiliary head's loss, for models that have them."""

    # Numbers, choices, stopping
    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; parameters and statistics stay float32."""
    remat: bool = False
    """Keep no activations within a block, but compute them again on the way back: less memory, a third more time."""
    eval_every_epochs: float = 1.0
    monitor: Monitor = "accuracy"
    """What on the validation split chooses the best checkpoint (ties go to the lower loss) and stops early. "last":
    nothing does, the last evaluation is taken; of a handful of images chance would choose."""
    patience: int = 0
    """Stop after this many evaluations in a row without a better `monitor`. 0: never."""
    seed: int = 0

    source: str = ""
    """The paper and section this recipe is from."""

    def __post_init__(self):
        def require(condition: bool, field: str, what: str) -> None:
            if not condition:
                raise ValueError(f"recipe field {field}={getattr(self, field)!r}: {what}")

        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name))
        for field in ("epochs", "learning_rate", "eval_every_epochs", "decay_every_epochs", "epsilon"):
            require(getattr(self, field) > 0, field, "must be above zero")
        unsigned = (
            "batch_size",
            "micro_batch",
            "min_epoch_steps",
            "image_size",
            "test_size",
            "head_epochs",
            "unfreeze_at",
            "head_lr",
            "l1",
            "l2",
            "weight_decay",
            "clip_norm",
            "patience",
            "seed",
        )
        for field in (*unsigned, "warmup_epochs", "aux_weight", "decay_factor", "final_rate"):
            require(getattr(self, field) >= 0, field, "must not be negative")
        for field in ("momentum", "second_moment", "label_smoothing", "ema"):
            require(0 <= getattr(self, field) < 1, field, "must lie in [0, 1)")
        require(0 < self.layer_decay <= 1, "layer_decay", "must lie in (0, 1]")
        missing = "there is no `freeze` that could join then (how long a new head is trained alone is head_epochs)"
        require(not self.unfreeze_at or bool(self.freeze), "unfreeze_at", missing)
        require(self.warmup_epochs <= self.epochs, "warmup_epochs", f"the training has only {self.epochs:g} epochs")
        sides, starts = self.progressive, self.progressive_at
        require(all(a < b for a, b in pairwise((0, *sides))), "progressive", "must be growing sides in pixels")
        require(
            not sides or self.image_size in (0, sides[-1]), "progressive",
            f"must end with image_size={self.image_size}, or image_size be left out",
        )  # fmt: skip
        fits = len(starts) == len(sides) - 1 and all(a < b for a, b in pairwise((0, *starts, self.epochs)))
        wanted = f"must be one epoch fewer than progressive={sides} has sizes, rising and below epochs={self.epochs:g}"
        require(not starts or fits, "progressive_at", wanted)
        rising = all(0 < a < b for a, b in zip(self.milestones, (*self.milestones[1:], 1.0), strict=True))
        require(rising, "milestones", "must be rising fractions of the training, between 0 and 1")
        require(self.seed < 2**32, "seed", "must be below 2**32")
        whole = self.micro_batch == 0 or self.batch_size % self.micro_batch == 0
        require(whole, "micro_batch", f"must divide batch_size={self.batch_size}")
        if self.augment:
            from zoo.data.augment import parse

            for op in self.augment:
                parse(op)

    @property
    def last_size(self) -> int:
        """Side in pixels of what the model sees in the end of training. 0: as for `image_size`."""
        return self.progressive[-1] if self.progressive else self.image_size


_TYPES = typing.get_type_hints(Recipe)


def choices_of(field: str) -> tuple[str, ...]:
    """The words that a field may be; () for numbers and free text."""
    return typing.get_args(_TYPES[field]) if typing.get_origin(_TYPES[field]) is Literal else ()


def _check_type(name: str, value: Any) -> None:
    expected = _TYPES[name]
    if typing.get_origin(expected) is Literal:
        choices = typing.get_args(expected)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(choices)}"
            raise ValueError(f"recipe field {name}={value!r}: {hint}")
        return
    if isinstance(expected, types.GenericAlias):  # tuple[X, ...]
        item = typing.get_args(expected)[0]
        good = isinstance(value, tuple) and all(isinstance(v, (item, int) if item is float else item) for v in value)
    elif expected is float:
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    else:
        good = isinstance(value, expected) and (expected is bool or not isinstance(value, bool))
    if not good:
        wanted = "tuple" if isinstance(expected, types.GenericAlias) else expected.__name__
        raise ValueError(f"recipe field {name}={value!r}: should be of type {wanted}")


def recipe_from_json(data: dict[str, Any]) -> Recipe:
    """The recipe that `dataclasses.asdict` and JSON made `data` of. ValueError for fields that are not known here."""
    unknown = sorted(set(data) - set(_TYPES))
    if unknown:
        raise ValueError(f"recipe has fields this version of the zoo does not know: {', '.join(unknown)}")
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    return Recipe(**fields)


def parse_field(name: str, text: str) -> Any:
    """The value of recipe field `name` as written on a command line; tuples are separated by commas."""
    expected = _TYPES[name]
    if isinstance(expected, types.GenericAlias):
        item = typing.get_args(expected)[0]
        # A comma inside brackets belongs to an operation: "flip,affine(rotate=10, shift=2)".
        parts, depth = [""], 0
        for char in text:
            depth += (char == "(") - (char == ")")
            if char == "," and depth == 0:
                parts.append("")
            else:
                parts[-1] += char
        return tuple(_parse_one(name, item, part.strip()) for part in parts if part.strip())
    return _parse_one(name, expected, text)


def _parse_one(name: str, expected: Any, text: str) -> Any:
    if typing.get_origin(expected) is Literal or expected is str:
        return text
    if expected is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"recipe field {name}={text!r}: write true or false")
        return text.lower() == "true"
    try:
        return expected(text)
    except ValueError:
        raise ValueError(f"recipe field {name}={text!r}: should be a number of type {expected.__name__}") from None


_DISTORTIONS = ("affine(rotate=10, scale=0.1, shear=0.1, shift=2)",)
_CIFAR = ("pad_crop(pad=4)", "flip")
_IMAGENET = ("resized_crop", "flip")

RECIPES: dict[str, Recipe] = {
    # Small images on two CPU cores
    "default": Recipe(source="this project: a start for small networks; AdamW, cosine"),
    "digits": Recipe(
        epochs=40, batch_size=64, learning_rate=3e-3, weight_decay=0.01, warmup_epochs=1,
        augment=("affine(rotate=8, scale=0.08, shear=0.08, shift=2)",),
        source="this project: small distortions, no flips, since a mirrored digit is another sign",
    ),
    "mnist": Recipe(
        epochs=20, batch_size=128, learning_rate=2e-3, weight_decay=0.02, warmup_epochs=1, ema=0.999,
        augment=_DISTORTIONS,
        source="LeCun et al. 1998, section III: planar affine distortions of the training set; the optimiser is ours",
    ),
    "mnist-plain": Recipe(
        epochs=20, batch_size=128, learning_rate=2e-3, weight_decay=0.05, warmup_epochs=1, ema=0.999,
        source="LeCun et al. 1998, section III, without distortions; the optimiser is ours",
    ),
    "lenet5-1998": Recipe(
        epochs=20, batch_size=128, optimizer="adam", learning_rate=1e-3, warmup_epochs=1, ema=0.999,
        source="LeCun et al. 1998; Adam stands in for the stochastic diagonal Levenberg-Marquardt method",
    ),
    "small": Recipe(
        epochs=10, batch_size=64, learning_rate=2e-3, weight_decay=0.02, warmup_epochs=1, ema=0.995, augment=_CIFAR,
        source="this project: a short start for convolutional networks on images of 28 to 64 pixels",
    ),
    "small-resnet": Recipe(
        epochs=10, batch_size=64, optimizer="nesterov", learning_rate=0.1, schedule="one-cycle", l2=5e-4,
        augment=_CIFAR,
        source="this project: as small, for networks with batch norm; one cycle after Smith 2018 (arXiv:1803.09820)",
    ),
    # From a checkpoint
    "fine-tune": Recipe(
        epochs=5, batch_size=32, min_epoch_steps=50, optimizer="adamw", learning_rate=1e-3, weight_decay=0.01,
        warmup_epochs=0.1, head_epochs=1, layer_decay=0.7, monitor="last",
        augment=("resized_crop(area=0.6)", "flip"),
        source="this project: the new head alone, then everything, earlier layers slower (Howard and Ruder 2018, "
        "arXiv:1801.06146)",
    ),
    "fine-tune-small": Recipe(
        epochs=5, batch_size=32, min_epoch_steps=50, optimizer="adamw", learning_rate=1e-3, weight_decay=0.01,
        warmup_epochs=0.1, head_epochs=1, layer_decay=0.7, monitor="last", augment=_CIFAR,
        source="this project: as fine-tune, for images of up to 64 pixels, whose few pixels are moved, not resampled",
    ),
    "fine-tune-drawings": Recipe(
        epochs=5, batch_size=32, min_epoch_steps=50, optimizer="adamw", learning_rate=1e-3, weight_decay=0.01,
        warmup_epochs=0.1, head_epochs=1, layer_decay=0.7, monitor="last",
        augment=("affine(rotate=8, scale=0.08, shear=0.08)",),
        source="this project: as fine-tune, with small distortions, no flips, since a mirrored digit is another sign",
    ),
    # The papers
    "alexnet-2012": Recipe(
        epochs=90, batch_size=128, optimizer="momentum", learning_rate=0.01, schedule="step",
        milestones=(0.4, 0.65, 0.85), l2=5e-4, decay_all=True, augment=_IMAGENET,
        source="Krizhevsky et al. 2012, sections 4 and 5; the three divisions of the rate were made by hand, their "
        "places are ours, and the paper's crops are of one size",
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
        epochs=100, batch_size=32, optimizer="rmsprop", learning_rate=0.045, second_moment=0.9, epsilon=1.0,
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
        milestones=(1 / 3, 2 / 3), l2=1e-4, decay_all=True, augment=_IMAGENET,
        source="He et al. 2015 (arXiv:1512.03385), section 3.4: 600,000 iterations; the rate falls when the "
        "error stalls, here after each third",
    ),
    "he2015-cifar": Recipe(
        epochs=64_000 * 128 / 45_000, batch_size=128, optimizer="momentum", learning_rate=0.1, schedule="step",
        milestones=(0.5, 0.75), l2=1e-4, decay_all=True, augment=_CIFAR,
        source="He et al. 2015 (arXiv:1512.03385), section 4.2: 64k iterations on 45k images, the rate divided by "
        "10 at 32k and 48k",
    ),
    "wide-resnet": Recipe(
        epochs=200, batch_size=128, optimizer="nesterov", learning_rate=0.1, schedule="step",
        milestones=(0.3, 0.6, 0.8), decay_factor=0.2, l2=5e-4, decay_all=True, augment=_CIFAR,
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

#: (model pattern, data pattern, recipe): the first line that fits says what `zoo train` takes when nothing is asked.
DEFAULT_RECIPES: tuple[tuple[str, str, str], ...] = (
    ("lenet5_1998", "*mnist*", "lenet5-1998"),
    ("softmax", "*", "default"),
    ("mlp", "*", "default"),
    ("highway", "*", "default"),
    ("*", "digits", "digits"),
    ("lenet5", "tfds:mnist*", "mnist"),
    ("lenet5*", "*", "default"),
    ("alexnet*", "*", "small"),
    ("googlenet", "*", "small"),
    ("googlenet_small", "*", "small"),
    ("*", "*", "small-resnet"),
)


def default_recipe(model: str, data: str) -> str:
    """The name of the recipe that suits the model and the data set from scratch, from DEFAULT_RECIPES."""
    for model_pattern, data_pattern, name in DEFAULT_RECIPES:
        if fnmatch.fnmatch(model, model_pattern) and fnmatch.fnmatch(data, data_pattern):
            return name
    raise AssertionError("the last line of DEFAULT_RECIPES fits everything")


def find_recipe(name: str) -> Recipe:
    """RECIPES[name], or a ValueError with the nearest names."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"no recipe is called {name!r}; {hint}`zoo list --recipes` shows them all")
    return RECIPES[name]
