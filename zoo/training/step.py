"""TrainState, and the two pure functions of training: `train_step` and `eval_step`.

    state, metrics = train_step(state, batch)        sums = eval_step(variables, batch)

Both are made here from a model, a recipe and a preprocess, and compiled elsewhere (parallel.py).
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from zoo.data.augment.ops import augment
from zoo.data.images.preprocess import Preprocess, normalise
from zoo.models import init
from zoo.models.layers import BatchNorm
from zoo.training.finetune import joined, trainable
from zoo.training.optim import penalty
from zoo.training.recipe import Recipe
from zoo.trees import flatten, unflatten

Batch = dict[str, Any]


class TrainState(NamedTuple):
    """All that a step needs and changes. `key` is raw key data, constant: what is drawn depends on (key, step)."""

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
) -> TrainState:
    """The state before step 0: everything follows from the recipe's seed, and from `start`, which may put what it has
    in the place of fresh variables. `frozen`: as in `make_train_step`."""
    init_key, train_key = jax.random.split(jax.random.key(recipe.seed))
    variables = init(model, init_key, image_shape)
    if start is not None:
        variables = jax.tree.map(jnp.array, start(variables))  # a copy of its own: a step gives its memory away
    ema = jax.tree.map(jnp.copy, variables) if recipe.ema else None
    state = TrainState(jnp.zeros((), jnp.int32), variables, (), ema, jax.random.key_data(train_key))
    return reset_optimizer(state, optimizer, frozen)


def reset_optimizer(state: TrainState, optimizer: optax.GradientTransformation, frozen: frozenset[str]) -> TrainState:
    """The same state with the optimiser afresh, for what is not frozen: how each phase of a training begins."""
    return state._replace(opt_state=jax.jit(optimizer.init)(trainable(state.variables["params"], frozen)))


def evaluated_variables(state: TrainState) -> dict:
    """What is evaluated and becomes a checkpoint: the moving average where there is one."""
    return state.variables if state.ema is None else state.ema


def make_train_step(
    model: nn.Module,
    recipe: Recipe,
    preprocess: Preprocess,
    optimizer: optax.GradientTransformation,
    *,
    class_weights: tuple[float, ...] | None = None,
    frozen: frozenset[str] = frozenset(),
    axis_name: str | None = None,
    spread: Callable[[jax.Array], jax.Array] = lambda pieces: pieces,
    gather: Callable[[Mapping], Mapping] = lambda params: params,
    unroll: int = 0,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The pure function (state, batch) -> (state, metrics).

    metrics: "loss" (mean over the batch, without penalties), "objective" (what is minimised), "top1" and "examples"
    (counts; under mixing labels an example is right when its heaviest class wins), "update" (norm of the step taken:
    where it is not finite, neither are the parameters any more). `frozen` paths ("stem/conv/kernel", "stem/norm/mean")
    stay as they are, without gradient or optimiser state, and a batch norm whose statistics are frozen normalises with
    them. `axis_name` is pmap's axis, over which gradients and sums are shared. `spread` takes a batch cut into pieces
    [pieces, micro-batch, …] and says where they lie: each over all devices. `gather` makes parameters that are cut
    among devices whole for the pass through the network. At most `unroll` pieces are laid out flat instead of in
    a loop, in which convolutions are slow on a CPU; each adds to the time of compiling.
    """
    classes = model.num_classes
    weights = None if class_weights is None else jnp.asarray(class_weights, jnp.float32)

    def objective(free, params, batch_stats, images, targets, dropout_key):
        variables = {"params": gather(joined(params, free) if frozen else free), "batch_stats": batch_stats}
        with _stored_statistics(frozen):
            (logits, ends), updates = model.apply(
                variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": dropout_key}
            )
        losses = example_losses(logits, targets, recipe.loss)
        total = losses
        for name in sorted(end for end in ends if end.startswith("aux")):
            total = total + recipe.aux_weight * example_losses(ends[name], targets, recipe.loss)
        if weights is not None:
            total = total * (targets @ weights)
        sums = {
            "loss": losses.sum(),
            "top1": (logits.argmax(-1) == targets.argmax(-1)).sum(dtype=jnp.int32),
            "examples": jnp.full((), len(images), jnp.int32),
        }
        return total.mean() + penalty(free, recipe), (updates.get("batch_stats", batch_stats), sums)

    def train_step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        augment_key, dropout_key = jax.random.split(key)
        count = len(batch["label"])
        index = jnp.arange(count, dtype=jnp.int32)
        if axis_name is not None:
            index = index + count * jax.lax.axis_index(axis_name)
            dropout_key = jax.random.fold_in(dropout_key, jax.lax.axis_index(axis_name))
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], classes), recipe.label_smoothing)
        images = batch["image"].astype(jnp.float32)
        fill = jnp.asarray(preprocess.fill, jnp.float32)
        images, targets = augment(recipe.augment, augment_key, index, images, targets, fill=fill)
        images = normalise(images, preprocess)

        params, batch_stats = state.variables["params"], state.variables["batch_stats"]
        free = trainable(params, frozen)

        def gradient(batch_stats, images, targets, key):
            return jax.value_and_grad(objective, has_aux=True)(free, params, batch_stats, images, targets, key)

        if recipe.micro_batch and recipe.micro_batch < count:
            gradient = accumulate_gradients(gradient, recipe.micro_batch, spread, unroll)
        (value, (batch_stats, sums)), grads = gradient(batch_stats, images, targets, dropout_key)
        if axis_name is not None:
            value, grads = jax.lax.pmean((value, grads), axis_name)
            sums = jax.lax.psum(sums, axis_name)

        updates, opt_state = optimizer.update(grads, state.opt_state, free)
        free = optax.apply_updates(free, updates)
        variables = {"params": joined(params, free) if frozen else free, "batch_stats": batch_stats}
        ema = None if state.ema is None else update_ema(state.ema, variables, recipe.ema, state.step, frozen)
        report = {**sums, "loss": sums["loss"] / sums["examples"], "objective": value}
        report["update"] = jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(updates)))
        return TrainState(state.step + 1, variables, opt_state, ema, state.key), report

    return train_step


