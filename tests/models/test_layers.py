"""Shared layers against NumPy references: training mode, initialisation, pooling and normalisation at their edges."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError

from zoo.models import create, layers, operations
from zoo.models.layers import BatchNorm, Conv, ConvNorm, ConvPool, StochasticDepth


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- initialisation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [Conv(64, 3), ConvNorm(64, 3, BatchNorm), ConvPool(64, 3, nn.relu, "max")],
    ids=["Conv", "ConvNorm", "Pool"],
)
def test_convolutions_start_from_the_fan_out(layer):
    """He et al. 2015 (arXiv:1502.01852), equation 14: variance 2 / (k * k * F)."""
    arguments = (True,) if isinstance(layer, ConvNorm) else ()
    params = layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)), *arguments)["params"]
    params = params.get("conv", params)
    assert params["kernel"].shape == (3, 3, 32, 64)
    assert np.std(params["kernel"]) == pytest.approx((2 / (3 * 3 * 64)) ** 0.5, rel=0.02)
    assert not np.any(params.get("bias", 0))


def test_classifiers_start_uniformly_over_the_fan_in():
    """PyTorch's nn.Linear: between ±1 / sqrt(fan-in)."""
    kernel = layers.uniform_head(jax.random.key(0), (400, 100))
    assert np.abs(kernel).max() == pytest.approx(0.05, rel=0.01) and np.abs(kernel).max() <= 0.05
    assert np.std(kernel) == pytest.approx(0.05 / 3**0.5, rel=0.02)


def test_batch_norm_starts_as_the_identity():
    variables = BatchNorm().init(jax.random.key(0), jnp.zeros((2, 3)), use_running_average=False)
    values = {"scale": 1, "bias": 0, "mean": 0, "var": 1}
    for leaves in variables.values():
        for name, leaf in leaves.items():
            assert leaf.dtype == jnp.float32 and np.all(leaf == values[name])


# --- batch norm --------------------------------------------------------------------------------------------------

SCALE, BIAS = np.float32([2, 0.5, -1]), np.float32([0.1, 0, 3])


def batch_norm_step(x, epsilon=1e-5, **fields):
    """Output and running statistics after one training step from mean 0 and variance 1."""
    variables = {
        "params": {"scale": SCALE, "bias": BIAS},
        "batch_stats": {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)},
    }
    y, updates = BatchNorm(epsilon=epsilon, **fields).apply(variables, x, False, mutable=["batch_stats"])
    return y, updates["batch_stats"]


def test_batch_norm_in_training():
    """Ioffe and Szegedy 2015, algorithms 1 and 2: the biased variance normalises, the unbiased one is averaged."""
    x = 3 * normal(5, 2, 2, 3) + 1
    flat, n = x.reshape(-1, 3).astype(np.float64), 5 * 2 * 2
    mean, var = flat.mean(0), flat.var(0)
    y, running = batch_norm_step(x, epsilon=0.5)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 0.5) * SCALE + BIAS, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(running["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * n / (n - 1) * var, rtol=1e-5)


def test_momentum_of_batch_norm_is_the_fraction_that_is_kept():
    x = normal(8, 3)
    _, running = batch_norm_step(x, momentum=0.75)
    np.testing.assert_allclose(running["mean"], 0.25 * x.mean(0), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(running["var"], 0.75 + 0.25 * x.var(0, ddof=1), rtol=1e-5)


def test_batch_norm_of_a_single_value_has_finite_statistics():
    _, running = batch_norm_step(normal(1, 3))
    np.testing.assert_allclose(running["var"], 0.9)


def test_batch_norm_over_devices_counts_the_values_of_all():
    x = 3 * normal(6, 2, 3) + 1
    step = jax.pmap(partial(batch_norm_step, axis_name="devices"), axis_name="devices", devices=jax.devices()[:2])
    y, running = step(x.reshape(2, 3, 2, 3))
    whole, expected = batch_norm_step(x)
    np.testing.assert_allclose(y.reshape(x.shape), whole, rtol=1e-4, atol=1e-5)
    for name, leaf in expected.items():
        for device in range(2):
            np.testing.assert_allclose(running[name][device], leaf, rtol=1e-5)


def test_batch_norm_in_evaluation_uses_the_running_statistics():
    x, mean, var = normal(4, 3), np.float32([1, 2, 3]), np.float32([0.5, 1, 4])
    variables = {"params": {"scale": SCALE, "bias": BIAS}, "batch_stats": {"mean": mean, "var": var}}
    y, updates = BatchNorm(epsilon=0.25).apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 0.25) * SCALE + BIAS, rtol=1e-4, atol=1e-5)
    assert np.array_equal(updates["batch_stats"]["mean"], mean) and np.array_equal(updates["batch_stats"]["var"], var)


def test_batch_norm_without_scale_and_bias():
    x = normal(6, 3)
    module = BatchNorm(use_scale=False, use_bias=False)
    y, variables = module.init_with_output(jax.random.key(0), x, False)
    assert "params" not in variables
    np.testing.assert_allclose(y, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), rtol=1e-4, atol=1e-5)


