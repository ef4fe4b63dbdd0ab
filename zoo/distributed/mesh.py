"""Parallelism over devices: which part of the batch and of the parameters each device holds.

Every axis of the mesh splits the batch. Over "data" everything else is replicated. Over "model" the widest layers are
split by output features, as each model's `model_parallel` lists: convolutions process their share of the batch, and the
compiler gathers activations where a split layer reads them, which are fewer numbers than its parameters (Krizhevsky
2014, arXiv:1404.5997). Over "fsdp" every large leaf of parameters, optimiser state and moving average is split.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo.data.loader import nearest_multiples
from zoo.distributed import pmap, processes
from zoo.trees import flatten

AXES = ("data", "model", "fsdp")

#: Leaves with fewer elements are replicated under "fsdp": exchanging biases and norm scales costs more than it saves.
MIN_FSDP_SIZE = 1024


@dataclass(frozen=True)
class Parallelism:
    """Distribution of the training step over devices.

    Attributes:
        method: "jit" or "pmap".
        axes: (name, size) of each axis of the mesh, in order; () is one device.
    """

    method: str = "jit"
    axes: tuple[tuple[str, int], ...] = ()

    @property
    def devices(self) -> int:
        """Number of devices."""
        return math.prod(size for _, size in self.axes)

    @property
    def is_single_device(self) -> bool:
        """True for one device under jit: nothing is sharded."""
        return self.method == "jit" and self.devices == 1

    @property
    def is_pmap(self) -> bool:
        """True if devices share the batch by pmap instead of jit."""
        return self.method == "pmap"

    @property
    def splits_parameters(self) -> bool:
        """True if devices hold different parameters."""
        return self.axis_size("model") > 1 or self.axis_size("fsdp") > 1

    @property
    def axis_name(self) -> str | None:
        """Name of the axis over which the step itself averages; None where the compiler does."""
        return pmap.AXIS_NAME if self.is_pmap else None

    def axis_size(self, name: str) -> int:
        """Return the size of an axis of the mesh, 1 if it is absent."""
        return dict(self.axes).get(name, 1)

    def __str__(self) -> str:
        return f"{self.method} over {','.join(f'{name}={size}' for name, size in self.axes) or 'data=1'}"


SINGLE_DEVICE = Parallelism()


def parse_parallelism(method: str = "jit", mesh: str = "") -> Parallelism:
    """Parse the values of `--parallel` and `--mesh` and check them against the available devices.

    Args:
        method: "jit" or "pmap".
        mesh: "data=4,model=2", "fsdp=8", …; "" uses the environment variable ZOO_MESH, or all devices along "data".

    Raises:
        ValueError: naming the option and valid values.
    """
    available = jax.device_count()
    if method not in ("jit", "pmap"):
        raise ValueError(f"--parallel {method}: choose jit or pmap")
    text = mesh or os.environ.get("ZOO_MESH", "") or f"data={available}"
    option = f"--mesh {text}" if mesh else f"environment variable ZOO_MESH={text}"
    axes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        if name not in AXES or name in axes or not size.isdigit() or int(size) < 1:
            raise ValueError(f"{option}: write data=N, fsdp=N, or data=N,model=M")
        axes[name] = int(size)
    parallelism = Parallelism(method, tuple(axes.items()))
    if parallelism.devices > available:
        raise ValueError(f"{option}: needs {parallelism.devices} devices, {available} available (`zoo devices`)")
    if processes.is_multiprocess() and parallelism.devices < available:
        raise ValueError(f"{option}: with several processes the mesh must use all {available} devices")
    if method == "pmap" and set(axes) != {"data"}:
        raise ValueError(
            f"--parallel pmap splits only the batch: write --mesh data={parallelism.devices}, or drop --parallel pmap"
        )
    if method == "pmap" and processes.is_multiprocess():
        raise ValueError("--parallel pmap runs in a single process; drop it to use jit over all processes")
    return parallelism


def require_divisible(parallelism: Parallelism, batch_size: int, micro_batch: int = 0) -> None:
    """Raise ValueError naming valid sizes unless batch and micro-batch divide evenly among the devices."""
    count = parallelism.devices
    for noun, flag, size in (("batch", "--batch-size", batch_size), ("micro-batch", "--micro-batch", micro_batch)):
        if sizes := nearest_multiples(size, count):
            fewer = max(n for n in range(1, count) if size % n == 0)
            advice = "" if processes.is_multiprocess() else f", or fewer devices with --mesh data={fewer}"
            raise ValueError(f"a {noun} of {size} does not divide among {count} devices; use {flag} {sizes}{advice}")


@lru_cache
def mesh_of(parallelism: Parallelism) -> Mesh:
    """Return the mesh. The devices of a process are adjacent, so that its rows of a batch are contiguous."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))[: parallelism.devices]
    sizes, names = [size for _, size in parallelism.axes] or [1], [name for name, _ in parallelism.axes] or ["data"]
    return Mesh(np.array(devices).reshape(sizes), names)


