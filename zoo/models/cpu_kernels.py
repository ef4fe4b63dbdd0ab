"""Faster implementations of layers for XLA:CPU: the same values and gradients up to rounding.

Four things are slow on CPUs with plain `lax` operations:

- A convolution with one to sixteen channels leaves most of a vector register empty, and so does every elementwise
  operation on its output. `conv_pool` moves blocks of pixels into the channels, from the convolution to the pooling.
- A convolution over maps with fewer positions than its kernel has taps runs in a scalar loop, because XLA exchanges
  image and kernel there. `conv2d` computes it as one matrix product.
- A depthwise convolution is a grouped one with a group per channel. `conv2d` adds shifted images instead.
- The gradient of a maximum over windows is a scatter. `max_pool` records which pixel of each window won.

The functions define reverse-mode gradients only (`jax.custom_vjp`), so `zoo.models.operations` uses them in compiled
training and evaluation steps. Measurements and attempts that did not help are in docs/performance.md.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import add

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]
_NO_PADS: Pads = ((0, 0), (0, 0))


# --- windows ---------------------------------------------------------------------------------------------------


def _views(
    x: jax.Array, window: Sequence[int], stride: tuple[int, int], pads: Pads, fill: float | int
) -> list[jax.Array]:
    """Return, for each pixel of the window in row-major order, its values in all windows, [B, H', W', C]."""
    if pads != _NO_PADS:
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    batch, height, width, channels = x.shape
    rows, columns = ((size - k) // step + 1 for size, k, step in zip((height, width), window, stride, strict=True))
    return [
        lax.slice(
            x, (0, i, j, 0), (batch, i + (rows - 1) * stride[0] + 1, j + (columns - 1) * stride[1] + 1, channels),
            (1, *stride, 1),
        )
        for i in range(window[0]) for j in range(window[1])
    ]  # fmt: skip


# --- convolution -------------------------------------------------------------------------------------------------


def conv2d(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], pads: Pads, groups: int = 1) -> jax.Array:
    """Convolve x [B, H, W, C] with kernel [kh, kw, C / groups, F], without flipping it -> [B, H', W', F].

    XLA's grouped convolutions are up to a hundred times slower than dense ones. Neighbouring groups therefore share a
    dense convolution of about 32 channels, whose kernel has zeros between the groups.
    """
    if kernel.shape[:2] == (1, 1) and pads == _NO_PADS:
        # The pixels that a stride leaves out have no part in the gradient of the kernel, but XLA multiplies with them.
        x, stride = x[:, :: stride[0], :: stride[1]], (1, 1)
    depthwise = groups == x.shape[-1] == kernel.shape[-1] and kernel.shape[0] * kernel.shape[1] <= _MAX_UNROLLED_TAPS
    if depthwise and min(_output_size(x, kernel, stride, pads)) > 0:
        return _depthwise_conv2d(x, kernel, stride, pads)
    parts = _dense_parts(x.shape[-1], groups)
    kernels = _block_diagonal(kernel, groups, parts)
    by_patches = _suits_patches(x, kernel, stride, pads, groups)

    def convolve(x, kernel):
        if not by_patches:
            return _dense_conv2d(x, kernel, stride, pads)
        reachable, rest = _reachable_taps(x, kernel, stride, pads)
        return _conv_by_patches(jnp.pad(x, ((0, 0), *rest, (0, 0))), reachable, stride)

    outputs = [convolve(part, kernels[i]) for i, part in enumerate(jnp.split(x, parts, axis=-1))]
    return outputs[0] if parts == 1 else jnp.concatenate(outputs, axis=-1)


def _dense_parts(channels: int, groups: int) -> int:
    """Return the number of dense convolutions: the largest divisor of `groups` that leaves each about 32 channels.

    At most 8, which costs some speed at 512 channels and saves compilation time.
    """
    limit = min(max(channels // 32, 1), 8)
    return max(parts for parts in range(1, limit + 1) if groups % parts == 0)


def _block_diagonal(kernel: jax.Array, groups: int, parts: int) -> jax.Array:
    """Expand a grouped kernel into dense ones: [kh, kw, C / groups, F] -> [parts, kh, kw, C / parts, F / parts]."""
    kh, kw, channels, features = kernel.shape
    group_count = groups // parts  # in each dense convolution
    kernel = kernel.reshape(kh, kw, 1, channels, parts, group_count, features // groups)
    same_group = jnp.eye(group_count, dtype=bool)[:, None, None, :, None]
    kernel = jnp.where(same_group, kernel, 0)  # [kh, kw, groups (in), C / groups, parts, groups (out), F / groups]
    return kernel.transpose(4, 0, 1, 2, 3, 5, 6).reshape(parts, kh, kw, group_count * channels, features // parts)


def _plain_conv2d(x, kernel, stride, pads):
    return lax.conv_general_dilated(x, kernel, stride, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


# --- convolution over small maps -----------------------------------------------------------------------------------

#: Largest number of positions in a batch for which patches and one matrix product are faster than XLA's convolution,
#: unless it has few channels, as those that groups share.
_FEW_POSITIONS = 300


def _suits_patches(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], pads: Pads, groups: int) -> bool:
    """Return True if a convolution, or each of those that groups share, is faster as one matrix product of patches."""
    outputs = _output_size(x, kernel, stride, pads)
    if min(outputs) <= 0:
        return False
    positions = outputs[0] * outputs[1]
    fewer_than_taps = min(positions, x.shape[1] * x.shape[2]) < kernel.shape[0] * kernel.shape[1]
    return fewer_than_taps or (groups == 1 and x.shape[0] * positions <= _FEW_POSITIONS)


def _output_size(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], pads: Pads) -> tuple[int, int]:
    sizes = [
        (x.shape[1 + axis] + sum(pads[axis]) - kernel.shape[axis]) // stride[axis] + 1 for axis in (0, 1)
    ]  # fmt: skip
    return sizes[0], sizes[1]


def _reachable_taps(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], pads: Pads) -> tuple[jax.Array, Pads]:
    """Return the kernel without rows and columns that only ever meet padding, and the padding that is left.

    At one pixel, a 3x3 kernel with a padding of 1 is left with its centre.
    """
    outputs = _output_size(x, kernel, stride, pads)
    left = []
    for axis in (0, 1):
        size, before, taps = x.shape[1 + axis], pads[axis][0], kernel.shape[axis]
        last = (outputs[axis] - 1) * stride[axis]  # first tap of the last window, in the padded image
        first_tap = min(max(before - last, 0), taps - 1)  # one is left where no window meets the image
        end_tap = max(min(before + size, taps), first_tap + 1)
        kernel = lax.slice_in_dim(kernel, first_tap, end_tap, axis=axis)
        left.append((before - first_tap, max(last + end_tap - before - size, 0)))
    return kernel, (left[0], left[1])


# --- dense convolution ---------------------------------------------------------------------------------------------

#: Largest batch whose images are padded before the gradient of a kernel.
_FEW_IMAGES = 4


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense_conv2d(x, kernel, stride, pads):
    return _plain_conv2d(x, kernel, stride, pads)


def _dense_conv2d_forward(x, kernel, stride, pads):
    return _plain_conv2d(x, kernel, stride, pads), (x, kernel)


def _dense_conv2d_backward(stride, pads, residuals, g):
    x, kernel = residuals
    # The gradient of the kernel reads x and g transposed. Without the barrier XLA recomputes both, and the chain of
    # norms and activations before them, in strided order while transposing.
    x, g = lax.optimization_barrier((x, g))
    x_grad = jax.vjp(lambda x: _plain_conv2d(x, kernel, stride, pads), x)[1](g)[0]
    return x_grad, _kernel_grad(x, kernel, g, stride, pads)


def _kernel_grad(x, kernel, g, stride, pads):
    """Return the gradient of the kernel of a convolution of x, for the gradient g of its output."""
    pointwise = kernel.shape[:2] == stride == (1, 1) and pads == _NO_PADS
    # The gradient of a 1x1 kernel is 10 to 40 % faster as a matrix product, without transposed copies. Multiples of 512
    # channels are left to XLA: rows at distances of a multiple of 2 kB evict each other from the cache.
    if pointwise and x.shape[-1] % 512:
        pixels = (0, 1, 2)
        return lax.dot_general(x, g, ((pixels, pixels), ((), ())))[None, None]
    # XLA spends as long on the edges of the maps of one image as of many: two thirds of the time for one. The barrier
    # keeps it from moving the padding into the convolution.
    if x.shape[0] <= _FEW_IMAGES and stride == (1, 1) and pads != _NO_PADS:
        x, pads = lax.optimization_barrier(jnp.pad(x, ((0, 0), *pads, (0, 0)))), _NO_PADS
    return jax.vjp(lambda kernel: _plain_conv2d(x, kernel, stride, pads), kernel)[1](g)[0]


_dense_conv2d.defvjp(_dense_conv2d_forward, _dense_conv2d_backward)


# --- depthwise convolution ---------------------------------------------------------------------------------------

#: Largest number of taps of a depthwise kernel that is unrolled.
_MAX_UNROLLED_TAPS = 25


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise_conv2d(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], pads: Pads) -> jax.Array:
    """Convolve each channel of x [B, H, W, C] with its own kernel [kh, kw, 1, C] as a sum of shifted images."""
    # Without the barrier XLA recomputes the operations before x for every tap.
    return _sum_of_taps(lax.optimization_barrier(x), kernel, stride, pads)


def _sum_of_taps(x, kernel, stride, pads):
    wide, narrow = jnp.promote_types(x.dtype, jnp.float32), x.dtype
    taps = kernel.astype(wide).reshape(-1, kernel.shape[-1])
    views = _views(x.astype(wide), kernel.shape[:2], stride, pads, 0)  # so that the gradient of x is summed wide too
    return reduce(add, (view * tap for view, tap in zip(views, taps, strict=True))).astype(narrow)


def _depthwise_conv2d_forward(x, kernel, stride, pads):
    return _depthwise_conv2d(x, kernel, stride, pads), (x, kernel)


def _depthwise_conv2d_backward(stride, pads, residuals, g):
    x, kernel = residuals
    x, g = lax.optimization_barrier((x, g))
    x_grad = jax.vjp(lambda x: _sum_of_taps(x, kernel, stride, pads), x)[1](g)[0]
    # All taps are summed in one pass over x and g, along rows first: a sum over all positions at once reads in steps of
    # a whole row and takes up to ten times as long.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    products = tuple(view * g.astype(wide) for view in _views(x, kernel.shape[:2], stride, pads, 0))
    zeros = (np.zeros((), wide),) * len(products)
    rows = lax.reduce(products, zeros, lambda a, b: tuple(i + j for i, j in zip(a, b, strict=True)), (2,))
    rows = lax.optimization_barrier(rows)
    kernel_grad = jnp.stack([row.sum((0, 1)) for row in rows]).reshape(kernel.shape).astype(kernel.dtype)
    return x_grad, kernel_grad


_depthwise_conv2d.defvjp(_depthwise_conv2d_forward, _depthwise_conv2d_backward)


# --- convolution with few channels, and 2x2 pooling --------------------------------------------------------------


def block_for_conv_pool(channels: int, features: int) -> int:
    """Return the block size for `conv_pool`, in pixels after pooling; 0 if a plain convolution is faster.

    Larger blocks fill the registers better but multiply with more zeros: a 5x5 kernel takes 1.44 times the
    multiplications with blocks of 1 and 2.56 times with blocks of 2. In LeNet-5, 1 -> 6 channels is fastest with 2 and
    6 -> 16 channels with 1.

    Args:
        channels: number of input channels.
        features: number of output channels.
    """
    if channels > 16 or features > 32:
        return 0
    return 2 if features <= 8 else 1


def conv_pool(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, act: Callable[[jax.Array], jax.Array], pool: str, block: int
) -> jax.Array:
    """Convolve with stride 1 and no padding, activate and pool over 2x2: [B, H, W, C] -> [B, H', W', F].

    Squares of 2 * block pixels become channels, and the kernel is rearranged to match, with zeros where a tap falls
    outside. The output is computed in squares of `block` pixels; if the next layer begins by forming the same squares,
    XLA cancels the two rearrangements.

    Args:
        x: images.
        kernel: [kh, kw, C, F].
        bias: [F].
        act: elementwise activation.
        pool: "max" or "avg".
        block: block size from `block_for_conv_pool`.
    """
    height, width = ((size - k + 1) // 2 for size, k in zip(x.shape[1:3], kernel.shape[:2], strict=True))
    side = 2 * block
    block_kernel, taps = _kernel_on_blocks(kernel, block)
    rows, columns = -(-height // block), -(-width // block)
    blocks = _space_to_depth(_crop_or_pad(x, (rows + taps[0] - 1) * side, (columns + taps[1] - 1) * side), side)
    y = _conv_by_patches(blocks, block_kernel, (1, 1))  # [B, rows, columns, 2 * 2 * block * block * F]
    y = act(y + jnp.tile(bias, side * side)).reshape(*y.shape[:3], 4, -1)  # axis 3: the pixel within the window
    y = _max_of_four(y) if pool == "max" else y.mean(3)
    return _depth_to_space(y, block)[:, :height, :width]


def _kernel_on_blocks(kernel: jax.Array, block: int) -> tuple[jax.Array, tuple[int, int]]:
    """Rearrange a kernel [kh, kw, C, F] for squares of side = 2 * block pixels.

    Returns:
        The kernel [th, tw, side * side * C, 4 * block * block * F] and (th, tw). Output channels are ordered by pixel
        within the pooling window, window within the block, feature.
    """
    side = 2 * block
    kh, kw, channels, features = kernel.shape
    th, tw = ((side - 1 + k + side - 1) // side for k in (kh, kw))

    def shifted(x, axis, length):
        """Stack x zero-padded to `length` at each of the `side` offsets, along a new axis before the last."""
        pads = [[(0, 0)] * x.ndim for _ in range(side)]
        for offset, pad in enumerate(pads):
            pad[axis] = (offset, length - x.shape[axis] - offset)
        return jnp.stack([jnp.pad(x, pad) for pad in pads], -2)

    x = shifted(shifted(kernel, 0, th * side), 1, tw * side)  # [th * side, tw * side, C, side, side, F]
    x = x.reshape(th, side, tw, side, channels, block, 2, block, 2, features)
    return x.transpose(0, 2, 1, 3, 4, 6, 8, 5, 7, 9).reshape(th, tw, side * side * channels, -1), (th, tw)


def _crop_or_pad(x: jax.Array, height: int, width: int) -> jax.Array:
    """Crop or zero-pad at the bottom and the right: [B, H, W, C] -> [B, height, width, C]."""
    x = x[:, :height, :width]
    return jnp.pad(x, ((0, 0), (0, height - x.shape[1]), (0, width - x.shape[2]), (0, 0)))


def _space_to_depth(x: jax.Array, side: int) -> jax.Array:
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // side, width // side, side * side * channels)


def _depth_to_space(x: jax.Array, side: int) -> jax.Array:
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height, width, side, side, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * side, width * side, -1)


def _conv_by_patches(x: jax.Array, kernel: jax.Array, stride: tuple[int, int]) -> jax.Array:
    """Convolve without padding as one matrix product, faster than Eigen for small images."""
    return _patches_product(x, kernel, stride, x.shape[1:3])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _patches_product(x, kernel, stride, size):
    return _patches(x, kernel.shape, stride) @ kernel.reshape(-1, kernel.shape[-1])


def _patches_product_forward(x, kernel, stride, size):
    patches = _patches(x, kernel.shape, stride)
    return patches @ kernel.reshape(-1, kernel.shape[-1]), (patches, kernel)


def _patches_product_backward(stride, size, residuals, g):
    patches, kernel = residuals
    # Without the barrier XLA recomputes g in strided order before each of the two products.
    patches, g = lax.optimization_barrier((patches, g))
    kernel_grad = lax.dot_general(patches, g, (((0, 1, 2), (0, 1, 2)), ((), ()))).reshape(kernel.shape)
    wide = jnp.promote_types(g.dtype, jnp.float32)  # a pixel gets the sum of all patches that it is in
    patches_grad = g.astype(wide) @ kernel.astype(wide).reshape(-1, kernel.shape[-1]).T
    x = jax.ShapeDtypeStruct((g.shape[0], *size, kernel.shape[2]), wide)
    scatter = jax.linear_transpose(lambda x: _patches(x, kernel.shape, stride), x)
    return scatter(patches_grad)[0].astype(g.dtype), kernel_grad


_patches_product.defvjp(_patches_product_forward, _patches_product_backward)


def _patches(x: jax.Array, kernel_shape: Sequence[int], stride: tuple[int, int]) -> jax.Array:
    """Gather the window of every position: [B, H, W, C] -> [B, H', W', kh * kw * C]."""
    return jnp.concatenate(_views(x, kernel_shape[:2], stride, _NO_PADS, 0), -1)


@jax.custom_vjp
def _max_of_four(x: jax.Array) -> jax.Array:
    """Take the maximum over the second to last axis: [..., 4, C] -> [..., C]; the first maximum gets the gradient."""
    return _first_maximum([x[..., i, :] for i in range(4)])[0]


def _max_of_four_forward(x):
    return _first_maximum([x[..., i, :] for i in range(4)])


def _max_of_four_backward(winner, g):
    winner, g = lax.optimization_barrier((winner, g))
    index = lax.broadcasted_iota(winner.dtype, (*winner.shape[:-1], 4, winner.shape[-1]), winner.ndim - 1)
    return (jnp.where(index == winner[..., None, :], g[..., None, :], 0),)


_max_of_four.defvjp(_max_of_four_forward, _max_of_four_backward)


# --- maximum over windows ----------------------------------------------------------------------------------------


def _first_maximum(views: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Return the elementwise maximum of up to 254 arrays and the index of the first array that attains it, uint8."""
    best, winner = views[0], jnp.zeros(views[0].shape, jnp.uint8)
    for number, view in enumerate(views[1:], 1):
        winner = jnp.where(view > best, jnp.uint8(number), winner)
        best = jnp.maximum(best, view)
    return best, winner


