"""Inception-v4, Inception-ResNet-v2 and Xception of timm, and the two that Keras has."""

import pytest

from zoo.models import create
from zoo.pretrained import keras as keras_source
from zoo.pretrained import timm as source

pytestmark = pytest.mark.parity

V4 = {
    "features.5": "stem", "features.9": "inceptionA", "features.10": "reductionA", "features.17": "inceptionB",
    "features.18": "reductionB", "features.21": "inceptionC", "global_pool": "features",
}  # fmt: skip
RESNET_V2 = {
    "mixed_5b": "stem", "repeat": "inceptionresnetA", "mixed_6a": "reductionA", "repeat_1": "inceptionresnetB",
    "mixed_7a": "reductionB", "block8": "inceptionresnetC", "conv2d_7b": "conv7b", "global_pool": "features",
}  # fmt: skip
XCEPTION = {
    "act2": "stem", **{f"block{i}": f"entry_block{i}" for i in (1, 2, 3)}, "block11": "middle", "act4": "exit",
    "global_pool": "features",
}  # fmt: skip
CASES = {
    "inception_v4": ("inception_v4", V4),
    "inception_resnet_v2": ("inception_resnet_v2", RESNET_V2),
    "xception": ("legacy_xception", XCEPTION),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", [(139, 150, 3), (299, 299, 3)])
def test_evaluation(name, shape, timm, compare):
    theirs, hooks = CASES[name]
    compare(timm.create_model(theirs), create(name), source, hooks, shape, batch=1)


@pytest.mark.parametrize("shape", [(139, 150, 3)])
def test_inception_v3(shape, timm, compare):
    """The names and the function of torchvision's; the weights are others."""
    modules = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
    hooks = {f"Mixed_{name}": f"mixed{name}" for name in modules} | {"global_pool": "features"}
    compare(timm.create_model("inception_v3"), create("inception_v3", aux_heads=False), source, hooks, shape)


@pytest.mark.parametrize("shape", [(75, 75, 3), (90, 107, 1)])
def test_golden(shape, timm, torch, compare):
    """What is recorded for everyone: one block of each kind (of the last that Inception-ResNet-v2 has, both)."""
    nn, few = torch.nn, {"num_classes": 10, "in_chans": shape[-1]}
    record = shape == (75, 75, 3)

    net = timm.create_model("inception_v4", **few)
    net.features = nn.Sequential(*(net.features[i] for i in (0, 1, 2, 3, 4, 5, 6, 10, 11, 18, 19)))
    hooks = {f"features.{i}": end for i, end in enumerate(list(V4.values())[:-1], 5)}
    model = create("inception_v4", blocks=(1, 1, 1), num_classes=10)
    compare(net, model, source, hooks, shape, golden="timm_inception_v4" if record else None)

    net = timm.create_model("inception_resnet_v2", **few)
    for run in ("repeat", "repeat_1", "repeat_2"):
        setattr(net, run, getattr(net, run)[:1])
    model = create("inception_resnet_v2", blocks=(1, 1, 2), num_classes=10)
    compare(net, model, source, RESNET_V2, shape, golden="timm_inception_resnet_v2" if record else None)

    net = timm.create_model("legacy_xception", **few)
    net.block5 = net.block12
    for i in range(6, 13):
        setattr(net, f"block{i}", nn.Identity())
    hooks = {("block4" if end == "middle" else theirs): end for theirs, end in XCEPTION.items()}
    model = create("xception", blocks=(1,), num_classes=10)
    compare(net, model, source, hooks, shape, golden="timm_xception" if record else None)


def test_keras_inception_resnet_v2(keras, compare_keras):
    keras.backend.clear_session()
    shape = (91, 80, 3)
    build = keras.applications.InceptionResNetV2
    net = build(weights=None, classifier_activation=None, input_shape=shape)
    layers = {
        "mixed_5b": "stem", "block35_10_ac": "inceptionresnetA", "mixed_6a": "reductionA",
        "block17_20_ac": "inceptionresnetB", "mixed_7a": "reductionB", "conv_7b_ac": "conv7b", "avg_pool": "features",
    }  # fmt: skip
    compare_keras(net, create("inception_resnet_v2"), keras_source, layers, shape)


@pytest.mark.parametrize("shape", [(71, 90, 3), (95, 83, 3)])  # pools over even and odd sizes
def test_keras_xception(shape, keras, compare_keras):
    keras.backend.clear_session()
    net = keras.applications.Xception(weights=None, classifier_activation=None, input_shape=shape)
    layers = {"block1_conv2_act": "stem", "block14_sepconv2_act": "exit", "avg_pool": "features"}
    sums = [layer.name for layer in net.layers if layer.name.startswith("add")]
    layers |= dict(zip(sums, ["entry_block1", "entry_block2", "entry_block3"], strict=False))
    layers[sums[10]] = "middle"
    model = create("xception", pool_padding="same", epsilon=1e-3)
    compare_keras(net, model, keras_source, layers, shape)
