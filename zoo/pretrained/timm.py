"""Key maps of timm's networks: rules from module paths to the keys of its state dicts.

timm 1.0.31. Its squeeze-and-excitation layers are 1x1 convolutions; here they are dense layers. Its efficient channel
attention has a kernel of three axes; here it has one.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn

from zoo.models.bit import BiT
from zoo.models.inception_resnet_v2 import InceptionResNetV2
from zoo.models.inception_v3 import InceptionV3
from zoo.models.inception_v4 import InceptionV4
from zoo.models.resnet import ResNet
from zoo.models.resnet_v2 import ResNetV2
from zoo.models.xception import Xception
from zoo.pretrained.convert import (
    BLOCK,
    CONV_AS_DENSE,
    TORCH_IGNORED,
    KeyMap,
    Rule,
    key_map_builder,
    require_fields,
    torch_key_map,
)
from zoo.pretrained.torchvision import INCEPTION_V3, RESNET, resnet_block

#: Source keys that do not affect the function.
IGNORED = TORCH_IGNORED

CHANNEL_ATTENTION: tuple[Rule, ...] = (
    (BLOCK + r"/se/reduce", lambda m: f"{resnet_block(m)}.se.fc1"),
    (BLOCK + r"/se/expand", lambda m: f"{resnet_block(m)}.se.fc2"),
    (BLOCK + r"/eca", lambda m: f"{resnet_block(m)}.se.conv"),
)
# conv1 is a sequence of layers (convolution, norm, ReLU, …); its last norm is called bn1, as in the plain stem.
DEEP_STEM: tuple[Rule, ...] = (
    (r"stem/conv1/conv", "conv1.0"),
    (r"stem/conv1/norm", "conv1.1"),
    (r"stem/conv2/conv", "conv1.3"),
    (r"stem/conv2/norm", "conv1.4"),
    (r"stem/conv3/conv", "conv1.6"),
    (r"stem/conv3/norm", "bn1"),
)
# Pooling by a convolution is a sequence of convolution, norm and ReLU.
POOLING_CONV: tuple[Rule, ...] = (
    (r"stem_pool/conv", "maxpool.0"),
    (r"stem_pool/norm", "maxpool.1"),
)
# The pooling is the first layer of the sequence.
POOLED_SHORTCUT: tuple[Rule, ...] = (
    (BLOCK + r"/shortcut/conv", lambda m: f"{resnet_block(m)}.downsample.1"),
    (BLOCK + r"/shortcut/norm", lambda m: f"{resnet_block(m)}.downsample.2"),
)


# The SE-ResNets that their authors released for Caffe, as timm's older module names them.
RELEASED_SE_RESNET: tuple[Rule, ...] = (
    (r"stem/conv", "layer0.conv1"),
    (r"stem/norm", "layer0.bn1"),
    (BLOCK + r"/se/reduce", lambda m: f"{resnet_block(m)}.se_module.fc1"),
    (BLOCK + r"/se/expand", lambda m: f"{resnet_block(m)}.se_module.fc2"),
    *RESNET[2:-1],
    (r"head", "last_linear"),
)


def _resnet(model: ResNet, variables: Mapping) -> KeyMap:
    if model.stem_pool == "ceil":
        return _released_se_resnet(model, variables)
    require_fields("timm", model, {"stride_in": "3x3", "epsilon": 1e-5})
    if model.stem == "small" or model.shortcut == "pad":
        raise ValueError("timm has no ResNet for small images; its stems divide the image by 4")
    pooled = POOLED_SHORTCUT if model.shortcut == "pool" else ()
    rules = (*CHANNEL_ATTENTION, *DEEP_STEM, *POOLING_CONV, *pooled, *RESNET)
    return torch_key_map(variables, rules, {r".*/se/(reduce|expand)/kernel": CONV_AS_DENSE})


def _released_se_resnet(model: ResNet, variables: Mapping) -> KeyMap:
    if model.squeeze is None:
        raise ValueError("timm has networks with stem_pool='ceil' with squeeze-and-excitation only")
    same = {
        "bottleneck": True, "eca": False, "norm": "batch", "stem": "imagenet", "shortcut": "conv",
        "stride_in": "1x1" if model.groups == 1 else "3x3", "epsilon": 1e-5,
    }  # fmt: skip
    require_fields("timm", model, same)
    return torch_key_map(variables, RELEASED_SE_RESNET, {r".*/se/(reduce|expand)/kernel": CONV_AS_DENSE})


def _stage(m) -> str:
    """Return timm's name of a block; it counts stages and blocks from 0."""
    return f"stages.{int(m['stage']) - 1}.blocks.{int(m['block']) - 1}"


