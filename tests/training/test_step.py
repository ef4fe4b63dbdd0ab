"""The pure training step: the effect of each field of a recipe on one update, against NumPy."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import models
from zoo.data.augment.ops import augment
from zoo.data.images.preprocess import Preprocess
from zoo.inference.evaluate import make_eval_step
from zoo.training import step as training_step
from zoo.training.optim import make_optimizer
from zoo.training.recipe import Recipe
from zoo.training.step import (
    accumulate_gradients,
    create_state,
    eval_variables,
    example_losses,
    loss_targets,
    make_train_step,
    reset_optimizer,
    update_ema,
)
from zoo.trees import flatten

PREPROCESS = Preprocess(size=(8, 8), resize=(8, 8), channels="L", mean=(0.3,), std=(0.4,))
PLAIN = Recipe(optimizer="sgd", learning_rate=0.1, schedule="constant", batch_size=8)
MODEL = models.create("mlp", widths=(16,), image_size=8, num_classes=5)
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.integers(0, 256, (8, 8, 8, 1)).astype(np.uint8),
    "label": RNG.integers(0, 5, 8).astype(np.int32),
    "weight": np.ones(8, np.float32),
}
HOT = np.eye(5, dtype=np.float32)[BATCH["label"]]
CLASS_WEIGHTS = (1.0, 2.0, 0.5, 3.0, 0.1)


class TwoHeads(nn.Module):
    """A linear classifier with two auxiliary heads and an endpoint that is no head."""

    num_classes: int = 5
    input_shape = (8, 8, 1)

    @nn.compact
    def __call__(self, images, *, train=False):
        x = images.reshape(len(images), -1)
        logits, aux1, aux2 = (nn.Dense(5, name=name)(x) for name in ("head", "aux1", "aux2"))
        return logits, {"logits": logits, "features": x, "aux1": aux1, "aux2": aux2}


def first_state(recipe=PLAIN, model=MODEL, **options):
    return create_state(model, make_optimizer(recipe, 10, 5)[0], recipe, (8, 8, 1), **options)


def steps(recipe, count=1, model=MODEL, batch=BATCH, **options):
    """Return the state after `count` steps and the metrics of the last."""
    optimizer, _ = make_optimizer(recipe, 10, 5)
    state = create_state(model, optimizer, recipe, (8, 8, 1), frozen=options.get("frozen", frozenset()))
    step = jax.jit(make_train_step(model, recipe, PREPROCESS, optimizer, augmentation=recipe.augment, **options))
    for _ in range(count):
        state, metrics = step(state, batch)
    return state, metrics


def change(fields, **options):
    return steps(dataclasses.replace(PLAIN, **fields), **options)


def is_equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def assert_close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def normalised(images=BATCH["image"]):
    return (np.asarray(images, np.float32) / 255 - 0.3) / 0.4


def cross_entropy(logits, targets):
    return -(np.asarray(targets) * log_softmax(logits)).sum(-1)


def reference_loss(variables, targets, weights=1.0):
    logits, _ = MODEL.apply(variables, normalised())
    return float((cross_entropy(logits, targets) * weights).mean())


# --- the loss and its terms -------------------------------------------------------------------------------------------


def test_the_loss_is_cross_entropy_and_the_step_descends_it():
    state = first_state()
    after, metrics = steps(PLAIN)
    assert float(metrics["loss"]) == pytest.approx(reference_loss(state.variables, HOT), rel=1e-5)
    assert float(metrics["objective"]) == float(metrics["loss"])
    logits, _ = MODEL.apply(state.variables, normalised())
    assert int(metrics["top1"]) == (np.argmax(logits, -1) == BATCH["label"]).sum()
    assert int(metrics["examples"]) == 8
    assert int(after.step) == 1 and np.array_equal(after.key, state.key)
    change = jax.tree.map(np.subtract, after.variables["params"], state.variables["params"])
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(change)))
    assert float(metrics["update"]) == pytest.approx(norm, rel=1e-4)
    later, _ = steps(PLAIN, count=20)
    assert reference_loss(later.variables, HOT) < 0.8 * float(metrics["loss"]) and int(later.step) == 20


def test_the_seed_decides_every_bit():
    assert is_equal(steps(PLAIN)[0], steps(PLAIN)[0])
    assert not is_equal(steps(PLAIN)[0].variables, change({"seed": 1})[0].variables)


def test_label_smoothing_and_penalties_and_class_weights_enter_the_objective():
    variables = first_state().variables
    smooth = change({"label_smoothing": 0.1})[1]
    assert float(smooth["loss"]) == pytest.approx(reference_loss(variables, 0.9 * HOT + 0.02), rel=1e-5)
    penalised = change({"l2": 0.5, "l1": 0.1})[1]
    kernels = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim > 1]
    penalty = sum(0.25 * np.square(k).sum() + 0.1 * np.abs(k).sum() for k in kernels)
    assert float(penalised["objective"] - penalised["loss"]) == pytest.approx(penalty, rel=1e-4)
    weighted = change({}, class_weights=CLASS_WEIGHTS)[1]
    expected = reference_loss(variables, HOT, np.array(CLASS_WEIGHTS)[BATCH["label"]])
    assert float(weighted["objective"]) == pytest.approx(expected, rel=1e-5)
    assert float(weighted["loss"]) == pytest.approx(reference_loss(variables, HOT), rel=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_losses_per_example(kind):
    """Softmax cross-entropy, and the sum of K binary cross-entropies, in float32 whatever the logits are in."""
    logits = RNG.normal(size=(8, 5)).astype(np.float32) * 3
    targets = 0.9 * HOT + 0.02
    probability = 1 / (1 + np.exp(-logits))
    binary = -(targets * np.log(probability) + (1 - targets) * np.log(1 - probability)).sum(-1)
    losses = example_losses(jnp.asarray(logits), targets, kind)
    expected = binary if kind == "sigmoid" else cross_entropy(logits, targets)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert losses.shape == (8,) and example_losses(jnp.asarray(logits, jnp.bfloat16), HOT, kind).dtype == jnp.float32


def test_binary_cross_entropy():
    logits, _ = MODEL.apply(first_state().variables, normalised())
    expected = example_losses(logits, HOT, "sigmoid").mean()
    assert float(change({"loss": "sigmoid"})[1]["loss"]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("aux_weight", [0.0, 0.3])
def test_auxiliary_heads_add_their_loss_times_class_weights(aux_weight):
    """The objective is mean(w * (main + aux_weight * (aux1 + aux2))); "loss" and "top1" are of the main head alone."""
    recipe = dataclasses.replace(PLAIN, aux_weight=aux_weight, label_smoothing=0.1)
    model, targets = TwoHeads(), 0.9 * HOT + 0.02
    logits, endpoints = model.apply(first_state(recipe, model).variables, normalised())
    main, aux1, aux2 = (cross_entropy(x, targets) for x in (logits, endpoints["aux1"], endpoints["aux2"]))
    _, metrics = steps(recipe, model=model, class_weights=CLASS_WEIGHTS)
    expected = ((targets @ np.array(CLASS_WEIGHTS)) * (main + aux_weight * (aux1 + aux2))).mean()
    assert float(metrics["objective"]) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(main.mean(), rel=1e-5)
    assert int(metrics["top1"]) == (np.argmax(logits, -1) == BATCH["label"]).sum()


def test_auxiliary_heads_have_sigmoid_losses_too():
    recipe = dataclasses.replace(PLAIN, loss="sigmoid", aux_weight=0.5)
    model = TwoHeads()
    _, endpoints = model.apply(first_state(recipe, model).variables, normalised())
    losses = {name: np.asarray(example_losses(endpoints[name], HOT, "sigmoid")) for name in ("logits", "aux1", "aux2")}
    expected = (losses["logits"] + 0.5 * (losses["aux1"] + losses["aux2"])).mean()
    assert float(steps(recipe, model=model)[1]["objective"]) == pytest.approx(expected, rel=1e-5)


def test_frozen_parameters_are_not_penalised():
    variables = first_state().variables
    frozen = frozenset(path.removeprefix("params/") for path in flatten(variables) if path.startswith("params/hidden1"))
    after, metrics = change({"l2": 1.0}, frozen=frozen)
    penalty = np.square(variables["params"]["head"]["kernel"]).sum() / 2
    assert float(metrics["objective"] - metrics["loss"]) == pytest.approx(penalty, rel=1e-4)
    assert is_equal(after.variables["params"]["hidden1"], variables["params"]["hidden1"])
    assert not is_equal(after.variables["params"]["head"], variables["params"]["head"])


# --- micro-batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unroll", [0, 8])
@pytest.mark.parametrize("micro_batch", [2, 3])
def test_micro_batches_give_the_update_of_the_whole_batch(micro_batch, unroll):
    """Augmentation, losses, penalties and class weights too; the last of three micro-batches of 3 has 2 images."""
    fields = {"augment": ("shift(pixels=1)",), "batch_size": 0, "l2": 0.1, "label_smoothing": 0.1}
    whole, metrics = change(fields, class_weights=CLASS_WEIGHTS)
    split, split_metrics = change({**fields, "micro_batch": micro_batch}, class_weights=CLASS_WEIGHTS, unroll=unroll)
    assert_close(whole.variables, split.variables, rtol=1e-4, atol=1e-6)
    assert_close(metrics, split_metrics, rtol=1e-5)


@pytest.mark.parametrize("unroll", [0, 2])
@pytest.mark.parametrize("count", [6, 8])
def test_micro_batches_weigh_by_their_images_and_pass_statistics_on(count, unroll):
    """With a gradient that returns its arguments: every micro-batch has its own rows, key and batch statistics."""

    def gradient(batch_stats, images, targets, key):
        noise = jax.random.uniform(key)
        stats = {"mean": 0.9 * batch_stats["mean"] + 0.1 * images.mean()}
        return (images.mean() + noise, (stats, {"sum": targets.sum()})), {"w": images.mean() * 2}

    images, targets, key = np.arange(1.0, count + 1, dtype=np.float32), np.ones(count, np.float32), jax.random.key(3)
    batch_gradient = accumulate_gradients(gradient, 3, lambda x: x, unroll)
    (value, (stats, sums)), grads = batch_gradient({"mean": jnp.float32(1.0)}, images, targets, key)
    parts = [images[start : start + 3] for start in range(0, count, 3)]
    noise = [float(jax.random.uniform(jax.random.fold_in(key, n))) * len(part) for n, part in enumerate(parts)]
    mean = 1.0
    for part in parts:
        mean = 0.9 * mean + 0.1 * part.mean()
    assert float(value) == pytest.approx(images.mean() + sum(noise) / count, rel=1e-5)
    assert float(grads["w"]) == pytest.approx(2 * images.mean(), rel=1e-5)
    assert float(stats["mean"]) == pytest.approx(mean, rel=1e-5) and float(sums["sum"]) == count


def test_a_micro_batch_of_the_whole_batch_is_one_pass():
    def refuse(microbatches):
        raise AssertionError("the batch was divided")

    _, metrics = change({"micro_batch": 8}, shard_microbatches=refuse)
    assert_close(metrics, steps(PLAIN)[1])
    with pytest.raises(AssertionError, match="divided"):
        change({"micro_batch": 4}, shard_microbatches=refuse)


# --- state and moving average -----------------------------------------------------------------------------------------


def test_moving_average():
    state = first_state()
    recipe = dataclasses.replace(PLAIN, ema=0.5)
    expected = first_state(recipe).variables
    for count in range(1, 4):
        state, _ = steps(recipe, count)
        decay = min(0.5, count / (9 + count))  # (1 + step) / (10 + step)
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, expected, state.variables)
        assert_close(state.ema, expected, rtol=1e-5, atol=1e-7)
    assert eval_variables(state) is state.ema
    plain = first_state()
    assert plain.ema is None and eval_variables(plain) is plain.variables


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (1, 2 / 11), (8, 0.5), (80, 0.9), (81, 0.9), (10**6, 0.9)])
def test_the_decay_of_the_moving_average_grows_to_its_limit(step, decay):
    """Batch statistics are averaged like parameters; a frozen path keeps its value."""
    old = {"params": {"w": np.float32(1)}, "batch_stats": {"n": {"mean": np.float32(1), "var": np.float32(1)}}}
    new = jax.tree.map(np.zeros_like, old)
    ema = update_ema(old, new, Recipe(ema=0.9), jnp.int32(step), frozenset({"n/var"}))
    assert float(ema["params"]["w"]) == float(ema["batch_stats"]["n"]["mean"]) == pytest.approx(decay)
    assert float(ema["batch_stats"]["n"]["var"]) == 1


def test_the_moving_average_of_torchvision():
    """references/classification/train.py: updated when step % every == 0; the counter of averages is reset at updates
    during the warm-up, and an average whose counter is 0 becomes a copy."""
    recipe, warmup = Recipe(ema=0.75, ema_every=3, ema_warmup="copy"), 7
    average, averaged, expected = 100.0, 0, 100.0
    for step in range(20):
        weight = float(step**2)
        if step % 3 == 0:
            expected = weight if averaged == 0 else 0.75 * expected + 0.25 * weight
            averaged = 0 if step < warmup else averaged + 1
        ema, variables = ({"params": {"w": jnp.float32(value)}} for value in (average, weight))
        new = update_ema(ema, variables, recipe, jnp.int32(step), frozenset(), warmup)
        average = float(new["params"]["w"])
        assert average == pytest.approx(expected), step


def test_targets_above_the_threshold_are_present():
    """timm's target_threshold 0.2: both classes of a mixed image; smoothing comes after it."""
    mixed = jnp.array([[0.75, 0.25, 0.0, 0.0], [0.15, 0.85, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    hard = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], np.float32)
    recipe = Recipe(loss="sigmoid", target_threshold=0.2)
    assert np.array_equal(loss_targets(mixed, recipe), hard)
    smooth = dataclasses.replace(recipe, label_smoothing=0.1)
    np.testing.assert_allclose(loss_targets(mixed, smooth), 0.9 * hard + 0.1 / 4, rtol=1e-6)
    assert loss_targets(mixed, Recipe(loss="sigmoid")) is mixed


def test_the_threshold_acts_on_the_loss():
    fields = {"loss": "sigmoid", "label_smoothing": 0.1}
    _, plain = change(fields)
    _, thresholded = change({**fields, "target_threshold": 0.2})
    assert float(thresholded["loss"]) == pytest.approx(float(plain["loss"]), rel=1e-5)  # nothing is mixed
    mixing = {**fields, "augment": ("mixup(alpha=5)",)}
    _, soft = change(mixing)
    _, hard = change({**mixing, "target_threshold": 0.2})
    assert abs(float(hard["loss"]) - float(soft["loss"])) > 0.1


def test_the_momentum_of_batch_norms():
    """The first step moves running statistics from 0 by 1 - momentum."""
    model = models.create("resnet20", blocks=(1,), width=2, num_classes=5)
    batch = {**BATCH, "image": np.repeat(BATCH["image"], 3, -1)}

    def mean_after(recipe):
        optimizer, _ = make_optimizer(recipe, 10, 5)
        state = create_state(model, optimizer, recipe, (8, 8, 3))
        preprocess = Preprocess((8, 8), (8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
        state, _ = jax.jit(make_train_step(model, recipe, preprocess, optimizer))(state, batch)
        return np.asarray(state.variables["batch_stats"]["stem"]["norm"]["mean"])

    own, slow = (mean_after(dataclasses.replace(PLAIN, norm_momentum=value)) for value in (0.0, 0.99))
    assert np.abs(own).max() > 1e-3
    np.testing.assert_allclose(slow, own * (1 - 0.99) / (1 - 0.9), rtol=1e-4)


def test_the_first_state():
    """It starts from copies, since a step donates its buffers; frozen paths have no optimiser state."""
    recipe = dataclasses.replace(PLAIN, ema=0.9, optimizer="momentum")
    given = jax.tree.map(lambda leaf: leaf + 1, first_state().variables)
    fresh = []
    state = first_state(recipe, start=lambda variables: fresh.append(variables) or given)
    assert is_equal(fresh[0], first_state().variables)
    assert is_equal(state.variables, given) and is_equal(state.ema, given) and int(state.step) == 0
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((given, state.variables, state.ema))]
    assert len(set(buffers)) == len(buffers)
    frozen = frozenset({"head/kernel"})
    all_leaves, trained = (len(jax.tree.leaves(first_state(recipe, frozen=f).opt_state)) for f in (frozenset(), frozen))
    assert all_leaves - trained == 1


def test_reset_optimizer_forgets_the_momentum_alone():
    recipe = dataclasses.replace(PLAIN, optimizer="momentum")
    state, _ = steps(recipe, 2)
    reset = reset_optimizer(state, make_optimizer(recipe, 10, 5)[0], frozenset())
    assert any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(reset.opt_state))
    assert is_equal(reset.variables, state.variables) and int(reset.step) == 2


# --- randomness -------------------------------------------------------------------------------------------------------


def test_dropout_changes_with_the_step_and_repeats_with_the_seed():
    model = models.create("mlp", widths=(16,), image_size=8, num_classes=5, dropout=0.5)
    still = dataclasses.replace(PLAIN, learning_rate=1e-30)
    first, second = steps(still, 1, model)[1], steps(still, 2, model)[1]
    assert float(first["loss"]) != float(second["loss"]) and is_equal(first, steps(still, 1, model)[1])


def run_pmap(devices, batch, recipe=PLAIN, model=MODEL):
    """Return the state and metrics of one step under pmap over `devices` devices."""
    optimizer, _ = make_optimizer(recipe, 10, 5)
    step = make_train_step(model, recipe, PREPROCESS, optimizer, augmentation=recipe.augment, axis_name="batch")
    mapped = jax.pmap(step, "batch", in_axes=(None, 0), out_axes=None, devices=jax.devices()[:devices])
    stacked = {key: value.reshape(devices, len(value) // devices, *value.shape[1:]) for key, value in batch.items()}
    return mapped(first_state(recipe, model), stacked)


def test_devices_under_pmap_draw_different_dropout():
    """All images are equal: with the same dropout on both devices their loss would be that of one of them."""
    model = models.create("mlp", widths=(16,), image_size=8, num_classes=5, dropout=0.5)
    equal_rows = {key: np.repeat(value[:1], 8, axis=0) for key, value in BATCH.items()}
    half = {key: value[:4] for key, value in equal_rows.items()}
    single, both = (float(run_pmap(n, rows, model=model)[1]["loss"]) for n, rows in ((1, half), (2, equal_rows)))
    assert single != pytest.approx(both, rel=1e-3)


def test_pmap_gives_the_step_of_a_single_device():
    """Each row is augmented by its place in the whole batch; counts are summed, losses and gradients averaged."""
    recipe = dataclasses.replace(PLAIN, augment=("shift(pixels=2)", "mixup(alpha=1)"), l2=0.1)
    state, metrics = run_pmap(2, BATCH, recipe)
    expected, expected_metrics = steps(recipe)
    assert_close(metrics, expected_metrics, rtol=1e-5)
    assert_close(state.variables, expected.variables, rtol=1e-4, atol=1e-6)
    assert int(metrics["examples"]) == 8


def test_mixed_labels_are_smoothed_and_count_by_their_heaviest_class():
    """The key of a step is folded from the state's key and the step; the first half of it draws the augmentation."""
    recipe = dataclasses.replace(PLAIN, augment=("shift(pixels=2)", "mixup(alpha=1)"), label_smoothing=0.1)
    state = first_state(recipe)
    key, _ = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(state.key), 0))
    images, targets = augment(
        recipe.augment, key, jnp.arange(8), jnp.asarray(BATCH["image"], jnp.float32), jnp.asarray(0.9 * HOT + 0.02),
        fill=jnp.asarray(PREPROCESS.fill, jnp.float32),
    )  # fmt: skip
    logits, _ = MODEL.apply(state.variables, normalised(images))
    _, metrics = steps(recipe)
    assert float(metrics["loss"]) == pytest.approx(cross_entropy(logits, targets).mean(), rel=1e-5)
    assert int(metrics["top1"]) == (np.argmax(logits, -1) == np.argmax(targets, -1)).sum()


@pytest.mark.parametrize("channels", ["L", "RGB", "BGR"])
def test_augmentation_knows_the_order_of_channels(channels, monkeypatch):
    """That colours are augmented alike in any order is tested with `augmented_images`."""
    given = []

    def spy(ops, key, index, images, targets, *, fill, channels):
        given.append(channels)
        return images, targets

    monkeypatch.setattr(training_step, "augment", spy)
    values = (0.5,) * len(channels)
    preprocess = Preprocess((8, 8), (8, 8), channels=channels, mean=values, std=values)
    optimizer, _ = make_optimizer(PLAIN, 10, 5)
    state = create_state(TwoHeads(), optimizer, PLAIN, preprocess.input_shape)
    batch = {**BATCH, "image": np.zeros((8, *preprocess.input_shape), np.uint8)}
    jax.eval_shape(make_train_step(TwoHeads(), PLAIN, preprocess, optimizer), state, batch)
    assert given == [channels]


def test_augmentation_happens_in_training_only():
    variables = first_state().variables
    assert float(change({"augment": ("cutout(size=6)",)})[1]["loss"]) != pytest.approx(reference_loss(variables, HOT))
    sums, (probabilities, *_) = jax.jit(make_eval_step(MODEL, PREPROCESS))(variables, BATCH)
    assert float(sums["loss"]) / 8 == pytest.approx(reference_loss(variables, HOT), rel=1e-5)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)


def test_padding_does_not_count_in_evaluation():
    step = jax.jit(make_eval_step(MODEL, PREPROCESS))
    variables = first_state().variables
    padded = {**BATCH, "weight": np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)}
    five = {key: value[:5] for key, value in BATCH.items()}
    assert_close(step(variables, padded)[0], step(variables, five)[0], rtol=1e-6)


def test_bfloat16_keeps_parameters_in_float32():
    model = models.with_runtime(MODEL, dtype=jnp.bfloat16)
    state, metrics = steps(PLAIN, 3, model)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.variables))
    assert float(metrics["loss"]) == pytest.approx(float(steps(PLAIN, 3)[1]["loss"]), rel=0.03)
