"""The residual networks of timm that torchvision does not have."""

from functools import partial

import pytest

from zoo.models import create
from zoo.pretrained import timm as source

pytestmark = pytest.mark.parity

HOOKS = {"maxpool": "stem", **{f"layer{i}": f"stage{i}" for i in range(1, 5)}, "global_pool": "features"}
HOOKS_V2 = {"stem": "stem", **{f"stages.{i}": f"stage{i + 1}" for i in range(4)}, "norm": "norm"}

HOOKS_SENET = {"pool0": "stem", **{f"layer{i}": f"stage{i}" for i in range(1, 5)}, "global_pool": "features"}
RELEASED = {"stem_pool": "ceil", "stride_in": "1x1"}

RESNETS = {
    "seresnet50": "se_resnet50",
    "resnet50d": "resnet50d",
    "seresnet18": "se_resnet18",
    "seresnet34": "se_resnet34",
    "seresnet101": "se_resnet101",
    "seresnet152": "se_resnet152",
    "seresnext50_32x4d": "se_resnext50_32x4d",
    "seresnext101_32x4d": "se_resnext101_32x4d",
    "resnet50c": "resnet50c",
    "resnet101c": "resnet101c",
    "resnet152c": "resnet152c",
    "resnet50_gn": "resnet50_gn",
    "ecaresnet50d": "eca_resnet50d",
    "ecaresnet101d": "eca_resnet101d",
    "ecaresnet269d": "eca_resnet269d",
    # Deeper ones, with random weights, differ from themselves in double precision by 1e-3: they amplify rounding. Their
    # names and shapes are compared in test_registry.py.
    **{f"resnetrs{depth}": f"resnet_rs{depth}" for depth in (50, 101, 152, 200, 270)},
}
PRE_ACTIVATED = {
    "resnetv2_18": "resnet18_v2",
    "resnetv2_34": "resnet34_v2",
    "resnetv2_50": "resnet50_v2",
    "resnetv2_101": "resnet101_v2",
    "resnetv2_152": "resnet152_v2",
}
# Their wider forms, up to 3.7 GB, are compared by names and shapes in test_registry.py.
BIT = {"resnetv2_50x1_bit": "bit_r50x1", "resnetv2_101x1_bit": "bit_r101x1", "resnetv2_50x3_bit": "bit_r50x3"}


@pytest.mark.parametrize(("theirs", "name"), [("seresnet50", "se_resnet50"), ("resnet50d", "resnet50d")])
def test_odd_sizes_and_one_channel(theirs, name, timm, compare):
    """ResNet-D's mean hangs over the edge of odd sizes."""
    compare(timm.create_model(theirs, in_chans=1), create(name), source, HOOKS, (57, 75, 1))


@pytest.mark.parametrize("theirs", RESNETS)
def test_evaluation(theirs, timm, compare):
    compare(timm.create_model(theirs), create(RESNETS[theirs]), source, HOOKS, (96, 96, 3))


@pytest.mark.parametrize(
    ("theirs", "name", "fields"),
    [
        ("legacy_seresnet50", "se_resnet50", RELEASED),
        ("legacy_seresnext50_32x4d", "se_resnext50_32x4d", {"stem_pool": "ceil"}),
    ],
)
@pytest.mark.parametrize("shape", [(96, 96, 3), (75, 58, 3)])
def test_released_se_networks(theirs, name, fields, shape, timm, compare):
    """Caffe's pooling hangs over the edge of even sizes."""
    compare(timm.create_model(theirs), create(name, **fields), source, HOOKS_SENET, shape)


def test_plain_networks_with_efficient_attention(timm, compare):
    """timm's own have the stem and the shortcuts of ResNet-D."""
    resnet = timm.models.resnet
    net = resnet.ResNet(resnet.Bottleneck, (3, 4, 6, 3), block_args={"attn_layer": "eca"})
    compare(net, create("eca_resnet50"), source, HOOKS, (96, 96, 3))


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_what_torchvision_has_too(name, timm, compare):
    compare(timm.create_model(name), create(name), source, HOOKS, (64, 64, 3))


@pytest.mark.parametrize("theirs", PRE_ACTIVATED)
def test_pre_activation(theirs, timm, compare):
    compare(timm.create_model(theirs), create(PRE_ACTIVATED[theirs]), source, HOOKS_V2, (96, 96, 3))