RESNET_V2: tuple[Rule, ...] = (
    (r"stem", "stem.conv"),
    (r"stem/((?:conv|norm)\d)", r"stem.\1"),
    (BLOCK + r"/((?:conv|norm)\d)", lambda m: f"{_stage(m)}.{m[3]}"),
    (BLOCK + r"/shortcut", lambda m: f"{_stage(m)}.downsample.conv"),
    (r"norm", "norm"),
    (r"head", "head.fc"),
)


def _resnet_v2(model: ResNetV2, variables: Mapping) -> KeyMap:
    same = {
        "stem_norm": False, "stride_in": "3x3", "stride_at": "first", "conv_bias": False, "pool_padding": "nothing",
        "epsilon": 1e-5,
    }  # fmt: skip
    if model.stem == "small":
        raise ValueError("timm has no ResNetV2 for small images; its stems divide the image by 4")
    require_fields("timm", model, same)
    return torch_key_map(variables, RESNET_V2, {"head/kernel": CONV_AS_DENSE})


def _bit(model: BiT, variables: Mapping) -> KeyMap:
    require_fields("timm", model, {"stem": "imagenet", "epsilon": 1e-5})
    return torch_key_map(variables, RESNET_V2, {"head/kernel": CONV_AS_DENSE})


def _inception_v3(model: InceptionV3, variables: Mapping) -> KeyMap:
    require_fields("timm", model, {"stem": "imagenet", "pool_padding": "zeros", "epsilon": 1e-3})
    return torch_key_map(variables, INCEPTION_V3)


