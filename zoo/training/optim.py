"""Recipe -> optax.GradientTransformation: the schedule, clipping, the optimiser, decoupled weight decay."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from zoo.training.recipe import Recipe


def learning_rate_schedule(recipe: Recipe, total_steps: int, steps_per_epoch: float) -> optax.Schedule:
    """step -> learning rate. Warm-up, where asked for, is the first part of `total_steps`."""
    peak = recipe.learning_rate
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), max(total_steps - 1, 0))
    rest = max(total_steps - warmup, 1)
    main: optax.Schedule
    if recipe.schedule == "constant":
        main = optax.constant_schedule(peak)
    elif recipe.schedule == "step":
        # Milestones are fractions of the whole training, warm-up included, as a paper's iteration numbers are.
        bounds: dict[int, float] = {}
        for fraction in recipe.milestones:
            step = max(round(fraction * total_steps) - warmup, 0)
            bounds[step] = bounds.get(step, 1.0) * recipe.decay_factor  # of a short training two may coincide
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
    return optax.join_schedules([optax.linear_schedule(0.0, main(0), warmup), main], [warmup])


def is_weight(path: tuple, leaf) -> bool:
    """True for what weight decay and penalties act on: kernels, not biases, norm scales or coefficients."""
    return leaf.ndim > 1


def decay_mask(params, recipe: Recipe):
    """A tree of bools like `params`: which leaves L1, L2 and weight decay act on."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: recipe.decay_bias_and_norm or is_weight(path, leaf), params
    )


def penalty(params, recipe: Recipe) -> jax.Array:
    """l1 * sum |w| + l2 / 2 * sum w^2 over what `decay_mask` selects: a float32 scalar to add to the loss."""
    total = jnp.zeros(())
    if not (recipe.l1 or recipe.l2):
        return total
    for leaf, chosen in zip(jax.tree.leaves(params), jax.tree.leaves(decay_mask(params, recipe)), strict=True):
        if chosen and recipe.l1:
            total += recipe.l1 * jnp.abs(leaf).sum()
        if chosen and recipe.l2:
            total += recipe.l2 / 2 * jnp.square(leaf).sum()
    return total


#: The direction each optimiser takes, before weight decay and the learning rate.
DIRECTIONS: Mapping[str, Callable[[Recipe], optax.GradientTransformation]] = {
    "sgd": lambda r: optax.identity(),
    "momentum": lambda r: optax.trace(r.momentum),
    "nesterov": lambda r: optax.trace(r.momentum, nesterov=True),
    "rmsprop": lambda r: optax.chain(optax.scale_by_rms(r.b2, r.epsilon, eps_in_sqrt=True), optax.trace(r.momentum)),
    "adam": lambda r: optax.scale_by_adam(r.momentum, r.b2, r.epsilon),
    "adamw": lambda r: optax.scale_by_adam(r.momentum, r.b2, r.epsilon),
    "lion": lambda r: optax.scale_by_lion(r.momentum, r.b2),
    "lars": lambda r: optax.identity(),
    "lamb": lambda r: optax.scale_by_adam(r.momentum, r.b2, r.epsilon),
}


def make_optimizer(
    recipe: Recipe, total_steps: int, steps_per_epoch: float, rates: Mapping[str, float] | None = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser a recipe describes and its learning rate schedule (for logging).

    rates: what the learning rate of each path is multiplied with; 1 where nothing is said. The order is: clip,
    direction, decoupled decay, trust ratio where the method has one, learning rate. Sources: Adam
    arXiv:1412.6980, AdamW 1711.05101, Lion 2302.06675, LARS 1708.03888, LAMB 1904.00962; RMSProp with momentum as in
    Szegedy et al. 2015 (arXiv:1512.00567).
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
    if recipe.optimizer == "lars":
        parts.append(optax.trace(recipe.momentum))
    if rates and any(rate != 1 for rate in rates.values()):
        parts.append(_scale_by_path(rates))
    return optax.chain(*parts), schedule


def _weights_only(params):
    return jax.tree_util.tree_map_with_path(is_weight, params)


def _scale_by_path(rates: Mapping[str, float]) -> optax.GradientTransformation:
    def scale(path, update):
        return update * rates.get("/".join(str(entry.key) for entry in path), 1.0)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates))
