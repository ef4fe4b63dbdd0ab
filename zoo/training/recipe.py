"""Recipe: the hyperparameters of a training run as a frozen dataclass, and its parsers for flags and JSON.

A recipe is plain data: it is written into every run and checkpoint, and `--set field=value` changes any field. Lengths
are in epochs (passes over the training split, or more: see `min_epoch_steps`); decay rates are per step, as in papers.
"""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from zoo.arguments import check_fields
from zoo.suggest import did_you_mean

Optimizer = Literal["sgd", "momentum", "nesterov", "rmsprop", "rmsprop-tf", "adam", "adamw", "lion", "lars", "lamb"]
Schedule = Literal["constant", "step", "exponential", "cosine", "linear", "one-cycle"]
Monitor = Literal["loss", "accuracy", "macro_f1", "roc_auc", "last"]

#: Numeric fields by their valid range.
POSITIVE = ("epochs", "learning_rate", "eval_every_epochs", "decay_every_epochs", "epsilon")
NON_NEGATIVE = (
    "batch_size", "micro_batch", "min_epoch_steps", "image_size", "test_size", "head_epochs", "unfreeze_at", "head_lr",
    "l1", "l2", "weight_decay", "clip_norm", "patience", "seed", "warmup_epochs", "aux_weight", "decay_factor",
    "final_lr_fraction", "bias_lr_factor", "norm_lr_factor",
)  # fmt: skip
BELOW_ONE = ("momentum", "b2", "label_smoothing", "ema", "norm_momentum", "target_threshold")
UP_TO_ONE = ("eval_crop", "warmup_lr_fraction")
AT_LEAST_ONE = ("augment_repeats", "ema_every")

#: Fields that cards and configurations have only where they differ from the default, because older ones lack them.
OMITTED_DEFAULTS = (
    "eval_crop", "interpolation", "normalisation", "augment_repeats", "warmup", "warmup_lr_fraction", "norm_momentum",
    "decay_bias", "bias_lr_factor", "norm_lr_factor", "target_threshold", "ema_every", "ema_warmup", "model_fields",
)  # fmt: skip
#: Largest magnitude of any number in a recipe: products of two stay finite.
MAX_NUMBER = 1e15