@pytest.mark.parametrize("theirs", BIT)
def test_bit(theirs, timm, compare):
    compare(timm.create_model(theirs), create(BIT[theirs]), source, HOOKS_V2, (80, 67, 3), batch=1)


def test_golden(timm, compare):
    """What is recorded for everyone: squeeze-and-excitation, deep stem and pooled shortcuts at once; pre-activation."""
    resnet, shape, fields = timm.models.resnet, (56, 56, 3), {"blocks": (1, 1, 1, 1), "num_classes": 10}
    net = resnet.ResNet(
        resnet.Bottleneck, (1, 1, 1, 1), num_classes=10, stem_width=32, stem_type="deep", avg_down=True,
        block_args={"attn_layer": "se"},
    )  # fmt: skip
    model = create("se_resnet50", stem="deep", shortcut="pool", **fields)
    compare(net, model, source, HOOKS, shape, golden="timm_se_resnet_d")
    net = timm.create_model("resnetv2_50", layers=(1, 1, 1, 1), num_classes=10)
    compare(net, create("resnet50_v2", **fields), source, HOOKS_V2, shape, golden="timm_resnet_v2")


def test_golden_of_the_later_forms(torch, timm, compare):
    """Each kind of layer once, in two stages of one block."""
    from timm.layers import StdConv2d
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet
    from timm.models.resnetv2 import ResNetV2

    few, basic, deep = {"num_classes": 10}, {"layers": (1, 1), "channels": (64, 128)}, {"stem_type": "deep"}
    bottleneck = {"layers": (1, 1), "channels": (256, 512)}
    plain = {"conv_layer": timm.layers.create_conv2d, "norm_layer": timm.layers.BatchNormAct2d}
    hooks = {end: stage for end, stage in HOOKS.items() if end not in ("layer3", "layer4")}
    senet = timm.models.senet
    hooks_v2 = {end: stage for end, stage in HOOKS_V2.items() if end not in ("stages.2", "stages.3")}
    hooks_senet = {"pool0": "stem", "layer1": "stage1", "layer2": "stage2"}
    networks = {
        "timm_eca_resnet_rs": (
            ResNet(Bottleneck, **basic, **few, stem_width=32, stem_type="deep_tiered", replace_stem_pool=True,
                   avg_down=True, block_args={"attn_layer": "eca"}),
            ("eca_resnet50d", {"stem": "tiered", "stem_pool": "conv"}, hooks),
        ),
        "timm_released_se_resnet": (
            senet.SENet(senet.SEResNetBottleneck, (1, 1, 1, 1), 1, 16, num_classes=10),
            ("se_resnet50", {"stem_pool": "ceil", "stride_in": "1x1"}, hooks_senet),
        ),
        "timm_resnet_gn": (
            ResNet(Bottleneck, **basic, **few, **deep, norm_layer="groupnorm"),
            ("resnet50_gn", {"stem": "wide"}, hooks),
        ),
        "timm_se_resnet_basic": (
            ResNet(BasicBlock, **basic, **few, block_args={"attn_layer": "se"}), ("se_resnet18", {}, hooks),
        ),
        "timm_resnet_v2_basic": (
            ResNetV2(**basic, **few, **plain, basic=True, bottle_ratio=1.0), ("resnet18_v2", {}, hooks_v2),
        ),
        "timm_resnet_v2_d_gn": (
            ResNetV2(**bottleneck, **few, **deep, avg_down=True, conv_layer=plain["conv_layer"]),
            ("resnet50_v2", {"stem": "deep", "shortcut": "pool", "norm": "group"}, hooks_v2),
        ),
        "timm_bit": (
            ResNetV2(**bottleneck, **few, stem_type="fixed", conv_layer=partial(StdConv2d, eps=1e-8)),
            ("bit_r50x1", {}, hooks_v2),
        ),
    }  # fmt: skip
    for golden, (net, (name, fields, ends)) in networks.items():
        if isinstance(net, senet.SENet):
            net.last_linear = torch.nn.Linear(512, 10)
        if isinstance(net, (ResNet, senet.SENet)):
            net.layer3 = net.layer4 = torch.nn.Identity()
        compare(net, create(name, blocks=(1, 1), **fields, **few), source, ends, (40, 40, 3), golden=golden)