# Per block: name of the layer here and in timm.
INCEPTION_V4: dict[str, dict[str, str]] = {
    "stem": {
        "conv1": "0", "conv2": "1", "conv3": "2", "mixed3a_conv": "3.conv",
        "mixed4a_branch3x3_1": "4.branch0.0", "mixed4a_branch3x3_2": "4.branch0.1",
        "mixed4a_branch7x7_1": "4.branch1.0", "mixed4a_branch7x7_2": "4.branch1.1",
        "mixed4a_branch7x7_3": "4.branch1.2", "mixed4a_branch7x7_4": "4.branch1.3", "mixed5a_conv": "5.conv",
    },
    "inceptionA": {
        "branch1x1": "branch0", "branch3x3_1": "branch1.0", "branch3x3_2": "branch1.1",
        "branch3x3dbl_1": "branch2.0", "branch3x3dbl_2": "branch2.1", "branch3x3dbl_3": "branch2.2",
        "branch_pool": "branch3.1",
    },
    "reductionA": {
        "branch3x3": "branch0",
        "branch3x3dbl_1": "branch1.0", "branch3x3dbl_2": "branch1.1", "branch3x3dbl_3": "branch1.2",
    },
    "inceptionB": {
        "branch1x1": "branch0", "branch7x7_1": "branch1.0", "branch7x7_2": "branch1.1", "branch7x7_3": "branch1.2",
        "branch7x7dbl_1": "branch2.0", "branch7x7dbl_2": "branch2.1", "branch7x7dbl_3": "branch2.2",
        "branch7x7dbl_4": "branch2.3", "branch7x7dbl_5": "branch2.4", "branch_pool": "branch3.1",
    },
    "reductionB": {
        "branch3x3_1": "branch0.0", "branch3x3_2": "branch0.1", "branch7x7x3_1": "branch1.0",
        "branch7x7x3_2": "branch1.1", "branch7x7x3_3": "branch1.2", "branch7x7x3_4": "branch1.3",
    },
    "inceptionC": {
        "branch1x1": "branch0", "branch3x3_1": "branch1_0", "branch3x3_2a": "branch1_1a", "branch3x3_2b": "branch1_1b",
        "branch3x3dbl_1": "branch2_0", "branch3x3dbl_2": "branch2_1", "branch3x3dbl_3": "branch2_2",
        "branch3x3dbl_4a": "branch2_3a", "branch3x3dbl_4b": "branch2_3b", "branch_pool": "branch3.1",
    },
}  # fmt: skip
# In the order of the network, which is the order in which Keras numbers its layers.
INCEPTION_RESNET_V2: dict[str, dict[str, str]] = {
    "stem": {
        "conv1": "conv2d_1a", "conv2": "conv2d_2a", "conv3": "conv2d_2b", "conv4": "conv2d_3b", "conv5": "conv2d_4a",
        "mixed5b_branch1x1": "mixed_5b.branch0",
        "mixed5b_branch5x5_1": "mixed_5b.branch1.0", "mixed5b_branch5x5_2": "mixed_5b.branch1.1",
        "mixed5b_branch3x3dbl_1": "mixed_5b.branch2.0", "mixed5b_branch3x3dbl_2": "mixed_5b.branch2.1",
        "mixed5b_branch3x3dbl_3": "mixed_5b.branch2.2", "mixed5b_branch_pool": "mixed_5b.branch3.1",
    },
    "inceptionresnetA": {
        "branch1x1": "branch0", "branch3x3_1": "branch1.0", "branch3x3_2": "branch1.1",
        "branch3x3dbl_1": "branch2.0", "branch3x3dbl_2": "branch2.1", "branch3x3dbl_3": "branch2.2",
    },
    "reductionA": INCEPTION_V4["reductionA"],
    "inceptionresnetB": {
        "branch1x1": "branch0", "branch7x7_1": "branch1.0", "branch7x7_2": "branch1.1", "branch7x7_3": "branch1.2",
    },
    "reductionB": {
        "branch3x3a_1": "branch0.0", "branch3x3a_2": "branch0.1",
        "branch3x3b_1": "branch1.0", "branch3x3b_2": "branch1.1",
        "branch3x3dbl_1": "branch2.0", "branch3x3dbl_2": "branch2.1", "branch3x3dbl_3": "branch2.2",
    },
    "inceptionresnetC": {
        "branch1x1": "branch0", "branch3x3_1": "branch1.0", "branch3x3_2": "branch1.1", "branch3x3_3": "branch1.2",
    },
}  # fmt: skip


def in_blocks(tables: Mapping[str, Mapping[str, str]], place: Callable[[str, int], str]) -> tuple[Rule, ...]:
    """Return rules from such tables.

    `place` maps a block and its number (from 1; 0 if it has none) to timm's prefix, which ends in a dot.
    """
    units = {"conv": "conv", "norm": "bn"}

    def rule(block: str, layers: Mapping[str, str]) -> Rule:
        pattern = rf"{block}(\d*)/({'|'.join(layers)})/(conv|norm)"
        return pattern, lambda m: f"{place(block, int(m[1] or 0))}{layers[m[2]]}.{units[m[3]]}"

    return tuple(rule(block, layers) for block, layers in tables.items())


