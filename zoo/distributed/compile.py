"""Compilation of pure functions for the platform at hand, in one place."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax import lax

from zoo.distributed import pmap
from zoo.distributed.mesh import Parallelism, batch_sharding, devices_of, replicated, shardings
from zoo.models.operations import current_formulation, formulation

#: Options for XLA:CPU. They name internals of the compiler, so each is probed before it is used (docs/performance.md).
_CPU_OPTIONS: tuple[dict[str, Any], ...] = (
    # Leave convolutions out of YNNPACK fusions, which are slower than XLA's own path.
    {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"},
    # Keep the optimisation barriers that zoo/models/cpu_kernels.py sets; XLA drops them before fusion otherwise.
    {"xla_disable_hlo_passes": "cse_barrier_expander"},
)

#: Micro-batches that a step unrolls at most where barriers are kept. Each is compiled separately.
_MAX_UNROLLED = 8


@lru_cache
def compiler_options(platform: str | None = None) -> dict[str, Any] | None:
    """Return the options for jax.jit on a platform, or None.

    Options that this version of XLA rejects are left out.

    Args:
        platform: "cpu", "gpu", …; None for jax's default backend.
    """
    if (platform or jax.default_backend()) != "cpu":
        return None
    together = {name: value for option in _CPU_OPTIONS for name, value in option.items()}
    if together and _is_supported(together):
        return together
    return {name: value for option in _CPU_OPTIONS if _is_supported(option) for name, value in option.items()} or None


def _is_supported(option: dict[str, Any]) -> bool:
    """Return True if a trivial function compiles with the option and computes the right value."""

    def trivial(x):
        return lax.optimization_barrier(x + 1) * 2

    try:
        return float(jax.jit(trivial, compiler_options=option)(np.float32(1))) == 4
    except Exception:  # the type that an unknown option raises differs between versions of XLA
        return False


def jit_for_platform(function: Callable, *, donate: tuple[int, ...] = (), **shardings: Any) -> Any:
    """Wrap `function` in jax.jit with the formulation and compiler options that suit the platform.

    Args:
        function: a pure function.
        donate: positions of arguments whose buffers the result may reuse.
        **shardings: in_shardings and out_shardings of jax.jit.
    """
    return jax.jit(_formulate(function), donate_argnums=donate, compiler_options=compiler_options(), **shardings)


def _formulate(function: Callable) -> Callable:
    name = current_formulation() or ("cpu" if jax.default_backend() == "cpu" else "plain")

    @wraps(function)
    def formulated(*args, **kwargs):
        with formulation(name):
            return function(*args, **kwargs)

    return formulated


def max_unrolled_microbatches() -> int:
    """Return how many micro-batches a step may unroll instead of looping over them.

    Inside a loop XLA:CPU convolves twenty times slower. Unrolled micro-batches are kept apart by barriers, without
    which the activations of all would be in memory at once.
    """
    options = compiler_options() or {}
    return _MAX_UNROLLED if "xla_disable_hlo_passes" in options else 0


def compile_train_step(step: Callable, parallelism: Parallelism, model: nn.Module, state: Any, batch: Any) -> Any:
    """Compile a training step (state, batch) -> (state, metrics) ahead of time; the state is donated.

    pmap takes no compiler options, so under it a CPU runs without them.

    Args:
        step: the pure function.
        parallelism: the devices and how they share the work.
        model: the network, for the shardings of its parameters.
        state: as `mesh.shard_state` returns it.
        batch: as `mesh.abstract_batch` returns it.
    """
    if parallelism.is_pmap:
        return pmap.compile_step(_formulate(step), devices_of(parallelism), state, batch)
    if parallelism.is_single_device:
        jitted = jit_for_platform(step, donate=(0,))
    else:
        state_shardings = shardings(parallelism, model, state, state.variables["params"])
        jitted = jit_for_platform(
            step,
            donate=(0,),
            in_shardings=(state_shardings, batch_sharding(parallelism)),
            out_shardings=(state_shardings, replicated(parallelism)),
        )
    return jitted.lower(state, batch).compile()
