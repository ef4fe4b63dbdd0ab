"""Layers for CPUs against plain lax: equal values and gradients, in float64 to 1e-10."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from zoo import models
from zoo.models import cpu_kernels, layers, operations


def random(seed, *shape, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def both(function, *args):
    """Return values and gradients of sum(cotangents * function(*args)), plain and for CPUs."""
    results = []
    for name in ("plain", "cpu"):

        def run(*args, name=name):
            with operations.formulation(name):
                values, pull = jax.vjp(function, *args)
            cotangents = [random(i, *v.shape, dtype=v.dtype) for i, v in enumerate(jax.tree.leaves(values))]
            return values, pull(jax.tree.unflatten(jax.tree.structure(values), cotangents))

        # Compiling takes half the time without optimisation.
        results.append(jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})(*args))
    return results


def assert_same(function, *args, tolerance=1e-10):
    plain, cpu = both(function, *args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance), plain, cpu)
    return cpu


@pytest.mark.parametrize(
    ("size", "channels", "features", "kernel", "pool"),
    [((13, 16), 2, 3, 5, "max"), ((14, 9), 3, 9, 3, "avg"), ((9, 7), 1, 5, 2, "max")],
)  # fmt: skip
def test_convolution_and_pooling_in_blocks(size, channels, features, kernel, pool):
    height, width = size
    with jax.enable_x64(True):
        args = random(0, 2, height, width, channels), random(1, kernel, kernel, channels, features), random(2, features)
        value, _ = assert_same(lambda *args: operations.conv_pool(*args, jnp.tanh, pool), *args)
        assert value.shape == (2, (height - kernel + 1) // 2, (width - kernel + 1) // 2, features)


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding", "ceil"),
    [((8, 8), 2, 2, 0, False), ((9, 7), 2, 2, 0, False), ((13, 13), 3, 2, 0, False), ((12, 11), 3, 2, 1, False),
     ((12, 9), 3, 2, 0, True), ((7, 8), 3, 1, 1, False), ((7, 7), 2, 3, 0, False), ((9, 9), 2, 2, 1, True)],
)  # fmt: skip
def test_maximum_over_windows(size, window, stride, padding, ceil):
    with jax.enable_x64(True):
        x = random(0, 2, *size, 3)
        assert_same(lambda x: operations.max_pool(x, window, stride, padding, ceil), x)
        # Rounding makes equal maxima, of which the first gets the gradient.
        assert_same(lambda x: operations.max_pool(x, window, stride, padding, ceil), jnp.round(x))


def test_relu():
    with jax.enable_x64(True):
        assert_same(operations.relu, jnp.round(random(0, 4, 5, 6) * 2) / 2)  # zeros among them


def test_maximum_of_nan_is_nan():
    x = jnp.zeros((1, 6, 6, 1)).at[0, 2, 3, 0].set(jnp.nan)
    (plain, _), (cpu, _) = both(lambda x: operations.max_pool(x, 3, 2), x)
    np.testing.assert_array_equal(cpu, plain)
    assert np.isnan(cpu).any()


@pytest.mark.parametrize(
    ("batch", "channels", "features", "kernel", "stride", "padding", "groups"),
    [(8, 4, 8, 3, 1, 1, 1), (8, 4, 8, 3, 2, 1, 2), (8, 4, 8, 1, 2, 0, 1), (8, 4, 8, (1, 7), 1, (0, 3), 1),
     (2, 4, 8, 3, 2, 0, 4), (2, 96, 192, 2, 1, 0, 6), (2, 64, 128, 2, 1, 0, 64), (8, 5, 5, 3, 1, 1, 5),
     (2, 5, 5, (3, 5), (2, 1), ((1, 0), (2, 1)), 5), (2, 4, 4, (10, 9), 1, 0, 1), (2, 4, 4, (12, 2), 1, 0, 4)],
)  # fmt: skip
def test_convolution(batch, channels, features, kernel, stride, padding, groups):
    assert_same_convolution((batch, 9, 8), channels, features, kernel, stride, padding, groups)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [((2, 1, 1), 3, 1, 1), ((40, 2, 2), 3, 1, 1), ((2, 3, 3), 3, 2, 1), ((2, 2, 3), (1, 7), 1, (0, 3)),
     ((2, 2, 2), 5, 1, ((2, 1), (0, 3))), ((2, 1, 1), 3, 4, ((4, 0), (4, 0))),
     *(pytest.param(*case, marks=pytest.mark.slow) for case in [
         ((2, 2, 4), 3, 1, 1), ((3, 4, 4), 5, 1, 2), ((2, 4, 4), 3, 2, 1), ((2, 3, 2), (7, 1), 1, (3, 0)),
         ((2, 5, 5), 5, 1, 0), ((1, 9, 8), 3, 1, 1), ((2, 8, 8), 11, 4, 2), ((1, 1, 1), 7, 2, 3), ((2, 1, 3), 3, 3, 4),
     ])],
)  # fmt: skip
def test_convolution_of_small_maps(shape, kernel, stride, padding):
    """Maps smaller than the kernel, and taps that only meet padding."""
    assert_same_convolution(shape, 3, 4, kernel, stride, padding, 1)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [((3, 5), 1, ((1, 0), (2, 2))), (1, (2, 3), 0)])
def test_convolution_of_one_image(kernel, stride, padding):
    """Padded before the gradient of the kernel, or subsampled before the product with a single tap."""
    assert_same_convolution((1, 20, 17), 3, 4, kernel, stride, padding, 1)


def test_grouped_convolution_of_small_maps():
    assert_same_convolution((2, 2, 2), 8, 4, 3, 1, 1, 4)


def assert_same_convolution(shape, channels, features, kernel, stride, padding, groups):
    with jax.enable_x64(True):
        conv = layers.Conv(features, kernel, stride, padding, groups, dtype=jnp.float64)
        x = random(0, *shape, channels)
        params = jax.tree.map(lambda leaf: random(1, *leaf.shape), conv.init(jax.random.key(0), x))
        assert_same(conv.apply, params, x)


def test_small_maps_and_depthwise_kernels_do_not_use_convolutions_of_xla():
    """They take up to a hundred times as long there."""

    def traced(x_shape, kernel_shape, groups):
        with operations.formulation("cpu"):
            function = partial(operations.conv2d, stride=(1, 1), padding=((1, 1), (1, 1)), groups=groups)
            gradient = jax.grad(lambda *args: function(*args).sum(), (0, 1))
            return str(jax.make_jaxpr(gradient)(jnp.zeros(x_shape), jnp.zeros(kernel_shape)))

    assert "conv_general_dilated" not in traced((64, 2, 2, 8), (3, 3, 8, 8), 1)
    assert "conv_general_dilated" not in traced((64, 2, 2, 8), (3, 3, 4, 8), 2)
    assert "conv_general_dilated" not in traced((64, 9, 9, 8), (3, 3, 1, 8), 8)
    assert "conv_general_dilated" in traced((64, 9, 9, 8), (3, 3, 8, 8), 1)


def test_dense_layers_store_their_input():
    """XLA fuses a product of few rows with the operations before it into a scalar loop."""
    dense = layers.Dense(4)
    params = dense.init(jax.random.key(0), jnp.zeros((2, 3)))
    with operations.formulation("cpu"):
        assert "optimization_barrier" in str(jax.make_jaxpr(dense.apply)(params, jnp.zeros((2, 3))))
    assert "optimization_barrier" not in str(jax.make_jaxpr(dense.apply)(params, jnp.zeros((2, 3))))


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (16, 7)])
def test_batch_norm_of_batch(shape):
    with jax.enable_x64(True):
        args = 3 * random(0, *shape) + 5, random(1, shape[-1]), random(2, shape[-1])
        _, mean, var = assert_same(lambda *args: operations.batch_norm_of_batch(*args, 1e-3), *args)[0]
        np.testing.assert_allclose(mean, np.asarray(args[0]).reshape(-1, shape[-1]).mean(0), rtol=1e-12)
        np.testing.assert_allclose(var, np.asarray(args[0]).reshape(-1, shape[-1]).var(0), rtol=1e-12)


def test_batch_norm_shared_over_devices():
    """Values and gradients on two devices with half the batch each equal those on one device."""
    with jax.enable_x64(True):
        x, scale, bias, g = random(0, 6, 4, 3) * 2 + 1, random(1, 3), random(2, 3), random(3, 6, 4, 3)

        def gradients(x, g, axis_name):
            with operations.formulation("cpu" if axis_name else "plain"):
                values, pull = jax.vjp(
                    lambda *args: operations.batch_norm_of_batch(*args, 1e-5, axis_name), x, scale, bias
                )
            # Every device returns the shared mean and variance, so each takes its part of their cotangents.
            parts = 1 if axis_name is None else lax.psum(1, axis_name)
            grads = pull((g, jnp.arange(3.0) / parts, jnp.ones(3) / parts))
            return values, grads[0], grads[1:] if axis_name is None else lax.psum(grads[1:], axis_name)

        halves = (x.reshape(2, 3, 4, 3), g.reshape(2, 3, 4, 3))
        (y, mean, var), x_grad, rest = jax.pmap(
            lambda x, g: gradients(x, g, "devices"), axis_name="devices", devices=jax.devices()[:2]
        )(*halves)
        results = (y.reshape(x.shape), mean[0], var[0]), x_grad.reshape(x.shape), jax.tree.map(lambda v: v[0], rest)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), results, gradients(x, g, None)
        )


def as_64(model, image_shape):
    variables = models.abstract_variables(model, image_shape)
    wide = jax.tree.map(lambda leaf: random(leaf.size, *leaf.shape) * 0.3 + (leaf.ndim == 1), variables)
    return models.with_runtime(model, dtype=jnp.float64), wide


@pytest.mark.parametrize(
    ("name", "fields", "shape"),
    [
        ("lenet5", {}, (32, 32, 1)),
        ("resnet20", {"blocks": (1, 1), "width": 4}, (8, 8, 3)),
        *[
            pytest.param(name, fields, shape, marks=pytest.mark.slow)
            for name, fields, shape in [
                ("lenet5", {"pool": "avg", "activation": "tanh", "image_size": 20}, (20, 20, 3)),
                ("resnet50", {"blocks": (1,), "width": 4}, (24, 24, 3)),
                ("resnet50_v2_small", {"blocks": (1,), "width": 4}, (8, 8, 3)),
                ("wide_resnet16_8", {"widen": 1, "depth": 10}, (8, 8, 3)),
                ("highway_conv", {"layers": 4, "image_size": 8}, (8, 8, 3)),
                ("alexnet_small", {"width": 0.0625, "dropout": 0.0}, (32, 32, 3)),
                ("alexnet_owt_small", {"width": 0.0625, "dropout": 0.0}, (28, 28, 3)),
                ("googlenet_bn_small", {"width": 0.1, "blocks": (1, 0, 0), "dropout": 0.0}, (16, 16, 3)),
                ("inception_v2_small", {"width": 0.1, "blocks": (1, 0, 0), "dropout": 0.0}, (16, 16, 3)),
                ("inception_v3_small", {"width": 0.1, "blocks": (1, 0, 0), "dropout": 0.0}, (16, 16, 3)),
                ("inception_v4_small", {"width": 0.1, "blocks": (1, 0, 0), "dropout": 0.0}, (16, 16, 3)),
                ("inception_resnet_v2_small", {"width": 0.1, "blocks": (1, 0, 0), "dropout": 0.0}, (16, 16, 3)),
                ("xception_small", {"width": 0.1, "blocks": (0,), "dropout": 0.0}, (16, 16, 3)),
            ]
        ],
    ],
)
def test_training_of_a_family(name, fields, shape):
    """All stages in training, the updated batch statistics, and the gradients of both."""
    with jax.enable_x64(True):
        model, variables = as_64(models.create(name, num_classes=None, **fields), shape)

        def run(params, images):
            state = {"params": params, "batch_stats": variables["batch_stats"]}
            (_, ends), updates = model.apply(state, images, train=True, mutable=["batch_stats"])
            return {stage: ends[stage] for stage in model.stages if stage in ends}, updates

        assert_same(run, variables["params"], random(0, 4, *shape))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_other_precisions(dtype):
    tolerance = {jnp.float32: 1e-5, jnp.bfloat16: 3e-2}[dtype]
    x, kernel, bias = (random(i, *shape, dtype=dtype) for i, shape in enumerate([(2, 12, 12, 3), (3, 3, 3, 6), (6,)]))
    for pool in ("max", "avg"):
        value = both(lambda *args, pool=pool: operations.conv_pool(*args, jax.nn.relu, pool), x, kernel, bias)
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(value))
        as_32 = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), value)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance * np.abs(a).max()), *as_32
        )


@pytest.mark.parametrize(("shape", "groups"), [((4, 9, 9, 8), 8), ((4, 3, 3, 8), 1)])
def test_convolutions_in_bfloat16_sum_in_float32(shape, groups):
    """Depthwise and of small maps: values and gradients are off by a rounding at the end, not by one per tap."""
    x, kernel = (random(i, *s, dtype=jnp.bfloat16) for i, s in enumerate([shape, (5, 5, 8 // groups, 8)]))

    def run(x, kernel):
        with operations.formulation("cpu"):
            function = partial(operations.conv2d, stride=(1, 1), padding=((2, 2), (2, 2)), groups=groups)
            values, pull = jax.vjp(function, x, kernel)
            return values, pull(random(2, *values.shape, dtype=jnp.bfloat16).astype(values.dtype))

    compiled = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})
    exact = compiled(x.astype(jnp.float32), kernel.astype(jnp.float32))
    for narrow, wide in zip(jax.tree.leaves(compiled(x, kernel)), jax.tree.leaves(exact), strict=True):
        assert narrow.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(narrow, np.float32), wide, atol=4e-3 * float(jnp.abs(wide).max()))


@pytest.mark.parametrize(
    ("channels", "features", "block"),
    [(1, 6, 2), (16, 8, 2), (6, 16, 1), (1, 9, 1), (16, 32, 1), (17, 6, 0), (1, 33, 0)],
)
def test_block_size_of_conv_pool(channels, features, block):
    """Blocks of 2 fill registers with few features; layers with many channels take the plain convolution."""
    assert cpu_kernels.block_for_conv_pool(channels, features) == block