@check_fields
@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a training run.

    Raises:
        ValueError: naming the field, for a value out of range.
    """

    # Length and batches
    epochs: float = 20.0
    batch_size: int = 64
    """Images per step over all devices. 1 is stochastic gradient descent on single examples, 0 full-batch."""
    micro_batch: int = 0
    """Images per forward pass; gradients are accumulated over the batch. 0: the whole batch in one pass."""
    min_epoch_steps: int = 0
    """Minimum number of steps per epoch; with few images an epoch is several passes."""
    image_size: int = 0
    """Side of the network's input in pixels. 0: the model's native size, or that of the initial checkpoint."""
    progressive: tuple[int, ...] = ()
    """Growing image sizes in pixels, trained in turn; the last one is `image_size` (Tan and Le 2021)."""
    progressive_at: tuple[float, ...] = ()
    """Epochs at which the second, third, … size of `progressive` begins. (): equal parts."""
    test_size: int = 0
    """Image size in pixels for validation, test and the checkpoint, often larger than in training (Touvron et al. 2019,
    arXiv:1906.06423). 0: the last training size."""
    eval_crop: float = 0.0
    """Side of the centre crop as a fraction of the side that the image is resized to, for validation, test and the
    checkpoint: 0.875 resizes to 256 for an input of 224. 0: that of the initial checkpoint, else the whole image."""
    interpolation: Literal["", "nearest", "bilinear", "bicubic", "lanczos", "box"] = ""
    """Interpolation of images that are resized to the input. "": that of the initial checkpoint, else bilinear."""
    channels: Literal["", "L", "RGB", "BGR"] = ""
    """Input channels, grey or colour. "": those of the data, or of the initial checkpoint."""
    normalisation: Literal["", "standardise", "centre", "symmetric"] = ""
    """"standardise": subtract the mean and divide by the standard deviation of the data, "centre": subtract the mean
    from pixel values in 0..255, "symmetric": scale them to -1..1. "": that of the initial checkpoint, or what the model
    was published with."""
    model_fields: tuple[str, ...] = ()
    """Fields of the model to set, such as "dropout=0.3", unless they are given otherwise."""

    # Optimiser
    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of SGD variants, LARS and RMSProp; decay rate of the first moment (b1) of Adam variants and Lion."""
    b2: float = 0.999
    """Decay rate of the second moment of Adam variants, of the mean square of RMSProp (0.99 in PyTorch, 0.9 in
    TensorFlow), and of the momentum of Lion (0.99 in its paper)."""
    epsilon: float = 1e-8
    """Term added to the denominator of Adam variants (1e-6 in LAMB's paper), and inside the root of RMSProp's, as in
    TensorFlow."""
    schedule: Schedule = "cosine"
    warmup_epochs: float = 0.0
    """Epochs of warm-up to the peak learning rate, counted as part of `epochs`."""
    warmup: Literal["linear", "constant"] = "linear"
    """Learning rate during warm-up: rising from the first one, or staying at it."""
    warmup_lr_fraction: float = 0.0
    """First learning rate of the warm-up as a fraction of the one after it."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Schedule "step": fractions of training at which the learning rate is multiplied by `decay_factor`."""
    decay_factor: float = 0.1
    """Schedules "step" and "exponential": factor on the learning rate."""
    decay_every_epochs: float = 1.0
    """Schedule "exponential": epochs between multiplications by `decay_factor`."""
    final_lr_fraction: float = 0.0
    """Schedules "cosine", "linear" and "one-cycle": final learning rate as a fraction of the peak."""

    # Regularisation
    l1: float = 0.0
    """Penalty l1 * sum |w| added to the loss, over kernels; over all parameters with `decay_bias_and_norm`."""
    l2: float = 0.0
    """Penalty l2 / 2 * sum w^2 added to the loss, over the same parameters: the classic weight decay of SGD."""
    weight_decay: float = 0.0
    """Decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101), times the learning rate, over the same
    parameters. It applies to every optimiser, so adam with it is adamw. With lars and rmsprop-tf it passes through the
    momentum, which multiplies it by 1 / (1 - momentum)."""
    decay_bias_and_norm: bool = False
    """Apply penalties and weight decay to biases and norm scales too, as in He et al. 2015."""
    decay_bias: bool = False
    """Apply them to the biases of convolutions and dense layers too, but not to norms."""
    bias_lr_factor: float = 1.0
    """Factor on the learning rate of the biases of convolutions and dense layers (2 in Caffe's networks)."""
    norm_lr_factor: float = 1.0
    """Factor on the learning rate of the scales and biases of norms."""
    norm_momentum: float = 0.0
    """Fraction of the running statistics that a batch norm keeps at each step. 0: the model's own."""
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    """Maximum global norm of the gradient. 0: no clipping."""
    augment: tuple[str, ...] = ()
    """Augmentation of training images, in order: see AUGMENTATIONS in zoo/data/augment/ops.py."""
    augment_repeats: int = 1
    """Repeated augmentation: copies of each image in a batch, augmented differently. An epoch then has so many times
    fewer images (Hoffer et al. 2019, arXiv:1901.09335; Berman et al. 2019, arXiv:1902.05509)."""
    ema: float = 0.0
    """Decay per update of an exponential moving average of the variables, which is then evaluated and saved. 0:
    none."""
    ema_every: int = 1
    """Steps between updates of the moving average."""
    ema_warmup: Literal["ramp", "copy"] = "ramp"
    """Start of the moving average: a decay of at most (1 + step) / (10 + step), as in TensorFlow, or copies of the
    variables during `warmup_epochs`, as in torchvision."""
    class_weights: Literal["none", "balanced"] = "none"
    """"balanced": weight each example's loss by N / (K * number of examples of its class)."""

    # Fine-tuning. Parts are named by stage, as "body" (all but the heads), or by regular expressions for paths.
    head_epochs: float = 0.0
    """Epochs in which only a new head is trained, when the initial checkpoint has other classes."""
    freeze: tuple[str, ...] = ()
    """Parts to freeze. A frozen batch norm normalises with its stored statistics."""
    unfreeze_at: float = 0.0
    """Epoch at which the parts in `freeze` are unfrozen. 0: never."""
    layer_decay: float = 1.0
    """Factor on the learning rate of each stage relative to the next (Howard and Ruder 2018, arXiv:1801.06146)."""
    head_lr: float = 0.0
    """Peak learning rate of the head and the auxiliary heads. 0: `learning_rate`."""

    # Loss
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Softmax cross-entropy, or K binary cross-entropies over sigmoids (Wightman et al. 2021, arXiv:2110.00476)."""
    target_threshold: float = 0.0
    """Loss "sigmoid": mixed targets above this value become 1 and others 0, before label smoothing. 0: none do."""
    aux_weight: float = 0.3
    """Weight of the loss of each auxiliary head."""

    # Precision, evaluation and stopping
    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; parameters and statistics stay float32."""
    remat: bool = False
    """Recompute the activations of a block in the backward pass: less memory, about a third more time."""
    eval_every_epochs: float = 1.0
    """Epochs between evaluations on the validation split."""
    monitor: Monitor = "accuracy"
    """Validation metric that selects the best checkpoint (ties by lower loss) and stops early. "last": use the last
    evaluation; with a handful of validation images the best one would be chance."""
    patience: int = 0
    """Stop after this many consecutive evaluations without improvement of `monitor`. 0: never."""
    seed: int = 0
    """Random seed."""

    source: str = ""
    """Paper and section that the recipe is from."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_type(field.name, getattr(self, field.name))
        self._check_ranges()
        self._check_combinations()
        if self.augment:
            from zoo.data.augment.ops import parse  # imports jax, which help texts do not need

            for op in self.augment:
                parse(op)

    def _require(self, condition: bool, field: str, message: str) -> None:
        if not condition:
            raise ValueError(f"recipe field {field}={getattr(self, field)!r}: {message}")

    def _check_ranges(self) -> None:
        for field in _TYPES:
            self._require(_is_within_limit(getattr(self, field)), field, f"must be at most {MAX_NUMBER:g}")
        for field in POSITIVE:
            self._require(getattr(self, field) > 0, field, "must be positive")
        for field in NON_NEGATIVE:
            self._require(getattr(self, field) >= 0, field, "must not be negative")
        for field in BELOW_ONE:
            self._require(0 <= getattr(self, field) < 1, field, "must be in [0, 1)")
        for field in UP_TO_ONE:
            self._require(0 <= getattr(self, field) <= 1, field, "must be in [0, 1]")
        for field in AT_LEAST_ONE:
            self._require(getattr(self, field) >= 1, field, "must be at least 1")
        self._require(0 < self.layer_decay <= 1, "layer_decay", "must be in (0, 1]")
        self._require(self.seed < 2**32, "seed", "must be below 2**32")

    def _check_combinations(self) -> None:
        self._require(
            not self.unfreeze_at or bool(self.freeze), "unfreeze_at",
            "nothing is frozen; name the parts with freeze (head_epochs trains a new head alone)",
        )  # fmt: skip
        self._require(
            self.warmup_epochs <= self.epochs, "warmup_epochs",
            f"must not exceed epochs={self.epochs:g}; lower it (--set warmup_epochs={self.epochs / 10:g})",
        )  # fmt: skip
        sizes, starts = self.progressive, self.progressive_at
        self._require(all(a < b for a, b in pairwise((0, *sizes))), "progressive", "must be increasing sizes in pixels")
        self._require(
            not sizes or self.image_size in (0, sizes[-1]), "progressive",
            f"must end with image_size={self.image_size}; change both, or progressive=() trains at one size",
        )  # fmt: skip
        valid = len(starts) == len(sizes) - 1 and all(a < b for a, b in pairwise((0, *starts, self.epochs)))
        self._require(not starts or bool(sizes), "progressive_at", "needs the sizes in progressive")
        self._require(
            not starts or valid, "progressive_at",
            f"must be {len(sizes) - 1} increasing epochs below epochs={self.epochs:g} for progressive={sizes}",
        )  # fmt: skip
        self._require(not self.target_threshold or self.loss == "sigmoid", "target_threshold", 'needs loss="sigmoid"')
        for text in self.model_fields:
            name, separator, value = text.partition("=")
            self._require(
                bool(separator and name.strip().isidentifier() and value.strip()), "model_fields",
                f"{text!r} is not of the form dropout=0.3",
            )  # fmt: skip
        increasing = all(a < b for a, b in pairwise((0, *self.milestones, 1)))
        self._require(increasing, "milestones", "must be increasing fractions of training between 0 and 1")
        divides = self.micro_batch == 0 or self.batch_size % self.micro_batch == 0
        self._require(divides, "micro_batch", f"must divide batch_size={self.batch_size}")

    @property
    def final_image_size(self) -> int:
        """Side in pixels of the network's input at the end of training. 0: as for `image_size`."""
        return self.progressive[-1] if self.progressive else self.image_size


