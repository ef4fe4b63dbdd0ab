"""akamaster/pytorch_resnet_cifar10 (BSD-2-Clause): ResNet-20 to 1202 for CIFAR-10, with shortcuts of option A.

The weights were saved from a network wrapped in DataParallel, hence the first word of every key.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn

from zoo.models.resnet import ResNet
from zoo.pretrained.convert import TORCH_IGNORED, KeyMap, Rule, map_for, renamed, require_fields, torch_key_map
from zoo.pretrained.torchvision import RESNET

#: Source keys that stand for nothing in the function.
IGNORED = TORCH_IGNORED

RULES: tuple[Rule, ...] = (
    (r"head", "module.linear"),
    (r".*", lambda m: f"module.{renamed(m[0], RESNET)}"),
)


def _resnet(model: ResNet, variables: Mapping) -> KeyMap:
    same = {"bottleneck": False, "stem": "small", "shortcut": "pad", "squeeze": None, "epsilon": 1e-5}
    require_fields("akamaster", model, same)
    return torch_key_map(variables, RULES)


MAPS: dict[type[nn.Module], Callable[..., KeyMap]] = {
    ResNet: _resnet,
}


def key_map(model: nn.Module, variables: Mapping) -> KeyMap:
    """The key map of a CIFAR ResNet of ours; `variables` may be abstract. Raises ValueError for any other model."""
    return map_for("akamaster", MAPS, model)(model, variables)
