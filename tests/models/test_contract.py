"""The contract of all models: shapes of the full networks by abstract evaluation, and numbers of small instances."""

import hashlib
import json
from functools import cache, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zoo.models as models
from zoo.models import MODELS, create
from zoo.models.summary import figures
from zoo.trees import flatten

# Trainable parameters at the native input shape and the published number of classes.
PARAMETERS = {
    # layer shapes
    "softmax": 7_850,
    "mlp": 535_818,
    # layer shapes; LeCun et al. 1989; LeCun et al. 1998, section II.B
    "lenet1": 2_578,
    "lenet4": 50_698,
    "lenet5": 61_706,
    "lenet5_1998": 60_000,
    # layer shapes; torchvision 0.28
    "alexnet": 60_965_224,
    "alexnet_small": 7_156_938,
    "alexnet_owt": 61_100_840,
    "alexnet_owt_small": 7_192_490,
    # with both auxiliary heads: Caffe's layer shapes; torchvision 0.28
    "googlenet": 13_378_280,
    "googlenet_small": 2_600_574,
    "googlenet_bn": 13_004_888,
    "googlenet_bn_small": 2_505_022,
    # layer shapes; torchvision 0.28, with the auxiliary head
    "inception_v2": 11_188_288,
    "inception_v2_small": 1_405_970,
    "inception_v3": 27_161_264,
    "inception_v3_small": 3_461_700,
    # timm 1.0.31
    "inception_v4": 42_679_816,
    "inception_v4_small": 1_669_570,
    # facenet-pytorch 2.6.0 up to the last block, and the head
    "inception_resnet_v1": 22_756_328,
    "inception_resnet_v1_small": 827_586,
    "inception_resnet_v2": 55_843_464,
    "inception_resnet_v2_small": 2_253_362,
    "xception": 22_855_952,
    "xception_small": 5_360_138,
    # torchvision 0.28; the original form has the same layers
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet50_v1": 25_557_032,
    "resnet101_v1": 44_549_160,
    "resnet152_v1": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    # timm 1.0.31
    "resnet50_v2": 25_549_352,
    "resnet101_v2": 44_541_480,
    "resnet152_v2": 60_185_128,
    "resnet50d": 25_576_264,
    "se_resnet50": 28_088_024,
    # timm 1.0.31
    "resnet18_v2": 11_687_720,
    "resnet34_v2": 21_795_880,
    "resnet50c": 25_576_264,
    "resnet101c": 44_568_392,
    "resnet152c": 60_212_040,
    "resnet50_gn": 25_557_032,
    "se_resnet18": 11_779_624,
    "se_resnet34": 21_960_416,
    "se_resnet101": 49_326_872,
    "se_resnet152": 66_821_848,
    "se_resnext50_32x4d": 27_559_896,
    "se_resnext101_32x4d": 48_955_416,
    "eca_resnet50d": 25_576_350,
    "eca_resnet101d": 44_568_563,
    "eca_resnet269d": 102_093_077,
    "resnet_rs50": 35_691_912,
    "resnet_rs101": 63_618_696,
    "resnet_rs152": 86_621_576,
    "resnet_rs200": 93_209_992,
    "resnet_rs270": 129_861_448,
    "resnet_rs350": 163_956_168,
    "resnet_rs420": 191_891_656,
    "bit_r50x1": 25_549_352,
    "bit_r50x3": 217_319_080,
    "bit_r101x1": 44_541_480,
    "bit_r101x3": 387_934_888,
    "bit_r152x2": 236_335_208,
    "bit_r152x4": 936_533_224,
    # layer shapes: resnet50 and 86 weights of efficient channel attention; fb.resnet.torch; resnet-1k-layers
    "eca_resnet50": 25_557_118,
    "resnet200_v2": 64_666_152,
    "resnet164": 1_703_258,
    "resnet1001": 10_327_706,
    # layer shapes, ten classes
    "resnet18_small": 11_173_962,
    "resnet34_small": 21_282_122,
    "resnet50_small": 23_520_842,
    "resnet50_v1_small": 23_520_842,
    "resnet18_v2_small": 11_172_170,
    "resnet50_v2_small": 23_513_162,
    "bit_r50x1_small": 23_513_162,
    "resnet50d_small": 23_520_842,
    "resnext50_32x4d_small": 22_992_714,
    "wide_resnet50_2_small": 66_847_050,
    "se_resnet50_small": 26_051_834,
    # layer shapes; He et al. 2015, table 6, rounds them
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet1202": 19_421_274,
    # layer shapes; the code of Page and of Jordan has ten fewer, no bias of the head
    "resnet9": 6_573_130,
    "airbench": 1_971_650,
    # layer shapes; Zagoruyko and Komodakis 2016, table 4, rounds them
    "wide_resnet16_8": 10_961_370,
    "wide_resnet28_10": 36_479_194,
    "wide_resnet40_4": 8_949_210,
    # layer shapes; Srivastava et al. 2015, table 1 of arXiv:1507.06228, rounds the second
    "highway": 85_660,
    "highway_conv": 38_730,
}