def test_initialisation_leaves_the_running_statistics():
    variables = BatchNorm().init(jax.random.key(0), 5 + normal(6, 3), False)
    assert not np.any(variables["batch_stats"]["mean"]) and np.all(variables["batch_stats"]["var"] == 1)


@pytest.mark.parametrize("train", [False, True])
def test_a_unit_of_convolution_norm_and_relu_normalises_by_the_batch_in_training_only(train):
    x = normal(4, 3, 3, 2)
    unit = ConvNorm(5, 3, BatchNorm)
    variables = unit.init(jax.random.key(0), x, False)
    y, updates = unit.apply(variables, x, train, mutable=["batch_stats"])
    changed = not np.array_equal(updates["batch_stats"]["norm"]["mean"], variables["batch_stats"]["norm"]["mean"])
    assert changed == train
    assert np.all(y >= 0) and np.any(y == 0)
    linear = ConvNorm(5, 3, BatchNorm, act=None).apply(variables, x, train, mutable=["batch_stats"])[0]
    np.testing.assert_allclose(y, np.maximum(linear, 0), atol=1e-6)


# --- stochastic depth and dropout --------------------------------------------------------------------------------


def test_stochastic_depth_drops_whole_examples_and_scales_the_others():
    x = 1 + np.abs(normal(2000, 2, 1, 3))
    y = StochasticDepth(0.25).apply({}, x, True, rngs={"dropout": jax.random.key(0)})
    dropped = np.all(np.asarray(y) == 0, axis=(1, 2, 3))
    np.testing.assert_allclose(y[~dropped], x[~dropped] / 0.75, rtol=1e-6)
    assert dropped.mean() == pytest.approx(0.25, abs=0.04)


def test_stochastic_depth_does_nothing_in_evaluation_or_at_rate_0():
    x = normal(4, 3)
    assert np.array_equal(StochasticDepth(0.5).apply({}, x, False), x)
    assert np.array_equal(StochasticDepth(0.0).apply({}, x, True), x)
    with pytest.raises(InvalidRngError):
        StochasticDepth(0.5).apply({}, x, True)


class Head(nn.Module):
    num_classes: int | None
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train):
        return layers.classify(x, {"stage": x}, self.num_classes, train, dropout=self.dropout)


def test_the_head_drops_features_before_the_dense_layer():
    x = 1 + np.abs(normal(3, 40))
    variables = Head(4).init(jax.random.key(0), x, False)
    kernel = variables["params"]["head"]["kernel"]
    plain, ends = Head(4, 0.5).apply(variables, x, False)
    assert list(ends) == ["stage", "features", "logits"] and ends["logits"] is plain
    np.testing.assert_allclose(plain, x @ kernel, rtol=1e-4, atol=1e-5)
    logits, ends = Head(4, 0.5).apply(variables, x, True, rngs={"dropout": jax.random.key(0)})
    assert np.array_equal(ends["features"], x) and not np.allclose(logits, plain)
    features, ends = Head(None, 0.5).apply({}, x, True)
    assert np.array_equal(features, x) and list(ends) == ["stage", "features"]


# --- convolution and pooling -------------------------------------------------------------------------------------


