"""The mathematics of layers.py, told to XLA:CPU better: same values and gradients to rounding, same parameters.

What is slow on a CPU as `lax` has it, and what is done instead:

- A convolution with one to sixteen channels leaves most of a vector register empty, and everything elementwise on its
  output too. `conv_pool` works on blocks of pixels laid into the channels, from the convolution through the pooling.
- The gradient of a maximum over windows is a scatter. `max_pool` remembers which pixel of each window won.

What oneDNN (PyTorch) still does better is the gradient of a 3x3 kernel with few channels, a third of ResNet-20's step:
45 to 106 GF/s at 16 to 64 channels, where the forward pass has 81 to 124. Tried in vain for it: as one product of
three shifts of rows, laid transposed, with three shifts of columns (a fifth faster by itself, no different in a step,
where other work runs beside it); other blocks of pixels or shifts laid into the channels; a mesh of one device per core
(5 %); XLA's own options for oneDNN, which it never calls. Of whole convolutions: Winograd's F(2x2, 3x3) takes 2.3, 1.2
and 1.0 times as long at 16, 32 and 64 channels, NCHW 1.1 to 1.5 times, CHWN 1.2 to 1.8 times. oneDNN's own forward
pass, which jaxlib 0.10 has under the name `__onednn$convolution`, by itself takes 0.7, 1.0 and 0.9 times as long; in
a step, with the gradient of the input by the same, ResNet-20 and ResNet-50 trained 1 to 2 % faster, AlexNet 4 to 6 %,
GoogLeNet no faster, ResNet-20 answered 20 % faster; not taken, as its arguments differ between versions and a wrong one
ends the process. What helped was outside of the compiler: zoo/host_memory.py.

Reverse mode only (`custom_vjp`), so layers.py takes these only where a training or evaluation step is compiled.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]


# --- convolution -------------------------------------------------------------------------------------------------


def conv2d(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], pads: Pads, groups: int = 1) -> jax.Array:
    """Cross-correlation of x [B, H, W, C] with kernel [kh, kw, C / groups, F] -> [B, H', W', F].

    XLA's convolutions in groups are up to a hundred times slower than its dense ones. Here neighbouring groups share a
    dense one of about 32 channels, with zeros in the kernel between them.
    """
    parts = _dense_parts(x.shape[-1], groups)
    kernels = _block_diagonal(kernel, groups, parts)
    outputs = [_dense_conv2d(part, kernels[i], stride, pads) for i, part in enumerate(jnp.split(x, parts, axis=-1))]
    return outputs[0] if parts == 1 else jnp.concatenate(outputs, axis=-1)


def _dense_parts(channels: int, groups: int) -> int:
    """Into how many dense convolutions to cut: the most that divide the groups and have 32 channels each.

    Never more than 8, which costs some speed at 512 channels and saves compiling.
    """
    limit = min(max(channels // 32, 1), 8)
    return max(parts for parts in range(1, limit + 1) if groups % parts == 0)


def _block_diagonal(kernel: jax.Array, groups: int, parts: int) -> jax.Array:
    """Kernel [kh, kw, C / groups, F] -> [parts, kh, kw, C / parts, F / parts], zeros where groups do not meet."""
    kh, kw, channels, features = kernel.shape
    each = groups // parts
    kernel = kernel.reshape(kh, kw, 1, channels, parts, each, features // groups)
    meet = jnp.eye(each, dtype=bool)[:, None, None, :, None]
    kernel = jnp.where(meet, kernel, 0)  # [kh, kw, each (in), C / groups, parts, each (out), F / groups]
    return kernel.transpose(4, 0, 1, 2, 3, 5, 6).reshape(parts, kh, kw, each * channels, features // parts)


def _plain_conv2d(x, kernel, stride, pads):
    return lax.conv_general_dilated(x, kernel, stride, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense_conv2d(x, kernel, stride, pads):
    return _plain_conv2d(x, kernel, stride, pads)


def _dense_conv2d_forward(x, kernel, stride, pads):
    return _plain_conv2d(x, kernel, stride, pads), (x, kernel)


def _dense_conv2d_backward(stride, pads, residuals, g):
    x, kernel = residuals
    # The gradient of the kernel reads x and g transposed. Without the barrier XLA computes both again while it
    # transposes, and with them the chain of norms and activations that they come from, in strided order.
    x, g = lax.optimization_barrier((x, g))
    x_grad, kernel_grad = jax.vjp(lambda x, kernel: _plain_conv2d(x, kernel, stride, pads), x, kernel)[1](g)
    pointwise = kernel.shape[:2] == stride == (1, 1) and pads == ((0, 0), (0, 0))
    # As a matrix product the gradient of a 1x1 kernel needs no transposed copies, and is 10 to 40 % faster; but rows
    # that lie a multiple of 2 kB apart push each other out of the cache.
    if pointwise and x.shape[-1] % 512:
        pixels = (0, 1, 2)
        kernel_grad = lax.dot_general(x, g, ((pixels, pixels), ((), ())))[None, None]
    return x_grad, kernel_grad


_dense_conv2d.defvjp(_dense_conv2d_forward, _dense_conv2d_backward)


# --- convolution with few channels, and pooling over 2x2 ---------------------------------------------------------


def block_for_conv_pool(channels: int, features: int) -> int:
    """Side, after pooling, of the block of pixels that `conv_pool` lays into the channels; 0: plain is better.

    The wider the block, the fuller the registers and the more products with zeros: 5x5 takes 1.44 times the
    multiplications at side 1 and 2.56 times at side 2. LeNet-5's 1 -> 6 wants 2, its 6 -> 16 wants 1.
    """
    if channels > 16 or features > 32:
        return 0
    return 2 if features <= 8 else 1


def conv_pool(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, act: Callable[[jax.Array], jax.Array], pool: str, block: int
) -> jax.Array:
    """Pooling over 2x2 of act(convolution + bias), stride 1, no padding: [B, H, W, C] -> [B, H', W', F].

    `act` is elementwise, `pool` is "max" or "avg", `block` of block_for_conv_pool. 2 * block pixels of each side are
    laid into the channels; the kernel is laid out to match, with zeros where a tap falls outside. The result comes
    out in blocks of `block`; where the next layer starts from such blocks, XLA cancels the two rearrangements.
    """
    height, width = ((size - k + 1) // 2 for size, k in zip(x.shape[1:3], kernel.shape[:2], strict=True))
    side = 2 * block
    laid_out, taps = _kernel_on_blocks(kernel, block)
    rows, columns = -(-height // block), -(-width // block)
    blocks = _space_to_depth(_cut_or_fill(x, (rows + taps[0] - 1) * side, (columns + taps[1] - 1) * side), side)
    y = _conv_by_patches(blocks, laid_out)  # [B, rows, columns, 2 * 2 * block * block * F]
    y = act(y + jnp.tile(bias, side * side)).reshape(*y.shape[:3], 4, -1)  # axis 3: the pixel within the window
    y = _max_of_four(y) if pool == "max" else y.mean(3)
    return _depth_to_space(y, block)[:, :height, :width]


def _kernel_on_blocks(kernel: jax.Array, block: int) -> tuple[jax.Array, tuple[int, int]]:
    """Kernel [kh, kw, C, F] for blocks of 2 * block pixels: [th, tw, side * side * C, 4 * block * block * F], (th, tw).

    Output channels in the order: pixel within the pooling window, place of the window in its block, feature.
    """
    side = 2 * block
    kh, kw, channels, features = kernel.shape
    th, tw = ((side - 1 + k + side - 1) // side for k in (kh, kw))

    def shifted(x, axis, length):
        """x at each of the `side` offsets within `length`, along a new axis before the last."""
        pads = [[(0, 0)] * x.ndim for _ in range(side)]
        for offset, pad in enumerate(pads):
            pad[axis] = (offset, length - x.shape[axis] - offset)
        return jnp.stack([jnp.pad(x, pad) for pad in pads], -2)

    x = shifted(shifted(kernel, 0, th * side), 1, tw * side)  # [th * side, tw * side, C, side, side, F]
    x = x.reshape(th, side, tw, side, channels, block, 2, block, 2, features)
    return x.transpose(0, 2, 1, 3, 4, 6, 8, 5, 7, 9).reshape(th, tw, side * side * channels, -1), (th, tw)


def _cut_or_fill(x: jax.Array, height: int, width: int) -> jax.Array:
    """[B, H, W, C] -> [B, height, width, C], cut or filled with zeros at the bottom and the right."""
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


@jax.custom_vjp
def _conv_by_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution, stride 1, no padding, as one matrix product; with few pixels and short rows faster than Eigen's."""
    return _patches(x, kernel.shape) @ kernel.reshape(-1, kernel.shape[-1])