_TYPES = typing.get_type_hints(Recipe)


def choices_of(field: str) -> tuple[str, ...]:
    """Return the valid values of a field; () for numbers and free text."""
    return typing.get_args(_TYPES[field]) if typing.get_origin(_TYPES[field]) is Literal else ()


def _is_within_limit(value: Any) -> bool:
    """Return True unless a number, or one in a tuple, exceeds MAX_NUMBER."""
    if isinstance(value, tuple):
        return all(map(_is_within_limit, value))
    return not isinstance(value, (int, float)) or abs(value) <= MAX_NUMBER


def check_type(name: str, value: Any) -> None:
    """Raise ValueError, naming the field, for a value of another type than the field of a recipe has."""
    expected = _TYPES[name]
    if typing.get_origin(expected) is Literal:
        choices = typing.get_args(expected)
        if value not in choices:
            hint = did_you_mean(str(value), choices) or f"choose from {', '.join(choices)}"
            raise ValueError(f"recipe field {name}={value!r}: {hint}")
        return
    if isinstance(expected, types.GenericAlias):  # tuple[X, ...]
        item = typing.get_args(expected)[0]
        valid = isinstance(value, tuple) and all(isinstance(v, (item, int) if item is float else item) for v in value)
    elif expected is float:
        valid = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        valid = valid and not isinstance(value, bool)
    else:
        valid = isinstance(value, expected) and (expected is bool or not isinstance(value, bool))
    if not valid:
        type_name = "tuple" if isinstance(expected, types.GenericAlias) else expected.__name__
        raise ValueError(f"recipe field {name}={value!r}: must be of type {type_name}")


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of a recipe for JSON, without those of OMITTED_DEFAULTS that have their default."""
    fields = dataclasses.asdict(recipe)
    return {
        name: value for name, value in fields.items() if name not in OMITTED_DEFAULTS or value != getattr(Recipe, name)
    }


def recipe_from_json(data: dict[str, Any]) -> Recipe:
    """Build a recipe from the JSON of `recipe_to_json`; missing fields have their defaults.

    Raises:
        ValueError: naming unknown fields.
    """
    unknown = sorted(set(data) - set(_TYPES))
    if unknown:
        raise ValueError(f"recipe has unknown fields: {', '.join(unknown)}; upgrade jax-model-zoo if it is newer")
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    return Recipe(**fields)


def parse_field(name: str, text: str, option: str = "") -> Any:
    """Parse the value of a recipe field from a command line; tuples are separated by commas, "none" is an empty one.

    Args:
        name: the field.
        text: its value, such as "0.1" or "flip,affine(rotate=10, shift=2)".
        option: the option to name in an error; by default the field.
    """
    option = option or f"recipe field {name}"
    expected = _TYPES[name]
    if not isinstance(expected, types.GenericAlias):
        return _parse_value(option, expected, text, getattr(Recipe, name))
    if text.strip().lower() == "none":
        return ()
    item = typing.get_args(expected)[0]
    return tuple(_parse_value(option, item, part.strip()) for part in _split_outside_brackets(text) if part.strip())


def _split_outside_brackets(text: str) -> list[str]:
    """Split at commas; a comma inside brackets belongs to an operation: "flip,affine(rotate=10, shift=2)"."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _parse_value(option: str, expected: Any, text: str, example: Any = None) -> Any:
    if typing.get_origin(expected) is Literal or expected is str:
        return text
    if expected is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{option} {text!r} is neither true nor false")
        return text.lower() == "true"
    try:
        return expected(text)
    except ValueError:
        kind, usual = ("a whole number", 32) if expected is int else ("a number", 0.001)
        raise ValueError(f"{option} {text!r} is not {kind}; try {usual if example is None else example:g}") from None
