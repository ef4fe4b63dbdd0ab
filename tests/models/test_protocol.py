"""Every model satisfies the contract of zoo.models.protocol."""

import re

import pytest

import zoo.models as models
from zoo.models import MODELS, create
from zoo.models.protocol import ImageClassifier
from zoo.trees import flatten


@pytest.mark.parametrize("name", MODELS)
def test_model_satisfies_the_protocol(name):
    model = create(name)
    assert isinstance(model, ImageClassifier)
    assert model.stages[-1] == "head" and len(set(model.stages)) == len(model.stages)
    assert len(model.input_shape) == 3 and model.family and re.search(r"\b(19|20)\d\d\b", model.paper)
    assert isinstance(model.model_parallel, tuple)


# Networks that have all patterns of their family, and the number of parameters that the patterns match.
SPLIT_PARAMETERS = {
    "softmax": 0,
    "mlp": 4,  # two hidden layers: kernel and bias
    "lenet5": 0,
    "lenet5_1998": 0,
    "alexnet": 6,  # dense6, dense7, head
    "alexnet_owt": 6,
    "googlenet": 10,  # the head, two auxiliary heads of two dense layers each
    "googlenet_bn": 10,
    "inception_v2": 2,
    "inception_v3": 5,  # the head, the auxiliary head and its last convolution
    "inception_v4": 2,
    "inception_resnet_v1": 2,
    "inception_resnet_v2": 2,
    "xception": 4,  # the head, the pointwise kernels of the exit flow
    "resnet50": 11,  # three convolutions in each of the three last blocks, the head
    "resnet50_v2": 11,
    "bit_r50x1": 11,
    "resnet20": 2,  # the head: only networks with four stages have more
    "resnet9": 5,  # three convolutions of the last stage, the head
    "airbench": 6,  # two convolutions in each of the two last stages, the head
    "wide_resnet16_8": 6,  # two convolutions in each of the two last blocks, the head
    "highway": 0,
    "highway_conv": 0,
}


@pytest.mark.parametrize("name", SPLIT_PARAMETERS)
def test_model_parallel_patterns_match_whole_paths(name):
    model = create(name)
    params = flatten(models.abstract_variables(model)["params"])
    matched = {path for pattern in model.model_parallel for path in params if re.fullmatch(pattern, path)}
    assert len(matched) == SPLIT_PARAMETERS[name], sorted(matched)


def test_every_family_has_a_row():
    assert {create(name).family for name in SPLIT_PARAMETERS} == {create(name).family for name in MODELS}
