"""TrainState and the pure training step.

    state, metrics = train_step(state, batch)

The step is built here from a model, a recipe and a preprocessing, and compiled by zoo/distributed/compile.py.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoo.data.augment.ops import augment
from zoo.data.images.preprocess import Preprocess, normalise
from zoo.distributed.mesh import place
from zoo.distributed.processes import gather_to_host
from zoo.models import abstract_variables, init
from zoo.models.layers import BatchNorm
from zoo.training.finetune import combine, partition
from zoo.training.optim import penalty
from zoo.training.recipe import Recipe
from zoo.trees import flatten, unflatten

Batch = dict[str, Any]

#: Returns the sharding of every leaf of an abstract tree of variables or state; None if nothing is split.
Shardings = Callable[[Any], Any]


class TrainState(NamedTuple):
    """Everything that a training step reads and updates.

    Attributes:
        step: int32 scalar, the number of steps done.
        variables: {"params": …, "batch_stats": …}.
        opt_state: state of the optimiser, for the parameters that are not frozen.
        ema: exponential moving average of the variables, or None.
        key: raw key data; constant, since random numbers depend on (key, step).
    """

    step: jax.Array
    variables: dict
    opt_state: Any
    ema: dict | None
    key: jax.Array


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    recipe: Recipe,
    image_shape: tuple[int, int, int],
    *,
    start: Callable[[dict], dict] | None = None,
    frozen: frozenset[str] = frozenset(),
    shardings: Shardings = lambda tree: None,
) -> TrainState:
    """Create the state before step 0. It follows from the recipe's seed and from `start`.

    With `shardings` it is computed where it will be: no device ever holds more than its part and a whole leaf.

    Args:
        model: the network.
        optimizer: the optimiser of the first segment.
        recipe: the recipe.
        image_shape: (height, width, channels) of the network's input.
        start: maps freshly initialised variables to those that training starts from.
        frozen: paths without optimiser state.
        shardings: how the leaves of a tree of variables or optimiser state are split; None if they are not.
    """
    init_key, train_key = jax.random.split(jax.random.key(recipe.seed))
    placed = shardings(abstract_variables(model, image_shape))
    variables = init(model, init_key, image_shape, placed)
    if start is not None and placed is None:
        variables = jax.tree.map(jnp.array, start(variables))  # copied, because a step donates its buffers
    elif start is not None:
        variables = jax.tree.map(np.array, start(gather_to_host(variables)))
        variables = place(variables, placed)
    ema = jax.tree.map(jnp.copy, variables) if recipe.ema else None
    state = TrainState(jnp.zeros((), jnp.int32), variables, (), ema, jax.random.key_data(train_key))
    return reset_optimizer(state, optimizer, frozen, shardings)


def reset_optimizer(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    frozen: frozenset[str],
    shardings: Shardings = lambda tree: None,
) -> TrainState:
    """Return the state with a freshly initialised optimiser for the parameters that are not frozen.

    Arguments as in `create_state`.
    """
    trainable = partition(state.variables["params"], frozen)
    placed = shardings(jax.eval_shape(optimizer.init, trainable))
    return state._replace(opt_state=jax.jit(optimizer.init, out_shardings=placed)(trainable))


def abstract_state(
    variables: dict, optimizer: optax.GradientTransformation, recipe: Recipe, frozen: frozenset[str]
) -> TrainState:
    """Return the shapes and dtypes of `create_state` for variables of these shapes and dtypes."""
    step: Any = jax.ShapeDtypeStruct((), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    opt_state = abstract_opt_state(variables, optimizer, frozen)
    return TrainState(step, variables, opt_state, variables if recipe.ema else None, key)


def abstract_opt_state(variables: dict, optimizer: optax.GradientTransformation, frozen: frozenset[str]) -> Any:
    """Return the shapes and dtypes of the optimiser's state for variables of these shapes and dtypes."""
    return jax.eval_shape(optimizer.init, partition(variables["params"], frozen))


