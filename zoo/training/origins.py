"""ORIGINS: where each number of a published recipe comes from: its paper, reference code, or this project."""

from zoo.training.recipe import Recipe

#: Fields that every recipe has an origin for, even at their defaults.
MAIN_FIELDS = ("epochs", "batch_size", "optimizer", "learning_rate", "schedule")

_HE_CIFAR = {
    "paper": "epochs batch_size optimizer momentum learning_rate schedule milestones decay_factor l2 augment",
    "ours": "decay_bias_and_norm",
}
_RSB_CODE = "warmup_lr_fraction final_lr_fraction clip_norm epsilon interpolation model_fields"
_RSB = "epochs batch_size image_size optimizer learning_rate schedule weight_decay warmup_epochs loss augment eval_crop"

#: recipe -> origin -> names of its fields. The recipe's `source` cites paper and code.
ORIGINS: dict[str, dict[str, str]] = {
    "alexnet-2012": {
        "paper": "decay_factor epochs batch_size optimizer momentum learning_rate schedule l2 augment",
        "code": "bias_lr_factor eval_crop",
        "ours": "milestones",
    },
    "alexnet-owt": {
        "paper": "loss batch_size optimizer momentum",
        "code": "epochs learning_rate schedule milestones decay_factor l2 bias_lr_factor augment eval_crop",
    },
    "googlenet-2014": {
        "paper": "optimizer momentum schedule decay_factor decay_every_epochs augment",
        "code": "epochs batch_size learning_rate l2 bias_lr_factor eval_crop",
        "ours": "ema",
    },
    "inception-v2": {
        "paper": "epochs batch_size optimizer learning_rate schedule decay_factor decay_every_epochs augment",
        "code": "l2",
        "ours": "momentum eval_crop",
    },
    "inception-v3": {
        "paper": "epochs batch_size learning_rate schedule decay_factor decay_every_epochs b2 epsilon clip_norm "
        "label_smoothing",
        "code": "optimizer momentum aux_weight ema l2 norm_momentum eval_crop normalisation model_fields augment",
    },
    "xception": {
        "paper": "optimizer momentum learning_rate schedule decay_factor decay_every_epochs l2",
        "ours": "epochs batch_size ema augment",
    },
    "he2015-imagenet": {
        "paper": "decay_factor epochs batch_size optimizer momentum learning_rate schedule l2 augment",
        "code": "eval_crop",
        "ours": "milestones decay_bias_and_norm",
    },
    "fb-resnet-torch": {
        "code": "decay_factor epochs batch_size optimizer momentum learning_rate schedule milestones l2 "
        "decay_bias_and_norm eval_crop interpolation augment",
    },
    "he2015-cifar": _HE_CIFAR,
    "he2015-cifar-110": {
        **_HE_CIFAR,
        "paper": f"{_HE_CIFAR['paper']} warmup warmup_lr_fraction warmup_epochs",
    },
    "he2016-cifar": {
        **_HE_CIFAR,
        "paper": f"{_HE_CIFAR['paper']} warmup warmup_lr_fraction warmup_epochs",
    },
    "wide-resnet": {
        "paper": "epochs batch_size optimizer momentum learning_rate schedule milestones decay_factor l2",
        "code": "augment decay_bias_and_norm",
    },
    "wide-resnet-svhn": {
        "paper": "decay_factor epochs batch_size optimizer momentum learning_rate schedule milestones model_fields l2",
        "code": "decay_bias_and_norm",
    },
    "highway": {
        "paper": "optimizer momentum schedule",
        "ours": "epochs batch_size learning_rate decay_factor decay_every_epochs",
    },
    "torchvision-v1": {
        "code": "decay_factor epochs batch_size optimizer momentum learning_rate schedule milestones l2 "
        "decay_bias_and_norm augment eval_crop",
    },
    "bag-of-tricks": {
        "paper": "epochs batch_size optimizer momentum learning_rate schedule warmup_epochs l2 label_smoothing "
        "eval_crop model_fields",
        "code": "augment",
    },
    "rsb-a1": {
        "paper": f"{_RSB} label_smoothing augment_repeats",
        "code": _RSB_CODE,
        "ours": "target_threshold",
    },
    "rsb-a2": {"paper": f"{_RSB} augment_repeats", "code": f"{_RSB_CODE} target_threshold"},
    "rsb-a3": {"paper": f"{_RSB} test_size", "code": f"{_RSB_CODE} target_threshold"},
    "torchvision-v2": {
        "code": "epochs batch_size image_size test_size optimizer momentum learning_rate schedule warmup_epochs "
        "warmup_lr_fraction l2 decay_bias label_smoothing ema ema_every ema_warmup augment_repeats eval_crop "
        "augment",
    },
}


#: Fields that matter although they have their default, by schedule and by optimiser.
_OF_SCHEDULES = {"step": ("milestones", "decay_factor"), "exponential": ("decay_factor", "decay_every_epochs")}
_OF_OPTIMIZERS = dict.fromkeys(("momentum", "nesterov", "rmsprop", "rmsprop-tf", "lars"), ("momentum",))


def settings_of(recipe: Recipe) -> dict[str, object]:
    """Return the fields of a recipe that need an origin: those that have an effect or differ from the defaults."""
    shown = {*MAIN_FIELDS, *_OF_SCHEDULES.get(recipe.schedule, ()), *_OF_OPTIMIZERS.get(recipe.optimizer, ())}
    fields = {name: getattr(recipe, name) for name in Recipe.__dataclass_fields__ if name != "source"}
    return {name: value for name, value in fields.items() if name in shown or value != getattr(Recipe, name)}
