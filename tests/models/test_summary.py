"""Tables of layers, and the totals that `zoo list` reads instead of tracing every model."""

import json

import pytest

from zoo.models import MODELS, create
from zoo.models.summary import FIGURES, figures, layers, totals

LISTED = json.loads(FIGURES.read_text())
QUICK = ("softmax", "mlp", "lenet5", "lenet5_1998", "alexnet", "alexnet_owt", "resnet18", "resnet20")


def test_every_model_is_listed():
    assert set(LISTED) == set(MODELS) == set(figures())


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_listed_totals_equal_traced_ones(name):
    assert LISTED[name] == totals(layers(create(name)))


def test_published_multiply_adds():
    """He et al. 2015, table 1: 3.8 G for the original ResNet-50. With the stride in the 3x3 it has 4.09 G."""
    assert round(LISTED["resnet50"]["multiply_adds"] / 1e9, 2) == 4.09
    assert 3.8e9 <= LISTED["resnet50_v1"]["multiply_adds"] < 3.9e9
    gates = 5 * (3 * 256 + 4 * 512 + 6 * 1024) + 7 * 3 * 2048  # kernel size times channels, of every block
    assert LISTED["eca_resnet50"]["multiply_adds"] - LISTED["resnet50"]["multiply_adds"] == gates


def test_efficient_channel_attention_is_a_convolution_along_the_channels():
    rows = layers(create("eca_resnet50", blocks=(1,), width=8, stem="small"), (8, 8, 3))
    assert [row.multiply_adds for row in rows if row.kind == "EfficientChannelAttention"] == [3 * 32]


def test_layers_of_lenet():
    rows = {row.path: row for row in layers(create("lenet5"))}
    assert rows["conv1"].multiply_adds == 28 * 28 * 6 * 25 and rows["conv2"].parameters == 2416
    assert totals(list(rows.values())) == {"parameters": 61_706, "multiply_adds": 416_520}
