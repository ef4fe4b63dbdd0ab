"""Highway layers, and their special case, residual layers."""

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
    """Return the variables with constant gates: kernels 0 and the given bias."""

    def fix(path, leaf):
        keys = [key.key for key in path]
        if "gate" not in keys:
            return leaf
        return jnp.full_like(leaf, bias if keys[-1] == "bias" else 0)

    return jax.tree_util.tree_map_with_path(fix, variables)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_with_gate_one_half_is_residual_up_to_scale(kind):
    layer = HighwayLayer(LAYERS[kind], nn.relu, -1.0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5, 6)), jnp.float32)
    variables = with_gates(layer.init(jax.random.key(0), x), 0.0)
    transform = variables["params"]["transform"]
    residual = x + nn.relu(LAYERS[kind]().apply({"params": transform}, x))
    np.testing.assert_allclose(layer.apply(variables, x), residual / 2, rtol=1e-6, atol=1e-7)
    # A closed gate gives the identity, an open one the plain layer.
    np.testing.assert_allclose(layer.apply(with_gates(variables, -30.0), x), x, rtol=1e-5)
    np.testing.assert_allclose(layer.apply(with_gates(variables, 30.0), x), residual - x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["highway", "highway_conv"])
def test_a_network_with_gates_one_half_is_residual_up_to_scale(name):
    """ReLU and pooling commute with a positive factor, so n highway layers divide by 2^n."""
    model = create(name, layers=4, width=6, image_size=8)
    variables = with_gates(models.init(model, 0), 0.0)  # biases of H start at 0
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


def test_gate_bias_is_the_initial_bias_of_the_gates():
    params = models.init(create("highway", layers=2, width=4, gate_bias=-3.0, image_size=4), 0)["params"]
    assert np.all(params["layer2"]["gate"]["bias"] == -3) and np.all(params["layer2"]["transform"]["bias"] == 0)


def test_no_layer_name_is_a_prefix_of_another():
    """Freezing selects layers by the prefix of their path."""
    names = create("highway", layers=100).stages
    assert len(names) == 101 and not [a for a in names for b in names if a != b and b.startswith(a)]


def test_parameters_of_the_wider_network():
    """arXiv:1507.06228, table 1: 151 thousand at width 32."""
    assert models.count_parameters(models.abstract_variables(create("highway_conv", width=32))) == 151_178


def test_unsuitable_fields_raise():
    with pytest.raises(ValueError, match="relu, tanh"):
        models.init(create("highway", activation="gelu"), 0)
    with pytest.raises(ValueError, match="image_size=32"):
        models.abstract_variables(create("highway_conv"), (32, 32, 1))
    with pytest.raises(ValueError, match="at least 8x8"):
        models.abstract_variables(create("highway_conv", image_size=4))