# A small instance of each kind of block: (model, fields, image shape).
REDUCED = {
    "softmax": ("softmax", {"image_size": 8}, (8, 8, 1)),
    "mlp": ("mlp", {"image_size": 8, "widths": (32, 16)}, (8, 8, 1)),
    "mlp-sigmoid": ("mlp", {"image_size": 8, "widths": (32,), "activation": "sigmoid"}, (8, 8, 1)),
    "mlp-tanh-dropout": ("mlp", {"image_size": 8, "widths": (64,), "activation": "tanh", "dropout": 0.1}, (8, 8, 1)),
    "lenet1": ("lenet1", {}, (28, 28, 1)),
    "lenet4": ("lenet4", {}, (32, 32, 1)),
    "lenet5": ("lenet5", {}, (32, 32, 1)),
    "lenet5-tanh-avg": (
        "lenet5",
        {"activation": "tanh", "pool": "avg", "image_size": 28, "num_classes": 3},
        (28, 28, 3),
    ),
    "lenet5_1998": ("lenet5_1998", {}, (32, 32, 1)),
    "alexnet": ("alexnet_small", {"width": 0.1, "image_size": 28}, (28, 28, 1)),
    "alexnet_owt": ("alexnet_owt_small", {"width": 0.1}, (28, 28, 1)),
    "googlenet": ("googlenet_small", {"width": 0.1, "blocks": (1, 1, 1)}, (28, 28, 1)),
    "googlenet_bn": ("googlenet_bn_small", {"width": 0.1, "blocks": (1, 1, 1)}, (28, 28, 1)),
    "inception_v2": ("inception_v2_small", {"width": 0.1, "blocks": (1, 1, 1)}, (28, 28, 1)),
    "inception_v3": ("inception_v3_small", {"width": 0.1, "blocks": (1, 1, 1)}, (28, 28, 1)),
    "inception_v4": ("inception_v4_small", {"width": 0.1, "blocks": (1, 1, 1)}, (28, 28, 1)),
    "inception_resnet_v1": ("inception_resnet_v1_small", {"width": 0.1, "blocks": (1, 0, 1)}, (28, 28, 1)),
    "inception_resnet_v2": ("inception_resnet_v2_small", {"width": 0.1, "blocks": (1, 0, 1)}, (28, 28, 1)),
    "xception": ("xception_small", {"width": 0.1, "blocks": (1,)}, (28, 28, 1)),
    "resnet-cifar": ("resnet20", {"blocks": (1, 1), "width": 16}, (8, 8, 1)),
    "resnet-bottleneck": (
        "resnext50_32x4d",
        {"blocks": (1,), "width": 8, "groups": 4, "stride_in": "1x1", "stochastic_depth": 0.2, "num_classes": 10},
        (32, 32, 1),
    ),
    "resnet-d-se": (
        "se_resnet50_small",
        {"blocks": (1, 1), "bottleneck": False, "width": 16, "stem": "deep", "shortcut": "pool"},
        (16, 16, 1),
    ),
    "resnet-rs-eca": (
        "eca_resnet50d",
        {"blocks": (1, 1), "width": 16, "stem": "tiered", "stem_pool": "conv", "dropout": 0.1, "num_classes": 10},
        (32, 32, 1),
    ),
    "resnet_v2-own": ("resnet164", {"blocks": (1, 1), "width": 8, "stem_norm": True}, (8, 8, 3)),
    "resnet_v2-basic": (
        "resnet18_v2",
        {"blocks": (1, 1), "width": 16, "stem": "deep", "shortcut": "pool", "num_classes": 10},
        (32, 32, 1),
    ),
    "bit": ("bit_r50x1_small", {"blocks": (1, 1), "width": 8}, (8, 8, 3)),
    "resnet_v2": ("resnet50_v2_small", {"blocks": (1, 1), "width": 8, "stochastic_depth": 0.2}, (8, 8, 3)),
    "wide_resnet": ("wide_resnet16_8", {"depth": 10, "widen": 2, "width": 4, "dropout": 0.1}, (8, 8, 3)),
    "resnet9": ("resnet9", {"width": 8}, (8, 8, 1)),
    "airbench": ("airbench", {"width": 8, "logit_scale": 1.0}, (9, 9, 1)),
    "highway": ("highway", {"layers": 3, "width": 20, "image_size": 8}, (8, 8, 1)),
    "highway_conv": ("highway_conv", {"layers": 3, "image_size": 8}, (8, 8, 1)),
}
# A bottleneck, an Inception and a GoogLeNet network small enough to be trained in every run, with auxiliary heads.
QUICK = {
    "quick-bottleneck": ("resnet50_small", {"blocks": (1,), "width": 8}, (8, 8, 1)),
    "quick-googlenet": (
        "googlenet_bn_small",
        {"width": 0.05, "blocks": (0, 1, 0), "dropout": 0.0, "aux_dropout": 0.0},
        (8, 8, 1),
    ),
    "quick-inception": ("inception_v3_small", {"width": 0.02, "blocks": (0, 0, 0), "dropout": 0.0}, (13, 13, 1)),
}
NO_BATCH_NORM = {
    "softmax", "mlp", "lenet1", "lenet4", "lenet5", "lenet5_1998", "alexnet_small", "alexnet_owt_small",
    "googlenet_small", "bit_r50x1_small", "highway", "highway_conv",
}  # fmt: skip
# Instances that take long to compile; they run only with `-m slow`.
SLOW_TO_COMPILE = {
    "alexnet",
    "alexnet_owt",
    "googlenet",
    "googlenet_bn",
    "inception_v2",
    "inception_v3",
    "inception_v4",
    "inception_resnet_v1",
    "inception_resnet_v2",
    "xception",
    "resnet-bottleneck",
    "resnet-rs-eca",
    "resnet_v2-own",
    "resnet_v2-basic",
    "bit",
    "resnet-d-se",
    "resnet_v2",
    "wide_resnet",
    "lenet5-tanh-avg",
}
CASES = [pytest.param(case, marks=[pytest.mark.slow] if case in SLOW_TO_COMPILE else []) for case in REDUCED]
TEN_CLASSES_ONLY = {"lenet5_1998"}
ONE_CHANNEL_ONLY = {"lenet5_1998"}


