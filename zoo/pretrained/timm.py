"""timm's networks: the keys of its state dicts, as rules that rename our modules' paths.

timm 1.0.31. Its squeeze-and-excitation layers are 1x1 convolutions where ours are dense.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn

from zoo.models.resnet import ResNet
from zoo.models.resnet_v2 import ResNetV2
from zoo.pretrained.convert import (
    CONV_AS_DENSE,
    TORCH_IGNORED,
    KeyMap,
    Rule,
    map_for,
    require_fields,
    torch_key_map,
)
from zoo.pretrained.torchvision import RESNET, resnet_block

#: Source keys that stand for nothing in the function.
IGNORED = TORCH_IGNORED

_BLOCK = r"stage(?P<stage>\d+)_block(?P<block>\d+)"

SQUEEZE_EXCITE: tuple[Rule, ...] = (
    (_BLOCK + r"/se/reduce", lambda m: f"{resnet_block(m)}.se.fc1"),
    (_BLOCK + r"/se/expand", lambda m: f"{resnet_block(m)}.se.fc2"),
)
# conv1 is a list of layers here (convolution, norm, ReLU, …), whose last norm has the name of the plain stem's.
DEEP_STEM: tuple[Rule, ...] = (
    (r"stem/conv1/conv", "conv1.0"),
    (r"stem/conv1/norm", "conv1.1"),
    (r"stem/conv2/conv", "conv1.3"),
    (r"stem/conv2/norm", "conv1.4"),
    (r"stem/conv3/conv", "conv1.6"),
    (r"stem/conv3/norm", "bn1"),
)
# The pooling is the first layer of the list.
POOLED_SHORTCUT: tuple[Rule, ...] = (
    (_BLOCK + r"/shortcut/conv", lambda m: f"{resnet_block(m)}.downsample.1"),
    (_BLOCK + r"/shortcut/norm", lambda m: f"{resnet_block(m)}.downsample.2"),
)


def _resnet(model: ResNet, variables: Mapping) -> KeyMap:
    require_fields("timm", model, {"stride_in": "3x3", "epsilon": 1e-5})
    if model.stem == "small" or model.shortcut == "pad":
        raise ValueError("timm has no ResNet for small images; its stems divide the image by 4")
    pooled = POOLED_SHORTCUT if model.shortcut == "pool" else ()
    rules = (*SQUEEZE_EXCITE, *DEEP_STEM, *pooled, *RESNET)
    return torch_key_map(variables, rules, {r".*/se/(reduce|expand)/kernel": CONV_AS_DENSE})


def _stage(m) -> str:
    """Stages and blocks are counted from 0."""
    return f"stages.{int(m['stage']) - 1}.blocks.{int(m['block']) - 1}"


RESNET_V2: tuple[Rule, ...] = (
    (r"stem", "stem.conv"),
    (_BLOCK + r"/((?:conv|norm)\d)", lambda m: f"{_stage(m)}.{m[3]}"),
    (_BLOCK + r"/shortcut", lambda m: f"{_stage(m)}.downsample.conv"),
    (r"norm", "norm"),
    (r"head", "head.fc"),
)


def _resnet_v2(model: ResNetV2, variables: Mapping) -> KeyMap:
    same = {"stem": "imagenet", "stride_at": "first", "conv_bias": False, "pool_padding": "nothing", "epsilon": 1e-5}
    require_fields("timm", model, same)
    return torch_key_map(variables, RESNET_V2, {"head/kernel": CONV_AS_DENSE})


MAPS: dict[type[nn.Module], Callable[..., KeyMap]] = {
    ResNet: _resnet,
    ResNetV2: _resnet_v2,
}


def key_map(model: nn.Module, variables: Mapping) -> KeyMap:
    """The key map of a model of ours that timm has; `variables` may be abstract.

    Raises ValueError for a model that timm does not have in this form.
    """
    return map_for("timm", MAPS, model)(model, variables)
