"""What several papers share: convolution, batch norm, pooling, local response normalisation, stochastic depth.

Images are [B, H, W, C]. Padding is explicit and symmetric, as in the papers and in torchvision: `"SAME"` on a
strided convolution pads asymmetrically and gives another function.
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
Initializer = Callable[..., jax.Array]
Padding = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] | str

#: He et al. 2015 (arXiv:1502.01852), over the fan-out as in torchvision's residual networks.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def explicit_padding(padding: Padding, size: tuple[int, int], stride: tuple[int, int], window: tuple[int, int]):
    """((top, bottom), (left, right)) for an int, a pair, a pair of pairs or "SAME"/"VALID"."""
    if isinstance(padding, str):
        return tuple(lax.padtype_to_pads(size, window, stride, padding))
    if isinstance(padding, int):
        return ((padding, padding), (padding, padding))
    return tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)


# --- which formulation of the mathematics ------------------------------------------------------------------------

_formulation: ContextVar[str | None] = ContextVar("formulation", default=None)


@contextmanager
def formulation(name: str) -> Iterator[None]:
    """What is traced inside is written down as `name` says: "plain" lax, or "cpu", faster there.

    Plain is the default and what export and forward-mode differentiation need; `zoo.distributed.compile.compiled` sets
    the one that suits the platform, unless it is called inside of this. To rounding both are the same function.
    """
    token = _formulation.set(name)
    try:
        yield
    finally:
        _formulation.reset(token)


def asked_formulation() -> str | None:
    """The name that `formulation` was given, inside of it."""
    return _formulation.get()


def _on_cpu() -> bool:
    return _formulation.get() == "cpu"


# --- the mathematics, as functions -----------------------------------------------------------------------------


def conv2d(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], padding, groups: int = 1) -> jax.Array:
    """Cross-correlation of x [B, H, W, C] with kernel [kh, kw, C / groups, F] -> [B, H', W', F]."""
    if _on_cpu():
        return cpu_kernels.conv2d(x, kernel, stride, padding, groups)
    return lax.conv_general_dilated(
        x, kernel, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def max_pool(x: jax.Array, window: int, stride: int, padding: int = 0, ceil: bool = False) -> jax.Array:
    """Maximum over window x window, every `stride` pixels: [B, H, W, C] -> [B, H', W', C].

    `ceil` rounds the output size up where the last window hangs over the edge (Caffe's rule, used by GoogLeNet).
    """
    pads = _pool_padding(x.shape, window, stride, padding, ceil)
    if _on_cpu() and window <= 5:  # written out pixel by pixel
        return cpu_kernels.max_pool(x, window, stride, pads)
    # By name, as jax2onnx replaces this function by one that takes them so.
    return nn.max_pool(x, window_shape=(window, window), strides=(stride, stride), padding=pads)


def avg_pool(x: jax.Array, window: int, stride: int, padding: int = 0, count_include_pad: bool = True) -> jax.Array:
    """Mean over window x window, every `stride` pixels; padding counts as zeros unless `count_include_pad` is off."""
    pads = ((0, 0), *_pool_padding(x.shape, window, stride, padding, False), (0, 0))

    def window_sum(values):
        zero, strides = np.zeros((), x.dtype), (1, stride, stride, 1)
        return lax.reduce_window(values, zero, lax.add, (1, window, window, 1), strides, pads)

    if count_include_pad or padding == 0:
        return window_sum(x) / (window * window)
    return window_sum(x) / window_sum(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


def relu(x: jax.Array) -> jax.Array:
    """max(x, 0)."""
    return cpu_kernels.relu(x) if _on_cpu() else nn.relu(x)


def conv_pool(x: jax.Array, kernel: jax.Array, bias: jax.Array, act: Callable, pool: str) -> jax.Array:
    """Pooling over 2x2 of act(x * kernel + bias), stride 1, no padding: [B, H, W, C] -> [B, H', W', F].

    `act` is elementwise, `pool` is "max" or "avg".
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
            if (outputs - 1) * stride >= size + padding:  # a window must start inside the image or its left padding
                outputs -= 1
            after = max(padding, (outputs - 1) * stride + window - size - padding)
        pads.append((padding, after))
    return tuple(pads)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Mean over all positions: [B, H, W, C] -> [B, C]."""
    return x.mean((1, 2))


def adaptive_avg_pool(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Mean over size[0] x size[1] nearly equal cells (PyTorch's rule): [B, H, W, C] -> [B, *size, C]."""
    for axis, cells in ((1, size[0]), (2, size[1])):
        length = x.shape[axis]
        if length == cells:
            continue
        bounds = [(i * length // cells, -(-(i + 1) * length // cells)) for i in range(cells)]
        x = jnp.concatenate([lax.slice_in_dim(x, a, b, axis=axis).mean(axis, keepdims=True) for a, b in bounds], axis)
    return x


def local_response_norm(x: jax.Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0):
    """Each activation divided by (k + alpha * sum of squares over `size` neighbouring channels) ** beta.

    Krizhevsky et al. 2012, section 3.3. `alpha` multiplies the sum; Caffe and PyTorch divide it by `size` first.
    """
    squares = jnp.square(x)
    sums = lax.reduce_window(
        squares, np.zeros((), x.dtype), lax.add, (1, 1, 1, size), (1, 1, 1, 1),
        ((0, 0), (0, 0), (0, 0), ((size - 1) // 2, size // 2)),
    )  # fmt: skip
    base = k + alpha * sums
    if beta == 0.75:  # in every paper; two roots are several times as fast as a power
        root = lax.rsqrt(base)
        return x * (root * jnp.sqrt(root))
    return x * jnp.power(base, -beta)


def batch_norm(x, scale, bias, mean, var, epsilon: float):
    """(x - mean) / sqrt(var + epsilon) * scale + bias over the last axis, in float32, returned in x's dtype."""
    multiplier = lax.rsqrt(var + epsilon) * scale
    return (_wide(x) * multiplier + (bias - mean * multiplier)).astype(x.dtype)


def batch_norm_of_batch(x, scale, bias, epsilon: float, axis_name: str | None = None):
    """batch_norm with the mean and the biased variance of this batch -> (y, mean [C], var [C]).

    With `axis_name` they are those of the batches on all devices of that axis.
    """
    if _on_cpu():
        return cpu_kernels.batch_norm_of_batch(x, scale, bias, epsilon, axis_name)
    axes = tuple(range(x.ndim - 1))
    mean = _shared_mean(_wide(x).mean(axes), axis_name)
    var = _shared_mean(jnp.square(_wide(x) - mean).mean(axes), axis_name)
    return batch_norm(x, scale, bias, mean, var, epsilon), mean, var


def _wide(x: jax.Array) -> jax.Array:
    """In float32, or in x's own dtype where that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _shared_mean(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else lax.pmean(x, axis_name)


# --- modules ---------------------------------------------------------------------------------------------------


class Conv(nn.Module):
    """Convolution with explicit padding. Parameters: kernel [kh, kw, C / groups, F], bias [F].

    `padding=None` is half the kernel, which keeps the size at stride 1.
    """

    features: int
    kernel: int | tuple[int, int]
    stride: int | tuple[int, int] = 1
    padding: Padding | None = None
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer = he_normal_fan_out
    bias_init: Initializer = nn.initializers.zeros
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        window, stride = _pair(self.kernel), _pair(self.stride)
        padding = ((window[0] - 1) // 2, (window[1] - 1) // 2) if self.padding is None else self.padding
        shape = (*window, x.shape[-1] // self.groups, self.features)
        require_channels(self, x.shape[-1] // self.groups, self.get_variable("params", "kernel"))
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        pads = explicit_padding(padding, x.shape[1:3], stride, window)
        x = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), stride, pads, self.groups)
        if self.use_bias:
            x = x + self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(self.dtype)
        return x


class ConvPool(nn.Module):
    """Convolution without padding, activation, pooling over 2x2: the pair of layers of the first networks.

    `act` is elementwise, `pool` is "max" or "avg". Parameters: kernel [kernel, kernel, C, F], bias [F].
    """

    features: int
    kernel: int
    act: Callable[[jax.Array], jax.Array]
    pool: str
    kernel_init: Initializer = he_normal_fan_out
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        require_channels(self, x.shape[-1], self.get_variable("params", "kernel"))
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        return conv_pool(x.astype(self.dtype), kernel, bias, self.act, self.pool)

    def positions(self, shape: Shape) -> int:
        """Where the convolution is computed for an input [B, H, W, C], which its pooled output does not show."""
        return (shape[1] - self.kernel + 1) * (shape[2] - self.kernel + 1)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167) over all axes but the last.

    Parameters: scale [C], bias [C]; batch_stats: mean [C], var [C]. The running variance takes the unbiased estimate,
    as in the paper's algorithm 2 and in PyTorch (Flax's own layer takes the biased one). `momentum` is the share of
    the old value that is kept. Statistics are float32 whatever the compute dtype. With `axis_name` they are shared
    over that pmap axis. `use_running_average` is an argument of the call, so that it can be set by path from outside
    (`nn.intercept_methods`). Where zoo/inference/folding.py has folded the rest into the
    convolution before it, a bias is added.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: Initializer = nn.initializers.ones
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, use_running_average: bool):
        if use_running_average and self.has_variable("folded", "bias"):
            return x + self.get_variable("folded", "bias").astype(x.dtype)
        features = (x.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, features, jnp.float32)
        scale = self.param("scale", self.scale_init, features, jnp.float32) if self.use_scale else jnp.ones(features)
        bias = (
            self.param("bias", nn.initializers.zeros, features, jnp.float32) if self.use_bias else jnp.zeros(features)
        )
        if use_running_average:
            return batch_norm(x, scale, bias, running_mean.value, running_var.value, self.epsilon)
        axis_name = None if self.is_initializing() else self.axis_name
        y, mean, var = batch_norm_of_batch(x, scale, bias, self.epsilon, axis_name)
        if not self.is_initializing():
            count = x.size // x.shape[-1] * (1 if axis_name is None else lax.psum(1, axis_name))
            keep, unbiased = self.momentum, count / max(count - 1, 1)
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * unbiased * var
        return y


class ConvNorm(nn.Module):
    """Convolution without bias, norm, activation: the unit of every network since 2015. Children: conv, norm.

    `norm` is a BatchNorm partial, handed down by the model; `act=None` leaves the activation out.
    """

    features: int
    kernel: int | tuple[int, int]
    norm: Callable[..., nn.Module]
    stride: int | tuple[int, int] = 1
    padding: Padding | None = None
    groups: int = 1
    act: Callable[[jax.Array], jax.Array] | None = relu
    kernel_init: Initializer = he_normal_fan_out
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        x = Conv(self.features, self.kernel, self.stride, self.padding, self.groups, use_bias=False,
                 kernel_init=self.kernel_init, dtype=self.dtype, name="conv")(x)  # fmt: skip
        x = self.norm(name="norm")(x, not train)
        return x if self.act is None else self.act(x)


class StochasticDepth(nn.Module):
    """Drops the whole residual branch of an example with probability `rate` (Huang et al. 2016, arXiv:1603.09382).

    In training what is kept is scaled by 1 / (1 - rate); in evaluation nothing happens. Draws from the "dropout" key.
    """

    rate: float

    @nn.compact
    def __call__(self, x, train: bool):
        if not train or self.rate == 0:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, shape)
        return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)


def require_images(images: jax.Array, minimum: int, model: str, bound_to: int | None = None) -> None:
    """ValueError unless images are [B, H, W, C] with both sides at least `minimum` pixels.

    `bound_to`: the side that the model's dense layers fix.
    """
    if images.ndim != 4:
        raise ValueError(f"{model} takes images [B, H, W, C]; got an array of shape {tuple(images.shape)}")
    height, width = images.shape[1:3]
    if min(height, width) < minimum:
        raise ValueError(f"{model} needs images of at least {minimum}x{minimum} pixels; got {height}x{width}")
    if bound_to is not None and (height, width) != (bound_to, bound_to):
        raise ValueError(
            f"{model} was made for images of {bound_to}x{bound_to} pixels, which fix the shape of its dense layers; "
            f"got {height}x{width} (resize the images, or create it with image_size={height})"
        )


def require_channels(layer: nn.Module, channels: int, kernel: Any, positions: int = 1) -> None:
    """ValueError unless a kernel, where there is one already, takes so many channels, at so many positions."""
    if kernel is not None and kernel.shape[-2] != channels * positions:
        where, wanted = "/".join(layer.path) or "the first layer", kernel.shape[-2] // positions
        raise ValueError(f"{where} takes {wanted} channel{'s' * (wanted != 1)}; got {channels}")


#: A classifier's kernel between ±1 / sqrt(fan-in), PyTorch's default for linear layers.
uniform_head = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def scale_width(features: int, width: float) -> int:
    """Channels at another width: the product rounded to a multiple of 8, at least 8; unchanged at width 1."""
    return features if width == 1 else max(8, 8 * round(features * width / 8))


def require_stem(stem: str, model: str) -> None:
    """ValueError unless the stem is one of the two that every ImageNet family has."""
    if stem not in ("imagenet", "small"):
        raise ValueError(f"{model} has the stems imagenet and small (for 28 to 64 pixels); got {stem!r}")


def rematerialised(block: type[nn.Module], remat: bool) -> type[nn.Module]:
    """The block, its activations computed again in the backward pass where `remat`; called block(x, train)."""
    return nn.remat(block, static_argnums=(2,)) if remat else block