def paths(tree) -> set[str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    }


@cache
def traced(model, image_shape=None):
    """Return the shapes of (variables, logits, endpoints) for two images; cached for all tests."""
    images = jax.ShapeDtypeStruct((2, *(image_shape or model.input_shape)), jnp.float32)
    with jax.numpy_dtype_promotion("strict"):  # no accidental promotion to a wider type
        (logits, ends), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    return {"batch_stats": {}, **variables}, logits, ends


def shallow(name, **fields):
    """Create a model with one block per stage; tracing all blocks takes seconds and tests nothing more."""
    blocks = models.defining_fields(create(name)).get("blocks")
    fewer = {} if blocks is None else {"blocks": (1,) * len(blocks)}
    if name.startswith("bit_"):
        fewer["widen"] = 1
    return create(name, **fewer, **fields)


def test_listed_parameters_are_the_published_counts():
    assert {name: row["parameters"] for name, row in figures().items()} == PARAMETERS


def test_every_model_has_a_count_and_a_reduced_instance():
    assert set(PARAMETERS) == set(MODELS)
    assert {create(name).family for name in MODELS} == {create(model).family for model, _, _ in REDUCED.values()}


#: Hash of the paths and shapes of every model's variables.
PATHS = json.loads((Path(__file__).parent / "paths.json").read_text(encoding="utf-8"))


