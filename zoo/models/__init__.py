"""The table of models, and functions that work on all of them.

To add a model, write one file, import its class below and add a row to MODELS. In tests/models/test_contract.py add its
published number of parameters and a small instance; the contract suite then covers it. `python -m zoo.models.summary`
adds its totals to figures.json, so that `zoo list` need not trace it.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, TypeVar, cast, get_args, get_origin

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.arguments import check_types
from zoo.models.airbench import Airbench
from zoo.models.alexnet import AlexNet, AlexNetOWT
from zoo.models.bit import BIT50, BIT101, BIT152, BiT
from zoo.models.googlenet import GoogLeNet, GoogLeNetBN
from zoo.models.highway import ConvHighway, Highway
from zoo.models.inception_resnet_v1 import InceptionResNetV1
from zoo.models.inception_resnet_v2 import InceptionResNetV2
from zoo.models.inception_v2 import InceptionV2
from zoo.models.inception_v3 import InceptionV3
from zoo.models.inception_v4 import InceptionV4
from zoo.models.lenet import LeNet1, LeNet4, LeNet5, LeNet51998
from zoo.models.mlp import MLP
from zoo.models.protocol import ImageClassifier
from zoo.models.resnet import RESNET18, RESNET34, RESNET50, RESNET101, RESNET152, RESNET_RS, ResNet, cifar
from zoo.models.resnet9 import ResNet9
from zoo.models.resnet_v2 import (
    RESNET18_V2,
    RESNET34_V2,
    RESNET50_V2,
    RESNET101_V2,
    RESNET152_V2,
    RESNET200_V2,
    ResNetV2,
    cifar_v2,
)
from zoo.models.wide_resnet import WideResNet
from zoo.models.xception import Xception
from zoo.suggest import did_you_mean
from zoo.text import is_finite

_RESNET_D: dict[str, Any] = {"stem": "deep", "shortcut": "pool"}
_SE_BASIC: dict[str, Any] = {"squeeze": 16, "squeeze_multiple": 8}
_RS: dict[str, Any] = {**_RESNET_D, "stem_pool": "conv", "squeeze": 4}

MODELS: dict[str, Callable[..., ImageClassifier]] = {
    "softmax": partial(MLP, widths=()),
    "mlp": MLP,
    "lenet1": LeNet1,
    "lenet4": LeNet4,
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
    "inception_resnet_v1": InceptionResNetV1,
    "inception_resnet_v1_small": partial(InceptionResNetV1, stem="small", width=0.2, num_classes=10),
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
    "resnet18_v2": partial(ResNetV2, **RESNET18_V2),
    "resnet34_v2": partial(ResNetV2, **RESNET34_V2),
    "resnet50_v2": partial(ResNetV2, **RESNET50_V2),
    "resnet101_v2": partial(ResNetV2, **RESNET101_V2),
    "resnet152_v2": partial(ResNetV2, **RESNET152_V2),
    "resnet200_v2": partial(ResNetV2, **RESNET200_V2),
    "resnet50c": partial(ResNet, **RESNET50, stem="deep"),
    "resnet101c": partial(ResNet, **RESNET101, stem="deep"),
    "resnet152c": partial(ResNet, **RESNET152, stem="deep"),
    "resnet50d": partial(ResNet, **RESNET50, stem="deep", shortcut="pool"),
    "resnet50_gn": partial(ResNet, **RESNET50, norm="group"),
    "resnext50_32x4d": partial(ResNet, **RESNET50, groups=32, widen=2),
    "resnext101_32x8d": partial(ResNet, **RESNET101, groups=32, widen=4),
    "resnext101_64x4d": partial(ResNet, **RESNET101, groups=64, widen=4),
    "wide_resnet50_2": partial(ResNet, **RESNET50, widen=2),
    "wide_resnet101_2": partial(ResNet, **RESNET101, widen=2),
    "se_resnet18": partial(ResNet, **RESNET18, **_SE_BASIC),
    "se_resnet34": partial(ResNet, **RESNET34, **_SE_BASIC),
    "se_resnet50": partial(ResNet, **RESNET50, squeeze=16),
    "se_resnet101": partial(ResNet, **RESNET101, squeeze=16),
    "se_resnet152": partial(ResNet, **RESNET152, squeeze=16),
    "se_resnext50_32x4d": partial(ResNet, **RESNET50, groups=32, widen=2, squeeze=16),
    "se_resnext101_32x4d": partial(ResNet, **RESNET101, groups=32, widen=2, squeeze=16),
    "eca_resnet50": partial(ResNet, **RESNET50, eca=True),
    "eca_resnet50d": partial(ResNet, **RESNET50, **_RESNET_D, eca=True),
    "eca_resnet101d": partial(ResNet, **RESNET101, **_RESNET_D, eca=True),
    "eca_resnet269d": partial(ResNet, blocks=(3, 30, 48, 8), **_RESNET_D, eca=True),
    **{f"resnet_rs{depth}": partial(ResNet, blocks=blocks, **_RS) for depth, blocks in RESNET_RS.items()},
    "bit_r50x1": partial(BiT, **BIT50),
    "bit_r50x3": partial(BiT, **BIT50, widen=3),
    "bit_r101x1": partial(BiT, **BIT101),
    "bit_r101x3": partial(BiT, **BIT101, widen=3),
    "bit_r152x2": partial(BiT, **BIT152, widen=2),
    "bit_r152x4": partial(BiT, **BIT152, widen=4),
    "resnet18_small": partial(ResNet, **RESNET18, stem="small", num_classes=10),
    "resnet34_small": partial(ResNet, **RESNET34, stem="small", num_classes=10),
    "resnet50_small": partial(ResNet, **RESNET50, stem="small", num_classes=10),
    "resnet50_v1_small": partial(ResNet, **RESNET50, stride_in="1x1", stem="small", num_classes=10),
    "resnet18_v2_small": partial(ResNetV2, **RESNET18_V2, stem="small", num_classes=10),
    "resnet50_v2_small": partial(ResNetV2, **RESNET50_V2, stem="small", num_classes=10),
    "resnet50d_small": partial(ResNet, **RESNET50, shortcut="pool", stem="small", num_classes=10),
    "resnext50_32x4d_small": partial(ResNet, **RESNET50, groups=32, widen=2, stem="small", num_classes=10),
    "wide_resnet50_2_small": partial(ResNet, **RESNET50, widen=2, stem="small", num_classes=10),
    "se_resnet50_small": partial(ResNet, **RESNET50, squeeze=16, stem="small", num_classes=10),
    "bit_r50x1_small": partial(BiT, **BIT50, stem="small", num_classes=10),
    "airbench": Airbench,
    "resnet9": ResNet9,
    "resnet20": partial(ResNet, **cifar(20)),
    "resnet32": partial(ResNet, **cifar(32)),
    "resnet44": partial(ResNet, **cifar(44)),
    "resnet56": partial(ResNet, **cifar(56)),
    "resnet110": partial(ResNet, **cifar(110)),
    "resnet1202": partial(ResNet, **cifar(1202)),
    "resnet164": partial(ResNetV2, **cifar_v2(164)),
    "resnet1001": partial(ResNetV2, **cifar_v2(1001)),
    "wide_resnet16_8": partial(WideResNet, depth=16, widen=8),
    "wide_resnet28_10": partial(WideResNet, depth=28, widen=10),
    "wide_resnet40_4": partial(WideResNet, depth=40, widen=4),
    "highway": Highway,
    "highway_conv": ConvHighway,
}

#: Fields that control how a model is run, not which function it computes. They are never written into a card.
RUNTIME_FIELDS = ("axis_name", "dtype", "remat")
_LINEN_FIELDS = ("parent", "name")

M = TypeVar("M", bound=ImageClassifier)

#: Words in the names of fields that are probabilities.
_PROBABILITIES = ("dropout", "rate", "stochastic_depth")
#: Integer fields that may be 0: a network or a stage without layers, and the width of square images.
_MAY_BE_ZERO = ("layers", "blocks", "image_width")
#: Highest seed: without 64-bit types JAX drops the higher bits of one, so that two seeds would give the same network.
_MAX_SEED = 2**32 - 1


@check_types()
def create(name: str, **fields: Any) -> nn.Module:
    """Create a model by name.

    Args:
        name: a key of MODELS.
        **fields: fields of the model that differ from the entry in MODELS. Lists become tuples.

    Returns:
        A `flax.linen` module that satisfies `zoo.models.protocol.ImageClassifier`.

    Raises:
        ValueError: for an unknown model or field, naming similar ones, or a field value of the wrong type or range.

    Example:
        >>> model = create("lenet5", num_classes=26)
    """
    if name not in MODELS:
        hint = did_you_mean(name, MODELS) or "`zoo list` lists all models"
        if not re.fullmatch(r"\w*", name):  # of checkpoints, such as "resnet20-cifar10"
            stop = "" if hint.endswith("?") else "."
            hint += f"{stop} A checkpoint is read with `zoo train --init {name}` or zoo.load({name!r})"
        raise ValueError(f"unknown model {name!r}; {hint}")
    defaults = MODELS[name]()
    known = {field.name: field.type for field in dataclasses.fields(defaults) if field.name not in _LINEN_FIELDS}
    for field, value in fields.items():
        if field not in known:
            hint = did_you_mean(field, known) or f"its fields are {', '.join(known)}"
            raise ValueError(f"{name} has no field {field!r}; {hint}")
        _check_field(name, field, known[field], value)
    # JSON has lists, but a hashable dataclass needs tuples.
    hashable = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return cast(nn.Module, MODELS[name](**hashable))


def _check_field(model: str, field: str, kind: Any, value: Any) -> None:
    """Raise ValueError unless `value` has the type, the length and the range of the field."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    lowest, sign = (0, "non-negative") if field in _MAY_BE_ZERO else (1, "positive")
    valid, expected = True, ""
    if kind == int | None:
        valid, expected = value is None or _is_count(value, lowest), f"a {sign} integer or None"
    elif kind is bool:
        valid, expected = isinstance(value, bool), "True or False"
    elif kind is int:
        valid, expected = _is_count(value, lowest), f"a {sign} integer"
    elif kind is float and any(word in field for word in _PROBABILITIES):
        valid, expected = number and 0 <= value < 1, "a number in [0, 1)"
    elif kind is float and field == "width":
        valid, expected = number and is_finite(value) and value > 0, "a positive number"
    elif kind is float and field == "epsilon":
        valid, expected = number and is_finite(value) and value >= 0, "a non-negative number"
    elif kind is float:
        valid, expected = number and is_finite(value), "a finite number"
    elif get_origin(kind) is tuple:
        length = None if get_args(kind)[-1] is Ellipsis else len(get_args(kind))
        valid = isinstance(value, (tuple, list)) and all(_is_count(each, lowest) for each in value)
        valid = valid and length in (None, len(value))
        expected = f"a list of {'' if length is None else f'{length} '}{sign} integer{'' if length == 1 else 's'}"
    elif kind is str:
        valid, expected = isinstance(value, str), "a string"
    if not valid:
        raise ValueError(f"{model}: {field}={value!r} is not {expected}")


