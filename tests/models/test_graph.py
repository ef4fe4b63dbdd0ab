"""The graph of a network: the same layers as the table, and the operations between them."""

from collections import Counter

import pytest
from models.test_contract import REDUCED

from zoo.models import MODELS, create
from zoo.models.graph import trace
from zoo.models.summary import layers

QUICK = ("lenet5", "lenet5_1998", "resnet-cifar", "resnet_v2-own", "googlenet", "highway_conv", "alexnet_owt", "mlp")


def assert_sound(graph, model, shape):
    """Check that layers are nodes, nodes read earlier ones, and all but auxiliary heads lead to the logits."""
    rows = graph.rows()
    assert [row[:5] for row in rows if row.parameters] == [row[:5] for row in layers(model, shape)]
    earlier: set[str] = set()
    for path, node in graph.nodes.items():
        assert path == node.path and set(node.inputs) <= earlier and bool(node.inputs) != (path == "image")
        assert all(side > 0 for side in node.output)
        earlier.add(path)
    used, waiting = set(), [graph.logits]
    while waiting:
        path = waiting.pop()
        if path not in used:
            used.add(path)
            waiting += graph.nodes[path].inputs
    unused = [path for path in graph.nodes if path not in used]
    assert all(path.startswith("aux") for path in unused), unused
    assert {path for row in rows for path in row.inputs} <= {"image", *(row.path for row in rows)}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in REDUCED])
def test_graphs_are_sound(name):
    entry, fields, shape = REDUCED[name]
    model = MODELS[entry](**fields)
    assert_sound(trace(model, shape), model, shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_graphs_of_all_models_are_sound(name):
    model = create(name)
    assert_sound(trace(model), model, model.input_shape)


def kinds(name, **fields):
    return Counter(row.kind for row in trace(create(name, **fields)).rows())


def test_pooling_additions_and_branches_are_counted_as_in_the_papers():
    assert kinds("resnet18")["Add"] == 8 and kinds("resnet18")["MaxPool"] == 1 and kinds("resnet18")["Mean"] == 1
    googlenet = kinds("googlenet")
    assert googlenet["Concatenate"] == 9 and googlenet["ResponseNorm"] == 2
    assert googlenet["MaxPool"] == 4 + 9 and googlenet["AvgPool"] == 2  # between and inside modules; auxiliary heads
    assert kinds("highway_conv")["Multiply"] == 16 and kinds("highway_conv")["Add"] == 8
    assert kinds("alexnet_owt_small")["MaxPool"] == 3 and kinds("alexnet")["ResponseNorm"] == 2
    gated = kinds("se_resnet50_small", blocks=(1, 1))
    assert gated["Multiply"] == 2 and gated["Mean"] == 3 and gated["Add"] == 2


def test_a_block_of_resnet():
    nodes = trace(create("resnet20", blocks=(1, 1))).nodes
    assert nodes["stage1_block1/add"].inputs == ("stem/relu", "stage1_block1/conv2/norm")
    assert nodes["stage2_block1/add"].output == (16, 16, 32)
    assert nodes["mean"].inputs == ("stage2_block1/relu",) and nodes["head"].inputs == ("mean",)
    pool = trace(create("resnet50", blocks=(1,))).nodes["maxpool"]
    assert pool.detail == "3x3/2" and pool.output == (56, 56, 64)