#: Networks whose only difference from a smaller one is depth or width, or whose parts others have; all of their blocks
#: are traced only with `-m slow`.
LARGER = {
    "resnet1202", "resnet34_v2", "resnet164", "resnet200_v2", "resnet1001", "resnet50_gn", "resnet50c", "resnet101c",
    "resnet152c", "se_resnet34", "se_resnet101", "se_resnet152", "se_resnext50_32x4d", "se_resnext101_32x4d",
    "eca_resnet50d", "eca_resnet101d", "eca_resnet269d", "resnet_rs101", "resnet_rs152", "resnet_rs200",
    "resnet_rs270", "resnet_rs350", "resnet_rs420", "bit_r50x1", "bit_r50x3", "bit_r101x1", "bit_r101x3",
    "bit_r152x2", "bit_r152x4", "resnet101", "resnet152", "resnet101_v1", "resnet152_v1", "resnet101_v2",
    "resnet152_v2", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet101_2", "resnet44", "resnet56", "resnet110",
    "wide_resnet28_10", "inception_v4_small", "inception_resnet_v2_small", "inception_resnet_v1_small",
}  # fmt: skip
ALL = [pytest.param(name, marks=[pytest.mark.slow] if name in LARGER else []) for name in MODELS]


@pytest.mark.parametrize("name", ALL)
def test_parameters_have_the_right_number_and_belong_to_stages(name):
    """Freezing by stage needs every path to begin with a stage or an auxiliary head."""
    model = create(name)
    variables = models.abstract_variables(model)
    assert models.count_parameters(variables) == PARAMETERS[name]
    leaves = sorted(flatten(variables).items())  # their paths and shapes are the checkpoint's public format
    table = "\n".join(f"{path} {list(leaf.shape)}" for path, leaf in leaves)
    assert hashlib.sha256(table.encode()).hexdigest()[:16] == PATHS[name]
    others = [path for path in paths(variables["params"]) if not path.startswith((*model.stages, "aux"))]
    assert not others


@pytest.mark.parametrize("name", ALL)
def test_endpoints_and_logits(name):
    model = shallow(name)
    _, logits, ends = traced(model)
    assert logits.shape == ends["logits"].shape == (2, model.num_classes)
    assert logits.dtype == jnp.float32
    assert model.stages[-1] == "head" and set(model.stages[:-1]) | {"features"} <= set(ends)
    assert ends["features"].ndim == 2
    assert model.paper and model.family


@pytest.mark.parametrize("name", ALL)
def test_without_classes_there_is_no_head(name):
    variables, features, ends = traced(shallow(name, num_classes=None))
    assert "logits" not in ends and not [end for end in ends if end.startswith("aux")]
    assert features.shape == ends["features"].shape
    whole = paths(traced(shallow(name))[0])
    assert paths(variables) == {path for path in whole if not path.split("/")[1].startswith(("head", "aux"))}


@pytest.mark.parametrize("name", ALL)
def test_models_are_hashable_and_rebuilt_from_their_defining_fields(name):
    model = create(name)
    assert hash(model) == hash(create(name))
    rebuilt = create(name, **models.defining_fields(model))
    assert rebuilt == model
    assert not set(models.defining_fields(model)) & set(models.RUNTIME_FIELDS)


# --- numbers of small instances ----------------------------------------------------------------------------------