def max_pool(x: jax.Array, window: int, stride: int, pads: Pads) -> jax.Array:
    """Take the maximum over square windows: [B, H, W, C] -> [B, H', W', C]. NaN wins, as in `lax.reduce_window`.

    The gradient of a window goes to its first maximum in row-major order.
    """
    return _max_pool(x, window, stride, pads, x.shape[1:3])


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool(x, window, stride, pads, size):
    return _first_maximum(_pool_views(x, window, stride, pads))[0]


def _max_pool_forward(x, window, stride, pads, size):
    return _first_maximum(_pool_views(x, window, stride, pads))


def _pool_views(x: jax.Array, window: int, stride: int, pads: Pads) -> list[jax.Array]:
    lowest = -np.inf if jnp.issubdtype(x.dtype, jnp.inexact) else np.iinfo(x.dtype).min
    return _views(x, (window, window), (stride, stride), pads, lowest)


def _max_pool_backward(window, stride, pads, size, winner, g):
    """Sum, for each pixel, the gradients of the windows that it won, without a scatter.

    Pixels are grouped by their position modulo the stride. All pixels of a group are covered by the same neighbouring
    windows, at the same positions within each.
    """
    winner, g = lax.optimization_barrier((winner, g))
    (top, _), (left, _) = pads
    rows, columns = -(-(size[0] + top) // stride), -(-(size[1] + left) // stride)
    reach = -(-window // stride) - 1  # number of earlier windows that cover a pixel

    def pad(values, fill):
        after = max(rows - values.shape[1], 0), max(columns - values.shape[2], 0)
        return jnp.pad(values, ((0, 0), (reach, after[0]), (reach, after[1]), (0, 0)), constant_values=fill)

    no_pixel = window * window
    g, winner = pad(g, 0), pad(winner, no_pixel)
    groups = []
    for i in range(stride):
        for j in range(stride):
            total = jnp.zeros((g.shape[0], rows, columns, g.shape[3]), g.dtype)
            for pixel_i in range(i, window, stride):
                for pixel_j in range(j, window, stride):
                    a, b = reach - pixel_i // stride, reach - pixel_j // stride
                    covering = (slice(None), slice(a, a + rows), slice(b, b + columns))
                    total = total + jnp.where(winner[covering] == pixel_i * window + pixel_j, g[covering], 0)
            groups.append(total)
    x_grad = jnp.stack(groups, 3).reshape(g.shape[0], rows, columns, stride, stride, g.shape[3])
    x_grad = x_grad.transpose(0, 1, 3, 2, 4, 5).reshape(g.shape[0], rows * stride, columns * stride, g.shape[3])
    return (x_grad[:, top : top + size[0], left : left + size[1]],)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


# --- activation --------------------------------------------------------------------------------------------------


@jax.custom_vjp
def materialise(x: jax.Array) -> jax.Array:
    """Return x, stored once in memory.

    Before a matrix product of a few rows: XLA can fuse the product with the operations that lead to x into a scalar
    loop, a hundred times slower.
    """
    return lax.optimization_barrier(x)


materialise.defvjp(lambda x: (materialise(x), None), lambda _, g: (g,))


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """Return max(x, 0), computed once.

    Without the barrier XLA recomputes it for every reader. In a residual network each block would then recompute the
    sums of all blocks before it.
    """
    return lax.optimization_barrier(jnp.maximum(x, 0))


def _relu_forward(x):
    y = relu(x)
    return y, y


def _relu_backward(y, g):
    return (jnp.where(y > 0, g, 0),)


relu.defvjp(_relu_forward, _relu_backward)


# --- batch norm --------------------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm_of_batch(x, scale, bias, epsilon: float, axis_name: str | None):
    """Normalise by the mean and biased variance of the batch over all axes but the last -> (y, mean, var).

    The hand-written gradient reads x and g twice and writes once; that of autodiff also writes intermediate arrays.
    """
    return _batch_norm_forward(x, scale, bias, epsilon, axis_name)[0]


def _batch_norm_forward(x, scale, bias, epsilon, axis_name):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = _pmean(wide.mean(axes), axis_name)
    var = _pmean(jnp.square(wide - mean).mean(axes), axis_name)
    multiplier = lax.rsqrt(var + epsilon) * scale
    y = (wide * multiplier + (bias - mean * multiplier)).astype(x.dtype)
    return (y, mean, var), (x, scale, mean, var)


def _batch_norm_backward(epsilon, axis_name, residuals, cotangents):
    x, scale, mean, var = residuals
    g, mean_g, var_g = cotangents
    x, g = lax.optimization_barrier((x, g))
    wide, g = x.astype(mean.dtype), g.astype(mean.dtype)
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    inverse_std = lax.rsqrt(var + epsilon)
    bias_grad = g.sum(axes)
    scale_grad = ((g * wide).sum(axes) - mean * bias_grad) * inverse_std
    # y = scale * (x - mean) * inverse_std + bias; mean and inverse_std depend on every x on every device.
    mean_to_x = _pmean(mean_g - scale * inverse_std * bias_grad, axis_name) / count
    var_to_x = _pmean(var_g - scale * inverse_std**2 * scale_grad / 2, axis_name) / count
    x_grad = g * (scale * inverse_std) + wide * (2 * var_to_x) + (mean_to_x - 2 * mean * var_to_x)
    return x_grad.astype(x.dtype), scale_grad.astype(scale.dtype), bias_grad.astype(scale.dtype)


def _pmean(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else lax.pmean(x, axis_name)


batch_norm_of_batch.defvjp(_batch_norm_forward, _batch_norm_backward)