def _inception_v4(model: InceptionV4, variables: Mapping) -> KeyMap:
    require_fields("timm", model, {"stem": "imagenet", "epsilon": 1e-3})
    a, b, _ = model.blocks
    # timm has one sequence of layers, counted from 0; the first six are the stem.
    before = {
        "inceptionA": 5, "reductionA": 6 + a, "inceptionB": 6 + a, "reductionB": 7 + a + b, "inceptionC": 7 + a + b,
    }  # fmt: skip

    def place(block, number):
        return "features." if block == "stem" else f"features.{before[block] + number}."

    return torch_key_map(variables, (*in_blocks(INCEPTION_V4, place), (r"head", "last_linear")))


def _inception_resnet_v2(model: InceptionResNetV2, variables: Mapping) -> KeyMap:
    require_fields("timm", model, {"stem": "imagenet", "epsilon": 1e-3})
    runs = {"inceptionresnetA": "repeat", "inceptionresnetB": "repeat_1", "inceptionresnetC": "repeat_2"}
    single = {"stem": "", "reductionA": "mixed_6a.", "reductionB": "mixed_7a."}

    def place(block, number):
        if block == "inceptionresnetC" and number == model.blocks[2]:
            return "block8."
        return single[block] if block in single else f"{runs[block]}.{number - 1}."

    rules: tuple[Rule, ...] = (
        *in_blocks(INCEPTION_RESNET_V2, place),
        (r"(inceptionresnet[ABC])(\d+)/expand", lambda m: f"{place(m[1], int(m[2]))}conv2d"),
        (r"conv7b/conv", "conv2d_7b.conv"),
        (r"conv7b/norm", "conv2d_7b.bn"),
        (r"head", "classif"),
    )
    return torch_key_map(variables, rules)


def _xception(model: Xception, variables: Mapping) -> KeyMap:
    require_fields("timm", model, {"stem": "imagenet", "pool_padding": "symmetric", "epsilon": 1e-5})
    before = {"entry": 0, "middle": 3, "exit": 4 + model.blocks[0]}

    def block(m):
        return f"block{before[m[1]] + int(m[2] or 0)}"

    def separable(m):
        """Return timm's name of a separable convolution in its sequence of ReLU, convolution, norm, …

        The first block begins without a ReLU.
        """
        place = 3 * int(m[3]) - 2 - (block(m) == "block1")
        return f"{block(m)}.rep." + {
            "depthwise": f"{place}.conv1", "pointwise": f"{place}.pointwise", "norm": f"{place + 1}",
        }[m[4]]  # fmt: skip

    rules: tuple[Rule, ...] = (
        (r"stem_conv(\d)/conv", r"conv\1"),
        (r"stem_conv(\d)/norm", r"bn\1"),
        (r"(entry|middle|exit)_block(\d*)/sepconv(\d)/(depthwise|pointwise|norm)", separable),
        (r"(entry|middle|exit)_block(\d*)/shortcut/conv", lambda m: f"{block(m)}.skip"),
        (r"(entry|middle|exit)_block(\d*)/shortcut/norm", lambda m: f"{block(m)}.skipbn"),
        (r"exit_sepconv(\d)/depthwise", lambda m: f"conv{int(m[1]) + 2}.conv1"),
        (r"exit_sepconv(\d)/pointwise", lambda m: f"conv{int(m[1]) + 2}.pointwise"),
        (r"exit_sepconv(\d)/norm", lambda m: f"bn{int(m[1]) + 2}"),
        (r"head", "fc"),
    )
    return torch_key_map(variables, rules)


MAPS: dict[type[nn.Module], Callable[..., KeyMap]] = {
    ResNet: _resnet,
    ResNetV2: _resnet_v2,
    BiT: _bit,
    InceptionV3: _inception_v3,
    InceptionV4: _inception_v4,
    InceptionResNetV2: _inception_resnet_v2,
    Xception: _xception,
}


def key_map(model: nn.Module, variables: Mapping) -> KeyMap:
    """Return the key map of a model.

    Args:
        model: the model.
        variables: its variables; may be abstract.

    Raises:
        ValueError: if timm does not have the model in this form.
    """
    return key_map_builder("timm", MAPS, model)(model, variables)
