"""Key maps of akamaster/pytorch_resnet_cifar10 (BSD-2-Clause): ResNet-20 to 1202 for CIFAR-10, option A shortcuts.

Its published files were saved from a network wrapped in DataParallel, which puts "module." before every key. The key
maps have the plain names of the network; the importer removes such prefixes.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn

from zoo.models.resnet import ResNet
from zoo.pretrained.convert import TORCH_IGNORED, KeyMap, Rule, key_map_builder, require_fields, torch_key_map
from zoo.pretrained.torchvision import RESNET

#: Source keys that do not affect the function.
IGNORED = TORCH_IGNORED

RULES: tuple[Rule, ...] = (
    (r"head", "linear"),
    *RESNET,
)


def _resnet(model: ResNet, variables: Mapping) -> KeyMap:
    same = {"bottleneck": False, "stem": "small", "shortcut": "pad", "squeeze": None, "epsilon": 1e-5}
    require_fields("akamaster", model, same)
    return torch_key_map(variables, RULES)


MAPS: dict[type[nn.Module], Callable[..., KeyMap]] = {
    ResNet: _resnet,
}


def key_map(model: nn.Module, variables: Mapping) -> KeyMap:
    """Return the key map of a model.

    Args:
        model: the model.
        variables: its variables; may be abstract.

    Raises:
        ValueError: if akamaster does not have the model in this form.
    """
    return key_map_builder("akamaster", MAPS, model)(model, variables)