def _conv_by_patches_forward(x, kernel):
    patches = _patches(x, kernel.shape)
    return patches @ kernel.reshape(-1, kernel.shape[-1]), (patches, kernel)


def _conv_by_patches_backward(residuals, g):
    patches, kernel = residuals
    th, tw, channels, features = kernel.shape
    # Without the barrier XLA computes g again, in strided order, in front of each of the two products.
    patches, g = lax.optimization_barrier((patches, g))
    kernel_grad = lax.dot_general(patches, g, (((0, 1, 2), (0, 1, 2)), ((), ()))).reshape(kernel.shape)
    patches_grad = g @ kernel.reshape(-1, features).T
    parts = []
    for i in range(th):
        for j in range(tw):
            part = lax.slice_in_dim(patches_grad, (i * tw + j) * channels, (i * tw + j + 1) * channels, axis=3)
            parts.append(jnp.pad(part, ((0, 0), (i, th - 1 - i), (j, tw - 1 - j), (0, 0))))
    return sum(parts), kernel_grad


_conv_by_patches.defvjp(_conv_by_patches_forward, _conv_by_patches_backward)


def _patches(x: jax.Array, kernel_shape: Sequence[int]) -> jax.Array:
    """[B, H, W, C] -> [B, H - th + 1, W - tw + 1, th * tw * C]."""
    th, tw = kernel_shape[:2]
    height, width = x.shape[1] - th + 1, x.shape[2] - tw + 1
    return jnp.concatenate([x[:, i : i + height, j : j + width] for i in range(th) for j in range(tw)], -1)


