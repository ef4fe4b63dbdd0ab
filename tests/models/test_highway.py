"""Highway layers, and that residual layers are a case of them."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo.models as models
from zoo.models import create
from zoo.models.highway import HighwayLayer
from zoo.models.layers import Conv

LAYERS = {"dense": partial(nn.Dense, 6), "conv": partial(Conv, 6, 3)}


def with_gates(variables, bias):
    """Every gate a constant: its kernel 0, its bias as given."""

    def fix(path, leaf):
        keys = [key.key for key in path]
        if "gate" not in keys:
            return leaf
        return jnp.full_like(leaf, bias if keys[-1] == "bias" else 0)

    return jax.tree_util.tree_map_with_path(fix, variables)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_gate_fixed_half_open_is_a_residual_layer_up_to_scale(kind):
    layer = HighwayLayer(LAYERS[kind], nn.relu, -1.0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5, 6)), jnp.float32)
    variables = with_gates(layer.init(jax.random.key(0), x), 0.0)
    transform = variables["params"]["transform"]
    residual = x + nn.relu(LAYERS[kind]().apply({"params": transform}, x))
    np.testing.assert_allclose(layer.apply(variables, x), residual / 2, rtol=1e-6, atol=1e-7)
    # Nearly closed it passes x, nearly open it is the plain layer.
    np.testing.assert_allclose(layer.apply(with_gates(variables, -30.0), x), x, rtol=1e-5)
    np.testing.assert_allclose(layer.apply(with_gates(variables, 30.0), x), residual - x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["highway", "highway_conv"])
def test_a_whole_network_with_gates_half_open_is_the_residual_network_up_to_scale(name):
    """ReLU and pooling carry a factor through, so n layers give the residual network divided by 2^n."""
    model = create(name, layers=4, width=6, image_size=8)
    variables = with_gates(models.init(model, 0), 0.0)  # biases of H start at 0, which the factor needs
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 1)), jnp.float32)
    _, ends = model.apply(variables, images)
    params = variables["params"]
    if name == "highway":
        x = images.reshape(3, -1)
        x = nn.relu(x @ params["layer1"]["kernel"])
        for i in (2, 3, 4):
            x = x + nn.relu(x @ params[f"layer{i}"]["transform"]["kernel"])
    else:
        conv = Conv(6, 3)
        x = nn.relu(conv.apply({"params": params["layer1"]}, images))
        for i in (2, 3, 4):
            x = x + nn.relu(conv.apply({"params": params[f"layer{i}"]["transform"]}, x))
            x = x if i != 3 else nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(3, -1)
    np.testing.assert_allclose(ends["features"], x / 2**3, rtol=1e-5, atol=1e-7)


def test_gates_start_where_the_field_says():
    params = models.init(create("highway", layers=2, width=4, gate_bias=-3.0, image_size=4), 0)["params"]
    assert np.all(params["layer2"]["gate"]["bias"] == -3) and np.all(params["layer2"]["transform"]["bias"] == 0)


def test_no_layers_name_is_the_beginning_of_anothers():
    """Parts of a network are frozen by the beginning of their path."""
    names = create("highway", layers=100).stages
    assert len(names) == 101 and not [a for a in names for b in names if a != b and b.startswith(a)]


def test_the_wider_network_has_the_papers_parameters():
    """arXiv:1507.06228, table 1: 151 thousand at width 32."""
    assert models.count_parameters(models.abstract_variables(create("highway_conv", width=32))) == 151_178


def test_fields_are_checked():
    with pytest.raises(ValueError, match="relu, tanh"):
        models.init(create("highway", activation="gelu"), 0)
    with pytest.raises(ValueError, match="image_size=32"):
        models.abstract_variables(create("highway_conv"), (32, 32, 1))
    with pytest.raises(ValueError, match="at least 8x8"):
        models.abstract_variables(create("highway_conv", image_size=4))
