"""Keras's ResNets: the original form with biases in its convolutions, and its own kind of pre-activation."""

import re

import pytest

from zoo.models import create
from zoo.pretrained import keras as source

pytestmark = pytest.mark.parity

V1 = {"epsilon": 1.001e-5}
V2 = {"epsilon": 1.001e-5, "stride_at": "last", "conv_bias": True, "pool_padding": "zeros"}


def layers(net):
    """Their layer: our endpoint. A stage is what its last block puts out."""
    ends = {"pool1_pool": "stem", "post_relu": "norm", "avg_pool": "features"}
    for layer in net.layers:
        if match := re.fullmatch(r"conv(\d)_block\d+_out", layer.name):
            ends = {name: end for name, end in ends.items() if end != f"stage{int(match[1]) - 1}"}
            ends[layer.name] = f"stage{int(match[1]) - 1}"
    return {name: end for name, end in ends.items() if name in {layer.name for layer in net.layers}}


@pytest.mark.parametrize("depth", [50, 101, 152])
@pytest.mark.parametrize("v2", [False, True], ids=["v1", "v2"])
def test_evaluation(depth, v2, keras, compare_keras):
    shape = (75, 64, 3)
    build = getattr(keras.applications, f"ResNet{depth}{'V2' if v2 else ''}")
    net = build(weights=None, classifier_activation=None, input_shape=shape)
    model = create(f"resnet{depth}_v2", **V2) if v2 else create(f"resnet{depth}_v1", **V1)
    compare_keras(net, model, source, layers(net), shape)


def test_golden(keras, compare_keras):
    """What is recorded for everyone: two blocks a stage, so that the last is not the first."""
    from keras.src.applications import resnet

    shape = (64, 64, 3)
    for v2 in (False, True):
        stack = resnet.stack_residual_blocks_v2 if v2 else resnet.stack_residual_blocks_v1

        def stages(x, stack=stack, v2=v2):
            for i, stride in enumerate((2, 2, 1) if v2 else (1, 2, 2)):
                x = stack(x, 64 * 2**i, 2, stride1=stride, name=f"conv{i + 2}")
            return x

        net = resnet.ResNet(
            stages, preact=v2, use_bias=True, weights=None, input_shape=shape, classes=10, classifier_activation=None,
        )  # fmt: skip
        fields = {"blocks": (2, 2, 2), "num_classes": 10, **(V2 if v2 else V1)}
        model = create("resnet50_v2" if v2 else "resnet50_v1", **fields)
        compare_keras(net, model, source, layers(net), shape, golden="keras_resnet_v2" if v2 else "keras_resnet_v1")