def windows(x, window, stride, pads, fill):
    """Every window of x [B, H, W, C] after padding, [B, H', W', window * window, C]."""
    x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    sides = [range(0, size - window + 1, stride) for size in x.shape[1:3]]
    return np.stack(
        [np.stack([x[:, i : i + window, j : j + window].reshape(len(x), -1, x.shape[3]) for j in sides[1]], 1)
         for i in sides[0]], 1,
    )  # fmt: skip


# Size, window, stride, padding and ceil, with the output size. Caffe's rule: round up, but no window may start in the
# padding at the bottom or on the right.
POOLS = [
    ((6, 7), 2, 2, 0, False, (3, 3)),
    ((6, 7), 3, 2, 1, False, (3, 4)),
    ((6, 7), 3, 2, 0, True, (3, 3)),
    ((7, 8), 3, 2, 0, True, (3, 4)),
    ((5, 5), 2, 2, 1, True, (3, 3)),
    ((4, 4), 1, 2, 0, True, (2, 2)),
    ((4, 4), 2, 3, 1, True, (2, 2)),
]


@pytest.mark.parametrize(("size", "window", "stride", "padding", "ceil", "output"), POOLS)
@pytest.mark.parametrize("formulation", ["plain", "cpu"])
def test_maximum_over_windows(size, window, stride, padding, ceil, output, formulation):
    x = normal(1, *size, 2) - 5  # below the zeros of a wrong padding
    with operations.formulation(formulation):
        y = operations.max_pool(jnp.asarray(x), window, stride, padding, ceil)
    assert y.shape == (1, *output, 2)
    pads = [
        (padding, max(padding, (n - 1) * stride + window - side - padding))
        for side, n in zip(size, output, strict=True)
    ]
    expected = windows(x, window, stride, pads, -np.inf).max(3)[:, : output[0], : output[1]]
    np.testing.assert_array_equal(y, expected)


def test_average_over_windows():
    x = normal(1, 5, 6, 2)
    pads = ((1, 1), (1, 1))
    np.testing.assert_allclose(operations.avg_pool(x, 3, 2), windows(x, 3, 2, ((0, 0), (0, 0)), 0).mean(3), atol=1e-6)
    np.testing.assert_allclose(operations.avg_pool(x, 3, 1, 1), windows(x, 3, 1, pads, 0).mean(3), atol=1e-6)
    inside = np.nanmean(windows(x, 3, 1, pads, np.nan), axis=3)
    np.testing.assert_allclose(operations.avg_pool(x, 3, 1, 1, count_include_pad=False), inside, atol=1e-6)


