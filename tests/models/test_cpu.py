"""The CPU formulations against plain lax: the same values and gradients, in float64 to 1e-10."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import models
from zoo.models import layers


def random(seed, *shape, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def both(function, *args):
    """Values and gradients of sum(cotangents * function(*args)), plain and as on a CPU."""
    found = []
    for name in ("plain", "cpu"):

        def run(*args, name=name):
            with layers.formulation(name):
                values, pull = jax.vjp(function, *args)
            cotangents = [random(i, *v.shape, dtype=v.dtype) for i, v in enumerate(jax.tree.leaves(values))]
            return values, pull(jax.tree.unflatten(jax.tree.structure(values), cotangents))

        found.append(jax.jit(run)(*args))
    return found


def assert_same(function, *args, tolerance=1e-10):
    plain, cpu = both(function, *args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance), plain, cpu)
    return cpu


@pytest.mark.parametrize(
    ("size", "channels", "features", "kernel", "pool"),
    [(32, 1, 6, 5, "max"), (28, 3, 5, 5, "avg"), ((14, 17), 6, 16, 5, "max"), ((13, 9), 2, 8, 3, "max"),
     (9, 4, 9, 2, "avg")],
)  # fmt: skip
def test_convolution_and_pooling_in_blocks(size, channels, features, kernel, pool):
    height, width = size if isinstance(size, tuple) else (size, size)
    with jax.enable_x64(True):
        args = random(0, 3, height, width, channels), random(1, kernel, kernel, channels, features), random(2, features)
        value, _ = assert_same(lambda *args: layers.conv_pool(*args, jnp.tanh, pool), *args)
        assert value.shape == (3, (height - kernel + 1) // 2, (width - kernel + 1) // 2, features)


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding", "ceil"),
    [((8, 8), 2, 2, 0, False), ((9, 7), 2, 2, 0, False), ((13, 13), 3, 2, 0, False), ((12, 11), 3, 2, 1, False),
     ((12, 9), 3, 2, 0, True), ((7, 8), 3, 1, 1, False), ((7, 7), 2, 3, 0, False), ((9, 9), 2, 2, 1, True)],
)  # fmt: skip
def test_maximum_over_windows(size, window, stride, padding, ceil):
    with jax.enable_x64(True):
        x = random(0, 2, *size, 3)
        assert_same(lambda x: layers.max_pool(x, window, stride, padding, ceil), x)
        # Equal maxima: the first takes the gradient.
        assert_same(lambda x: layers.max_pool(x, window, stride, padding, ceil), jnp.round(x))


def test_maximum_of_nan_is_nan():
    x = jnp.zeros((1, 6, 6, 1)).at[0, 2, 3, 0].set(jnp.nan)
    (plain, _), (cpu, _) = both(lambda x: layers.max_pool(x, 3, 2), x)
    np.testing.assert_array_equal(cpu, plain)
    assert np.isnan(cpu).any()


def as_64(model, image_shape):
    variables = models.init(model, 0, image_shape)
    wide = jax.tree.map(lambda leaf: random(leaf.size, *leaf.shape) * 0.3 + (leaf.ndim == 1), variables)
    return models.with_runtime(model, dtype=jnp.float64), wide


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_lenet5(pool):
    with jax.enable_x64(True):
        model, variables = as_64(models.create("lenet5", pool=pool, num_classes=None), (32, 32, 1))

        def run(params, images):
            ends = model.apply({"params": params}, images)[1]
            return {name: ends[name] for name in model.stages if name in ends}

        assert_same(run, variables["params"], random(0, 4, 32, 32, 1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_other_precisions(dtype):
    tolerance = {jnp.float32: 1e-5, jnp.bfloat16: 3e-2}[dtype]
    x, kernel, bias = (random(i, *shape, dtype=dtype) for i, shape in enumerate([(2, 12, 12, 3), (3, 3, 3, 6), (6,)]))
    for pool in ("max", "avg"):
        value = both(lambda *args, pool=pool: layers.conv_pool(*args, jax.nn.relu, pool), x, kernel, bias)
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(value))
        as_32 = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), value)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance * np.abs(a).max()), *as_32
        )
