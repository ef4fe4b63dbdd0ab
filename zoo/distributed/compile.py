"""Where pure functions are compiled: for the platform at hand, in one place."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from zoo.distributed.mesh import PMAP_AXIS, Parallelism, batch_sharding, devices_of, replicated, shardings
from zoo.models.layers import asked_formulation, formulation
from zoo.training.step import TrainState

# What XLA:CPU is told, each on its own tried before it is used, as these are names of its internals:
_CPU_OPTIONS: tuple[dict[str, Any], ...] = (
    # Convolutions are wrapped into fusions of a second library that is slower than XLA's own path; this leaves dot
    # products and reductions there and takes convolutions out. LeNet-5 trains 1.8 times, AlexNet 1.15 times as fast.
    {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"},
    # Barriers are dropped before fusion, which then moves whole chains of elementwise work into the strided order of
    # whatever reads them; this keeps those that zoo/models/cpu_kernels.py sets.
    {"xla_disable_hlo_passes": "cse_barrier_expander"},
)


@lru_cache
def compiler_options(platform: str | None = None) -> dict[str, Any] | None:
    """Options for jax.jit on this platform (default: the one jax uses); None where there are none.

    What the compiler refuses is left out.
    """
    if (platform or jax.default_backend()) != "cpu":
        return None
    return {name: value for option in _CPU_OPTIONS if _works(option) for name, value in option.items()} or None


def _works(option: dict[str, Any]) -> bool:
    """Whether a scrap of code compiles with it and counts right."""

    def scrap(x):
        return lax.optimization_barrier(x + 1) * 2

    try:
        return float(jax.jit(scrap, compiler_options=option)(jnp.ones(()))) == 4
    except Exception:  # whatever an unknown option raises in some version of XLA
        return False


def compiled(function: Callable, *, donate: tuple[int, ...] = (), **shardings: Any) -> Any:
    """`function` under jax.jit with what suits the platform; arguments `donate` give their memory to the result.

    shardings: jax.jit's in_shardings and out_shardings.
    """
    return jax.jit(_formulated(function), donate_argnums=donate, compiler_options=compiler_options(), **shardings)


def _formulated(function: Callable) -> Callable:
    name = asked_formulation() or ("cpu" if jax.default_backend() == "cpu" else "plain")

    @wraps(function)
    def formulated(*args, **kwargs):
        with formulation(name):
            return function(*args, **kwargs)

    return formulated


def max_unrolled_microbatches() -> int:
    """How many pieces of a batch a step may take one after the other without a loop.

    Inside a loop XLA:CPU convolves twenty times as slowly; laid out flat each piece is compiled again, and only
    barriers that last keep them apart, without which all would be in memory at once.
    """
    options = compiler_options() or {}
    return 8 if "xla_disable_hlo_passes" in options else 0


def compile_train_step(step: Callable, parallelism: Parallelism, family: str, state: TrainState, batch: Any) -> Any:
    """Compile a training step (state, batch) -> (state, metrics) ahead of time; the state is donated.

    pmap takes no compiler options, so under it a CPU runs without those above.

    Args:
        step: the pure function.
        parallelism: the devices and how they share the work.
        family: the model's family, for the shardings of its parameters.
        state: as `mesh.shard_state` returns it.
        batch: as `mesh.abstract_batch` returns it.
    """
    if parallelism.is_single_device:
        jitted = compiled(step, donate=(0,))
    elif parallelism.how == "pmap":
        jitted = jax.pmap(
            _formulated(step), axis_name=PMAP_AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=(0,),
            devices=devices_of(parallelism),
        )  # fmt: skip
    else:
        places = shardings(parallelism, family, state, state.variables["params"])
        jitted = compiled(
            step, donate=(0,), in_shardings=(places, batch_sharding(parallelism)),
            out_shardings=(places, replicated(parallelism)),
        )  # fmt: skip
    return jitted.lower(state, batch).compile()