# Tiny networks run for a few steps, so nearly all the time goes into compiling; without optimisation it is half.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def randomise(variables, seed=0):
    """Draw every leaf at random, so that no zero-initialised scale hides a branch; variances stay positive."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "var":
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        if name in ("scale", "coefficient"):
            return jnp.asarray(rng.uniform(0.5, 1.0, leaf.shape), leaf.dtype)
        if leaf.ndim > 1:
            return jnp.asarray(rng.normal(0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape), leaf.dtype)
        return jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, variables)


def build(case, **runtime):
    name, fields, shape = (REDUCED | QUICK)[case]
    model = models.with_runtime(create(name, **fields), **runtime)
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.normal(size=(4, *shape)), jnp.float32)
    return model, randomise(models.abstract_variables(model, shape)), images, jnp.arange(4) % model.num_classes


@pytest.mark.parametrize("case", [*CASES, *QUICK])
def test_training_reaches_every_parameter_and_can_overfit_one_batch(case):
    """Gradients are finite and nonzero, batch statistics change, and four images can be memorised."""
    model, variables, images, labels = build(case)
    optimiser = optax.adam(3e-3)

    @jit
    def step(variables, state, key, aux_weight):
        def loss(params):
            (logits, ends), updates = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}
            )
            losses = optax.softmax_cross_entropy_with_integer_labels
            aux = sum(losses(ends[end], labels).mean() for end in ends if end.startswith("aux"))
            value = losses(logits, labels).mean()
            return value + aux_weight * aux, (value, updates)

        (_, (value, updates)), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        delta, state = optimiser.update(grads, state, variables["params"])
        return {**variables, **updates, "params": optax.apply_updates(variables["params"], delta)}, state, value, grads

    zeros = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(optimiser.init, variables["params"])
    )
    after, _, value, grads = step(variables, zeros, jax.random.key(0), 1.0)
    assert np.isfinite(value)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.any(grad != 0), jax.tree_util.keystr(path)
    assert bool(variables["batch_stats"]) == ((REDUCED | QUICK)[case][0] not in NO_BATCH_NORM)
    same = jax.tree.map(np.array_equal, variables["batch_stats"], after["batch_stats"])
    assert not any(jax.tree.leaves(same)), same

    variables = models.init(model, 1, images.shape[1:])
    state, first, value = zeros, None, None
    for i in range(60):
        variables, state, value, _ = step(variables, state, jax.random.key(i), 0.0)
        first = value if first is None else first
        if value < 0.1 * first:
            break
    assert value < 0.1 * first


@pytest.mark.parametrize("case", CASES)
def test_evaluation_is_pure_and_bfloat16_is_close_to_float32(case):
    model, variables, images, _ = build(case)
    low = models.with_runtime(model, dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(models.abstract_variables(low, images.shape[1:])))
    evaluate = partial(model.apply, mutable=["batch_stats"])
    (exact, _), updates = jit(evaluate)(variables, images)
    jax.tree.map(np.testing.assert_array_equal, updates.get("batch_stats", {}), variables["batch_stats"])
    approximate = jit(low.apply)(variables, images)[0]
    assert approximate.dtype == jnp.float32
    np.testing.assert_allclose(approximate, exact, atol=0.1 * float(jnp.abs(exact).max()))


# --- image sizes, channels and errors ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(MODELS) - ONE_CHANNEL_ONLY))
def test_any_number_of_channels_and_classes(name):
    """Four channels; the small forms are tested with one and three elsewhere."""
    model = shallow(name, **({} if name in TEN_CLASSES_ONLY else {"num_classes": 7}))
    _, logits, _ = traced(model, (*model.input_shape[:2], 4))
    assert logits.shape == (2, model.num_classes)


@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith("_small")])
@pytest.mark.parametrize("side", [28, pytest.param(64, marks=pytest.mark.slow)])
def test_small_forms_take_small_images(name, side):
    has_fixed_size = "image_size" in models.defining_fields(create(name))
    model = shallow(name, **({"image_size": side} if has_fixed_size else {}))
    assert model.input_shape[:2] == ((side, side) if has_fixed_size else (32, 32))
    _, _, ends = traced(model, (side, side, 1))
    assert all(min(end.shape) > 0 for end in ends.values())


@pytest.mark.parametrize("name", MODELS)
def test_too_small_images_raise(name):
    model = shallow(name)
    with pytest.raises(ValueError, match=r"pixels.*got 3x3"):
        models.abstract_variables(model, (3, 3, 1))
    with pytest.raises(ValueError, match=r"\[B, H, W, C\]"):
        jax.eval_shape(partial(model.apply, train=False), traced(model)[0], jnp.zeros((28, 28)))


def test_unknown_names_and_fields_suggest_similar_ones():
    with pytest.raises(ValueError, match="lenet5"):
        create("lenet")
    with pytest.raises(
        ValueError, match=r"did you mean resnet20.*\? A checkpoint is read with `zoo train --init resnet20-c"
    ):
        create("resnet20-cifar10")
    with pytest.raises(ValueError, match="widths"):
        create("mlp", width=(3,))
    with pytest.raises(ValueError, match=r"num_classes=26.*lenet5 "):
        models.init(create("lenet5_1998", num_classes=26), 0)
    with pytest.raises(ValueError, match="relu, tanh, sigmoid"):
        models.init(create("mlp", activation="gelu"), 0)


def test_models_are_linen_dataclasses():
    assert all(isinstance(create(name), nn.Module) for name in MODELS)
