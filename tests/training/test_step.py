"""The pure step: what each field of a recipe does to one update."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo import models
from zoo.data.images.preprocess import Preprocess
from zoo.inference.evaluate import make_eval_step
from zoo.training.optim import make_optimizer
from zoo.training.recipe import Recipe
from zoo.training.step import create_state, eval_variables, make_train_step

PREPROCESS = Preprocess(size=(8, 8), resize=(8, 8), channels="L", polarity="light-on-dark", mean=(0.3,), std=(0.4,))
PLAIN = Recipe(optimizer="sgd", learning_rate=0.1, schedule="constant", batch_size=8)
MODEL = models.create("mlp", widths=(16,), image_size=8, num_classes=5)
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.integers(0, 256, (8, 8, 8, 1)).astype(np.uint8),
    "label": RNG.integers(0, 5, 8).astype(np.int32),
    "weight": np.ones(8, np.float32),
}


def steps(recipe, count=1, model=MODEL, batch=BATCH, **options):
    optimizer, _ = make_optimizer(recipe, 10, 5)
    state = create_state(model, optimizer, recipe, (8, 8, 1))
    step = jax.jit(make_train_step(model, recipe, PREPROCESS, optimizer, augmentation=recipe.augment, **options))
    for _ in range(count):
        state, report = step(state, batch)
    return state, report


def change(fields, **options):
    return steps(dataclasses.replace(PLAIN, **fields), **options)


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def loss_by_hand(variables, targets, weights=None):
    images = (BATCH["image"].astype(np.float32) / 255 - 0.3) / 0.4
    logits, _ = MODEL.apply(variables, images)
    losses = -(np.asarray(targets) * np.asarray(jax.nn.log_softmax(logits))).sum(-1)
    return float((losses * (1 if weights is None else weights)).mean())


def first_state(recipe=PLAIN):
    return create_state(MODEL, make_optimizer(recipe, 10, 5)[0], recipe, (8, 8, 1))


HOT = np.eye(5, dtype=np.float32)[BATCH["label"]]


def test_the_loss_is_cross_entropy_and_the_step_descends_it():
    state = first_state()
    _, report = steps(PLAIN)
    assert float(report["loss"]) == pytest.approx(loss_by_hand(state.variables, HOT), rel=1e-5)
    assert float(report["objective"]) == float(report["loss"])
    assert int(report["examples"]) == 8
    later, _ = steps(PLAIN, count=20)
    assert loss_by_hand(later.variables, HOT) < 0.8 * float(report["loss"]) and int(later.step) == 20


def test_same_seed_same_bits_other_seed_other_bits():
    assert equal(steps(PLAIN)[0], steps(PLAIN)[0])
    assert not equal(steps(PLAIN)[0].variables, change({"seed": 1})[0].variables)


def test_label_smoothing_and_penalties_and_class_weights_enter_the_objective():
    variables = first_state().variables
    smooth = change({"label_smoothing": 0.1})[1]
    assert float(smooth["loss"]) == pytest.approx(loss_by_hand(variables, 0.9 * HOT + 0.02), rel=1e-5)
    penal = change({"l2": 0.5, "l1": 0.1})[1]
    kernels = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim > 1]
    extra = sum(0.25 * np.square(k).sum() + 0.1 * np.abs(k).sum() for k in kernels)
    assert float(penal["objective"] - penal["loss"]) == pytest.approx(extra, rel=1e-4)
    weights = (1.0, 2.0, 0.5, 3.0, 0.1)
    weighted = change({}, class_weights=weights)[1]
    by_hand = loss_by_hand(variables, HOT, np.array(weights)[BATCH["label"]])
    assert float(weighted["objective"]) == pytest.approx(by_hand, rel=1e-5)
    assert float(weighted["loss"]) == pytest.approx(loss_by_hand(variables, HOT), rel=1e-5)


def test_binary_cross_entropy():
    logits, _ = MODEL.apply(first_state().variables, (BATCH["image"].astype(np.float32) / 255 - 0.3) / 0.4)
    expected = optax.sigmoid_binary_cross_entropy(logits, HOT).sum(-1).mean()
    assert float(change({"loss": "sigmoid"})[1]["loss"]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("unroll", [0, 8])
def test_accumulated_gradients_are_the_whole_batch_s(unroll):
    whole, report = change({"augment": ("shift(pixels=1)",)})
    pieces, report_pieces = change({"augment": ("shift(pixels=1)",), "micro_batch": 2}, unroll=unroll)
    close(whole.variables, pieces.variables, rtol=1e-4, atol=1e-6)
    close(report, report_pieces, rtol=1e-5)


def test_moving_average():
    state, expected = first_state(), None
    recipe = dataclasses.replace(PLAIN, ema=0.5)
    expected = first_state(recipe).variables
    for count in range(1, 4):
        state, _ = steps(recipe, count)
        decay = min(0.5, count / (9 + count))  # warmed up: (1 + step) / (10 + step)
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, expected, state.variables)
        close(state.ema, expected, rtol=1e-5, atol=1e-7)
    assert eval_variables(state) is state.ema
    plain = first_state()
    assert eval_variables(plain) is plain.variables


def test_dropout_changes_with_the_step_and_repeats_with_the_seed():
    model = models.create("mlp", widths=(16,), image_size=8, num_classes=5, dropout=0.5)
    still = dataclasses.replace(PLAIN, learning_rate=1e-30)
    one, two = steps(still, 1, model)[1], steps(still, 2, model)[1]
    assert float(one["loss"]) != float(two["loss"]) and equal(one, steps(still, 1, model)[1])


def test_augmentation_happens_in_training_only():
    variables = first_state().variables
    assert float(change({"augment": ("cutout(size=6)",)})[1]["loss"]) != pytest.approx(loss_by_hand(variables, HOT))
    sums, probabilities = jax.jit(make_eval_step(MODEL, PREPROCESS))(variables, BATCH)
    assert float(sums["loss"]) / 8 == pytest.approx(loss_by_hand(variables, HOT), rel=1e-5)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)


def test_padding_counts_nowhere_in_evaluation():
    step = jax.jit(make_eval_step(MODEL, PREPROCESS))
    variables = first_state().variables
    padded = {**BATCH, "weight": np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)}
    five = {key: value[:5] for key, value in BATCH.items()}
    close(step(variables, padded)[0], step(variables, five)[0], rtol=1e-6)


def test_bfloat16_keeps_parameters_in_float32():
    model = models.with_runtime(MODEL, dtype=jnp.bfloat16)
    state, report = steps(PLAIN, 3, model)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.variables))
    assert float(report["loss"]) == pytest.approx(float(steps(PLAIN, 3)[1]["loss"]), rel=0.03)


def test_auxiliary_heads_add_their_weighted_loss():
    import flax.linen as nn

    class TwoHeads(nn.Module):
        num_classes: int = 5

        @nn.compact
        def __call__(self, images, *, train=False):
            x = images.reshape(len(images), -1)
            logits, aux = nn.Dense(5, name="head")(x), nn.Dense(5, name="aux1")(x)
            return logits, {"logits": logits, "aux1": aux}

    model = TwoHeads()
    model.__class__.input_shape = (8, 8, 1)
    light, heavy = (steps(dataclasses.replace(PLAIN, aux_weight=w), 1, model)[1] for w in (0.0, 0.3))
    assert float(light["objective"]) == float(light["loss"])
    assert float(heavy["objective"]) > float(heavy["loss"])
