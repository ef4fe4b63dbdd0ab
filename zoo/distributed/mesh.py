"""How a training is laid out over devices: which part of the batch and of the parameters lies where.

Every axis of the mesh cuts the batch. Over "data" everything else is whole on every device. Over "model" the widest
layers are cut by output features (MODEL_PARALLEL): convolutions see their share of the batch, the compiler gathers
activations where a cut layer reads them, which are fewer numbers than its parameters (Krizhevsky 2014,
arXiv:1404.5997). Over "fsdp" every large leaf of parameters, optimiser state and moving average is cut.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo.data.augment.ops import PAIRING, parse
from zoo.data.loader import nearest_multiples
from zoo.distributed import processes
from zoo.training.recipe import Recipe
from zoo.trees import flatten

AXES = ("data", "model", "fsdp")

#: The axis over which pmap shares gradients and batch statistics.
PMAP_AXIS = "batch"
NO_MICRO_BATCH = "--parallel pmap takes no --micro-batch, whose images would be others; leave pmap out"

#: family -> patterns of the parameters that "model" cuts along their last axis, the output features.
MODEL_PARALLEL: Mapping[str, tuple[str, ...]] = {
    "perceptron": (r"hidden\d+/(kernel|bias)",),
    "alexnet": (r"(dense6|dense7|head)/(kernel|bias)",),
    "googlenet": (r"(aux\d/dense|aux\d/head|head)/(kernel|bias)",),
    "inception_v2": (r"(aux\d/dense|aux\d/head|head)/(kernel|bias)",),
    "inception_v3": (r"aux1/conv1/conv/kernel", r"(aux1/head|head)/(kernel|bias)"),
    "inception_v4": (r"head/(kernel|bias)",),
    "inception_resnet_v2": (r"head/(kernel|bias)",),
    "resnet": (r"stage4_block\d+/conv\d/conv/kernel", r"head/(kernel|bias)"),
    "resnet_v2": (r"stage4_block\d+/conv\d/kernel", r"head/(kernel|bias)"),
    "wide_resnet": (r"stage3_block\d+/conv\d/kernel", r"head/(kernel|bias)"),
    "xception": (r"exit_\w+/pointwise/kernel", r"head/(kernel|bias)"),
}

#: Leaves of fewer elements stay whole under "fsdp": norm scales and biases, whose exchange costs more than they do.
MIN_FSDP_SIZE = 1024


@dataclass(frozen=True)
class Parallelism:
    """`how`: "jit" or "pmap". `axes`: name and size of each axis of the mesh, in order; () is one device."""

    how: str = "jit"
    axes: tuple[tuple[str, int], ...] = ()

    @property
    def devices(self) -> int:
        return math.prod(size for _, size in self.axes)

    @property
    def is_single_device(self) -> bool:
        """One device under jit: nothing is placed, nothing is cut."""
        return self.how == "jit" and self.devices == 1

    @property
    def axis_name(self) -> str | None:
        """The axis that the step shares its sums over by itself."""
        return PMAP_AXIS if self.how == "pmap" else None

    def __str__(self) -> str:
        return f"{self.how} over {','.join(f'{name}={size}' for name, size in self.axes) or 'data=1'}"


ONE_DEVICE = Parallelism()


def parallelism_for(parallel: str = "jit", mesh: str = "") -> Parallelism:
    """The parallelism that `--parallel` and `--mesh` describe, checked against the devices there are.

    mesh: "data=4,model=2", "fsdp=8", …; by default that of the environment variable ZOO_MESH, or all devices along
    "data". ValueError naming what would be right.
    """
    there = jax.device_count()
    if parallel not in ("jit", "pmap"):
        raise ValueError(f"--parallel {parallel}: choose jit or pmap")
    text = mesh or os.environ.get("ZOO_MESH", "") or f"data={there}"
    named = f"--mesh {text}" if mesh else f"the environment's ZOO_MESH={text}"
    axes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        if name not in AXES or name in axes or not size.isdigit() or int(size) < 1:
            raise ValueError(f"{named}: write data=N, fsdp=N, or data=N,model=M")
        axes[name] = int(size)
    parallelism = Parallelism(parallel, tuple(axes.items()))
    if parallelism.devices > there:
        raise ValueError(f"{named}: {parallelism.devices} devices are asked for and {there} are there (`zoo devices`)")
    if processes.is_multiprocess() and parallelism.devices < there:
        raise ValueError(f"{named}: with several processes every device takes part, and there are {there}")
    if parallel == "pmap" and set(axes) != {"data"}:
        raise ValueError(
            f"--parallel pmap cuts the batch alone: write --mesh data={parallelism.devices}, or leave pmap out"
        )
    if parallel == "pmap" and processes.is_multiprocess():
        raise ValueError("--parallel pmap runs in one process; leave it out, and jit runs over all of them")
    return parallelism


def check_batch(parallelism: Parallelism, batch_size: int, micro_batch: int = 0) -> None:
    """ValueError naming the sizes that do, unless batch and micro-batch divide among the devices."""
    count = parallelism.devices
    for what, flag, size in (("batch", "--batch-size", batch_size), ("micro-batch", "--micro-batch", micro_batch)):
        if sizes := nearest_multiples(size, count):
            fewer = max(n for n in range(1, count) if size % n == 0)
            advice = "" if processes.is_multiprocess() else f", or fewer devices: --mesh data={fewer}"
            raise ValueError(f"a {what} of {size} cannot be divided among {count} devices: {flag} {sizes} can{advice}")


def check_pmap(parallelism: Parallelism, batch_size: int, recipe: Recipe) -> None:
    """ValueError for what a device that sees its own rows alone would do to other rows than one that sees them all."""
    if recipe.micro_batch:
        raise ValueError(NO_MICRO_BATCH)
    mixing = [text for text in recipe.augment if parse(text)[0] in PAIRING]
    if mixing and batch_size // parallelism.devices % 2:
        raise ValueError(
            f"{mixing[0]} mixes pairs of neighbours: under pmap each device needs an even number of images, not "
            f"{batch_size // parallelism.devices}; use --batch-size {2 * parallelism.devices} or a multiple of it"
        )


@lru_cache
def mesh_of(parallelism: Parallelism) -> Mesh:
    """The mesh, the devices of each process side by side, so that its rows of a batch are."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))[: parallelism.devices]
    sizes, names = [size for _, size in parallelism.axes] or [1], [name for name, _ in parallelism.axes] or ["data"]
    return Mesh(np.array(devices).reshape(sizes), names)