def devices_of(parallelism: Parallelism) -> list:
    """Return the devices in the order of their rows of a batch."""
    return list(mesh_of(parallelism).devices.flat)


def replicated(parallelism: Parallelism) -> NamedSharding:
    """Return the sharding of a value that every device holds whole."""
    return NamedSharding(mesh_of(parallelism), PartitionSpec())


def batch_sharding(parallelism: Parallelism, axis: int = 0) -> NamedSharding:
    """Return the sharding that splits one axis of an array among all devices."""
    mesh = mesh_of(parallelism)
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, mesh.axis_names))


def partition_spec(parallelism: Parallelism, model: nn.Module, path: str, shape: tuple[int, ...]) -> PartitionSpec:
    """Return how a parameter is split.

    Over "model": along the last axis (output features), if the model's `model_parallel` lists it and the axis divides.
    Over "fsdp": along the longest axis that divides, if the leaf has at least MIN_FSDP_SIZE elements. All else is
    replicated.

    Args:
        parallelism: the mesh.
        model: a network of MODELS.
        path: path of the parameter without its collection, such as "stage1_block1/conv1/conv/kernel".
        shape: its shape.
    """
    model_axis, fsdp = parallelism.axis_size("model"), parallelism.axis_size("fsdp")
    listed = any(re.fullmatch(pattern, path) for pattern in model.model_parallel)
    if model_axis > 1 and listed and shape[-1] % model_axis == 0:
        return PartitionSpec(*[None] * (len(shape) - 1), "model")
    if fsdp > 1 and math.prod(shape) >= MIN_FSDP_SIZE:
        divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
        if divisible:
            longest = max(divisible, key=lambda axis: (shape[axis], axis))
            return PartitionSpec(*[None] * longest, "fsdp")
    return PartitionSpec()


