"""What holds for every model of MODELS: at full size through shapes alone, in numbers on reduced instances."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zoo.models as models
from zoo.models import MODELS, create

# Trainable parameters at the native input shape and the published number of classes.
PARAMETERS = {
    # layer shapes
    "softmax": 7_850,
    "mlp": 535_818,
    # layer shapes; LeCun et al. 1998, section II.B
    "lenet5": 61_706,
    "lenet5_1998": 60_000,
}

# One small instance of each kind of block, with the image shape it is tried at: (model, fields, image shape).
REDUCED = {
    "softmax": ("softmax", {"image_size": 8}, (8, 8, 1)),
    "mlp": ("mlp", {"image_size": 8, "widths": (32, 16)}, (8, 8, 1)),
    "mlp-sigmoid": ("mlp", {"image_size": 8, "widths": (32,), "activation": "sigmoid"}, (8, 8, 1)),
    "mlp-tanh-dropout": ("mlp", {"image_size": 8, "widths": (64,), "activation": "tanh", "dropout": 0.1}, (8, 8, 1)),
    "lenet5": ("lenet5", {}, (32, 32, 1)),
    "lenet5-tanh-avg": (
        "lenet5",
        {"activation": "tanh", "pool": "avg", "image_size": 28, "num_classes": 3},
        (28, 28, 3),
    ),
    "lenet5_1998": ("lenet5_1998", {}, (32, 32, 1)),
}
NO_BATCH_NORM = {"softmax", "mlp", "lenet5", "lenet5_1998"}
TEN_CLASSES_ONLY = {"lenet5_1998"}
ONE_CHANNEL_ONLY = {"lenet5_1998"}


def paths(tree) -> set[str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    }


def shapes(model, variables, image_shape, batch=2, **call):
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
    with jax.numpy_dtype_promotion("strict"):  # nothing widens by accident
        return jax.eval_shape(partial(model.apply, **call), variables, images)


@pytest.fixture(scope="module")
def abstract():
    """model name -> its variables' shapes, traced once for the whole module."""
    cache = {}

    def get(name):
        if name not in cache:
            cache[name] = models.abstract_variables(create(name))
        return cache[name]

    return get


def test_every_model_has_a_count_and_a_reduced_instance():
    assert set(PARAMETERS) == set(MODELS)
    assert {create(name).family for name in MODELS} == {create(model).family for model, _, _ in REDUCED.values()}