def accumulate_gradients(
    gradient: Callable, size: int, spread: Callable[[jax.Array], jax.Array], unroll: int
) -> Callable[[dict, jax.Array, jax.Array, jax.Array], tuple]:
    """`gradient` of a batch, taken of `size` images at a time: the mean of value and gradients, the sum of the sums.

    gradient: (batch_stats, images, targets, key) -> ((value, (batch_stats, sums)), grads), as this returns. Each piece
    goes on with the batch statistics of the one before. `spread` and `unroll`: as in `make_train_step`.
    """

    def of_whole_batch(batch_stats: dict, images: jax.Array, targets: jax.Array, key: jax.Array):
        def accumulate(carry, piece):
            batch_stats, total = carry
            number, images, targets = piece
            # Laid out flat, a piece must wait for the one before: the compiler would keep what all of them need.
            images, batch_stats, total = jax.lax.optimization_barrier((images, batch_stats, total))
            (value, (batch_stats, sums)), grads = gradient(
                batch_stats, images, targets, jax.random.fold_in(key, number)
            )
            return (batch_stats, jax.tree.map(jnp.add, total, (value, sums, grads))), None

        pieces, rest = divmod(len(images), size)
        whole = pieces * size
        split = jax.tree.map(lambda x: spread(x[:whole].reshape(pieces, size, *x.shape[1:])), (images, targets))
        (value, (_, sums)), grads = jax.eval_shape(gradient, batch_stats, split[0][0], split[1][0], key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (value, sums, grads))
        (batch_stats, (value, sums, grads)), _ = jax.lax.scan(
            accumulate, (batch_stats, zeros), (jnp.arange(pieces), *split), unroll=pieces if pieces <= unroll else 1
        )
        if rest:  # of a full batch that cannot be cut evenly: a smaller piece, which counts for less
            last, share = (pieces, images[whole:], targets[whole:]), rest / size
            (batch_stats, (more, last_sums, last_grads)), _ = accumulate((batch_stats, zeros), last)
            sums = jax.tree.map(jnp.add, sums, last_sums)
            value, grads = jax.tree.map(lambda a, b: a + share * b, (value, grads), (more, last_grads))
        count = len(images) / size
        return (value / count, (batch_stats, sums)), jax.tree.map(lambda g: g / count, grads)

    return of_whole_batch


def update_ema(ema: dict, variables: dict, decay: float, step: jax.Array, frozen: frozenset[str]) -> dict:
    """The exponential moving average after one more step, for what is not frozen.

    Warmed up as in TensorFlow: early averages forget the random start.
    """
    at = step.astype(jnp.float32)
    share = jnp.minimum(decay, (1 + at) / (10 + at))
    before = flatten(ema)
    after = {
        path: before[path] if path.split("/", 1)[1] in frozen else share * before[path] + (1 - share) * new
        for path, new in flatten(variables).items()
    }
    return {**ema, **unflatten(after)}


def _stored_statistics(frozen: frozenset[str]) -> AbstractContextManager:
    """What is applied inside normalises with its stored statistics where they are frozen, and leaves them alone."""

    def intercept(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm) and context.method_name == "__call__":
            where = "/".join(context.module.path)
            if not frozen.isdisjoint((f"{where}/mean", f"{where}/var")):
                return call(*args[:1], **{**kwargs, "use_running_average": True})
        return call(*args, **kwargs)

    return nn.intercept_methods(intercept)


def example_losses(logits: jax.Array, targets: jax.Array, kind: str) -> jax.Array:
    """Loss of each example [B] for logits [B, K] and soft targets [B, K], in float32.

    "sigmoid": K binary losses, summed, so that the gradient is of the size of softmax's (Beyer et al. 2020,
    arXiv:2006.07159). Wightman et al. 2021 take their mean; LAMB, which they train with, does not see the difference.
    """
    logits = logits.astype(jnp.float32)
    if kind == "sigmoid":
        return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)
    return optax.softmax_cross_entropy(logits, targets)
