"""A small network, and its tensors as another project would save them."""

import numpy as np
from seeded import seeded_tensors

import zoo
from zoo import models
from zoo.pretrained.recognise import SOURCES
from zoo.trees import flatten


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
