"""GoogLeNet, Inception-v2 and Inception-v3: tables of the papers, auxiliary heads, pools, remat, Keras's names."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seeded import seeded_images, seeded_variables

import zoo.models as models
from zoo.models import create, googlenet, inception_v2, inception_v3
from zoo.models.branches import Branches, Pool, Unit
from zoo.models.layers import BatchNorm, ConvNorm
from zoo.models.operations import max_pool
from zoo.pretrained import keras
from zoo.trees import flatten

NAMES = ["googlenet", "googlenet_bn", "inception_v2", "inception_v3"]
ONE_EACH = {"blocks": (1, 1, 1)}

# Output sizes: GoogLeNet's table 1; figure 5 of Inception-v2; section 6 and table 1 of Inception-v3, as released.
GOOGLENET = {
    "conv1": (112, 112, 64), "conv2_reduce": (56, 56, 64), "conv2": (56, 56, 192),
    "inception3a": (28, 28, 256), "inception3b": (28, 28, 480),
    "inception4a": (14, 14, 512), "inception4b": (14, 14, 512), "inception4c": (14, 14, 512),
    "inception4d": (14, 14, 528), "inception4e": (14, 14, 832),
    "inception5a": (7, 7, 832), "inception5b": (7, 7, 1024),
}  # fmt: skip
SIZES = {
    "googlenet": GOOGLENET,
    "googlenet_bn": GOOGLENET,
    "inception_v2": {
        "conv1": (112, 112, 64), "conv2_reduce": (56, 56, 64), "conv2": (56, 56, 192),
        "inception3a": (28, 28, 256), "inception3b": (28, 28, 320), "inception3c": (14, 14, 576),
        "inception4a": (14, 14, 576), "inception4b": (14, 14, 576), "inception4c": (14, 14, 576),
        "inception4d": (14, 14, 576), "inception4e": (7, 7, 1024),
        "inception5a": (7, 7, 1024), "inception5b": (7, 7, 1024),
    },
    "inception_v3": {
        "conv1a": (149, 149, 32), "conv2a": (147, 147, 32), "conv2b": (147, 147, 64), "conv3b": (73, 73, 80),
        "conv4a": (71, 71, 192), "mixed5b": (35, 35, 256), "mixed5c": (35, 35, 288), "mixed5d": (35, 35, 288),
        "mixed6a": (17, 17, 768), "mixed6b": (17, 17, 768), "mixed6c": (17, 17, 768), "mixed6d": (17, 17, 768),
        "mixed6e": (17, 17, 768), "mixed7a": (8, 8, 1280), "mixed7b": (8, 8, 2048), "mixed7c": (8, 8, 2048),
    },
}  # fmt: skip


def ends_of(model, shape):
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(model.apply, models.abstract_variables(model, shape), images)[1]


@pytest.mark.parametrize("name", NAMES)
def test_activations_have_the_sizes_of_the_tables(name):
    model = create(name, num_classes=None)
    ends = ends_of(model, model.input_shape)
    assert {stage: ends[stage].shape[1:] for stage in model.stages if stage != "head"} == SIZES[name]
    assert tuple(SIZES[name]) == model.stages[:-1]


@pytest.mark.parametrize(
    ("name", "parameters"), [("googlenet", 6_998_552), ("googlenet_bn", 6_624_904), ("inception_v3", 23_834_568)]
)
def test_parameters_without_auxiliary_heads(name, parameters):
    assert models.count_parameters(models.abstract_variables(create(name, aux_heads=False))) == parameters


def test_parameters_of_inception_v2_follow_from_the_figure():
    """Counted by hand: the kernel of each convolution, and the scale and bias of its batch norm."""

    def conv(before, after, kernel):
        return before * after * kernel**2 + 2 * after

    total = 3 * 8 * 7 * 7 + conv(24, 64, 1) + conv(64, 64, 1) + conv(64, 192, 3)
    channels = 192
    for f1, f3_reduce, f3, double_reduce, double, _, projection in inception_v2.INCEPTIONS.values():
        total += conv(channels, f1, 1) + conv(channels, projection, 1)
        total += conv(channels, f3_reduce, 1) + conv(f3_reduce, f3, 3)
        total += conv(channels, double_reduce, 1) + conv(double_reduce, double, 3) + conv(double, double, 3)
        channels = f1 + f3 + double + (projection or channels)
    assert total + 1024 * 1000 + 1000 == models.count_parameters(models.abstract_variables(create("inception_v2")))


@pytest.mark.parametrize(
    ("name", "minimum", "minimum_small"),
    [("googlenet", 31, 8), ("googlenet_bn", 15, 4), ("inception_v2", 7, 8), ("inception_v3", 75, 13)],
)
def test_the_smallest_image(name, minimum, minimum_small):
    for model, side in ((create(name, **ONE_EACH), minimum), (create(f"{name}_small", **ONE_EACH), minimum_small)):
        assert all(min(end.shape) > 0 for end in ends_of(model, (side, side, 3)).values())
        with pytest.raises(ValueError, match=f"{name} needs images of at least {side}x{side} pixels"):
            models.abstract_variables(model, (side, side - 1, 3))


@pytest.mark.parametrize("name", ["googlenet", "googlenet_bn", "inception_v3"])
def test_auxiliary_heads_take_any_size(name):
    """The number of cells, and with it the shape of the parameters, does not depend on the size."""
    model = create(f"{name}_small", **ONE_EACH)
    assert models.abstract_variables(model, (28, 28, 3)) == models.abstract_variables(model, (90, 61, 3))
    assert ends_of(model, (61, 90, 3))["aux1"].shape == (1, 10)


@pytest.mark.parametrize(("side", "windows"), [(13, False), (14, True), (15, True), (16, True), (17, False)])
def test_googlenet_pools_5x5_windows_before_an_auxiliary_head_if_that_gives_4x4(side, windows):
    """14 is the side at 224 pixels. Other sizes are averaged over nearly equal cells, as in torchvision at any size."""
    x = seeded_images((1, side, side, 1))
    pooled, even = googlenet.pool_to_4x4(x), googlenet.adaptive_avg_pool(x, (4, 4))
    assert pooled.shape == (1, 4, 4, 1)
    if windows:
        np.testing.assert_allclose(pooled[0, 1, 2], x[0, 3:8, 6:11].mean((0, 1)), rtol=1e-5)
        assert not np.allclose(pooled, even, atol=1e-3)
    else:
        assert np.array_equal(pooled, even)


@pytest.mark.parametrize(("side", "cells"), [(7, 5), (14, 5), (16, 5), (17, 5), (19, 5), (20, 6)])
def test_the_auxiliary_head_of_inception_v3_has_at_least_5x5_cells(side, cells):
    """17 is the side at 299 pixels, 14 at 256. A 5x5 convolution without padding reads the cells."""
    inputs = {}

    def conv(features, kernel_size, stride, padding, *, name, **fields):
        assert (kernel_size, stride, padding) == {"conv0": (1, 1, 0), "conv1": (5, 1, 0)}[name]

        def record(x, train):
            inputs[name] = x
            return x

        return record

    x = seeded_images((1, side, side, 2))
    logits, _ = inception_v3.AuxiliaryHead(3, conv, jnp.float32).init_with_output(jax.random.key(0), x, False)
    assert logits.shape == (1, 3) and np.all(np.isfinite(logits))
    assert inputs["conv0"].shape == (1, cells, cells, 2)
    windows = side >= 17
    expected = x[0, 3:8, 3:8].mean((0, 1)) if windows else inception_v3.adaptive_avg_pool(x, (5, 5))[0, 1, 1]
    np.testing.assert_allclose(inputs["conv0"][0, 1, 1], expected, rtol=1e-4, atol=1e-5)


def test_auxiliary_heads_read_the_modules_of_the_papers():
    """Szegedy et al. 2014, section 5: the outputs of 4a (512 channels) and 4d (528); v3: the last 17x17 module."""
    params = models.abstract_variables(create("googlenet"))["params"]
    read = {name: params[name]["conv"]["conv"]["kernel"].shape for name in ("aux1", "aux2")}
    assert read == {"aux1": (1, 1, 512, 128), "aux2": (1, 1, 528, 128)}
    params = models.abstract_variables(create("inception_v3", **ONE_EACH))["params"]["aux1"]
    assert params["conv0"]["conv"]["kernel"].shape == (1, 1, 768, 128)
    assert params["conv1"]["conv"]["kernel"].shape == (5, 5, 128, 768)


def test_the_paper_has_a_true_5x5_branch_and_biases():
    paper = models.abstract_variables(create("googlenet", **ONE_EACH))
    kernels = {name: models.abstract_variables(create(name, **ONE_EACH))["params"]["inception3a"] for name in NAMES[:2]}
    assert kernels["googlenet"]["branch5x5"]["conv"]["kernel"].shape == (5, 5, 16, 32)
    assert kernels["googlenet_bn"]["branch5x5"]["conv"]["kernel"].shape == (3, 3, 16, 32)
    assert not paper["batch_stats"] and "bias" in kernels["googlenet"]["branch1x1"]["conv"]


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_omitted_with_the_modules_they_read(name):
    """`blocks` keeps the first modules of each size, under their names."""
    model = create(name, **ONE_EACH)
    params = models.abstract_variables(model)["params"]
    assert set(params) == {*model.stages, "aux1"}
    assert len(model.stages) == {"googlenet": 3 + 3 + 1, "inception_v3": 5 + 5 + 1}[name]


@pytest.mark.parametrize("name", NAMES)
def test_remat_wraps_every_module_and_keeps_the_paths(name):
    model = create(f"{name}_small", **ONE_EACH)
    again = models.with_runtime(model, remat=True)
    shape = (28, 28, 1)
    variables = models.abstract_variables(model, shape)
    assert variables == models.abstract_variables(again, shape)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    traced = [jax.make_jaxpr(partial(m.apply, train=False))(variables, images).jaxpr for m in (model, again)]
    wrapped = [sum(step.primitive.name.startswith(("remat", "checkpoint")) for step in each.eqns) for each in traced]
    assert wrapped == [0, sum(stage.startswith(("inception", "mixed")) for stage in model.stages)]


def test_branches_are_concatenated_in_the_order_of_their_table():
    conv = partial(ConvNorm, norm=BatchNorm)

    def unit(features, kernel, stride, padding, *, name):
        return conv(features, kernel, stride=stride, padding=padding, name=name)

    table = (
        (Unit("one", 8, 1),),
        (Unit("reduce", 4, 1), (Unit("across", 5, (1, 3)), Unit("down", 6, (3, 1)))),
        (Pool("max"),),
    )
    module = Branches(table, unit)
    x = seeded_images((1, 4, 5, 3))
    variables = seeded_variables(jax.eval_shape(partial(module.init, train=False), jax.random.key(0), x))
    assert set(variables["params"]) == {"one", "reduce", "across", "down"}
    joined = module.apply(variables, x, False)
    assert joined.shape == (1, 4, 5, 8 + 5 + 6 + 3)
    assert np.array_equal(joined[..., -3:], max_pool(x, 3, 1, 1))

    def alone(name, x):
        kernel = variables["params"][name]["conv"]["kernel"]
        layer = unit(kernel.shape[-1], kernel.shape[:2], 1, None, name=None)
        return layer.apply({kind: variables[kind][name] for kind in variables}, x, False)

    np.testing.assert_allclose(joined[..., :8], alone("one", x), atol=1e-6)
    reduced = alone("reduce", x)
    np.testing.assert_allclose(joined[..., 8:13], alone("across", reduced), atol=1e-6)
    np.testing.assert_allclose(joined[..., 13:19], alone("down", reduced), atol=1e-6)


def test_average_pools_with_and_without_counted_padding():
    """A window at a corner has 4 of its 9 values inside the image."""
    x = np.ones((1, 4, 4, 1), np.float32)
    zeros, nothing = (Branches(((Pool(kind),),), None).apply({}, x, False) for kind in ("avg", "avg_inside"))
    assert np.array_equal(nothing, x) and zeros[0, 1, 1, 0] == 1
    assert zeros[0, 0, 0, 0] == pytest.approx(4 / 9) and zeros[0, 0, 1, 0] == pytest.approx(6 / 9)
    with pytest.raises(ValueError, match="reflect"):
        models.abstract_variables(create("inception_v3", pool_padding="reflect"))


def test_strided_modules_of_inception_v2_have_no_pool_projection():
    table = inception_v2.inception(*inception_v2.INCEPTIONS["inception3c"])
    assert [step.stride for branch in table for step in branch[-1:]] == [2, 2, 2]
    assert table[-1] == (Pool("max", 2),)


def test_pools_of_inception_v2():
    """Figure 5: average pools, but for the strided modules and the last one."""
    for name, row in inception_v2.INCEPTIONS.items():
        pools = [step.kind for branch in inception_v2.inception(*row) for step in branch if isinstance(step, Pool)]
        last_or_strided = name in ("inception3c", "inception4e", "inception5b")
        assert pools == ["max" if last_or_strided else "avg_inside"], name


@pytest.mark.slow
def test_keras_numbers_the_layers_of_inception_v3_in_the_order_of_the_tables():
    """Keras 3.15 numbers 94 convolutions; parallel ones follow the unit that they read."""
    model = create("inception_v3", aux_heads=False, pool_padding="nothing")
    abstract = models.abstract_variables(model)
    key_map = keras.key_map(model, abstract)
    assert set(key_map) == set(flatten(abstract))
    named = {
        "conv1a": "conv2d", "conv4a": "conv2d_4", "mixed5b/branch5x5": "conv2d_7", "mixed6a/branch3x3": "conv2d_26",
        "mixed7b/branch3x3_a": "conv2d_78", "mixed7b/branch3x3_b": "conv2d_79", "mixed7c/branch_pool": "conv2d_93",
    }  # fmt: skip
    assert {path: key_map[f"params/{path}/conv/kernel"][0] for path in named} == {
        path: f"{name}/kernel" for path, name in named.items()
    }
    assert key_map["params/conv1a/norm/scale"][0] == ()
    with pytest.raises(ValueError, match="pool_padding"):
        keras.key_map(create("inception_v3", aux_heads=False), abstract)