def devices_of(parallelism: Parallelism) -> list:
    """The devices in the order in which they take their parts of a batch."""
    return list(mesh_of(parallelism).devices.flat)


def replicated(parallelism: Parallelism) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh_of(parallelism), PartitionSpec())


def batch_sharding(parallelism: Parallelism, axis: int = 0) -> NamedSharding:
    """This axis cut among all devices."""
    mesh = mesh_of(parallelism)
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, mesh.axis_names))


def partition_spec(parallelism: Parallelism, family: str, path: str, shape: tuple[int, ...]) -> PartitionSpec:
    """How a parameter is cut: over "model" as the family's table says, over "fsdp" along its longest axis that divides.

    What does not divide stays whole, and under "fsdp" what is smaller than MIN_FSDP_SIZE.
    """
    sizes = dict(parallelism.axes)
    model, fsdp = sizes.get("model", 1), sizes.get("fsdp", 1)
    listed = any(re.fullmatch(pattern, path) for pattern in MODEL_PARALLEL.get(family, ()))
    if model > 1 and listed and shape[-1] % model == 0:
        return PartitionSpec(*[None] * (len(shape) - 1), "model")
    if fsdp > 1 and math.prod(shape) >= MIN_FSDP_SIZE:
        divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
        if divisible:
            longest = max(divisible, key=lambda axis: (shape[axis], axis))
            return PartitionSpec(*[None] * longest, "fsdp")
    return PartitionSpec()