def eval_variables(state: TrainState) -> dict:
    """Return the variables to evaluate and save: the moving average if there is one."""
    return state.variables if state.ema is None else state.ema


def make_train_step(
    model: nn.Module,
    recipe: Recipe,
    preprocess: Preprocess,
    optimizer: optax.GradientTransformation,
    *,
    augmentation: tuple[str, ...] = (),
    class_weights: tuple[float, ...] | None = None,
    frozen: frozenset[str] = frozenset(),
    axis_name: str | None = None,
    shard_microbatches: Callable[[jax.Array], jax.Array] = lambda microbatches: microbatches,
    gather: Callable[[Mapping], Mapping] = lambda params: params,
    unroll: int = 0,
    warmup_steps: int = 0,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Build the pure function (state, batch) -> (state, metrics).

    Args:
        model: the network.
        recipe: loss, penalties, label smoothing, EMA and micro-batch.
        preprocess: normalisation, and the order of channels and the fill colour of augmentations.
        optimizer: the optimiser of the segment.
        augmentation: operations to apply on the device, in order.
        class_weights: factor on the loss of each class.
        frozen: paths ("stem/conv/kernel", "stem/norm/mean") that keep their values, without gradient or optimiser
            state. A batch norm with frozen statistics normalises with them.
        axis_name: pmap's axis, over which gradients and metrics are averaged.
        shard_microbatches: places a batch [count, micro-batch, …] so that each micro-batch is split over all devices.
        gather: makes parameters that are split among devices whole for the forward pass.
        unroll: unroll at most this many micro-batches instead of looping; convolutions inside a loop are slow on CPU.
        warmup_steps: steps of the warm-up, for a moving average that copies the variables until its end.

    Returns:
        A function whose metrics are "loss" (mean over the batch, without penalties), "objective" (the minimised
        value), "top1" and "examples" (counts; with mixed labels an example counts as correct if its heaviest class
        wins) and "update" (norm of the parameter update, not finite if the parameters are not).
    """
    gradient = make_gradient(model, recipe, class_weights, frozen, gather)

    def train_step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        augment_key, dropout_key = jax.random.split(key)
        count = len(batch["label"])
        index = jnp.arange(count, dtype=jnp.int32)
        if axis_name is not None:
            index = index + count * jax.lax.axis_index(axis_name)
            dropout_key = jax.random.fold_in(dropout_key, jax.lax.axis_index(axis_name))
        smoothing = 0.0 if recipe.target_threshold else recipe.label_smoothing  # else `loss_targets` smooths them
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], model.num_classes), smoothing)
        images = batch["image"].astype(jnp.float32)
        fill = jnp.asarray(preprocess.fill, jnp.float32)
        images, targets = augment(
            augmentation, augment_key, index, images, targets, fill=fill, channels=preprocess.channels
        )
        images = normalise(images, preprocess)

        params, batch_stats = state.variables["params"], state.variables["batch_stats"]
        trainable = partition(params, frozen)

        def batch_gradient(batch_stats, images, targets, key):
            return gradient(trainable, params, batch_stats, images, targets, key)

        if recipe.micro_batch and recipe.micro_batch < count:
            batch_gradient = accumulate_gradients(batch_gradient, recipe.micro_batch, shard_microbatches, unroll)
        (value, (batch_stats, sums)), grads = batch_gradient(batch_stats, images, targets, dropout_key)
        if axis_name is not None:
            value, grads = jax.lax.pmean((value, grads), axis_name)
            sums = jax.lax.psum(sums, axis_name)

        updates, opt_state = optimizer.update(grads, state.opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        variables = {"params": combine(params, trainable) if frozen else trainable, "batch_stats": batch_stats}
        ema = None if state.ema is None else update_ema(state.ema, variables, recipe, state.step, frozen, warmup_steps)
        metrics = {**sums, "loss": sums["loss"] / sums["examples"], "objective": value}
        metrics["update"] = optax.tree.norm(updates)
        return TrainState(state.step + 1, variables, opt_state, ema, state.key), metrics

    return train_step


def make_gradient(
    model: nn.Module,
    recipe: Recipe,
    class_weights: tuple[float, ...] | None,
    frozen: frozenset[str],
    gather: Callable[[Mapping], Mapping],
) -> Callable:
    """Build the value and gradient of the objective with respect to the trainable parameters.

    Arguments as in `make_train_step`.

    Returns:
        (trainable, params, batch_stats, images, targets, key) -> ((objective, (batch_stats, sums)), gradients).
    """
    weights = None if class_weights is None else jnp.asarray(class_weights, jnp.float32)

    def objective(trainable, params, batch_stats, images, targets, dropout_key):
        variables = {
            "params": gather(combine(params, trainable) if frozen else trainable), "batch_stats": batch_stats
        }  # fmt: skip
        with _use_frozen_statistics(frozen), _use_norm_momentum(recipe.norm_momentum):
            (logits, endpoints), updates = model.apply(
                variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": dropout_key}
            )
        goal = loss_targets(targets, recipe)
        losses = example_losses(logits, goal, recipe.loss)
        total = losses
        for name in sorted(name for name in endpoints if name.startswith("aux")):
            total = total + recipe.aux_weight * example_losses(endpoints[name], goal, recipe.loss)
        if weights is not None:
            total = total * (targets @ weights)
        sums = {
            "loss": losses.sum(),
            "top1": (logits.argmax(-1) == targets.argmax(-1)).sum(dtype=jnp.int32),
            "examples": jnp.full((), len(images), jnp.int32),
        }
        return total.mean() + penalty(trainable, recipe), (updates.get("batch_stats", batch_stats), sums)

    return jax.value_and_grad(objective, has_aux=True)


def accumulate_gradients(
    gradient: Callable, size: int, shard_microbatches: Callable[[jax.Array], jax.Array], unroll: int
) -> Callable[[dict, jax.Array, jax.Array, jax.Array], tuple]:
    """Split a batch into micro-batches and average their objectives and gradients.

    Args:
        gradient: (batch_stats, images, targets, key) -> ((value, (batch_stats, sums)), grads).
        size: images per micro-batch.
        shard_microbatches: as in `make_train_step`.
        unroll: as in `make_train_step`.

    Returns:
        A function like `gradient`: the mean of values and gradients, the sum of sums. Each micro-batch continues with
        the batch statistics of the one before.
    """

    def batch_gradient(batch_stats: dict, images: jax.Array, targets: jax.Array, key: jax.Array):
        def accumulate(carry, microbatch):
            batch_stats, total = carry
            number, images, targets = microbatch
            # Unrolled micro-batches must wait for each other; otherwise activations of all would be in memory at once.
            images, batch_stats, total = jax.lax.optimization_barrier((images, batch_stats, total))
            (value, (batch_stats, sums)), grads = gradient(
                batch_stats, images, targets, jax.random.fold_in(key, number)
            )
            return (batch_stats, jax.tree.map(jnp.add, total, (value, sums, grads))), None

        count, rest = divmod(len(images), size)
        full = count * size
        stacked = jax.tree.map(
            lambda x: shard_microbatches(x[:full].reshape(count, size, *x.shape[1:])), (images, targets)
        )
        (value, (_, sums)), grads = jax.eval_shape(gradient, batch_stats, stacked[0][0], stacked[1][0], key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (value, sums, grads))
        (batch_stats, (value, sums, grads)), _ = jax.lax.scan(
            accumulate, (batch_stats, zeros), (jnp.arange(count), *stacked), unroll=count if count <= unroll else 1
        )
        if rest:  # the last micro-batch of a batch that does not divide is smaller and weighs less
            last, share = (count, images[full:], targets[full:]), rest / size
            (batch_stats, (last_value, last_sums, last_grads)), _ = accumulate((batch_stats, zeros), last)
            sums = jax.tree.map(jnp.add, sums, last_sums)
            value, grads = jax.tree.map(lambda a, b: a + share * b, (value, grads), (last_value, last_grads))
        weight = len(images) / size
        return (value / weight, (batch_stats, sums)), jax.tree.map(lambda g: g / weight, grads)

    return batch_gradient


def update_ema(
    ema: dict, variables: dict, recipe: Recipe, step: jax.Array, frozen: frozenset[str], warmup_steps: int = 0
) -> dict:
    """Return the exponential moving average of the variables after a step. Frozen paths keep their values.

    With `ema_warmup="ramp"` the decay is min(ema, (1 + step) / (10 + step)), as in TensorFlow, so that early averages
    forget the initial values. With "copy" the average is a copy of the variables at every update up to the first one
    after the warm-up, as in torchvision.

    Args:
        ema: the average before the step.
        variables: the variables after the step.
        recipe: decay, steps between updates and start of the average.
        step: number of the step, from 0.
        frozen: paths without collection.
        warmup_steps: steps of the warm-up.
    """
    count = step.astype(jnp.float32)
    if recipe.ema_warmup == "ramp":
        rate = jnp.minimum(recipe.ema, (1 + count) / (10 + count))
    else:
        rate = jnp.where(step < warmup_steps + recipe.ema_every, 0.0, recipe.ema)
    if recipe.ema_every > 1:
        rate = jnp.where(step % recipe.ema_every == 0, rate, 1.0)
    old = flatten(ema)
    new = {
        path: old[path] if path.split("/", 1)[1] in frozen else rate * old[path] + (1 - rate) * leaf
        for path, leaf in flatten(variables).items()
    }
    return {**ema, **unflatten(new)}


def _use_frozen_statistics(frozen: frozenset[str]) -> AbstractContextManager:
    """Return a context in which a batch norm with frozen statistics uses them and does not update them."""

    def intercept(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm) and context.method_name == "__call__":
            path = "/".join(context.module.path)
            if not frozen.isdisjoint((f"{path}/mean", f"{path}/var")):
                return call(*args[:1], **{**kwargs, "use_running_average": True})
        return call(*args, **kwargs)

    return nn.intercept_methods(intercept)


def _use_norm_momentum(momentum: float) -> AbstractContextManager:
    """Return a context in which batch norms keep this fraction of their running statistics; 0: their own."""

    def intercept(call, args, kwargs, context):
        if momentum and isinstance(context.module, BatchNorm) and context.method_name == "__call__":
            return call(*args, **{**kwargs, "momentum": momentum})
        return call(*args, **kwargs)

    return nn.intercept_methods(intercept)


def loss_targets(targets: jax.Array, recipe: Recipe) -> jax.Array:
    """Return the targets of the loss, [B, K]: 0 or 1 by `target_threshold`, then smoothed; without it unchanged.

    Both classes of a mixed image are then present, as in Wightman et al. 2021 (arXiv:2110.00476), section 3.1.
    """
    if not recipe.target_threshold:
        return targets
    present = (targets > recipe.target_threshold).astype(targets.dtype)
    return optax.smooth_labels(present, recipe.label_smoothing)


def example_losses(logits: jax.Array, targets: jax.Array, kind: str) -> jax.Array:
    """Return the loss of each example, float32 [B].

    "sigmoid" sums K binary losses, so that gradients have the size of softmax's (Beyer et al. 2020, arXiv:2006.07159).
    Wightman et al. 2021 (arXiv:2110.00476) average them; their recipes here have K times their clipping and epsilon.

    Args:
        logits: [B, K].
        targets: class probabilities [B, K].
        kind: "softmax" or "sigmoid".
    """
    logits = logits.astype(jnp.float32)
    if kind == "sigmoid":
        return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)
    return optax.softmax_cross_entropy(logits, targets)
