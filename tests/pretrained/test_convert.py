"""Key maps: exact in both directions; every mismatch is listed in one error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo.models as models
from zoo.models import create
from zoo.models.operations import batch_norm, conv2d
from zoo.pretrained import akamaster, keras, timm, torchvision
from zoo.pretrained.convert import (
    CONV,
    CONV_AS_DENSE,
    DENSE,
    FOLDED_BIAS,
    KERAS_DEPTHWISE,
    ONES,
    SAME,
    convert,
    export,
    flattened,
    rename_path,
    source_keys,
)
from zoo.trees import flatten

RNG = np.random.default_rng(0)

# axis transform, shape of the leaf, shapes of the source tensors
TRANSFORMS = [
    (SAME, (5,), [(5,)]),
    (CONV, (3, 2, 4, 5), [(5, 4, 3, 2)]),
    (DENSE, (4, 5), [(5, 4)]),
    (CONV_AS_DENSE, (4, 5), [(5, 4, 1, 1)]),
    (KERAS_DEPTHWISE, (3, 3, 1, 4), [(3, 3, 4, 1)]),
    (flattened(2, 3), (24, 5), [(5, 24)]),
    (FOLDED_BIAS, (5,), [(5,), (5,)]),
]


@pytest.mark.parametrize(
    ("transform", "shape", "source_shapes"), TRANSFORMS, ids=lambda value: getattr(value, "name", "")
)
def test_store_is_the_exact_inverse_of_load(transform, shape, source_shapes):
    leaf = RNG.normal(size=shape).astype(np.float32)
    stored = transform.store(leaf)
    assert [tensor.shape for tensor in stored] == source_shapes
    assert np.array_equal(transform.load(*stored), leaf)


# Loaded with numbers that name their place: load(x)[index of the leaf] == x[index in the source].
PLACES = [
    (CONV, (5, 4, 3, 2), (2, 1, 3, 4), (4, 3, 2, 1)),  # [F, C, kh, kw] -> [kh, kw, C, F]
    (DENSE, (5, 4), (3, 2), (2, 3)),
    (CONV_AS_DENSE, (5, 4, 1, 1), (3, 2), (2, 3, 0, 0)),
    (KERAS_DEPTHWISE, (3, 2, 4, 1), (2, 1, 0, 3), (2, 1, 3, 0)),  # [kh, kw, C, 1] -> [kh, kw, 1, C]
    (flattened(2, 3), (5, 24), (1 * 3 * 4 + 2 * 4 + 3, 4), (4, 3 * 6 + 1 * 3 + 2)),  # row 1, column 2, channel 3
]


@pytest.mark.parametrize(("transform", "shape", "place", "source_place"), PLACES, ids=lambda v: getattr(v, "name", ""))
def test_each_axis_goes_where_the_comment_says(transform, shape, place, source_place):
    source = np.arange(np.prod(shape)).reshape(shape)
    assert transform.load(source)[place] == source[source_place]


def test_flattened_gives_the_same_outputs_for_the_same_features():
    """PyTorch flattens [C, H, W], this project [H, W, C]."""
    features, weight = RNG.normal(size=(7, 2, 3, 4)), RNG.normal(size=(5, 24))
    expected = features.transpose(0, 3, 1, 2).reshape(7, -1) @ weight.T
    np.testing.assert_allclose(features.reshape(7, -1) @ flattened(2, 3).load(weight), expected)


def test_folding_a_bias_keeps_the_function():
    x, kernel = (jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((2, 4, 4, 3), (1, 1, 3, 5)))
    bias, mean, scale, shift = (jnp.asarray(RNG.normal(size=5), jnp.float32) for _ in range(4))
    var = jnp.asarray(RNG.uniform(0.5, 1.5, 5), jnp.float32)
    y = conv2d(x, kernel, (1, 1), ((0, 0), (0, 0)))
    folded = batch_norm(y, scale, shift, FOLDED_BIAS.load(mean, bias), var, 1e-5)
    np.testing.assert_allclose(folded, batch_norm(y + bias, scale, shift, mean, var, 1e-5), rtol=1e-4, atol=1e-5)


def small():
    """Return a key map, tensors, and the abstract variables that they match."""
    key_map = {
        "params/stem/kernel": ("conv.weight", CONV),
        "params/norm/scale": ((), ONES),
        "batch_stats/norm/mean": (("norm.running_mean", "conv.bias"), FOLDED_BIAS),
    }
    tensors = {
        "conv.weight": np.ones((4, 3, 2, 2), np.float32),
        "conv.bias": np.full(4, 2, np.float32),
        "norm.running_mean": np.full(4, 5, np.float32),
    }
    abstract = {
        "params": {
            "stem": {"kernel": jax.ShapeDtypeStruct((2, 2, 3, 4), jnp.float32)},
            "norm": {"scale": jax.ShapeDtypeStruct((4,), jnp.float32)},
        },
        "batch_stats": {"norm": {"mean": jax.ShapeDtypeStruct((4,), jnp.float32)}},
    }
    return key_map, tensors, abstract


def test_convert_and_export_are_inverse():
    key_map, tensors, abstract = small()
    variables = convert(key_map, {**tensors, "norm.num_batches_tracked": np.array(3)}, abstract, (r".*_tracked",))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, abstract)
    assert np.all(variables["batch_stats"]["norm"]["mean"] == 3) and np.all(variables["params"]["norm"]["scale"] == 1)
    exported = export(key_map, variables)
    assert np.all(exported["conv.bias"] == 0) and np.all(exported["norm.running_mean"] == 3)
    assert set(exported) == set(tensors)
    jax.tree.map(np.testing.assert_array_equal, convert(key_map, exported, abstract), variables)


def test_every_mismatch_is_listed_in_one_error():
    key_map, tensors, abstract = small()
    del tensors["conv.bias"]
    tensors |= {"extra": np.ones(3), "conv.weight": np.ones((4, 3, 3, 3), np.float32)}
    abstract["params"]["head"] = {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    key_map["params/tail/bias"] = ("conv.weight", SAME)
    with pytest.raises(ValueError) as error:
        convert(key_map, tensors, abstract)
    text = str(error.value)
    assert "conv.bias (for batch_stats/norm/mean)" in text
    assert "params/head/kernel (in the model, not in the key map)" in text
    assert "params/tail/bias (in the key map, not in the model)" in text
    assert "extra" in text and "2 missing" in text and "2 unexpected" in text and "1 with the wrong shape" in text
    assert "params/stem/kernel (2, 2, 3, 4): conv.weight (4, 3, 3, 3), read as conv" in text
    # A wrong number of axes is reported as a wrong shape, not as a failed transpose.
    with pytest.raises(ValueError, match=r"conv.weight \(4,\), read as conv"):
        convert(key_map, {**tensors, "conv.weight": np.ones(4)}, abstract)


def test_negative_variances_are_listed():
    """The network would give NaN for every image."""
    kernel = {"kernel": jax.ShapeDtypeStruct((2,), jnp.float32)}
    abstract = {"params": {}, "batch_stats": {"norm": {"var": kernel["kernel"]}, "var": kernel}}
    key_map = {"batch_stats/norm/var": ("bn.running_var", SAME), "batch_stats/var/kernel": ("other", SAME)}
    tensors = {"bn.running_var": np.array([1, -1e-3], np.float32), "other": np.array([-1, -1], np.float32)}
    with pytest.raises(ValueError, match=r"1 with negative variances:\s+bn.running_var \(for batch_stats/norm/var\)$"):
        convert(key_map, tensors, abstract)


def test_wrong_dtypes_are_listed():
    key_map, tensors, abstract = small()
    tensors["conv.weight"] = np.ones((4, 3, 2, 2), np.int64)
    tensors["norm.running_mean"] = np.full(4, 1e300)
    with pytest.raises(ValueError) as error:
        convert(key_map, tensors, abstract)
    assert "2 with the wrong dtype" in str(error.value) and "conv.weight int64 (for params/stem/kernel)" in str(
        error.value
    )
    assert "norm.running_mean and conv.bias float64 (for batch_stats/norm/mean)" in str(error.value)
    tensors |= {"conv.weight": np.ones((4, 3, 2, 2), np.float16), "norm.running_mean": np.full(4, np.inf)}
    assert np.all(
        np.isinf(convert(key_map, tensors, abstract)["batch_stats"]["norm"]["mean"])
    )  # infinite in the file too


def test_export_refuses_leaves_that_the_source_cannot_represent():
    key_map, tensors, abstract = small()
    variables = convert(key_map, tensors, abstract)
    variables["params"]["norm"]["scale"] = np.full(4, 2, np.float32)
    variables["params"]["head"] = {"kernel": np.ones((2, 2), np.float32)}
    with pytest.raises(ValueError) as error:
        export(key_map, variables)
    assert "params/norm/scale: " in str(error.value)
    assert "params/head/kernel: " in str(error.value)


def test_rename_path_names_a_path_without_a_rule():
    assert rename_path("stage1_block2/conv1", [(r"stage(\d)_block(\d)/.*", r"layer\1.\2")]) == "layer1.2"
    with pytest.raises(ValueError, match="stem/norm"):
        rename_path("stem/norm", [("stem", "conv1")])


MAPPED = [
    (torchvision, "resnet18", {}), (torchvision, "resnext50_32x4d", {}), (timm, "resnet50d", {}),
    (timm, "se_resnet50", {}), (timm, "resnet50_v2", {}), (akamaster, "resnet20", {}),
    (keras, "resnet50_v1", {"epsilon": 1.001e-5}),
    (keras, "resnet50_v2",
     {"epsilon": 1.001e-5, "stride_at": "last", "conv_bias": True, "pool_padding": "zeros"}),
    (keras, "inception_resnet_v2", {"blocks": (1, 1, 1)}),
    (keras, "xception", {"pool_padding": "same", "blocks": (1,), "epsilon": 1e-3}),
]  # fmt: skip


@pytest.mark.parametrize(("source", "name", "fields"), MAPPED)
def test_a_key_map_covers_every_leaf_and_no_key_twice(source, name, fields):
    variables = models.abstract_variables(create(name, **fields))
    key_map = source.key_map(create(name, **fields), variables)
    assert set(key_map) == set(flatten(variables))
    keys = [key for entry, _ in key_map.values() for key in source_keys(entry)]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (torchvision, "mlp", "torchvision has no network like MLP"),
        (torchvision, "resnet50_v1", "stride_in='3x3'; this model has '1x1'"),
        (torchvision, "resnet18_small", "stem='imagenet'"),
        (torchvision, "resnet50_v2", "no network like ResNetV2"),
        (timm, "resnet20", "ResNet.*small"),
        (keras, "resnet50", "stride_in='1x1'; this model has '3x3'"),
        (keras, "resnet50_v2", "stride_at='last'"),
        (keras, "inception_resnet_v2_small", "InceptionResNetV2 has stem='imagenet'; this model has 'small'"),
        (keras, "xception_small", "Xception has stem='imagenet'; this model has 'small'"),
        (akamaster, "resnet18", "stem='small'"),
    ],
)
def test_a_network_that_the_source_does_not_have_is_refused(source, name, message):
    """Equal keys and shapes are not enough: the tensors would be read, or written, as another function."""
    with pytest.raises(ValueError, match=message):
        source.key_map(create(name), {})
