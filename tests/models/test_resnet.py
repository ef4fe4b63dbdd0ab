"""Residual networks: shortcuts, strides, stochastic depth, initialisation, remat."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError

import zoo.models as models
from zoo.models import create, resnet, resnet_v2, wide_resnet
from zoo.models.layers import BatchNorm, Conv, StochasticDepth
from zoo.trees import flatten

TINY = {"blocks": (1, 1), "width": 8}

# Nearly all the time goes into compiling, and without optimisation it is half.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def test_option_a_has_no_parameters_and_option_b_projects():
    """He et al. 2015, section 4.2: option A has exactly as many parameters as the plain network."""
    option_b = models.abstract_variables(create("resnet20", shortcut="conv"))
    assert models.count_parameters(option_b) == 269_722 + (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert {path.split("/")[1] for path in flatten(option_b) if "shortcut" in path} == {
        "stage2_block1", "stage3_block1",
    }  # fmt: skip


def test_option_a_subsamples_and_pads_with_zeros():
    x = normal(1, 5, 4, 2)
    padded = resnet.padded_shortcut(x, 6, 2, None, False)
    assert padded.shape == (1, 3, 2, 6)
    assert np.array_equal(padded[..., 2:4], x[:, ::2, ::2])
    assert not np.any(padded[..., :2]) and not np.any(padded[..., 4:])


def test_halving_averages_the_pixels_inside_the_image():
    x = normal(1, 3, 5, 2)
    means = resnet.halve(x)
    assert means.shape == (1, 2, 3, 2)
    np.testing.assert_allclose(means[0, 0, 1], x[0, :2, 2:4].mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(means[0, 1, 1], x[0, 2, 2:4].mean(0), rtol=1e-6)
    np.testing.assert_allclose(means[0, 1, 2], x[0, 2, 4], rtol=1e-6)


@pytest.mark.parametrize("name", ["resnet20", "resnet50_v2_small", "bit_r50x1_small", "wide_resnet16_8"])
@pytest.mark.parametrize(
    ("keep_first", "expected"), [(False, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), (True, [0, 0.12, 0.24, 0.36, 0.48, 0.6])]
)
def test_stochastic_depth_grows_linearly(name, keep_first, expected):
    """Block l of L is dropped with l / L times the probability of the last (Huang et al. 2016, section 3).

    In timm it is (l - 1) / (L - 1).
    """
    blocks = {"depth": 16} if name.startswith("wide") else {"blocks": (2, 2, 2), "width": 8}
    model, rates = create(name, stochastic_depth=0.6, keep_first=keep_first, **blocks), []

    def record(call, args, kwargs, context):
        if isinstance(context.module, StochasticDepth):
            rates.append(context.module.rate)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    np.testing.assert_allclose(rates, expected)


BLOCKS = {
    "basic": resnet.BasicBlock(8, 1, resnet.BlockOptions(BatchNorm, zero_init=True)),
    "bottleneck": resnet.Bottleneck(2, 1, resnet.BlockOptions(BatchNorm, squeeze=4, zero_init=True), widen=2, groups=2),
    "v2": resnet_v2.Block(2, 1, False, BatchNorm, False, 0.0, True, jnp.float32),
    "wide": wide_resnet.Block(8, 1, BatchNorm, 0.0, 0.0, True, jnp.float32),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_zero_init_starts_every_block_as_its_shortcut(kind):
    x = nn.relu(normal(2, 4, 4, 8))
    output, _ = jit(partial(BLOCKS[kind].init_with_output, train=True))(jax.random.key(0), x)
    assert np.array_equal(output, x)


REMAT = {"resnet50_small": TINY, "resnet50_v2_small": TINY, "wide_resnet16_8": {"depth": 10, "widen": 1, "width": 4}}


@pytest.mark.parametrize("name", REMAT)
def test_remat_recomputes_every_block(name):
    """The parameters are the same, and every block is wrapped."""
    model = create(name, **REMAT[name])
    saving = models.with_runtime(model, remat=True)
    variables, again = (models.abstract_variables(m, (8, 8, 3)) for m in (model, saving))
    assert flatten(variables) == flatten(again)
    images = jnp.zeros((2, 8, 8, 3))
    blocks = {path.split("/")[1] for path in flatten(variables) if "_block" in path}
    for m, count in ((model, 0), (saving, len(blocks))):
        names = [equation.primitive.name for equation in jax.make_jaxpr(m.apply)(variables, images).jaxpr.eqns]
        assert sum(name in ("remat2", "remat", "checkpoint") for name in names) == count


def test_remat_does_not_change_gradients():
    """A recomputed block must draw the same mask of stochastic depth."""
    model = create("resnet50_v2_small", blocks=(1,), width=4, stochastic_depth=0.5)
    variables, images = models.init(model, 0, (4, 4, 3)), normal(4, 4, 4, 3)

    def gradients(model):
        def loss(params):
            everything, rngs = {**variables, "params": params}, {"dropout": jax.random.key(3)}
            (logits, _), _ = model.apply(everything, images, train=True, mutable=["batch_stats"], rngs=rngs)
            return jnp.square(logits).sum()

        return jit(jax.grad(loss))(variables["params"])

    plain, saved = (gradients(m) for m in (model, models.with_runtime(model, remat=True)))
    for a, b in zip(*map(jax.tree.leaves, (plain, saved)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(a).max()))


@pytest.mark.parametrize(
    ("name", "smallest"),
    [("resnet18", 32), ("resnet50_v2", 32), ("resnet18_small", 8), ("resnet50_v2_small", 8), ("resnet20", 4),
     ("wide_resnet16_8", 4)],
)  # fmt: skip
def test_the_smallest_image_leaves_one_pixel(name, smallest):
    model, images = create(name), jnp.zeros((1, smallest, smallest, 3))
    variables = models.abstract_variables(model, images.shape[1:])
    _, ends = jax.eval_shape(model.apply, variables, images)
    assert ends[model.stages[-2]].shape[1:3] == (1, 1)
    with pytest.raises(ValueError, match=f"at least {smallest}x{smallest} pixels"):
        jax.eval_shape(model.apply, variables, images[:, 1:])


def conv_strides(model, block):
    """Return the stride of each convolution in a block, by name."""
    strides = {}

    def record(call, args, kwargs, context):
        path = context.module.path
        if isinstance(context.module, Conv) and block in path:
            strides["/".join(path[path.index(block) + 1 :]).removesuffix("/conv")] = context.module.stride
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, *model.input_shape)))
    return strides


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("resnet50", {"conv1": 1, "conv2": 2, "conv3": 1, "shortcut": 2}),
        ("resnet50_v1", {"conv1": 2, "conv2": 1, "conv3": 1, "shortcut": 2}),
        ("resnet50d", {"conv1": 1, "conv2": 2, "conv3": 1, "shortcut": 1}),  # its shortcut averages over 2x2 first
        ("resnet18", {"conv1": 2, "conv2": 1, "shortcut": 2}),
        ("resnet20", {"conv1": 2, "conv2": 1}),
        ("resnet50_v2", {"conv1": 1, "conv2": 2, "conv3": 1, "shortcut": 2}),
        ("wide_resnet16_8", {"conv1": 2, "conv2": 1, "shortcut": 2}),
    ],
)
def test_strides_of_the_first_block_of_a_stage(name, strides):
    model = create(name, **({"depth": 10} if name.startswith("wide") else {"blocks": (1, 1)}))
    assert conv_strides(model, "stage2_block1") == strides
    first = dict.fromkeys(conv_strides(model, "stage1_block1"), 1)
    assert conv_strides(model, "stage1_block1") == first


def test_keras_strides_one_block_later():
    sides = {}
    for where in ("first", "last"):
        model = create("resnet50_v2", blocks=(2, 2), width=8, stride_at=where)
        variables = models.abstract_variables(model)
        _, ends = jax.eval_shape(model.apply, variables, jnp.zeros((1, 224, 224, 3)))
        sides[where] = [ends[stage].shape[1] for stage in ("stem", "stage1", "stage2")]
    assert sides == {"first": [56, 56, 28], "last": [56, 28, 28]}


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("resnet50", {"stem": "tiny"}, "imagenet, deep, tiered, wide, small"),
        ("resnet50", {"shortcut": "zeros"}, "conv, pool, pad"),
        ("resnet50", {"stride_in": "5x5"}, "3x3, 1x1"),
        ("resnet18", {"widen": 2}, "set bottleneck=True"),
        ("resnet50", {"groups": 3}, "3 groups do not divide its 64 channels"),
        ("resnet50_v2", {"stem": "tiered"}, "imagenet, deep, small"),
        ("resnet50_v2", {"norm": "layer"}, "batch, group"),
        ("resnet18_v2", {"stride_in": "1x1"}, "set bottleneck=True"),
        ("resnet50", {"stem_pool": "mean"}, "max, conv"),
        ("resnet18", {"stem": "wide", "shortcut": "pad"}, "shortcut='pad' cannot follow"),
        ("resnet50_v2", {"stride_at": "middle"}, "first, last"),
        ("resnet50_v2", {"pool_padding": "ones"}, "nothing, zeros"),
        ("wide_resnet16_8", {"depth": 18}, "6n \\+ 4"),
    ],
)
def test_unsuitable_fields_raise(name, fields, message):
    with pytest.raises(ValueError, match=message):
        models.abstract_variables(create(name, **fields))


def test_a_wide_block_applies_dropout_in_training_only():
    model, images = create("wide_resnet16_8", depth=10, widen=1, dropout=0.5), jnp.zeros((2, 8, 8, 3))
    variables = models.abstract_variables(model)
    jax.eval_shape(model.apply, variables, images)
    with pytest.raises(InvalidRngError):  # needs a random key
        jax.eval_shape(partial(model.apply, train=True, mutable=["batch_stats"]), variables, images)


def test_resnet9_is_the_published_function():
    """Page 2018: the ReLU of a block comes before its sum, stages pool before their block, the head sees an eighth."""
    model = create("resnet9", width=4)
    images = normal(2, 16, 16, 3)
    variables = jit(partial(model.init, train=False))(jax.random.key(0), images)
    logits, ends = jit(partial(model.apply, train=False))(variables, images)

    def conv(x, path):
        kernel, norm = flatten(variables["params"])[f"{path}/conv/kernel"], 1 / np.sqrt(1 + 1e-5)  # fresh statistics
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.maximum(norm * x, 0)

    x = conv(images, "stem")
    for stage in (1, 2, 3):
        x = conv(x, f"stage{stage}_conv")
        x = x.reshape(2, x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4))
        if stage != 2:
            x = x + conv(conv(x, f"stage{stage}_block/conv1"), f"stage{stage}_block/conv2")
    head = variables["params"]["head"]
    np.testing.assert_allclose(logits, x.max((1, 2)) / 8 @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)
    assert {name: ends[name].shape[1:] for name in model.stages[:-1]} == {
        "stem": (16, 16, 4), "stage1": (8, 8, 8), "stage2": (4, 4, 16), "stage3": (2, 2, 32),
    }  # fmt: skip


def test_own_networks_of_the_pre_activation_paper():
    """He et al. 2016: 164 and 1,001 layers for CIFAR-10, 200 for ImageNet; norm and ReLU before the stem's pooling."""
    for name, depth in (("resnet164", 164), ("resnet1001", 1001)):
        assert 3 * sum(create(name).blocks) + 2 == depth
    assert 3 * sum(create("resnet200_v2").blocks) + 2 == 200
    params = models.abstract_variables(create("resnet200_v2", blocks=(2, 1)))["params"]
    assert "stem_norm" in params and "norm1" not in params["stage1_block1"]
    assert "norm1" in params["stage1_block2"] and "norm1" in params["stage2_block1"]
    params = models.abstract_variables(create("resnet164", blocks=(1, 1)))["params"]
    assert "stem_norm" not in params and "norm1" in params["stage1_block1"]