def shardings(parallelism: Parallelism, model: nn.Module, tree: Any, params: Mapping) -> Any:
    """Return a NamedSharding for every leaf of `tree`: variables or a TrainState.

    A leaf whose path ends in that of a parameter and which has its shape is split like the parameter: optimiser state
    and moving average follow it. Every other leaf is replicated.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}

    def sharding_of(key_path, leaf):
        keys = [str(entry.key) for entry in key_path if isinstance(entry, jax.tree_util.DictKey)]
        path = "/".join(keys[1:] if keys[:1] == ["params"] else keys)
        shape = shapes.get(path)
        follows = bool(shape) and shape == tuple(leaf.shape)
        spec = partition_spec(parallelism, model, path, shape) if shape and follows else PartitionSpec()
        return NamedSharding(mesh_of(parallelism), spec)

    return jax.tree_util.tree_map_with_path(sharding_of, tree)


def count_sharded(parallelism: Parallelism, model: nn.Module, params: Mapping) -> int:
    """Return the number of parameters that are split among devices."""
    leaves = flatten(params).items()
    return sum(leaf.size for path, leaf in leaves if any(partition_spec(parallelism, model, path, tuple(leaf.shape))))


# --- placing values on the devices -----------------------------------------------------------------------------------


def shard_state(parallelism: Parallelism, model: nn.Module, state: Any) -> Any:
    """Place a TrainState on the devices; unchanged for a single device."""
    if parallelism.is_single_device:
        return state
    return place(state, shardings(parallelism, model, state, state.variables["params"]))


def shard_variables(parallelism: Parallelism, model: nn.Module, variables: Mapping) -> Any:
    """Place variables, from the host or from other devices, on the devices."""
    if parallelism.is_single_device:
        return jax.device_put(variables)
    return place(variables, shardings(parallelism, model, variables, variables["params"]))


def replicate(parallelism: Parallelism, tree: Any) -> Any:
    """Place a tree of arrays, which every process holds whole, on each device."""
    if parallelism.is_single_device:
        return jax.device_put(tree)
    return place(tree, jax.tree.map(lambda leaf: replicated(parallelism), tree))


def with_sharding(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of an array together with a sharding."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def place(tree: Any, target: Any) -> Any:
    """Place a pytree of arrays, from the host or from other devices, in the shardings `target`."""

    def place_leaf(leaf, sharding):
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf if leaf.sharding == sharding else jax.jit(_identity, out_shardings=sharding)(leaf)
        data = np.asarray(leaf)
        return jax.make_array_from_callback(data.shape, sharding, lambda index: data[index])

    return jax.tree.map(place_leaf, tree, target)


def _identity(x):
    return x


def shard_batch(parallelism: Parallelism, batch: Mapping[str, np.ndarray]) -> Any:
    """Place this process's rows of a batch as the compiled step takes them."""
    if parallelism.is_single_device:
        return batch
    if parallelism.is_pmap:
        return pmap.stack_per_device(batch, parallelism.devices)
    sharding = batch_sharding(parallelism)
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}


def shard_microbatches(parallelism: Parallelism, microbatches: jax.Array) -> jax.Array:
    """Split each micro-batch of [count, micro-batch, …] among all devices, inside a step."""
    if parallelism.is_single_device:
        return microbatches
    return jax.lax.with_sharding_constraint(microbatches, batch_sharding(parallelism, axis=1))


def gather_fsdp(parallelism: Parallelism, model: nn.Module, params: Mapping) -> Mapping:
    """Gather the parameters that "fsdp" splits, inside a step; their gradients are split again.

    Without this the compiler may gather the activations instead, which grow with the number of devices.
    """
    if parallelism.axis_size("fsdp") == 1:
        return params

    def gather_if_split(leaf, sharding):
        return _gather(leaf, sharding) if "fsdp" in sharding.spec else leaf

    return jax.tree.map(gather_if_split, params, shardings(parallelism, model, params, params))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(sharding.mesh, PartitionSpec()))


def _gather_forward(leaf, sharding):
    return _gather(leaf, sharding), None


def _gather_backward(sharding, _, gradient):
    return (jax.lax.with_sharding_constraint(gradient, sharding),)


_gather.defvjp(_gather_forward, _gather_backward)


def abstract_batch(parallelism: Parallelism, batch_size: int, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return shapes and dtypes of what `shard_batch` returns."""
    arrays: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((batch_size, *image_shape), np.uint8),
        "label": ((batch_size,), np.int32),
        "weight": ((batch_size,), np.float32),
    }
    if parallelism.is_pmap:
        return pmap.abstract_batch(arrays, parallelism.devices)
    return {key: jax.ShapeDtypeStruct(shape, dtype) for key, (shape, dtype) in arrays.items()}


def process_shard(parallelism: Parallelism) -> tuple[int, int]:
    """Return (rank, count): this process holds rows rank * B / count … of each global batch of B."""
    return (0, 1) if parallelism.is_single_device else (jax.process_index(), jax.process_count())
