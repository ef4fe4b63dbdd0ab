"""Recipe: how to train, as one frozen dataclass, and how a field is read from a command line or from JSON.

A recipe is plain data: it is written into every run and every checkpoint, and `--set field=value` reaches each field.
Lengths are in epochs (passes over the training split, or longer: see `min_epoch_steps`); decays and penalties are per
step, as in the papers.
"""

import dataclasses
import difflib
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
    b2: float = 0.999
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
    final_lr_fraction: float = 0.0
    """Schedules "cosine", "linear" and "one-cycle": the last rate as a fraction of the peak."""

    # Regularisation
    l1: float = 0.0
    """Penalty l1 * sum |w| added to the loss, over kernels; over all parameters with `decay_bias_and_norm`."""
    l2: float = 0.0
    """Penalty l2 / 2 * sum w^2 added to the loss, over the same parameters: the classic weight decay of SGD."""
    weight_decay: float = 0.0
    """Decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101), times the learning rate, over the same
    parameters. It applies to every optimiser, so adam with it is adamw."""
    decay_bias_and_norm: bool = False
    """Penalties and decay also act on biases and norm scales, as in He et al. 2015."""
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    """The gradient's global norm is clipped to this. 0: not clipped."""
    augment: tuple[str, ...] = ()
    """What is done to each training batch on the device, in order: see AUGMENTATIONS in zoo/data/augment/ops.py."""
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
        for field in (*unsigned, "warmup_epochs", "aux_weight", "decay_factor", "final_lr_fraction"):
            require(getattr(self, field) >= 0, field, "must not be negative")
        for field in ("momentum", "b2", "label_smoothing", "ema"):
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
            from zoo.data.augment.ops import parse

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
