"""MODELS: every network by its public name, and what can be done with any of them.

Adding a model is one file here and one line in MODELS; the tests then ask of it what they ask of all.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.models.alexnet import AlexNet, AlexNetOWT
from zoo.models.googlenet import GoogLeNet, GoogLeNetBN
from zoo.models.highway import ConvHighway, Highway
from zoo.models.inception_resnet_v2 import InceptionResNetV2
from zoo.models.inception_v2 import InceptionV2
from zoo.models.inception_v3 import InceptionV3
from zoo.models.inception_v4 import InceptionV4
from zoo.models.lenet import LeNet5, LeNet51998
from zoo.models.mlp import MLP
from zoo.models.resnet import RESNET18, RESNET34, RESNET50, RESNET101, RESNET152, ResNet, cifar
from zoo.models.resnet_v2 import RESNET50_V2, RESNET101_V2, RESNET152_V2, ResNetV2
from zoo.models.wide_resnet import WideResNet
from zoo.models.xception import Xception

MODELS: dict[str, Callable[..., nn.Module]] = {
    "softmax": partial(MLP, widths=()),
    "mlp": MLP,
    "lenet5": LeNet5,
    "lenet5_1998": LeNet51998,
    "alexnet": AlexNet,
    "alexnet_small": partial(AlexNet, stem="small", width=0.5, image_size=32, num_classes=10),
    "alexnet_owt": AlexNetOWT,
    "alexnet_owt_small": partial(AlexNetOWT, stem="small", width=0.5, pool_size=3, num_classes=10),
    "googlenet": GoogLeNet,
    "googlenet_small": partial(GoogLeNet, stem="small", width=0.5, num_classes=10),
    "googlenet_bn": GoogLeNetBN,
    "googlenet_bn_small": partial(GoogLeNetBN, stem="small", width=0.5, num_classes=10),
    "inception_v2": InceptionV2,
    "inception_v2_small": partial(InceptionV2, stem="small", width=0.375, num_classes=10),
    "inception_v3": InceptionV3,
    "inception_v3_small": partial(InceptionV3, stem="small", width=0.375, num_classes=10),
    "inception_v4": InceptionV4,
    "inception_v4_small": partial(InceptionV4, stem="small", width=0.2, num_classes=10),
    "inception_resnet_v2": InceptionResNetV2,
    "inception_resnet_v2_small": partial(InceptionResNetV2, stem="small", width=0.2, num_classes=10),
    "xception": Xception,
    "xception_small": partial(Xception, stem="small", width=0.5, num_classes=10),
    "resnet18": partial(ResNet, **RESNET18),
    "resnet34": partial(ResNet, **RESNET34),
    "resnet50": partial(ResNet, **RESNET50),
    "resnet101": partial(ResNet, **RESNET101),
    "resnet152": partial(ResNet, **RESNET152),
    "resnet50_v1": partial(ResNet, **RESNET50, stride_in="1x1"),
    "resnet101_v1": partial(ResNet, **RESNET101, stride_in="1x1"),
    "resnet152_v1": partial(ResNet, **RESNET152, stride_in="1x1"),
    "resnet50_v2": partial(ResNetV2, **RESNET50_V2),
    "resnet101_v2": partial(ResNetV2, **RESNET101_V2),
    "resnet152_v2": partial(ResNetV2, **RESNET152_V2),
    "resnet50d": partial(ResNet, **RESNET50, stem="deep", shortcut="pool"),
    "resnext50_32x4d": partial(ResNet, **RESNET50, groups=32, widen=2),
    "resnext101_32x8d": partial(ResNet, **RESNET101, groups=32, widen=4),
    "resnext101_64x4d": partial(ResNet, **RESNET101, groups=64, widen=4),
    "wide_resnet50_2": partial(ResNet, **RESNET50, widen=2),
    "wide_resnet101_2": partial(ResNet, **RESNET101, widen=2),
    "se_resnet50": partial(ResNet, **RESNET50, squeeze=16),
    "resnet18_small": partial(ResNet, **RESNET18, stem="small", num_classes=10),
    "resnet34_small": partial(ResNet, **RESNET34, stem="small", num_classes=10),
    "resnet50_small": partial(ResNet, **RESNET50, stem="small", num_classes=10),
    "resnet50_v1_small": partial(ResNet, **RESNET50, stride_in="1x1", stem="small", num_classes=10),
    "resnet50_v2_small": partial(ResNetV2, **RESNET50_V2, stem="small", num_classes=10),
    "resnet50d_small": partial(ResNet, **RESNET50, shortcut="pool", stem="small", num_classes=10),
    "resnext50_32x4d_small": partial(ResNet, **RESNET50, groups=32, widen=2, stem="small", num_classes=10),
    "wide_resnet50_2_small": partial(ResNet, **RESNET50, widen=2, stem="small", num_classes=10),
    "se_resnet50_small": partial(ResNet, **RESNET50, squeeze=16, stem="small", num_classes=10),
    "resnet20": partial(ResNet, **cifar(20)),
    "resnet32": partial(ResNet, **cifar(32)),
    "resnet44": partial(ResNet, **cifar(44)),
    "resnet56": partial(ResNet, **cifar(56)),
    "resnet110": partial(ResNet, **cifar(110)),
    "resnet1202": partial(ResNet, **cifar(1202)),
    "wide_resnet16_8": partial(WideResNet, depth=16, widen=8),
    "wide_resnet28_10": partial(WideResNet, depth=28, widen=10),
    "wide_resnet40_4": partial(WideResNet, depth=40, widen=4),
    "highway": Highway,
    "highway_conv": ConvHighway,
}

#: Fields that say how a model is run, not what it is: they never go into a card.
RUNTIME_FIELDS = ("axis_name", "dtype", "remat")
_LINEN_FIELDS = ("parent", "name")


def create(name: str, **fields: Any) -> nn.Module:
    """The model `name` of MODELS with some of its fields changed, e.g. create("lenet5", num_classes=26).

    Raises ValueError naming the nearest models for an unknown name, and the fields there are for an unknown field.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "`zoo list` shows them all"
        raise ValueError(f"no model is called {name!r}; {hint}")
    known = [*defining_fields(MODELS[name]()), *runtime_fields(MODELS[name]())]
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean {near[0]}?" if near else ""
            raise ValueError(f"{name} has no field {field!r}; {hint or 'its fields are ' + ', '.join(known)}")
    defaults = MODELS[name]()
    for field, value in fields.items():
        _check_field(f"{name}: {field}", getattr(defaults, field), value)
    # JSON has lists where a hashable dataclass needs tuples.
    return MODELS[name](**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


def _check_field(what: str, default: Any, value: Any) -> None:
    """ValueError unless `value` is of the kind of the default: counts from 0 on, rates (dropout, …) below 1."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if what.endswith("num_classes"):
        good, wanted = value is None or (isinstance(value, int) and value > 0), "a number of classes, or None"
    elif isinstance(default, bool):
        good, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        good, wanted = isinstance(value, int) and number and value >= 0, "a whole number from 0 on"
    elif isinstance(default, float):
        rate = any(word in what for word in ("dropout", "rate", "stochastic_depth"))
        good, wanted = (
            number and (0 <= value < 1 if rate else math.isfinite(value)),
            "in [0, 1)" if rate else "a number",
        )
    elif isinstance(default, tuple):
        whole = isinstance(value, (tuple, list)) and all(isinstance(v, int) and v >= 0 for v in value)
        good, wanted = whole, "whole numbers from 0 on"
    elif isinstance(default, str):
        good, wanted = isinstance(value, str), "a word"
    else:
        return
    if not good:
        raise ValueError(f"{what}={value!r}: should be {wanted}")


def init(model: nn.Module, key: jax.Array | int, image_shape: tuple[int, int, int] | None = None) -> dict:
    """Fresh variables {"params": …, "batch_stats": …} for images [H, W, C] (the model's native shape by default)."""
    key = jax.random.key(key) if isinstance(key, int) else key
    return _init(model, key, image_shape and tuple(image_shape))


def abstract_variables(model: nn.Module, image_shape: tuple[int, int, int] | None = None) -> dict:
    """The variables' shapes and dtypes, without computing anything."""
    return jax.tree.map(lambda leaf: leaf, _abstract_variables(model, image_shape and tuple(image_shape)))


@lru_cache(maxsize=64)
def _abstract_variables(model: nn.Module, image_shape: tuple[int, int, int] | None) -> dict:
    """Tracing a deep network takes seconds, and loading one asks for this several times."""
    return jax.eval_shape(partial(_fresh, model, image_shape=image_shape), jax.random.key(0))


def _fresh(model: nn.Module, key: jax.Array, image_shape: tuple[int, int, int] | None = None) -> dict:
    variables = model.init(key, jnp.zeros((1, *(image_shape or model.input_shape))), train=False)
    return {"params": variables.get("params", {}), "batch_stats": variables.get("batch_stats", {})}


# It runs once or twice, so what it costs is compiling a random draw per leaf: six times less without optimisation.
_init = jax.jit(_fresh, static_argnums=(0, 2), compiler_options={"xla_backend_optimization_level": 0})


def count_parameters(variables: Mapping) -> int:
    """Trainable parameters: everything under "params", nothing else."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def defining_fields(model: nn.Module) -> dict[str, Any]:
    """The fields that define the function: what a card holds beside the name."""
    skipped = (*RUNTIME_FIELDS, *_LINEN_FIELDS)
    return {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in skipped}


def runtime_fields(model: nn.Module) -> dict[str, Any]:
    """The fields that say how it is run; a model has only those that mean something for it."""
    return {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name in RUNTIME_FIELDS}


def name_of(model: nn.Module) -> str:
    """The name of MODELS whose defining fields are nearest to this model's; ValueError for a class that is not there.

    A card holds every defining field beside the name, so any entry of the same class rebuilds the same function.
    """
    fields = defining_fields(model)
    entries = {name: build() for name, build in MODELS.items()}
    kin = [name for name, entry in entries.items() if type(entry) is type(model)]
    if not kin:
        raise ValueError(f"{type(model).__name__} is not a model of this zoo; `zoo.MODELS` has them all")
    return max(kin, key=lambda name: sum(defining_fields(entries[name])[key] == fields[key] for key in fields))


def with_runtime(model: nn.Module, **fields: Any) -> nn.Module:
    """The same function run another way (axis_name, dtype, remat); what the model does not have is left out."""
    return model.clone(**{key: value for key, value in fields.items() if key in runtime_fields(model)})
