"""Key maps of keras.applications: rules from module paths to the paths of Keras's weights.

Keras 3.15. A source key is the names of the layer and the weight, "conv1_conv/kernel", as in `weight.path`. Two
differences are declared in the maps: ResNet's convolutions have biases, which are folded into the norms (FOLDED_BIAS);
the norms of InceptionV3 and InceptionResNetV2 have no scale (ONES). Layers without a name of their own are numbered as
in a fresh session (`keras.backend.clear_session()`). Keras's classifiers end in softmax; the logits are its input.
"""

from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn

from zoo.models.branches import units
from zoo.models.inception_resnet_v2 import InceptionResNetV2
from zoo.models.inception_v3 import MEANS, STEM, InceptionV3, modules
from zoo.models.resnet import ResNet
from zoo.models.resnet_v2 import ResNetV2
from zoo.models.xception import Xception
from zoo.pretrained.convert import (
    BLOCK,
    FOLDED_BIAS,
    KERAS_DEPTHWISE,
    ONES,
    SAME,
    KeyMap,
    Rule,
    key_map_builder,
    rename_path,
    require_fields,
)
from zoo.pretrained.timm import INCEPTION_RESNET_V2
from zoo.trees import flatten

#: Source keys that do not affect the function: the random state of dropout layers.
IGNORED = (r".*/seed_generator_state",)

NAMES = {"kernel": "kernel", "scale": "gamma", "bias": "bias", "mean": "moving_mean", "var": "moving_variance"}


def keras_key_map(variables: Mapping, rules: Sequence[Rule]) -> dict:
    """Return the key map of a Keras network; its kernels have the same axes as here.

    Args:
        variables: variables of the model; may be abstract.
        rules: rules from the path of a module to the name of a Keras layer.
    """
    leaves = flatten(variables)
    norms = {path.split("/", 1)[1].removesuffix("/mean") for path in leaves if path.startswith("batch_stats/")}
    key_map = {}
    for path in leaves:
        module, _, name = path.split("/", 1)[1].rpartition("/")
        weight = "beta" if name == "bias" and module in norms else NAMES[name]
        key_map[path] = (f"{rename_path(module, rules)}/{weight}", SAME)
    return key_map


def _block(m) -> str:
    """Return Keras's name of a block; the stem is conv1, so the first stage is conv2."""
    return f"conv{int(m['stage']) + 1}_block{m['block']}"


RESNET: tuple[Rule, ...] = (
    (r"stem/conv", "conv1_conv"),
    (r"stem/norm", "conv1_bn"),
    (BLOCK + r"/conv(\d)/conv", lambda m: f"{_block(m)}_{m[3]}_conv"),
    (BLOCK + r"/conv(\d)/norm", lambda m: f"{_block(m)}_{m[3]}_bn"),
    (BLOCK + r"/shortcut/conv", lambda m: f"{_block(m)}_0_conv"),
    (BLOCK + r"/shortcut/norm", lambda m: f"{_block(m)}_0_bn"),
    (r"head", "predictions"),
)


def _resnet(model: ResNet, variables: Mapping) -> KeyMap:
    same = {
        "bottleneck": True, "widen": 1, "groups": 1, "squeeze": None, "eca": False, "norm": "batch",
        "stem": "imagenet", "stem_pool": "max", "shortcut": "conv", "stride_in": "1x1", "epsilon": 1.001e-5,
    }  # fmt: skip
    require_fields("keras", model, same)
    key_map = keras_key_map(variables, RESNET)
    for path, (mean, _) in key_map.items():
        if path.endswith("/norm/mean"):  # every norm follows a convolution, which has a bias in Keras
            conv = rename_path(path.removeprefix("batch_stats/").replace("/norm/mean", "/conv"), RESNET)
            key_map[path] = ((mean, f"{conv}/bias"), FOLDED_BIAS)
    return key_map


RESNET_V2: tuple[Rule, ...] = (
    (r"stem", "conv1_conv"),
    (BLOCK + r"/norm1", lambda m: f"{_block(m)}_preact_bn"),
    (BLOCK + r"/norm2", lambda m: f"{_block(m)}_1_bn"),
    (BLOCK + r"/norm3", lambda m: f"{_block(m)}_2_bn"),
    (BLOCK + r"/conv(\d)", lambda m: f"{_block(m)}_{m[3]}_conv"),
    (BLOCK + r"/shortcut", lambda m: f"{_block(m)}_0_conv"),
    (r"norm", "post_bn"),
    (r"head", "predictions"),
)


def _resnet_v2(model: ResNetV2, variables: Mapping) -> KeyMap:
    same = {
        "bottleneck": True, "norm": "batch", "stem": "imagenet", "stem_norm": False, "shortcut": "conv",
        "stride_in": "3x3", "stride_at": "last", "conv_bias": True, "pool_padding": "zeros", "epsilon": 1.001e-5,
    }  # fmt: skip
    require_fields("keras", model, same)
    return keras_key_map(variables, RESNET_V2)