@jax.custom_vjp
def _max_of_four(x: jax.Array) -> jax.Array:
    """[..., 4, C] -> [..., C]; the first maximum takes the gradient."""
    return _first_maximum([x[..., i, :] for i in range(4)])[0]


def _max_of_four_forward(x):
    return _first_maximum([x[..., i, :] for i in range(4)])


def _max_of_four_backward(winner, g):
    winner, g = lax.optimization_barrier((winner, g))
    place = lax.broadcasted_iota(winner.dtype, (*winner.shape[:-1], 4, winner.shape[-1]), winner.ndim - 1)
    return (jnp.where(place == winner[..., None, :], g[..., None, :], 0),)


_max_of_four.defvjp(_max_of_four_forward, _max_of_four_backward)


# --- maximum over windows ----------------------------------------------------------------------------------------


def _first_maximum(views: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The elementwise maximum of at most 254 equal shapes, and which of them has it: the first of equals, uint8."""
    best, winner = views[0], jnp.zeros(views[0].shape, jnp.uint8)
    for number, view in enumerate(views[1:], 1):
        winner = jnp.where(view > best, jnp.uint8(number), winner)
        best = jnp.maximum(best, view)
    return best, winner


def max_pool(x: jax.Array, window: int, stride: int, pads: Pads) -> jax.Array:
    """Maximum over window x window, every `stride` pixels: [B, H, W, C] -> [B, H', W', C]. NaN wins, as in lax.

    The first maximum of a window, row by row, takes its gradient.
    """
    return _max_pool(x, window, stride, pads, x.shape[1:3])


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool(x, window, stride, pads, size):
    return _first_maximum(_views(x, window, stride, pads))[0]


def _max_pool_forward(x, window, stride, pads, size):
    return _first_maximum(_views(x, window, stride, pads))


def _views(x: jax.Array, window: int, stride: int, pads: Pads) -> list[jax.Array]:
    """For each pixel of the window, row by row: what it sees, [B, H', W', C]."""
    if pads != ((0, 0), (0, 0)):
        lowest = -np.inf if jnp.issubdtype(x.dtype, jnp.inexact) else np.iinfo(x.dtype).min
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=lowest)
    batch, height, width, channels = x.shape
    rows, columns = (height - window) // stride + 1, (width - window) // stride + 1
    return [
        lax.slice(
            x, (0, i, j, 0), (batch, i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1, channels),
            (1, stride, stride, 1),
        )
        for i in range(window) for j in range(window)
    ]  # fmt: skip


def _max_pool_backward(window, stride, pads, size, winner, g):
    """Each pixel collects from the windows that it won, without a scatter.

    Pixels are taken by their place modulo the stride: those of one place are reached by the same pixels of the same
    neighbouring windows.
    """
    winner, g = lax.optimization_barrier((winner, g))
    (top, _), (left, _) = pads
    rows, columns = -(-(size[0] + top) // stride), -(-(size[1] + left) // stride)
    reach = -(-window // stride) - 1  # how many windows back a pixel is seen from

    def framed(values, fill):
        after = max(rows - values.shape[1], 0), max(columns - values.shape[2], 0)
        return jnp.pad(values, ((0, 0), (reach, after[0]), (reach, after[1]), (0, 0)), constant_values=fill)

    nobody = window * window
    g, winner = framed(g, 0), framed(winner, nobody)
    places = []
    for i in range(stride):
        for j in range(stride):
            total = jnp.zeros((g.shape[0], rows, columns, g.shape[3]), g.dtype)
            for pixel_i in range(i, window, stride):
                for pixel_j in range(j, window, stride):
                    a, b = reach - pixel_i // stride, reach - pixel_j // stride
                    seen = (slice(None), slice(a, a + rows), slice(b, b + columns))
                    total = total + jnp.where(winner[seen] == pixel_i * window + pixel_j, g[seen], 0)
            places.append(total)
    x_grad = jnp.stack(places, 3).reshape(g.shape[0], rows, columns, stride, stride, g.shape[3])
    x_grad = x_grad.transpose(0, 1, 3, 2, 4, 5).reshape(g.shape[0], rows * stride, columns * stride, g.shape[3])
    return (x_grad[:, top : top + size[0], left : left + size[1]],)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


# --- activation --------------------------------------------------------------------------------------------------


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), computed once: without the barrier XLA computes it again wherever it is read.

    In a residual network that would be the sums of all blocks before, in every block.
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
    """Normalised by the mean and the biased variance of the batch over all axes but the last -> (y, mean, var).

    The gradient by hand reads x and g twice and writes once, where that of autodiff also writes what lies between.
    """
    return _batch_norm_forward(x, scale, bias, epsilon, axis_name)[0]


def _batch_norm_forward(x, scale, bias, epsilon, axis_name):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = _shared_mean(wide.mean(axes), axis_name)
    var = _shared_mean(jnp.square(wide - mean).mean(axes), axis_name)
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
    deviation = lax.rsqrt(var + epsilon)
    bias_grad = g.sum(axes)
    scale_grad = ((g * wide).sum(axes) - mean * bias_grad) * deviation
    # y = scale * (x - mean) * deviation + bias; mean and deviation depend on every x of every device.
    to_mean = _shared_mean(mean_g - scale * deviation * bias_grad, axis_name) / count
    to_var = _shared_mean(var_g - scale * deviation**2 * scale_grad / 2, axis_name) / count
    x_grad = g * (scale * deviation) + wide * (2 * to_var) + (to_mean - 2 * mean * to_var)
    return x_grad.astype(x.dtype), scale_grad.astype(scale.dtype), bias_grad.astype(scale.dtype)


def _shared_mean(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else lax.pmean(x, axis_name)


batch_norm_of_batch.defvjp(_batch_norm_forward, _batch_norm_backward)
