"""The residual networks of timm that torchvision does not have."""

import pytest

from zoo.models import create
from zoo.pretrained import timm as source

pytestmark = pytest.mark.parity

HOOKS = {"maxpool": "stem", **{f"layer{i}": f"stage{i}" for i in range(1, 5)}, "global_pool": "features"}
HOOKS_V2 = {"stem": "stem", **{f"stages.{i}": f"stage{i + 1}" for i in range(4)}, "norm": "norm"}


@pytest.mark.parametrize(("theirs", "name"), [("seresnet50", "se_resnet50"), ("resnet50d", "resnet50d")])
@pytest.mark.parametrize("shape", [(96, 96, 3), (57, 75, 1)])  # odd sizes: ResNet-D's mean hangs over the edge
def test_evaluation(theirs, name, shape, timm, compare):
    net = timm.create_model(theirs, in_chans=shape[-1])
    compare(net, create(name), source, HOOKS, shape)


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_what_torchvision_has_too(name, timm, compare):
    compare(timm.create_model(name), create(name), source, HOOKS, (64, 64, 3))


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_pre_activation(depth, timm, compare):
    net = timm.create_model(f"resnetv2_{depth}")
    compare(net, create(f"resnet{depth}_v2"), source, HOOKS_V2, (96, 96, 3))


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