def _numbered(layer: str, number: int) -> str:
    """Return the automatic name of the layer of this kind with number 0, 1, … after `clear_session`."""
    return layer if number == 0 else f"{layer}_{number}"


def _inception_v3(model: InceptionV3, variables: Mapping) -> KeyMap:
    same = {"stem": "imagenet", "aux_heads": False, "pool_padding": "nothing", "epsilon": 1e-3}
    require_fields("keras", model, same)
    tables = modules(model.blocks, MEANS[model.pool_padding])
    inner = [f"{name}/{unit.name}" for name, branches in tables.items() for unit in units(branches)]
    numbers = {path: number for number, path in enumerate((*STEM, *inner))}
    layers = {"conv": "conv2d", "norm": "batch_normalization"}
    rules: tuple[Rule, ...] = (
        (r"head", "predictions"),
        (r"(.*)/(conv|norm)", lambda m: _numbered(layers[m[2]], numbers[m[1]])),
    )
    key_map = keras_key_map(variables, rules)
    # The norms have no scale.
    return key_map | {path: ((), ONES) for path in key_map if path.endswith("/norm/scale")}


def _inception_resnet_v2(model: InceptionResNetV2, variables: Mapping) -> KeyMap:
    require_fields("keras", model, {"stem": "imagenet", "epsilon": 1e-3})
    blocks = {"inceptionresnetA": "block35", "inceptionresnetB": "block17", "inceptionresnetC": "block8"}
    counts = dict(zip(blocks, model.blocks, strict=True))
    units = [
        f"{name}{number}/{layer}"
        for name, layers in INCEPTION_RESNET_V2.items()
        for number in (range(1, counts[name] + 1) if name in counts else [""])
        for layer in layers
    ]
    rules: list[Rule] = [
        (r"conv7b/conv", "conv_7b"),
        (r"conv7b/norm", "conv_7b_bn"),
        (r"(inceptionresnet[ABC])(\d+)/expand", lambda m: f"{blocks[m[1]]}_{m[2]}_conv"),
        (r"head", "predictions"),
    ]
    numbers = {unit: number for number, unit in enumerate(units)}
    layers = {"conv": "conv2d", "norm": "batch_normalization"}
    rules.append((r"(.*)/(conv|norm)", lambda m: _numbered(layers[m[2]], numbers[m[1]])))
    key_map = keras_key_map(variables, rules)
    # The norms have no scale.
    return key_map | {path: ((), ONES) for path in key_map if path.endswith("/norm/scale")}


def _xception(model: Xception, variables: Mapping) -> KeyMap:
    require_fields("keras", model, {"stem": "imagenet", "pool_padding": "same", "epsilon": 1e-3})
    before = {"entry": 1, "middle": 4, "exit": 5 + model.blocks[0]}

    def block(m):
        return f"block{before[m[1]] + int(m[2] or 0)}"

    def shortcut(m):  # the only layers with automatic names: entry 1, 2, 3 and exit
        layer = {"conv": "conv2d", "norm": "batch_normalization"}[m[3]]
        return _numbered(layer, 3 if m[1] == "exit" else int(m[2]) - 1)

    rules: tuple[Rule, ...] = (
        (r"stem_conv(\d)/conv", r"block1_conv\1"),
        (r"stem_conv(\d)/norm", r"block1_conv\1_bn"),
        (r"(entry|middle|exit)_block(\d*)/(sepconv\d)/(?:depthwise|pointwise)", lambda m: f"{block(m)}_{m[3]}"),
        (r"(entry|middle|exit)_block(\d*)/(sepconv\d)/norm", lambda m: f"{block(m)}_{m[3]}_bn"),
        (r"(entry|middle|exit)_block(\d*)/shortcut/(conv|norm)", shortcut),
        (r"exit_(sepconv\d)/(?:depthwise|pointwise)", lambda m: f"block{before['exit'] + 1}_{m[1]}"),
        (r"exit_(sepconv\d)/norm", lambda m: f"block{before['exit'] + 1}_{m[1]}_bn"),
        (r"head", "predictions"),
    )
    key_map = keras_key_map(variables, rules)
    for path, (key, layout) in key_map.items():
        for kind, kind_layout in (("depthwise", KERAS_DEPTHWISE), ("pointwise", layout)):
            if path.endswith(f"/{kind}/kernel"):
                key_map[path] = (key.replace("/kernel", f"/{kind}_kernel"), kind_layout)
    return key_map


MAPS: dict[type[nn.Module], Callable[..., KeyMap]] = {
    ResNet: _resnet,
    ResNetV2: _resnet_v2,
    InceptionV3: _inception_v3,
    InceptionResNetV2: _inception_resnet_v2,
    Xception: _xception,
}


def key_map(model: nn.Module, variables: Mapping) -> KeyMap:
    """Return the key map of a model.

    Args:
        model: the model.
        variables: its variables; may be abstract.

    Raises:
        ValueError: if Keras does not have the model in this form.
    """
    return key_map_builder("keras", MAPS, model)(model, variables)
