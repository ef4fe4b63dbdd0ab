"""Operations that layers are made of: convolution, pooling, response norm, batch norm, as pure functions.

Images are [B, H, W, C]. Padding is explicit and symmetric, as in the papers and in torchvision; `"SAME"` pads strided
convolutions asymmetrically and computes a different function.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo.models import cpu_kernels

Shape = Sequence[int]
Padding = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] | str


def explicit_padding(padding: Padding, size: tuple[int, int], stride: tuple[int, int], window: tuple[int, int]):
    """Return the padding as ((top, bottom), (left, right)).

    Args:
        padding: pixels on every side, (vertical, horizontal), ((top, bottom), (left, right)), "SAME" or "VALID".
        size: input height and width.
        stride: vertical and horizontal stride.
        window: kernel height and width.
    """
    if isinstance(padding, str):
        return tuple(lax.padtype_to_pads(size, window, stride, padding))
    if isinstance(padding, int):
        return ((padding, padding), (padding, padding))
    return tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)


# --- choice of implementation ------------------------------------------------------------------------------------

_formulation: ContextVar[str | None] = ContextVar("formulation", default=None)


@contextmanager
def formulation(name: str) -> Iterator[None]:
    """Select the implementation of the layers that are traced inside this context.

    All implementations compute the same function up to rounding. `zoo.distributed.compile.jit_for_platform` selects
    the one that suits the platform, unless it is called inside this context.

    Args:
        name: "plain" for `jax.lax` operations, the default, needed by export and forward-mode differentiation; "cpu"
            for the operations of `zoo.models.cpu_kernels`, which are faster on CPUs.
    """
    token = _formulation.set(name)
    try:
        yield
    finally:
        _formulation.reset(token)


def current_formulation() -> str | None:
    """Return the name passed to the enclosing `formulation` context, or None outside any."""
    return _formulation.get()


def _on_cpu() -> bool:
    return _formulation.get() == "cpu"


# --- functions -------------------------------------------------------------------------------------------------


def conv2d(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], padding, groups: int = 1) -> jax.Array:
    """Convolve x [B, H, W, C] with kernel [kh, kw, C / groups, F], without flipping it -> [B, H', W', F]."""
    if _on_cpu():
        return cpu_kernels.conv2d(x, kernel, stride, padding, groups)
    return lax.conv_general_dilated(
        x, kernel, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def dot_general(x: jax.Array, kernel: jax.Array, *args: Any, **options: Any) -> jax.Array:
    """Return `lax.dot_general(x, kernel, …)`; on a CPU x is stored in memory first (`cpu_kernels.materialise`)."""
    return lax.dot_general(cpu_kernels.materialise(x) if _on_cpu() else x, kernel, *args, **options)


def max_pool(x: jax.Array, window: int, stride: int, padding: int = 0, ceil: bool = False) -> jax.Array:
    """Take the maximum over square windows: [B, H, W, C] -> [B, H', W', C].

    Args:
        x: images.
        window: side of the window.
        stride: distance between windows.
        padding: pixels added on every side; they never win.
        ceil: round the output size up, so that the last window may overlap the edge (Caffe's rule, used by GoogLeNet).
    """
    pads = _pool_padding(x.shape, window, stride, padding, ceil)
    if _on_cpu() and window <= 5:  # cpu_kernels unrolls the window, which is too long for larger ones
        return cpu_kernels.max_pool(x, window, stride, pads)
    return nn.max_pool(x, (window, window), (stride, stride), pads)


def avg_pool(x: jax.Array, window: int, stride: int, padding: int = 0, count_include_pad: bool = True) -> jax.Array:
    """Average over square windows: [B, H, W, C] -> [B, H', W', C].

    Args:
        x: images.
        window: side of the window.
        stride: distance between windows.
        padding: pixels added on every side.
        count_include_pad: count padding as zeros, as in PyTorch; otherwise average over the pixels inside the image.
    """
    pads = ((0, 0), *_pool_padding(x.shape, window, stride, padding, False), (0, 0))

    def window_sum(values):
        zero, strides = np.zeros((), x.dtype), (1, stride, stride, 1)
        return lax.reduce_window(values, zero, lax.add, (1, window, window, 1), strides, pads)

    if count_include_pad or padding == 0:
        return window_sum(x) / (window * window)
    return window_sum(x) / window_sum(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


def relu(x: jax.Array) -> jax.Array:
    """Return max(x, 0)."""
    return cpu_kernels.relu(x) if _on_cpu() else nn.relu(x)


def conv_pool(x: jax.Array, kernel: jax.Array, bias: jax.Array, act: Callable, pool: str) -> jax.Array:
    """Convolve with stride 1 and no padding, activate and pool over 2x2: [B, H, W, C] -> [B, H', W', F].

    Args:
        x: images.
        kernel: [kh, kw, C, F].
        bias: [F].
        act: elementwise activation.
        pool: "max" or "avg".
    """
    block = cpu_kernels.block_for_conv_pool(x.shape[-1], kernel.shape[-1]) if _on_cpu() else 0
    if block:
        return cpu_kernels.conv_pool(x, kernel, bias, act, pool, block)
    x = act(conv2d(x, kernel, (1, 1), ((0, 0), (0, 0))) + bias)
    return max_pool(x, 2, 2) if pool == "max" else avg_pool(x, 2, 2)


def _pool_padding(shape: Shape, window: int, stride: int, padding: int, ceil: bool):
    pads = []
    for size in shape[1:3]:
        after = padding
        if ceil:
            outputs = -(-(size + 2 * padding - window) // stride) + 1
            if (outputs - 1) * stride >= size + padding:  # every window must start inside the image or its top padding
                outputs -= 1
            after = max(padding, (outputs - 1) * stride + window - size - padding)
        pads.append((padding, after))
    return tuple(pads)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Average over all positions: [B, H, W, C] -> [B, C]."""
    return x.mean((1, 2))


def adaptive_avg_pool(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Average over size[0] x size[1] nearly equal cells (PyTorch's rule): [B, H, W, C] -> [B, *size, C]."""
    for axis, cells in ((1, size[0]), (2, size[1])):
        length = x.shape[axis]
        if length == cells:
            continue
        bounds = [(i * length // cells, -(-(i + 1) * length // cells)) for i in range(cells)]
        x = jnp.concatenate([lax.slice_in_dim(x, a, b, axis=axis).mean(axis, keepdims=True) for a, b in bounds], axis)
    return x


def local_response_norm(x: jax.Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0):
    """Normalise over neighbouring channels (Krizhevsky et al. 2012, section 3.3).

    Each activation is divided by (k + alpha * sum of squares) ** beta.

    Args:
        x: images [B, H, W, C].
        size: number of neighbouring channels in the sum, the channel itself included.
        alpha: factor of the sum, as in the paper's formula. The author's own code (cuda-convnet2), Caffe and PyTorch
            divide theirs by `size` first, so the value that the paper prints stands for a fifth of it there.
        beta: exponent.
        k: constant added to the sum.
    """
    squares = jnp.square(x)
    sums = lax.reduce_window(
        squares, np.zeros((), x.dtype), lax.add, (1, 1, 1, size), (1, 1, 1, 1),
        ((0, 0), (0, 0), (0, 0), ((size - 1) // 2, size // 2)),
    )  # fmt: skip
    base = k + alpha * sums
    if beta == 0.75:  # the value of every paper; two roots are several times faster than a power
        root = lax.rsqrt(base)
        return x * (root * jnp.sqrt(root))
    return x * jnp.power(base, -beta)


def batch_norm(x, scale, bias, mean, var, epsilon: float):
    """Return (x - mean) / sqrt(var + epsilon) * scale + bias, computed in float32 and returned in the dtype of x.

    Args:
        x: activations [..., C].
        scale, bias, mean, var: [C].
        epsilon: added to the variance.
    """
    multiplier = lax.rsqrt(var + epsilon) * scale
    return (_at_least_float32(x) * multiplier + (bias - mean * multiplier)).astype(x.dtype)


def batch_norm_of_batch(x, scale, bias, epsilon: float, axis_name: str | None = None):
    """Normalise by the mean and biased variance of the batch.

    Args:
        x: activations [..., C].
        scale, bias: [C].
        epsilon: added to the variance.
        axis_name: pmap axis over which the statistics are averaged; None for this device alone.

    Returns:
        (normalised activations, mean [C], biased variance [C]).
    """
    if _on_cpu():
        return cpu_kernels.batch_norm_of_batch(x, scale, bias, epsilon, axis_name)
    axes = tuple(range(x.ndim - 1))
    mean = _pmean(_at_least_float32(x).mean(axes), axis_name)
    var = _pmean(jnp.square(_at_least_float32(x) - mean).mean(axes), axis_name)
    return batch_norm(x, scale, bias, mean, var, epsilon), mean, var


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _pmean(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else lax.pmean(x, axis_name)