@pytest.mark.parametrize("name", MODELS)
def test_parameter_count(name, abstract):
    assert models.count_parameters(abstract(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", MODELS)
def test_endpoints_and_logits(name, abstract):
    model = create(name)
    logits, ends = shapes(model, abstract(name), model.input_shape)
    assert logits.shape == ends["logits"].shape == (2, model.num_classes)
    assert logits.dtype == jnp.float32
    assert model.stages[-1] == "head" and set(model.stages[:-1]) | {"features"} <= set(ends)
    assert ends["features"].ndim == 2
    assert model.paper and model.family


@pytest.mark.parametrize("name", MODELS)
def test_parameters_belong_to_stages(name, abstract):
    """Freezing by stage needs every parameter to lie under the name of a stage or of an auxiliary head."""
    stages = (*create(name).stages, "aux")
    strangers = [path for path in paths(abstract(name)["params"]) if not path.startswith(stages)]
    assert not strangers


@pytest.mark.parametrize("name", MODELS)
def test_without_classes_there_is_no_head(name, abstract):
    model = create(name, num_classes=None)
    variables = models.abstract_variables(model)
    features, ends = shapes(model, variables, model.input_shape)
    assert "logits" not in ends and not [end for end in ends if end.startswith("aux")]
    assert features.shape == ends["features"].shape
    assert paths(variables) == {p for p in paths(abstract(name)) if not p.split("/")[1].startswith(("head", "aux"))}


@pytest.mark.parametrize("name", MODELS)
def test_fields_are_few_and_hashable(name):
    model = create(name)
    assert hash(model) == hash(create(name))
    rebuilt = create(name, **models.defining_fields(model))
    assert rebuilt == model
    assert not set(models.defining_fields(model)) & set(models.RUNTIME_FIELDS)


# --- in numbers, on reduced instances ---------------------------------------------------------------------------


def randomise(variables, seed=0):
    """Every leaf drawn anew, so that no zero-initialised scale hides a branch; variances stay positive."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "var":
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        if name in ("scale", "coefficient"):
            return jnp.asarray(rng.uniform(0.5, 1.0, leaf.shape), leaf.dtype)
        if leaf.ndim > 1:
            return leaf + 0.02 * jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
        return jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, variables)


def build(case, **runtime):
    name, fields, shape = REDUCED[case]
    model = models.with_runtime(create(name, **fields), **runtime)
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.normal(size=(4, *shape)), jnp.float32)
    return model, randomise(models.init(model, 0, shape)), images, jnp.arange(4) % model.num_classes


@pytest.mark.parametrize("case", REDUCED)
def test_training_changes_statistics_and_reaches_every_parameter(case):
    """One compilation each: eval leaves batch_stats alone, training changes them; gradients are finite and nonzero."""
    model, variables, images, labels = build(case)

    @jax.jit
    def both(params):
        def loss(params):
            (logits, ends), updates = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)},
            )  # fmt: skip
            heads = [logits, *(ends[end] for end in ends if end.startswith("aux"))]
            each = [optax.softmax_cross_entropy_with_integer_labels(head, labels).mean() for head in heads]
            return sum(each), updates

        evaluated = model.apply({**variables, "params": params}, images, mutable=["batch_stats"])[1]
        return jax.value_and_grad(loss, has_aux=True)(params), evaluated

    ((loss, updates), grads), evaluated = both(variables["params"])
    assert np.isfinite(loss)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.any(grad != 0), jax.tree_util.keystr(path)
    if REDUCED[case][0] in NO_BATCH_NORM:
        assert not variables["batch_stats"]
        return
    for path, old in jax.tree_util.tree_leaves_with_path(variables["batch_stats"]):
        kept, new = evaluated["batch_stats"], updates["batch_stats"]
        for key in path:
            kept, new = kept[key.key], new[key.key]
        assert np.array_equal(old, kept) and not np.array_equal(old, new), jax.tree_util.keystr(path)


@pytest.mark.parametrize("case", REDUCED)
def test_one_batch_can_be_overfitted(case):
    name, fields, shape = REDUCED[case]
    model = create(name, **fields)
    images = jnp.asarray(np.random.default_rng(2).normal(size=(4, *shape)), jnp.float32)
    labels = jnp.arange(4) % model.num_classes
    variables = models.init(model, 1, shape)
    optimiser = optax.adam(3e-3)

    @jax.jit
    def step(variables, state, key):
        def loss(params):
            (logits, _), updates = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updates

        (value, updates), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        delta, state = optimiser.update(grads, state, variables["params"])
        return {**variables, **updates, "params": optax.apply_updates(variables["params"], delta)}, state, value

    state, first, value = optimiser.init(variables["params"]), None, None
    for i in range(60):
        variables, state, value = step(variables, state, jax.random.key(i))
        first = value if first is None else first
        if value < 0.1 * first:
            break
    assert value < 0.1 * first


@pytest.mark.parametrize("case", REDUCED)
def test_bfloat16_computes_what_float32_does_roughly(case):
    model, variables, images, _ = build(case)
    low = models.with_runtime(model, dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(models.abstract_variables(low, images.shape[1:])))
    exact, rough = (jax.jit(m.apply)(variables, images)[0] for m in (model, low))
    assert rough.dtype == jnp.float32
    np.testing.assert_allclose(rough, exact, atol=0.1 * float(jnp.abs(exact).max()))


# --- any size and channels, clear errors ------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(MODELS) - ONE_CHANNEL_ONLY))
@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels_and_classes(name, channels):
    model = create(name, **({} if name in TEN_CLASSES_ONLY else {"num_classes": 7}))
    shape = (*model.input_shape[:2], channels)
    logits, _ = shapes(model, models.abstract_variables(model, shape), shape)
    assert logits.shape == (2, model.num_classes)


@pytest.mark.parametrize("name", MODELS)
def test_too_small_images_are_refused_in_words(name):
    model = create(name)
    with pytest.raises(ValueError, match=r"pixels.*got 3x3"):
        models.abstract_variables(model, (3, 3, 1))
    with pytest.raises(ValueError, match=r"\[B, H, W, C\]"):
        jax.eval_shape(partial(model.apply, train=False), models.abstract_variables(model), jnp.zeros((28, 28)))


def test_unknown_names_and_fields_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean lenet5"):
        create("lenet")
    with pytest.raises(ValueError, match="did you mean widths"):
        create("mlp", width=(3,))
    with pytest.raises(ValueError, match="lenet5 is the modern form"):
        models.init(create("lenet5_1998", num_classes=26), 0)
    with pytest.raises(ValueError, match="relu, tanh, sigmoid"):
        models.init(create("mlp", activation="gelu"), 0)


def test_models_are_linen_dataclasses():
    assert all(isinstance(create(name), nn.Module) for name in MODELS)
