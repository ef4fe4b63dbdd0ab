"""Small networks, and their tensors as another project would save them."""

from typing import Any

import numpy as np
from seeded import seeded_tensors

import zoo
from zoo import models
from zoo.pretrained.recognise import SOURCES
from zoo.trees import flatten

#: A small network of every class and every kind of block: its name in MODELS, and fields.
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"image_size": 8, "widths": (8,)},
    "highway": {"image_size": 8, "layers": 3, "width": 10},
    "lenet1": {},
    "lenet4": {},
    "lenet5": {},
    "lenet5_1998": {},
    "alexnet_small": {"width": 0.1},
    "alexnet_owt_small": {"width": 0.1},
    "googlenet_small": {"width": 0.1, "blocks": (1, 1, 1)},
    "googlenet_bn_small": {"width": 0.1, "blocks": (1, 1, 1)},
    "inception_v2_small": {"width": 0.1, "blocks": (1, 1, 1)},
    "inception_v3_small": {"width": 0.1, "blocks": (1, 1, 1)},
    "inception_v4_small": {"width": 0.1, "blocks": (1, 1, 1)},
    "inception_resnet_v2_small": {"width": 0.1, "blocks": (1, 1, 1)},
    "xception_small": {"width": 0.1, "blocks": (1,)},
    "airbench": {"width": 8},
    "resnet9": {"width": 8},
    "resnet20": {"blocks": (1, 1, 1)},
    "resnet18": {"blocks": (1, 1), "width": 16},
    "resnet50d_small": {"blocks": (1, 1), "width": 16},
    "se_resnet50_small": {"blocks": (1, 1), "width": 16},
    "eca_resnet50": {"blocks": (1, 1), "width": 16, "stem": "small"},
    "resnet50_gn": {"blocks": (1, 1), "width": 32, "stem": "small"},
    "resnet_rs50": {"blocks": (1, 1), "width": 16},
    "bit_r50x1": {"blocks": (1, 1), "width": 32},
    "inception_resnet_v1_small": {"width": 0.1, "blocks": (1, 1, 1)},
    "resnext50_32x4d_small": {"blocks": (1, 1)},
    "resnet50_v2_small": {"blocks": (1, 1), "width": 16},
    "wide_resnet16_8": {"depth": 10, "widen": 2},
    "highway_conv": {"layers": 3, "image_size": 8},
}


def small(name="resnet20", source="akamaster", **fields):
    """Return (model, seeded tensors under the source's names) of a network with few blocks."""
    model = zoo.create(name, **{"blocks": (1, 1, 1), "num_classes": 10, **fields})
    abstract = models.abstract_variables(model)
    key_map = SOURCES[source].key_map(model, abstract)
    leaves = flatten(abstract)
    shapes = {}
    for path, (key, transform) in key_map.items():
        shapes[key] = transform.store(np.zeros(leaves[path].shape, np.float32))[0].shape
    return model, seeded_tensors(shapes)
