"""Batch norm folded into convolutions: the same function, in all that predicts and evaluates."""

import logging
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest

from zoo import models
from zoo.data.images.preprocess import Preprocess, normalise
from zoo.inference import evaluate, folding
from zoo.models.layers import BatchNorm, Conv
from zoo.trees import flatten

# Of each family a small network: name, fields, image shape, how many of how many norms can be folded.
NETWORKS = [
    ("alexnet_owt_small", {"width": 0.1}, (28, 28, 1), 0, 0),
    ("resnet50d_small", {"blocks": (1, 1), "width": 8, "squeeze": 4, "remat": True}, (8, 8, 3), 9, 9),
    ("resnet50_v2_small", {"blocks": (1,), "width": 8}, (8, 8, 3), 2, 4),  # not those that follow a sum
    ("wide_resnet16_8", {"depth": 10, "widen": 2, "width": 4}, (8, 8, 3), 3, 7),  # nor the one whose stem is shared
    ("googlenet_bn_small", {"width": 0.1, "blocks": (1, 0, 0)}, (8, 8, 3), 9, 9),
    ("inception_v2_small", {"width": 0.1, "blocks": (1, 0, 0)}, (16, 16, 3), 20, 20),
    ("inception_v3_small", {"width": 0.1, "blocks": (1, 0, 0)}, (16, 16, 3), 24, 24),
    ("inception_v4_small", {"width": 0.1, "blocks": (1, 0, 0)}, (16, 16, 3), 28, 28),
    ("inception_resnet_v2_small", {"width": 0.1, "blocks": (1, 0, 0)}, (16, 16, 3), 30, 30),
    ("xception_small", {"width": 0.1, "blocks": (0,)}, (16, 16, 3), 16, 16),
]  # fmt: skip


def random(variables):
    """Return random variables: scales and variances around one, kernels that preserve the magnitude of activations."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        size = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if leaf.ndim > 1 else 0.3
        return (size * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, variables)


def images_of(shape, count=2):
    return np.random.default_rng(1).normal(size=(count, *shape)).astype(np.float32)


def assert_same_function(model, variables, folded, images):
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def both(variables, folded, images):
        return model.apply(variables, images), model.apply(folded, images)

    plain, other = both(variables, folded, images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max()), plain, other)


@pytest.mark.parametrize(("name", "fields", "shape", "foldable", "every"), NETWORKS)
def test_folding_preserves_the_outputs_of_every_family(name, fields, shape, foldable, every):
    """Folding keeps logits and all endpoints within 1e-5 of their largest magnitude."""
    model = models.create(name, **fields)
    variables = random(models.abstract_variables(model, shape))
    assert len(flatten(variables["batch_stats"])) == 2 * every
    folded = folding.fold(model, variables, shape)
    left = flatten(folded)
    assert sum(path.startswith("folded/") for path in left) == foldable
    assert sum(path.startswith("batch_stats/") for path in left) == 2 * (every - foldable)
    assert sum(path.endswith("/scale") for path in left) == every - foldable
    assert_same_function(model, variables, folded, images_of(shape))


class Odd(nn.Module):
    """Contain every combination of convolution and norm, foldable or not."""

    @nn.compact
    def __call__(self, x, train=False):
        x = Conv(4, 3, name="biased")(x)  # foldable
        x = BatchNorm(use_scale=False, epsilon=0.1, name="norm1")(x, not train)
        x = Conv(4, 3, groups=2, use_bias=False, name="grouped")(x)  # foldable
        x = BatchNorm(use_bias=False, name="norm2")(x, use_running_average=not train)
        x = Conv(4, 1, name="before_relu")(x)
        x = BatchNorm(name="norm3")(nn.relu(x), not train)
        x = end = Conv(4, 1, name="endpoint")(x)
        x = BatchNorm(name="norm4")(x, not train)
        x = Conv(4, 1, name="read_twice")(x)
        x = BatchNorm(name="norm5")(x, not train) + x
        again = Conv(4, 1, name="run_twice")
        x = BatchNorm(name="norm6")(again(again(x)), not train)
        return x, {"end": end}


def test_only_convolutions_read_by_a_single_norm_are_folded(monkeypatch):
    variables = random(jax.eval_shape(Odd().init, jax.random.key(0), np.zeros((1, 6, 6, 2), np.float32)))
    monkeypatch.setattr(folding, "abstract_variables", lambda model, shape: variables)
    monkeypatch.setattr(folding, "with_runtime", lambda model, **fields: model)
    assert [tuple(pair) for pair in folding.foldable_pairs(Odd(), (6, 6, 2))] == [
        ("biased", "norm1", 0.1),
        ("grouped", "norm2", 1e-5),
    ]
    folded = folding.fold(Odd(), variables, (6, 6, 2))
    assert_same_function(Odd(), variables, folded, images_of((6, 6, 2)))
    with pytest.raises(Exception, match="norm1"):  # what is folded cannot be trained
        Odd().apply(folded, images_of((6, 6, 2)), train=True, mutable=["batch_stats"])


# --- in prediction ----------------------------------------------------------------------------------------------

SEEN = Preprocess((8, 8), (8, 8))


@pytest.fixture(scope="module")
def network():
    model = models.create("resnet20", blocks=(1,), width=8, num_classes=3)
    return model, random(models.abstract_variables(model, (8, 8, 3)))


def test_prediction_caches_folded_variables_and_notices_other_ones(network, monkeypatch):
    """JAX arrays are folded once; other arrays, and NumPy arrays, which can change in place, are folded again."""
    model, variables = network
    folds, fold = [], folding.fold
    monkeypatch.setattr(folding, "fold", lambda *args: folds.append(1) or fold(*args))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)

    def predicted(variables):
        answer = evaluate.predict_probabilities(model, variables, pixels, SEEN)
        logits = model.apply(variables, normalise(pixels, SEEN))[0]
        np.testing.assert_allclose(answer, jax.nn.softmax(logits), atol=1e-5)
        return answer

    first = jax.device_put(variables)
    predicted(first), predicted(first)
    assert len(folds) == 1
    predicted(jax.tree.map(lambda leaf: 0.9 * leaf, first))
    assert len(folds) == 2
    kernel = variables["params"]["stem"]["conv"]["kernel"]
    before = predicted(variables)
    kernel *= 2
    assert not np.allclose(predicted(variables), before)
    kernel /= 2


def test_few_compilations_for_any_number_of_images(caplog):
    model = models.create("softmax", image_size=8)
    variables = random(models.abstract_variables(model, (8, 8, 3)))
    for count in range(1, 150):
        assert -count % evaluate.prediction_batch(count) <= count / 4
        assert evaluate.prediction_batch(count, 32) in (1, 16, 32)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (150, 8, 8, 3), np.uint8)
    whole = evaluate.predict_probabilities(model, variables, pixels, SEEN, batch_size=16)
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for count in (1, 2, 3, 5, 6, 7, 8, 9, 15, 31, 40, 63, 64, 65, 100, 150):
            part = evaluate.predict_probabilities(model, variables, pixels[:count], SEEN)
            np.testing.assert_allclose(part, whole[:count], atol=1e-6)
        for count in (1, 3, 16, 20):  # as `zoo predict` asks for its groups
            evaluate.predict_probabilities(model, variables, pixels[:count], SEEN, batch_size=16)
    compiled = [record.getMessage() for record in caplog.records if "Compiling jit(output_step)" in record.getMessage()]
    assert 1 <= len(compiled) <= 4
