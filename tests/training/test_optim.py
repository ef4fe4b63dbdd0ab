"""Every optimiser against a NumPy reference of its paper, every schedule at its first, last and boundary steps."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import models
from zoo.training import optim
from zoo.training.recipe import Optimizer, Recipe, Schedule

PARAMS = {
    "dense": {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32), "bias": np.array([0.5, -1.0], np.float32)}
}
GRADS = [
    jax.tree.map(lambda p, s=scale: np.float32(s) * np.cos(3 * p + s).astype(np.float32), PARAMS)
    for scale in (1.0, 0.3, 2.0)
]
MOMENTUM, B2, EPSILON, DECAY = 0.9, 0.99, 1e-6, 0.05
#: A linear schedule over ten steps, from 0.1 to 0.
RATES = [0.1 * (1 - step / 10) for step in range(3)]
RECIPE = Recipe(learning_rate=0.1, momentum=MOMENTUM, b2=B2, epsilon=EPSILON, schedule="linear")


def adam_direction(state, gradient, count):
    state["m"] = MOMENTUM * state.get("m", 0) + (1 - MOMENTUM) * gradient
    state["v"] = B2 * state.get("v", 0) + (1 - B2) * gradient**2
    return (state["m"] / (1 - MOMENTUM**count)) / (np.sqrt(state["v"] / (1 - B2**count)) + EPSILON)


def direction(name, state, gradient, count):
    """Return the update direction of an optimiser before weight decay, trust ratio and learning rate."""
    if name in ("sgd", "lars"):
        return gradient
    if name == "momentum":
        state["m"] = MOMENTUM * state.get("m", 0) + gradient
        return state["m"]
    if name == "nesterov":
        state["m"] = MOMENTUM * state.get("m", 0) + gradient
        return gradient + MOMENTUM * state["m"]
    if name == "rmsprop":
        state["v"] = B2 * state.get("v", 0) + (1 - B2) * gradient**2
        state["m"] = MOMENTUM * state.get("m", 0) + gradient / np.sqrt(state["v"] + EPSILON)
        return state["m"]
    if name == "rmsprop-tf":  # the mean square starts at 1
        state["v"] = B2 * state.get("v", 1) + (1 - B2) * gradient**2
        return gradient / np.sqrt(state["v"] + EPSILON)
    if name == "lion":
        sign = np.sign(MOMENTUM * state.get("m", 0) + (1 - MOMENTUM) * gradient)
        state["m"] = B2 * state.get("m", 0) + (1 - B2) * gradient
        return sign
    return adam_direction(state, gradient, count)


def reference(name, weights, gradients, *, decay=0.0, trust=True, factor=1.0):
    """Return the weights after an update per gradient.

    Args:
        name: the optimiser.
        weights: one array.
        gradients: its gradients, after clipping.
        decay: decoupled weight decay.
        trust: False for biases and norm scales, which have no trust ratio in LARS and LAMB.
        factor: multiplier of the learning rate.
    """
    weights, state = weights.astype(np.float64), {}
    for count, (gradient, rate) in enumerate(zip(gradients, RATES, strict=True), 1):
        update = direction(name, state, gradient.astype(np.float64), count) + decay * weights
        if name in ("lars", "lamb") and trust:
            coefficient = 0.001 if name == "lars" else 1
            update = update * coefficient * np.linalg.norm(weights) / np.linalg.norm(update)
        update = rate * update
        # You et al. 2017, algorithm 1, and tf.train.RMSPropOptimizer: the momentum is of the scaled updates.
        if name in ("lars", "rmsprop-tf"):
            update = state["m"] = MOMENTUM * state.get("m", 0) + update
        weights = weights - factor * update
    return weights


def train(recipe, multipliers=None):
    """Return the parameters after the three gradients of GRADS."""
    optimizer, _ = optim.make_optimizer(recipe, 10, 5, multipliers)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = optimizer.init(params)
    for grads in GRADS:
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params["dense"]


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("decay_bias", [False, True])
@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("name", get_args(Optimizer))
def test_optimizers_match_their_papers(name, decay, decay_bias):
    recipe = dataclasses.replace(RECIPE, optimizer=name, weight_decay=decay, decay_bias_and_norm=decay_bias)
    params = train(recipe)
    for leaf in ("kernel", "bias"):
        expected = reference(
            name, PARAMS["dense"][leaf], [grads["dense"][leaf] for grads in GRADS],
            decay=decay if leaf == "kernel" or decay_bias else 0.0, trust=leaf == "kernel",
        )  # fmt: skip
        assert_close(params[leaf], expected)


@pytest.mark.parametrize("name", ["momentum", "adam", "lamb"])
def test_gradients_are_clipped_before_the_update_direction(name):
    """Momentum and moments accumulate clipped gradients; the norm is that of all parameters together."""
    limit = 0.5
    params = train(dataclasses.replace(RECIPE, optimizer=name, clip_norm=limit, weight_decay=DECAY))
    norms = [np.sqrt(sum(np.square(leaf).sum() for leaf in grads["dense"].values())) for grads in GRADS]
    assert min(norms) < 2 * limit and max(norms) > 2 * limit
    for leaf in ("kernel", "bias"):
        clipped = [
            grads["dense"][leaf] * min(1, limit / norm) for grads, norm in zip(GRADS, norms, strict=True)
        ]  # fmt: skip
        is_kernel = leaf == "kernel"
        expected = reference(name, PARAMS["dense"][leaf], clipped, decay=DECAY if is_kernel else 0, trust=is_kernel)
        assert_close(params[leaf], expected)


def test_a_gradient_within_the_limit_is_not_clipped():
    expected = train(dataclasses.replace(RECIPE, optimizer="sgd"))
    unclipped = train(dataclasses.replace(RECIPE, optimizer="sgd", clip_norm=100.0))
    for leaf in expected:
        assert_close(unclipped[leaf], expected[leaf])


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_multipliers_scale_the_whole_update_with_its_weight_decay(name):
    recipe = dataclasses.replace(RECIPE, optimizer=name, weight_decay=DECAY)
    params = train(recipe, {"dense/kernel": 0.25, "dense/bias": 1.0})
    gradients = [grads["dense"]["kernel"] for grads in GRADS]
    assert_close(params["kernel"], reference(name, PARAMS["dense"]["kernel"], gradients, decay=DECAY, factor=0.25))
    gradients = [grads["dense"]["bias"] for grads in GRADS]
    assert_close(params["bias"], reference(name, PARAMS["dense"]["bias"], gradients, trust=False))


def test_decay_reaches_biases_only_with_decay_bias_and_norm():
    params = {**PARAMS, "conv": {"kernel": np.ones((3, 3, 2, 2))}, "norm": {"scale": np.ones(2)}}
    mask = optim.decay_mask(params, Recipe())
    assert mask == {"dense": {"kernel": True, "bias": False}, "conv": {"kernel": True}, "norm": {"scale": False}}
    assert all(jax.tree.leaves(optim.decay_mask(params, Recipe(decay_bias_and_norm=True))))


def test_penalties():
    kernel, bias = PARAMS["dense"]["kernel"], PARAMS["dense"]["bias"]
    assert float(optim.penalty(PARAMS, Recipe())) == 0
    assert optim.penalty(PARAMS, Recipe(l1=0.5)) == pytest.approx(0.5 * np.abs(kernel).sum())
    assert optim.penalty(PARAMS, Recipe(l2=0.5)) == pytest.approx(0.25 * np.square(kernel).sum())
    both = 0.25 * ((kernel**2).sum() + (bias**2).sum()) + 0.1 * (np.abs(kernel).sum() + np.abs(bias).sum())
    assert optim.penalty(PARAMS, Recipe(l1=0.1, l2=0.5, decay_bias_and_norm=True)) == pytest.approx(both)
    gradient = jax.grad(lambda p: optim.penalty(p, Recipe(l2=0.5)))(jax.tree.map(jnp.asarray, PARAMS))
    np.testing.assert_allclose(gradient["dense"]["kernel"], 0.5 * kernel)
    assert not np.any(gradient["dense"]["bias"])


# --- schedules --------------------------------------------------------------------------------------------------------


def schedule_of(total_steps=100, steps_per_epoch=10, **fields):
    recipe = Recipe(**{"learning_rate": 2.0, "epochs": 10, **fields})
    return optim.learning_rate_schedule(recipe, total_steps, steps_per_epoch)


#: (schedule, fields, {step: learning rate as a fraction of the peak}) over 100 steps of 10 epochs.
POINTS = [
    ("constant", {}, {0: 1, 50: 1, 99: 1}),
    ("step", {"milestones": (0.5, 0.75)}, {0: 1, 49: 1, 50: 0.1, 74: 0.1, 75: 0.01, 99: 0.01}),
    ("step", {"milestones": (0.3,), "decay_factor": 0.2}, {29: 1, 30: 0.2, 99: 0.2}),
    ("exponential", {"decay_factor": 0.94, "decay_every_epochs": 2.0},
     {0: 1, 19: 1, 20: 0.94, 39: 0.94, 40: 0.94**2, 99: 0.94**4}),
    ("exponential", {"decay_factor": 0.5, "decay_every_epochs": 0.01}, {0: 1, 1: 0.5, 2: 0.25}),  # at least a step
    ("cosine", {}, {0: 1, 25: (1 + np.cos(np.pi / 4)) / 2, 50: 0.5, 100: 0}),
    ("cosine", {"final_lr_fraction": 0.2}, {0: 1, 50: 0.6, 100: 0.2}),
    ("linear", {}, {0: 1, 50: 0.5, 99: 0.01, 100: 0}),
    ("linear", {"final_lr_fraction": 0.2}, {0: 1, 50: 0.6, 100: 0.2}),
    ("one-cycle", {}, {0: 1 / 25, 15: (1 + 1 / 25) / 2, 30: 1, 100: 4e-6}),
    ("one-cycle", {"final_lr_fraction": 0.1}, {0: 1 / 25, 30: 1, 65: 0.55, 100: 0.1}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fields", "points"), POINTS)
def test_schedules(name, fields, points):
    schedule = schedule_of(schedule=name, **fields)
    for step, fraction in points.items():
        assert float(schedule(step)) == pytest.approx(2.0 * fraction, abs=1e-5), step


def test_every_schedule_is_tested():
    assert {name for name, _, _ in POINTS} == set(get_args(Schedule))


@pytest.mark.parametrize("name", get_args(Schedule))
def test_warm_up_is_linear_from_zero_and_part_of_the_training(name):
    """After two epochs of warm-up the schedule runs over the other 80 steps as if they were the whole training."""
    warm = schedule_of(schedule=name, warmup_epochs=2.0, milestones=(0.999,))
    main = schedule_of(80, schedule=name, milestones=(0.999,))
    first = float(main(0))
    warm_up = [float(warm(step)) for step in (0, 1, 10, 19)]
    assert warm_up == pytest.approx([0, first / 20, first / 2, 19 * first / 20], abs=1e-6)
    assert [float(warm(20 + step)) for step in (0, 1, 40, 79)] == pytest.approx(
        [float(main(step)) for step in (0, 1, 40, 79)], abs=1e-6
    )


def test_warm_up_leaves_at_least_one_step_at_the_peak():
    assert float(schedule_of(schedule="constant", warmup_epochs=10.0)(99)) == pytest.approx(2.0)
    assert float(schedule_of(schedule="constant", warmup_epochs=10.0)(98)) == pytest.approx(2.0 * 98 / 99)
    assert float(schedule_of(1, schedule="constant", warmup_epochs=10.0)(0)) == 2.0
    assert float(schedule_of(0, schedule="cosine")(0)) == 2.0


def test_milestones_that_coincide_in_a_short_training_both_count():
    schedule = schedule_of(3, 1, schedule="step", milestones=(0.5, 0.75))
    assert float(schedule(2)) == pytest.approx(2.0 * 0.01)


def test_warm_up_does_not_move_milestones():
    schedule = schedule_of(schedule="step", milestones=(0.5,), warmup_epochs=2.0)
    assert float(schedule(49)) == 2.0 and float(schedule(50)) == pytest.approx(0.2)


def test_a_milestone_within_the_warm_up_holds_from_its_end():
    schedule = schedule_of(schedule="step", milestones=(0.1, 0.5), warmup_epochs=2.0)
    assert [float(schedule(step)) for step in (10, 20, 50)] == pytest.approx([0.1, 0.2, 0.02])


def test_the_schedule_for_logging_is_that_of_the_updates():
    optimizer, schedule = optim.make_optimizer(dataclasses.replace(RECIPE, optimizer="sgd"), 10, 5)
    state = optimizer.init(PARAMS)
    for step in range(3):
        updates, state = optimizer.update(GRADS[0], state, PARAMS)
        np.testing.assert_allclose(updates["dense"]["bias"], -schedule(step) * GRADS[0]["dense"]["bias"], rtol=1e-6)
        assert float(schedule(step)) == pytest.approx(RATES[step])


# --- kinds of parameters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["alexnet_small", "resnet20", "inception_v3_small", "lenet5_1998", "googlenet_small"])
def test_kinds_of_parameters(name):
    """Norms have a scale or nothing beside their bias; layers have a kernel or coefficients."""
    params = models.abstract_variables(models.create(name))["params"]
    for path, kind in optim.kinds_of_parameters(params).items():
        leaf = path.rpartition("/")[2]
        is_norm = "norm" in path.rpartition("/")[0].rpartition("/")[2]
        if leaf == "kernel":
            assert kind == "weight"
        elif is_norm:
            assert kind == "norm"
        elif leaf == "bias":
            assert kind in ("bias", "weight")  # LeNet-5's C3 has a matrix of biases
    assert "bias" in optim.kinds_of_parameters(params).values()


def test_decay_and_rates_by_kind():
    params = {
        "conv": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)}
    }  # fmt: skip
    mask = optim.decay_mask(params, Recipe(decay_bias=True))
    assert mask == {"conv": {"kernel": True, "bias": True}, "norm": {"scale": False, "bias": False}}
    recipe = Recipe(bias_lr_factor=2.0, norm_lr_factor=0.5)
    factors = {"conv/bias": 2.0, "norm/scale": 0.5, "norm/bias": 0.5}
    assert optim.multipliers_by_kind(params, recipe) == factors
    assert optim.multipliers_by_kind(params, Recipe()) == {}


@pytest.mark.parametrize("method", ["linear", "constant"])
def test_warm_up_from_a_fraction_of_the_rate(method):
    """torchvision's --lr-warmup-method and --lr-warmup-decay, by steps."""
    recipe = Recipe(
        learning_rate=0.5, schedule="constant", warmup_epochs=2, epochs=10, warmup=method, warmup_lr_fraction=0.1
    )
    schedule = optim.learning_rate_schedule(recipe, 50, 5)
    rates = [float(schedule(step)) for step in range(12)]
    expected = np.linspace(0.05, 0.5, 11)[:10] if method == "linear" else [0.05] * 10
    np.testing.assert_allclose(rates, [*expected, 0.5, 0.5], rtol=1e-6)