def test_adaptive_average_has_the_cells_of_pytorch():
    """Cell i of n covers floor(i * L / n) to ceil((i + 1) * L / n); neighbouring cells may share a row."""
    x = normal(1, 7, 4, 1)
    rows = [(0, 3), (2, 5), (4, 7)]
    expected = np.stack([x[:, a:b].mean(1) for a, b in rows], 1)
    np.testing.assert_allclose(operations.adaptive_avg_pool(x, (3, 4)), expected, atol=1e-6)
    np.testing.assert_allclose(
        operations.adaptive_avg_pool(x, (1, 1))[:, 0, 0], operations.global_avg_pool(x), atol=1e-6
    )
    np.testing.assert_allclose(operations.global_avg_pool(x), x.mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize(
    ("padding", "expected"),
    [(2, ((2, 2), (2, 2))), ((0, 3), ((0, 0), (3, 3))), (((1, 2), (3, 4)), ((1, 2), (3, 4))),
     ("VALID", ((0, 0), (0, 0))), ("SAME", ((0, 1), (1, 1)))],
)  # fmt: skip
def test_explicit_padding(padding, expected):
    assert operations.explicit_padding(padding, (6, 7), (2, 2), (3, 3)) == expected


@pytest.mark.parametrize(
    ("kernel_size", "output"), [(1, (6, 5)), (3, (6, 5)), (5, (6, 5)), ((1, 7), (6, 5)), ((7, 1), (6, 5)), (2, (5, 4))]
)
def test_convolutions_pad_half_their_kernel(kernel_size, output):
    conv = Conv(4, kernel_size)
    assert conv.init_with_output(jax.random.key(0), jnp.zeros((1, 6, 5, 3)))[0].shape == (1, *output, 4)


def test_groups_read_their_own_channels():
    x = normal(1, 3, 3, 4)
    conv = Conv(6, 1, groups=2, bias_init=nn.initializers.ones)
    y, variables = conv.init_with_output(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["kernel"])[0, 0]  # [2, 6]
    assert kernel.shape == (2, 6)
    expected = 1 + np.concatenate([x[..., :2] @ kernel[:, :3], x[..., 2:] @ kernel[:, 3:]], -1)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert set(Conv(6, 1, use_bias=False).init(jax.random.key(0), x)["params"]) == {"kernel"}


def test_conv_pool_counts_the_positions_before_its_pooling():
    assert ConvPool(6, 5, nn.relu, "max").positions((1, 32, 28, 1)) == 28 * 24


# --- response norm, widths, checks -------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "beta"), [(5, 0.75), (4, 0.75), (3, 1.0), (1, 0.5)])
def test_local_response_norm(size, beta):
    """Krizhevsky et al. 2012, section 3.3; an even window has its extra channel above."""
    x = 10 * normal(1, 2, 2, 7)
    y = operations.local_response_norm(jnp.asarray(x), size, 0.02, beta, 1.5)
    for i in range(7):
        near = x[..., max(i - (size - 1) // 2, 0) : i + size // 2 + 1].astype(np.float64)
        expected = x[..., i] / (1.5 + 0.02 * np.square(near).sum(-1)) ** beta
        np.testing.assert_allclose(y[..., i], expected, rtol=1e-5)


def test_local_response_norm_has_the_constants_of_alexnet():
    """Krizhevsky et al. 2012, section 3.3: n = 5, alpha = 1e-4, beta = 0.75, k = 2."""
    x = jnp.full((1, 1, 1, 9), 100.0)
    np.testing.assert_allclose(
        operations.local_response_norm(x)[0, 0, 0, 4], 100 / (2 + 1e-4 * 5 * 1e4) ** 0.75, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("features", "width", "expected"),
    [
        (20, 1, 20),
        (64, 0.5, 32),
        (96, 0.1, 8),
        (16, 0.1, 8),
        (100, 0.5, 48),
        (104, 0.5, 48),
        (108, 0.5, 56),
        (64, 2, 128),
    ],
)
def test_scaled_widths_are_multiples_of_8(features, width, expected):
    assert layers.scale_width(features, width) == expected


def test_relu_in_both_formulations():
    x = normal(3, 4)
    for name in ("plain", "cpu"):
        with operations.formulation(name):
            assert np.array_equal(operations.relu(jnp.asarray(x)), np.maximum(x, 0))


def test_formulations_nest_and_end_with_their_context():
    assert operations.current_formulation() is None
    with operations.formulation("cpu"):
        with operations.formulation("plain"):
            assert operations.current_formulation() == "plain"
        assert operations.current_formulation() == "cpu"
    assert operations.current_formulation() is None


@pytest.mark.parametrize(
    ("shape", "fixed_size", "part"),
    [((8, 8, 3), None, "[B, H, W, C]"), ((1, 7, 9, 3), None, "8x8"), ((1, 9, 7, 3), None, "9x7"),
     ((1, 9, 9, 3), 8, "image_size=9"), ((1, 8, 9, 3), 8, "(resize the images)")],
)  # fmt: skip
def test_images_of_a_wrong_shape(shape, fixed_size, part):
    with pytest.raises(ValueError, match="net") as caught:
        layers.require_images(jnp.zeros(shape), 8, "net", fixed_size)
    assert part in str(caught.value)
    layers.require_images(jnp.zeros((1, 8, 8, 3)), 8, "net", 8)


@pytest.mark.parametrize("layer", [Conv(2, 1, name="first"), ConvPool(2, 1, nn.relu, "max", name="first")])
def test_images_with_another_number_of_channels(layer):
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    with pytest.raises(ValueError, match="3 channels; got 1"):
        layer.apply(variables, jnp.zeros((1, 4, 4, 1)))


def test_dense_layers_on_flattened_images_name_their_channels():
    model = create("mlp", image_size=4, widths=(3,))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    with pytest.raises(ValueError, match="1 channel; got 3"):
        model.apply(variables, jnp.zeros((1, 4, 4, 3)))