def shardings(parallelism: Parallelism, family: str, tree: Any, params: Mapping) -> Any:
    """A NamedSharding for every leaf of `tree`: variables, or a TrainState.

    A leaf whose path ends in that of a parameter, and has its shape, lies as that one does: in the optimiser state and
    in the moving average. Everything else is whole.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}

    def of(path, leaf):
        keys = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        name = "/".join(keys[1:] if keys[:1] == ["params"] else keys)
        shape = shapes.get(name)
        cut = (
            partition_spec(parallelism, family, name, shape)
            if shape and shape == tuple(leaf.shape)
            else PartitionSpec()
        )
        return NamedSharding(mesh_of(parallelism), cut)

    return jax.tree_util.tree_map_with_path(of, tree)


def count_sharded(parallelism: Parallelism, family: str, params: Mapping) -> int:
    """How many parameters lie in parts on several devices."""
    leaves = flatten(params).items()
    return sum(leaf.size for path, leaf in leaves if any(partition_spec(parallelism, family, path, tuple(leaf.shape))))


# --- taking things to the devices -------------------------------------------------------------------------------------


def shard_state(parallelism: Parallelism, family: str, state: Any) -> Any:
    """A TrainState where its parallelism wants it; as it is for one device."""
    if parallelism.is_single_device:
        return state
    return _put(state, shardings(parallelism, family, state, state.variables["params"]))


def shard_variables(parallelism: Parallelism, family: str, variables: Mapping) -> Any:
    """Variables, on the host or already there, where the parallelism wants them."""
    if parallelism.is_single_device:
        return jax.device_put(variables)
    return _put(variables, shardings(parallelism, family, variables, variables["params"]))


def _put(tree: Any, places: Any) -> Any:
    def put(leaf, place):
        if place.is_fully_addressable:
            return jax.device_put(leaf, place)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf if leaf.sharding == place else jax.jit(_same, out_shardings=place)(leaf)
        data = np.asarray(leaf)
        return jax.make_array_from_callback(data.shape, place, lambda index: data[index])

    return jax.tree.map(put, tree, places)


def _same(x):
    return x


def shard_batch(parallelism: Parallelism, batch: Mapping[str, np.ndarray]) -> Any:
    """A batch, of which this process has its rows, as the step of this parallelism takes it."""
    if parallelism.is_single_device:
        return batch
    if parallelism.how == "pmap":
        return {key: value.reshape(_per_device(parallelism, value.shape)) for key, value in batch.items()}
    place = batch_sharding(parallelism)
    return {key: jax.make_array_from_process_local_data(place, value) for key, value in batch.items()}


def _per_device(parallelism: Parallelism, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (parallelism.devices, shape[0] // parallelism.devices, *shape[1:])


def shard_microbatches(parallelism: Parallelism, pieces: jax.Array) -> jax.Array:
    """Pieces of a batch [pieces, micro-batch, …] inside a step: each is cut among all devices, as a batch is."""
    if parallelism.is_single_device:
        return pieces
    return jax.lax.with_sharding_constraint(pieces, batch_sharding(parallelism, axis=1))


def gather_fsdp(parallelism: Parallelism, family: str, params: Mapping) -> Mapping:
    """Parameters as the network reads them inside a step: whole where "fsdp" cuts them, their gradients cut again.

    Left to itself the compiler may gather the activations instead, which grow with the number of devices.
    """
    if dict(parallelism.axes).get("fsdp", 1) == 1:
        return params

    def whole_where_cut(leaf, place):
        return _gather(leaf, place) if "fsdp" in place.spec else leaf

    return jax.tree.map(whole_where_cut, params, shardings(parallelism, family, params, params))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(leaf: jax.Array, place: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(place.mesh, PartitionSpec()))


def _gather_forward(leaf, place):
    return _gather(leaf, place), None


def _gather_backward(place, _, gradient):
    return (jax.lax.with_sharding_constraint(gradient, place),)


_gather.defvjp(_gather_forward, _gather_backward)


def abstract_batch(parallelism: Parallelism, batch_size: int, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Shapes and dtypes of what `shard_batch` returns."""
    shapes = {"image": (batch_size, *image_shape), "label": (batch_size,), "weight": (batch_size,)}
    dtypes = {"image": np.uint8, "label": np.int32, "weight": np.float32}
    if parallelism.how == "pmap":
        shapes = {key: _per_device(parallelism, shape) for key, shape in shapes.items()}
    return {key: jax.ShapeDtypeStruct(shapes[key], dtypes[key]) for key in shapes}


def process_shard(parallelism: Parallelism) -> tuple[int, int]:
    """(rank, count): which rows of each global batch are this process's."""
    return (0, 1) if parallelism.is_single_device else (jax.process_index(), jax.process_count())
