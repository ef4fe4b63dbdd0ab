"""The key map of safetensors files that `zoo export` wrote with this project's own parameter paths as keys."""

from collections.abc import Mapping

import flax.linen as nn

from zoo.models import MODELS
from zoo.pretrained.convert import SAME, KeyMap
from zoo.trees import flatten

IGNORED = ()
MAPS: dict[type, type] = {type(build()): type(build()) for build in MODELS.values()}


def key_map(model: nn.Module, variables: Mapping) -> KeyMap:
    """Return the key map of a model: every leaf under its own path.

    Args:
        model: the model.
        variables: its variables; may be abstract.
    """
    return {path: (path, SAME) for path in flatten(variables)}
