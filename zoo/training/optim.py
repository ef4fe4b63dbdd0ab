"""From a recipe to an optax.GradientTransformation: schedule, clipping, optimiser, decoupled weight decay."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zoo.training.recipe import Recipe
from zoo.trees import flatten


def learning_rate_schedule(recipe: Recipe, total_steps: int, steps_per_epoch: float) -> optax.Schedule:
    """Return the schedule of a recipe: a function from step to learning rate.

    Args:
        recipe: schedule, peak learning rate and warm-up.
        total_steps: steps of the whole schedule, warm-up included.
        steps_per_epoch: steps per epoch.
    """
    peak = recipe.learning_rate
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), max(total_steps - 1, 0))
    rest = max(total_steps - warmup, 1)
    main: optax.Schedule
    if recipe.schedule == "constant":
        main = optax.constant_schedule(peak)
    elif recipe.schedule == "step":
        # Milestones are fractions of the whole training including warm-up, like the iteration numbers of papers.
        bounds: dict[int, float] = {}
        for fraction in recipe.milestones:
            step = max(round(fraction * total_steps) - warmup, 0)
            # Two milestones may coincide in a short training.
            bounds[step] = bounds.get(step, 1.0) * recipe.decay_factor
        main = optax.piecewise_constant_schedule(peak, bounds)
    elif recipe.schedule == "exponential":
        every = max(round(recipe.decay_every_epochs * steps_per_epoch), 1)
        main = optax.exponential_decay(peak, every, recipe.decay_factor, staircase=True)
    elif recipe.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, rest, recipe.final_lr_fraction)
    elif recipe.schedule == "linear":
        main = optax.linear_schedule(peak, peak * recipe.final_lr_fraction, rest)
    else:  # Smith 2018 (arXiv:1803.09820): up for 30 % of the way, from peak / 25, then down
        main = optax.cosine_onecycle_schedule(rest, peak, 0.3, 25.0, 1 / max(recipe.final_lr_fraction * 25, 1e-4))
    if not warmup:
        return main
    # Without jit each operation of the schedule would be compiled.
    last: Any = peak if recipe.schedule == "constant" else jax.jit(main)(0)
    first = last * recipe.warmup_lr_fraction
    rising = optax.constant_schedule(first)
    if recipe.warmup == "linear":
        rising = optax.linear_schedule(first, last, warmup)
    return optax.join_schedules([rising, main], [warmup])


def is_weight(path: tuple, leaf) -> bool:
    """Return True for the leaves that decay and penalties act on: kernels, not biases, norm scales or coefficients."""
    return leaf.ndim > 1


def kinds_of_parameters(params) -> dict[str, str]:
    """Return path -> "weight", "bias" (of a layer), "norm" (its scale or bias) or "other" for a tree of parameters.

    A layer has other parameters beside its bias, such as a kernel; a norm has at most a scale.
    """
    leaves = flatten(params)
    layers = {path.rpartition("/")[0] for path in leaves if path.rpartition("/")[2] not in ("scale", "bias")}
    kinds = {}
    for path, leaf in leaves.items():
        parent, _, name = path.rpartition("/")
        if leaf.ndim > 1:
            kinds[path] = "weight"
        elif name == "bias" and parent in layers:
            kinds[path] = "bias"
        else:
            kinds[path] = "norm" if name in ("scale", "bias") else "other"
    return kinds


def decay_mask(params, recipe: Recipe):
    """Return a tree of bools like `params`: True for the leaves that L1, L2 and weight decay act on."""
    kinds = kinds_of_parameters(params) if recipe.decay_bias else {}
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: recipe.decay_bias_and_norm or is_weight(path, leaf) or kinds.get(_path_name(path)) == "bias",
        params,
    )


def multipliers_by_kind(params, recipe: Recipe) -> dict[str, float]:
    """Return path -> factor on the learning rate for biases and norms; {} if the recipe has none."""
    factors = {"bias": recipe.bias_lr_factor, "norm": recipe.norm_lr_factor}
    kinds = kinds_of_parameters(params)
    return {path: factors[kind] for path, kind in kinds.items() if factors.get(kind, 1) != 1}


def penalty(params, recipe: Recipe) -> jax.Array:
    """Return l1 * sum |w| + l2 / 2 * sum w^2 over the leaves of `decay_mask`: a float32 scalar to add to the loss."""
    total = jnp.zeros(())
    if not (recipe.l1 or recipe.l2):
        return total
    for leaf, decayed in zip(jax.tree.leaves(params), jax.tree.leaves(decay_mask(params, recipe)), strict=True):
        if decayed and recipe.l1:
            total += recipe.l1 * jnp.abs(leaf).sum()
        if decayed and recipe.l2:
            total += recipe.l2 / 2 * jnp.square(leaf).sum()
    return total


#: optimiser -> its update direction, before weight decay and the learning rate.
DIRECTIONS: Mapping[str, Callable[[Recipe], optax.GradientTransformation]] = {
    "sgd": lambda r: optax.identity(),
    "momentum": lambda r: optax.trace(r.momentum),
    "nesterov": lambda r: optax.trace(r.momentum, nesterov=True),
    "rmsprop": lambda r: optax.chain(optax.scale_by_rms(r.b2, r.epsilon, eps_in_sqrt=True), optax.trace(r.momentum)),
    "rmsprop-tf": lambda r: optax.scale_by_rms(r.b2, r.epsilon, initial_scale=1.0, eps_in_sqrt=True),
    "adam": lambda r: optax.scale_by_adam(r.momentum, r.b2, r.epsilon),
    "adamw": lambda r: optax.scale_by_adam(r.momentum, r.b2, r.epsilon),
    "lion": lambda r: optax.scale_by_lion(r.momentum, r.b2),
    "lars": lambda r: optax.identity(),
    "lamb": lambda r: optax.scale_by_adam(r.momentum, r.b2, r.epsilon),
}

#: Optimisers whose momentum accumulates updates that are already multiplied by the learning rate.
LR_INSIDE_MOMENTUM = ("lars", "rmsprop-tf")


def make_optimizer(
    recipe: Recipe, total_steps: int, steps_per_epoch: float, multipliers: Mapping[str, float] | None = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Build the optimiser of a recipe.

    The order is: clipping, direction, decoupled weight decay, trust ratio (LARS, LAMB), learning rate. Sources: Adam
    arXiv:1412.6980, AdamW 1711.05101, Lion 2302.06675, LARS 1708.03888 (its ratio is by the norm of the decayed
    gradient, in the paper by the sum of both norms), LAMB 1904.00962. RMSProp with momentum has no paper: "rmsprop" is
    PyTorch's order (the mean square starts at 0, the learning rate is applied to the momentum), "rmsprop-tf"
    TensorFlow's (it starts at 1, the momentum accumulates updates times the learning rate), for which the rates of the
    Inception papers were chosen. Both have epsilon inside the root.

    Args:
        recipe: the recipe.
        total_steps: steps of the schedule.
        steps_per_epoch: steps per epoch.
        multipliers: path -> factor on the learning rate; 1 for paths that are not listed.

    Returns:
        (optimiser, learning rate schedule for logging).
    """
    schedule = learning_rate_schedule(recipe, total_steps, steps_per_epoch)
    parts = []
    if recipe.clip_norm:
        parts.append(optax.clip_by_global_norm(recipe.clip_norm))
    parts.append(DIRECTIONS[recipe.optimizer](recipe))
    if recipe.weight_decay:
        parts.append(optax.add_decayed_weights(recipe.weight_decay, lambda params: decay_mask(params, recipe)))
    if recipe.optimizer == "lars":
        parts.append(optax.masked(optax.scale_by_trust_ratio(trust_coefficient=0.001), _weights_only))
    if recipe.optimizer == "lamb":
        parts.append(optax.masked(optax.scale_by_trust_ratio(), _weights_only))
    parts.append(optax.scale_by_learning_rate(schedule))
    if recipe.optimizer in LR_INSIDE_MOMENTUM:
        parts.append(optax.trace(recipe.momentum))
    if multipliers and any(factor != 1 for factor in multipliers.values()):
        parts.append(_scale_by_path(multipliers))
    return optax.chain(*parts), schedule


def _path_name(path) -> str:
    return "/".join(str(entry.key) for entry in path)


def _weights_only(params):
    return jax.tree_util.tree_map_with_path(is_weight, params)


def _scale_by_path(multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    def scale(path, update):
        return update * multipliers.get(_path_name(path), 1.0)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates))
