"""torchvision's networks: the keys of its state dicts, as rules that rename our modules' paths.

torchvision 0.28. Nothing is adapted: where torchvision has a network of ours, it has the same layers.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn

from zoo.models.resnet import ResNet
from zoo.pretrained.convert import TORCH_IGNORED, KeyMap, Rule, map_for, require_fields, torch_key_map

#: Source keys that stand for nothing in the function.
IGNORED = TORCH_IGNORED


def resnet_block(m) -> str:
    """Blocks are counted from 0 in each layer."""
    return f"layer{m['stage']}.{int(m['block']) - 1}"


_BLOCK = r"stage(?P<stage>\d+)_block(?P<block>\d+)"

RESNET: tuple[Rule, ...] = (
    (r"stem/conv", "conv1"),
    (r"stem/norm", "bn1"),
    (_BLOCK + r"/conv(\d)/conv", lambda m: f"{resnet_block(m)}.conv{m[3]}"),
    (_BLOCK + r"/conv(\d)/norm", lambda m: f"{resnet_block(m)}.bn{m[3]}"),
    (_BLOCK + r"/shortcut/conv", lambda m: f"{resnet_block(m)}.downsample.0"),
    (_BLOCK + r"/shortcut/norm", lambda m: f"{resnet_block(m)}.downsample.1"),
    (r"head", "fc"),
)


def _resnet(model: ResNet, variables: Mapping) -> KeyMap:
    same = {"squeeze": None, "stem": "imagenet", "shortcut": "conv", "stride_in": "3x3", "epsilon": 1e-5}
    require_fields("torchvision", model, same)
    return torch_key_map(variables, RESNET)


MAPS: dict[type[nn.Module], Callable[..., KeyMap]] = {
    ResNet: _resnet,
}


def key_map(model: nn.Module, variables: Mapping) -> KeyMap:
    """The key map of a model of ours that torchvision has; `variables` may be abstract.

    Raises ValueError for a model that torchvision does not have in this form.
    """
    return map_for("torchvision", MAPS, model)(model, variables)
