"""Every optimiser against a plain NumPy reading of its paper; every schedule at its corners."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.training import optim
from zoo.training.recipe import Optimizer, Recipe, Schedule

PARAMS = {
    "dense": {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32), "bias": np.array([0.5, -1.0], np.float32)}
}
GRADS = [
    jax.tree.map(lambda p, s=scale: np.float32(s) * np.cos(3 * p + s).astype(np.float32), PARAMS)
    for scale in (1.0, 0.3, 2.0)
]
RATE, M, V, EPS, DECAY = 0.1, 0.9, 0.99, 1e-6, 0.05


def adam_direction(state, g, t):
    state["m"] = M * state.get("m", 0) + (1 - M) * g
    state["v"] = V * state.get("v", 0) + (1 - V) * g**2
    return (state["m"] / (1 - M**t)) / (np.sqrt(state["v"] / (1 - V**t)) + EPS)


def reference(name, w, gradients, decay):
    """w after the gradients; `decay` is 0 for a bias, whose trust ratio is 1 as well."""
    w, state, trust = w.astype(np.float64), {}, w.ndim > 1
    for t, g in enumerate(gradients, 1):
        g = g.astype(np.float64)
        if name == "sgd":
            d = g
        elif name == "momentum":
            d = state["m"] = M * state.get("m", 0) + g
        elif name == "nesterov":
            state["m"] = M * state.get("m", 0) + g
            d = g + M * state["m"]
        elif name == "rmsprop":
            state["v"] = V * state.get("v", 0) + (1 - V) * g**2
            d = state["m"] = M * state.get("m", 0) + g / np.sqrt(state["v"] + EPS)
        elif name in ("adam", "adamw", "lamb"):
            d = adam_direction(state, g, t)
        elif name == "lion":
            d = np.sign(M * state.get("m", 0) + (1 - M) * g)
            state["m"] = V * state.get("m", 0) + (1 - V) * g
        else:
            d = g
        d = d + decay * w
        if name in ("lars", "lamb") and trust:
            d = d * np.linalg.norm(w) / np.linalg.norm(d) * (0.001 if name == "lars" else 1)
        if name == "lars":
            d = state["m"] = M * state.get("m", 0) + RATE * d
            w = w - d
        else:
            w = w - RATE * d
    return w


@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("name", get_args(Optimizer))
def test_optimizers_do_what_their_papers_say(name, decay):
    recipe = Recipe(
        optimizer=name,
        learning_rate=RATE,
        momentum=M,
        b2=V,
        epsilon=EPS,
        schedule="constant",
        weight_decay=decay,
    )
    optimizer, _ = optim.make_optimizer(recipe, 10, 5)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = optimizer.init(params)
    for grads in GRADS:
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    for leaf, used in (("kernel", decay), ("bias", 0.0)):  # a bias never decays
        expected = reference(name, PARAMS["dense"][leaf], [g["dense"][leaf] for g in GRADS], used)
        np.testing.assert_allclose(params["dense"][leaf], expected, rtol=2e-5, atol=2e-6)


def test_decay_reaches_biases_only_when_asked():
    assert optim.decay_mask(PARAMS, Recipe()) == {"dense": {"kernel": True, "bias": False}}
    assert optim.decay_mask(PARAMS, Recipe(decay_bias_and_norm=True)) == {"dense": {"kernel": True, "bias": True}}


def test_penalties():
    kernel, bias = PARAMS["dense"]["kernel"], PARAMS["dense"]["bias"]
    assert optim.penalty(PARAMS, Recipe(l1=0.5)) == pytest.approx(0.5 * np.abs(kernel).sum())
    both = 0.25 * ((kernel**2).sum() + (bias**2).sum())
    assert optim.penalty(PARAMS, Recipe(l2=0.5, decay_bias_and_norm=True)) == pytest.approx(both)
    gradient = jax.grad(lambda p: optim.penalty(p, Recipe(l2=0.5)))(jax.tree.map(jnp.asarray, PARAMS))
    np.testing.assert_allclose(gradient["dense"]["kernel"], 0.5 * kernel)
    assert not np.any(gradient["dense"]["bias"])


def test_clipping_bounds_the_global_norm():
    recipe = Recipe(optimizer="sgd", learning_rate=1.0, schedule="constant", clip_norm=0.5)
    optimizer, _ = optim.make_optimizer(recipe, 10, 5)
    updates, _ = optimizer.update(GRADS[2], optimizer.init(PARAMS), PARAMS)
    norm = np.sqrt(sum(np.square(u).sum() for u in jax.tree.leaves(updates)))
    assert norm == pytest.approx(0.5, rel=1e-5)


CORNERS = {  # schedule -> (fields, {step: rate as a fraction of the peak}) over 100 steps of 10 epochs
    "constant": ({}, {0: 1, 50: 1, 99: 1}),
    "step": ({"milestones": (0.5, 0.75)}, {0: 1, 49: 1, 50: 0.1, 74: 0.1, 75: 0.01, 99: 0.01}),
    "exponential": ({"decay_factor": 0.94, "decay_every_epochs": 2.0}, {0: 1, 19: 1, 20: 0.94, 40: 0.94**2}),
    "cosine": ({}, {0: 1, 50: 0.5, 100: 0}),
    "linear": ({"final_lr_fraction": 0.2}, {0: 1, 50: 0.6, 100: 0.2}),
    "one-cycle": ({}, {0: 1 / 25, 30: 1, 100: 4e-6}),
}


@pytest.mark.parametrize("name", get_args(Schedule))
def test_schedules(name):
    fields, corners = CORNERS[name]
    schedule = optim.learning_rate_schedule(Recipe(schedule=name, learning_rate=2.0, epochs=10, **fields), 100, 10)
    for step, fraction in corners.items():
        assert float(schedule(step)) == pytest.approx(2.0 * fraction, abs=1e-5)


@pytest.mark.parametrize("name", get_args(Schedule))
def test_each_schedule_warms_up(name):
    recipe = Recipe(schedule=name, learning_rate=2.0, epochs=10, warmup_epochs=2.0)
    schedule = optim.learning_rate_schedule(recipe, 100, 10)
    start = float(optim.learning_rate_schedule(dataclasses.replace(recipe, warmup_epochs=0.0), 80, 10)(0))
    assert [float(schedule(step)) for step in (0, 10, 20)] == pytest.approx([0, start / 2, start], abs=1e-6)


def test_milestones_that_coincide_in_a_short_training_both_count():
    recipe = Recipe(schedule="step", milestones=(0.5, 0.75), learning_rate=1.0)
    schedule = optim.learning_rate_schedule(recipe, 3, 1)
    assert float(schedule(2)) == pytest.approx(0.01)


def test_a_warm_up_does_not_move_the_milestones():
    recipe = Recipe(schedule="step", milestones=(0.5,), learning_rate=1.0, epochs=10, warmup_epochs=2.0)
    schedule = optim.learning_rate_schedule(recipe, 100, 10)
    assert float(schedule(49)) == 1.0 and float(schedule(50)) == pytest.approx(0.1)