def _is_count(value: Any, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


@check_types("model")
def init(
    model: ImageClassifier,
    key: jax.Array | np.ndarray | int,
    image_shape: tuple[int, int, int] | None = None,
    shardings: Any = None,
) -> dict:
    """Initialise the variables of a model.

    Args:
        model: a model of this package.
        key: a JAX random key, or a seed from 0 to 2**32 - 1.
        image_shape: [H, W, C] of the images; None for the native shape of the model.
        shardings: tree of the shardings of the variables; None for one device. No device then computes more than its
            part.

    Returns:
        The variables, a dict of "params" and "batch_stats"; the latter is empty for models without batch norm.
    """
    if isinstance(model, str):
        raise ValueError(f"init: {model!r} is a name; write zoo.init(zoo.create({model!r}, num_classes=10), {key!r})")
    if not isinstance(model, nn.Module):
        raise ValueError(f"init: model has type {type(model).__name__}; it takes a network made by zoo.create")
    if isinstance(key, int):
        if not 0 <= key <= _MAX_SEED:
            raise ValueError(f"init: key={key} must be from 0 to {_MAX_SEED}")
        key = jax.random.key(key)
    elif not _is_key(key):
        raise ValueError(f"init: key is {key.dtype}{list(key.shape)}; give a seed, such as 0, or jax.random.key(0)")
    shape = cast("tuple[int, int, int] | None", image_shape and tuple(image_shape))
    if shardings is not None:
        leaves, structure = jax.tree.flatten(shardings)
        return _sharded_init(model, shape, tuple(leaves), structure)(key)
    if isinstance(key, jax.core.Tracer):  # inside jit or vmap, where compiler options are refused
        return _init(model, key, shape)
    return _jit_init(model, key, shape)


def _is_key(value: jax.Array | np.ndarray) -> bool:
    """Return True for one random key, typed or raw. The shape of raw keys depends on the default generator of JAX."""
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value.shape == ()
    raw = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    return (value.shape, value.dtype) == (raw.shape, raw.dtype)


def abstract_variables(model: ImageClassifier, image_shape: tuple[int, int, int] | None = None) -> dict:
    """Return the tree of `init` with `jax.ShapeDtypeStruct` leaves, without computing anything."""
    return jax.tree.map(lambda leaf: leaf, _abstract_variables(model, image_shape and tuple(image_shape)))


@lru_cache(maxsize=64)
def _abstract_variables(model: ImageClassifier, image_shape: tuple[int, int, int] | None) -> dict:
    """Cache the trees: tracing a deep network takes seconds, and loading a checkpoint needs its tree several times."""
    return jax.eval_shape(lambda: _init(model, jax.random.key(0), image_shape))


def _init(model: ImageClassifier, key: jax.Array, image_shape: tuple[int, int, int] | None = None) -> dict:
    variables = model.init(key, jnp.zeros((1, *(image_shape or model.input_shape))), train=False)
    return {"params": variables.get("params", {}), "batch_stats": variables.get("batch_stats", {})}


# Most of the time goes into compiling one random draw for each leaf; without optimisation that is six times faster.
_UNOPTIMISED = {"xla_backend_optimization_level": 0}
_jit_init = jax.jit(_init, static_argnums=(0, 2), compiler_options=_UNOPTIMISED)


@lru_cache(maxsize=4)
def _sharded_init(model: ImageClassifier, image_shape: Any, leaves: tuple, structure: Any) -> Any:
    placed = jax.tree.unflatten(structure, leaves)
    function = partial(_init, model, image_shape=image_shape)
    return jax.jit(function, out_shardings=placed, compiler_options=_UNOPTIMISED)


def count_parameters(variables: Mapping) -> int:
    """Return the number of trainable parameters: the sizes of all leaves under "params"."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def defining_fields(model: ImageClassifier) -> dict[str, Any]:
    """Return the fields that determine the function, which a card stores beside the name of the model."""
    skipped = (*RUNTIME_FIELDS, *_LINEN_FIELDS)
    return {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in skipped}


def card_fields(name: str, model: ImageClassifier) -> dict[str, Any]:
    """Return the defining fields as cards and run configurations state them.

    Fields that a class got after its first cards (`added_fields`) are left out where they have the value of the entry
    `name` of MODELS, so that cards stay the same to the byte and `create` rebuilds the same function.
    """
    defaults = defining_fields(MODELS[name]())
    added = getattr(model, "added_fields", ())
    fields = defining_fields(model)
    return {key: value for key, value in fields.items() if key not in added or value != defaults[key]}


def runtime_fields(model: ImageClassifier) -> dict[str, Any]:
    """Return those of RUNTIME_FIELDS that the model has."""
    return {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name in RUNTIME_FIELDS}


def name_of(model: ImageClassifier) -> str:
    """Return the key of MODELS whose entry shares the most defining fields with a model.

    A card stores every defining field beside the name, so any entry of the same class rebuilds the same function.

    Raises:
        ValueError: if MODELS has no entry of this class.
    """
    fields = defining_fields(model)
    entries = {name: build() for name, build in MODELS.items()}
    candidates = [name for name, entry in entries.items() if type(entry) is type(model)]
    if not candidates:
        raise ValueError(f"{type(model).__name__} is not a model of this zoo; `zoo list` lists all models")
    return max(candidates, key=lambda name: sum(defining_fields(entries[name])[key] == fields[key] for key in fields))


def with_runtime(model: M, **fields: Any) -> M:
    """Return a copy of the model that computes the same function with other runtime fields.

    Args:
        model: a model of this package.
        **fields: values for RUNTIME_FIELDS; those that the model does not have are ignored.
    """
    return model.clone(**{key: value for key, value in fields.items() if key in runtime_fields(model)})
