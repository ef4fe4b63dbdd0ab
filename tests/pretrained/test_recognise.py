"""The form of a residual network is read from its tensors, before any model is traced."""

import numpy as np
import pytest

from zoo import models
from zoo.models import MODELS, create
from zoo.pretrained.convert import source_keys
from zoo.pretrained.readers import Tensors
from zoo.pretrained.recognise import SOURCES, recognise
from zoo.pretrained.registry import WEIGHTS
from zoo.pretrained.residual import RESIDUAL, differences, model_form, observed_form
from zoo.trees import flatten


def torch_tensors(model, source="timm"):
    """Return tensors of zeros without memory, under the names of a source."""
    abstract = models.abstract_variables(model)
    arrays = {}
    for path, (entry, transform) in SOURCES[source].key_map(model, abstract).items():
        stored = transform.store(np.broadcast_to(np.float32(0), flatten(abstract)[path].shape))
        arrays.update(zip(source_keys(entry), stored, strict=True))
    return arrays


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("se_resnet18", {}),
        ("resnet50_gn", {}),
        ("eca_resnet50d", {"stem": "tiered"}),
        ("resnet_rs50", {}),
        ("se_resnext50_32x4d", {}),
        ("resnet18_v2", {}),
        ("resnet50_v2", {"stem": "deep", "shortcut": "pool", "norm": "group"}),
        ("bit_r50x1", {}),
    ],
)
def test_new_forms_are_recognised_with_any_number_of_blocks(name, fields):
    model = create(name, **fields, blocks=(1, 1))
    arrays = {f"net.{key}": array for key, array in torch_tensors(model).items()}
    assert differences(model, observed_form(arrays)) == 0
    found, _ = recognise(Tensors(arrays, "torch"))
    assert found is not None and create(found.name, **found.fields) == model


def test_published_residual_networks_differ_in_form_or_blocks():
    """Otherwise the first one would be taken for all; a width, Keras's fields and poolings are not in the names."""
    forms = {}
    for row in WEIGHTS.values():
        model = create(row.model, **row.fields).clone(num_classes=1)
        if isinstance(model, RESIDUAL) and row.source == "timm":
            forms.setdefault((model.blocks, *sorted(model_form(model).items())), set()).add(model)
    assert len(forms) > 50 and all(len(same) == 1 for same in forms.values())


def test_files_of_other_networks_have_no_form():
    assert observed_form({"features.0.weight": np.zeros((64, 3, 11, 11))}) == {}
    assert all(isinstance(build(), RESIDUAL) or not hasattr(build(), "squeeze") for build in MODELS.values())
