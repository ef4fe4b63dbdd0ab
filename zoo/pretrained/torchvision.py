"""Key maps of torchvision's networks: rules from module paths to the keys of its state dicts.

torchvision 0.28. Its networks have the same layers as those here. The kernels of dense layers that follow a feature map
depend on the order in which the map is flattened (`flattened`).
"""

from collections.abc import Callable, Mapping

import flax.linen as nn

from zoo.models.alexnet import AlexNetOWT
from zoo.models.googlenet import GoogLeNetBN
from zoo.models.inception_v3 import InceptionV3
from zoo.models.resnet import ResNet
from zoo.pretrained.convert import (
    BLOCK,
    TORCH_IGNORED,
    KeyMap,
    Rule,
    flattened,
    key_map_builder,
    require_fields,
    torch_key_map,
)

#: Source keys that do not affect the function.
IGNORED = TORCH_IGNORED


def resnet_block(m) -> str:
    """Return torchvision's name of a residual block; it counts blocks from 0 in each layer."""
    return f"layer{m['stage']}.{int(m['block']) - 1}"


RESNET: tuple[Rule, ...] = (
    (r"stem/conv", "conv1"),
    (r"stem/norm", "bn1"),
    (BLOCK + r"/conv(\d)/conv", lambda m: f"{resnet_block(m)}.conv{m[3]}"),
    (BLOCK + r"/conv(\d)/norm", lambda m: f"{resnet_block(m)}.bn{m[3]}"),
    (BLOCK + r"/shortcut/conv", lambda m: f"{resnet_block(m)}.downsample.0"),
    (BLOCK + r"/shortcut/norm", lambda m: f"{resnet_block(m)}.downsample.1"),
    (r"head", "fc"),
)


def _resnet(model: ResNet, variables: Mapping) -> KeyMap:
    same = {
        "squeeze": None, "eca": False, "norm": "batch", "stem": "imagenet", "stem_pool": "max", "shortcut": "conv",
        "stride_in": "3x3", "epsilon": 1e-5,
    }  # fmt: skip
    require_fields("torchvision", model, same)
    return torch_key_map(variables, RESNET)


ALEXNET: tuple[Rule, ...] = (
    (r"conv1", "features.0"),
    (r"conv2", "features.3"),
    (r"conv3", "features.6"),
    (r"conv4", "features.8"),
    (r"conv5", "features.10"),
    (r"dense6", "classifier.1"),
    (r"dense7", "classifier.4"),
    (r"head", "classifier.6"),
)


def _alexnet(model: AlexNetOWT, variables: Mapping) -> KeyMap:
    require_fields("torchvision", model, {"stem": "imagenet", "pool_size": 6})
    return torch_key_map(variables, ALEXNET, {"dense6/kernel": flattened(6, 6)})


_PARTS = {"conv": "conv", "norm": "bn"}
_GOOGLENET_BRANCHES = {
    "branch1x1": "branch1", "branch3x3_reduce": "branch2.0", "branch3x3": "branch2.1",
    "branch5x5_reduce": "branch3.0", "branch5x5": "branch3.1", "branch_pool": "branch4.1",
}  # fmt: skip
_GOOGLENET_STEM = {"conv1": "conv1", "conv2_reduce": "conv2", "conv2": "conv3"}
GOOGLENET: tuple[Rule, ...] = (
    (r"(conv\d\w*)/(conv|norm)", lambda m: f"{_GOOGLENET_STEM[m[1]]}.{_PARTS[m[2]]}"),
    (r"(inception\d\w)/(\w+)/(conv|norm)", lambda m: f"{m[1]}.{_GOOGLENET_BRANCHES[m[2]]}.{_PARTS[m[3]]}"),
    (r"(aux\d)/conv/(conv|norm)", lambda m: f"{m[1]}.conv.{_PARTS[m[2]]}"),
    (r"(aux\d)/dense", r"\1.fc1"),
    (r"(aux\d)/head", r"\1.fc2"),
    (r"head", "fc"),
)


def _googlenet(model: GoogLeNetBN, variables: Mapping) -> KeyMap:
    require_fields("torchvision", model, {"stem": "imagenet", "epsilon": 1e-3})
    return torch_key_map(variables, GOOGLENET, {r"aux\d/dense/kernel": flattened(4, 4)})


_INCEPTION_V3_STEM = {
    "conv1a": "Conv2d_1a_3x3", "conv2a": "Conv2d_2a_3x3", "conv2b": "Conv2d_2b_3x3", "conv3b": "Conv2d_3b_1x1",
    "conv4a": "Conv2d_4a_3x3",
}  # fmt: skip


def _inception_v3_branch(module: str, unit: str) -> str:
    """Return torchvision's name of a unit; it numbers the units of a branch from 1, including the reducing 1x1."""
    branch, _, step = unit.partition("_")
    if branch in ("branch1x1", "branch") or (module, unit) == ("6a", "branch3x3"):
        return unit
    if step == "reduce":
        return f"{branch}_1"
    if step in ("a", "b"):  # 1x3 beside 3x1, at the end of their branch
        return f"{branch}_{3 if branch == 'branch3x3dbl' else 2}{step}"
    return f"{branch}_{int(step or 1) + 1}"


INCEPTION_V3: tuple[Rule, ...] = (
    (r"(conv\d\w)/(conv|norm)", lambda m: f"{_INCEPTION_V3_STEM[m[1]]}.{_PARTS[m[2]]}"),
    (
        r"mixed(\d\w)/(\w+)/(conv|norm)",
        lambda m: f"Mixed_{m[1]}.{_inception_v3_branch(m[1], m[2])}.{_PARTS[m[3]]}",
    ),
    (r"aux1/(conv\d)/(conv|norm)", lambda m: f"AuxLogits.{m[1]}.{_PARTS[m[2]]}"),
    (r"aux1/head", "AuxLogits.fc"),
    (r"head", "fc"),
)


def _inception_v3(model: InceptionV3, variables: Mapping) -> KeyMap:
    require_fields("torchvision", model, {"stem": "imagenet", "pool_padding": "zeros", "epsilon": 1e-3})
    return torch_key_map(variables, INCEPTION_V3)


MAPS: dict[type[nn.Module], Callable[..., KeyMap]] = {
    ResNet: _resnet,
    AlexNetOWT: _alexnet,
    GoogLeNetBN: _googlenet,
    InceptionV3: _inception_v3,
}


def key_map(model: nn.Module, variables: Mapping) -> KeyMap:
    """Return the key map of a model.

    Args:
        model: the model.
        variables: its variables; may be abstract.

    Raises:
        ValueError: if torchvision does not have the model in this form.
    """
    return key_map_builder("torchvision", MAPS, model)(model, variables)
