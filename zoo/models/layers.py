"""Layers shared by several architectures: convolution, batch norm, pooling, response norm, stochastic depth.

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
Initializer = Callable[..., jax.Array]
Padding = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] | str

#: Normal initialisation with variance 2 / fan-out (He et al. 2015, arXiv:1502.01852), as in torchvision's ResNets.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


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
            for the operations of `zoo.models.cpu_kernels`, which are faster on CPUs; "portable" for plain operations in
            the forms that ONNX has, with the padding of a maximum as an operation of its own.
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
    if _formulation.get() == "portable" and pads != ((0, 0), (0, 0)):
        # jax2onnx takes any padding but "SAME" for none; the padded values never win.
        x, pads = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf), ((0, 0), (0, 0))
    # Keyword arguments, because jax2onnx replaces this function by one that needs them.
    return nn.max_pool(x, window_shape=(window, window), strides=(stride, stride), padding=pads)


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


# --- modules ---------------------------------------------------------------------------------------------------


class Conv(nn.Module):
    """Convolution with explicit padding.

    Parameters: kernel [kh, kw, C / groups, F], bias [F].

    Attributes:
        features: number of output channels F.
        kernel_size: side of the kernel, or (height, width).
        stride: distance between outputs, or (vertical, horizontal).
        padding: see `explicit_padding`; None for half the kernel on each side, which keeps the size at stride 1.
        groups: number of groups that the channels are split into.
        use_bias: add a bias.
        kernel_init: initialiser of the kernel.
        bias_init: initialiser of the bias.
        dtype: type of the computation; parameters are float32.
    """

    features: int
    kernel_size: int | tuple[int, int]
    stride: int | tuple[int, int] = 1
    padding: Padding | None = None
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer = he_normal_fan_out
    bias_init: Initializer = nn.initializers.zeros
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        window, stride = _pair(self.kernel_size), _pair(self.stride)
        padding = ((window[0] - 1) // 2, (window[1] - 1) // 2) if self.padding is None else self.padding
        shape = (*window, x.shape[-1] // self.groups, self.features)
        require_channels(self, x.shape[-1] // self.groups, self.get_variable("params", "kernel"))
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        pads = explicit_padding(padding, x.shape[1:3], stride, window)
        x = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), stride, pads, self.groups)
        if self.use_bias:
            x = x + self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(self.dtype)
        return x


class Dense(nn.Dense):
    """`flax.linen.Dense` by way of `dot_general` of this module."""

    dot_general: Any = dot_general


class ConvPool(nn.Module):
    """Convolution without padding, activation and 2x2 pooling, as in LeNet (see `conv_pool`).

    Parameters: kernel [kernel_size, kernel_size, C, F], bias [F].

    Attributes:
        features: number of output channels F.
        kernel_size: side of the kernel.
        act: elementwise activation.
        pool: "max" or "avg".
        kernel_init: initialiser of the kernel; the bias starts at 0.
        dtype: type of the computation; parameters are float32.
    """

    features: int
    kernel_size: int
    act: Callable[[jax.Array], jax.Array]
    pool: str
    kernel_init: Initializer = he_normal_fan_out
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        require_channels(self, x.shape[-1], self.get_variable("params", "kernel"))
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        return conv_pool(x.astype(self.dtype), kernel, bias, self.act, self.pool)

    def positions(self, shape: Shape) -> int:
        """Return the number of positions per image at which the convolution is computed, before pooling.

        Args:
            shape: shape of the input, [B, H, W, C].
        """
        return (shape[1] - self.kernel_size + 1) * (shape[2] - self.kernel_size + 1)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167) over all axes but the last.

    Parameters: scale [C], bias [C]. batch_stats: mean [C], var [C], in float32 whatever the type of the computation.

    The running variance is updated with the unbiased estimate, as in algorithm 2 of the paper and in PyTorch;
    `flax.linen.BatchNorm` uses the biased one. `use_running_average` and `momentum` are arguments of the call, so that
    training can set them with `nn.intercept_methods`. If `zoo.inference.folding` has folded the norm into the preceding
    convolution, only the bias in the collection "folded" is added.

    Attributes:
        momentum: fraction of the running statistics that each update keeps.
        epsilon: added to the variance.
        use_scale: learn a scale.
        use_bias: learn a bias.
        scale_init: initialiser of the scale.
        axis_name: pmap axis over which batch statistics are shared.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: Initializer = nn.initializers.ones
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, use_running_average: bool, momentum: float | None = None):
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
            keep, unbiased = self.momentum if momentum is None else momentum, count / max(count - 1, 1)
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * unbiased * var
        return y


class ConvNorm(nn.Module):
    """Convolution without bias, norm and activation.

    Children: conv, norm.

    Attributes:
        features, kernel_size, stride, padding, groups, kernel_init, dtype: see `Conv`.
        norm: constructor of the norm, a partial of `BatchNorm`.
        act: activation, or None.
    """

    features: int
    kernel_size: int | tuple[int, int]
    norm: Callable[..., nn.Module]
    stride: int | tuple[int, int] = 1
    padding: Padding | None = None
    groups: int = 1
    act: Callable[[jax.Array], jax.Array] | None = relu
    kernel_init: Initializer = he_normal_fan_out
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        x = Conv(self.features, self.kernel_size, self.stride, self.padding, self.groups, use_bias=False,
                 kernel_init=self.kernel_init, dtype=self.dtype, name="conv")(x)  # fmt: skip
        x = self.norm(name="norm")(x, not train)
        return x if self.act is None else self.act(x)


class StochasticDepth(nn.Module):
    """Stochastic depth: drop the whole residual branch of an example (Huang et al. 2016, arXiv:1603.09382).

    In training, kept branches are scaled by 1 / (1 - rate); evaluation leaves branches unchanged. (The paper instead
    multiplies them by 1 - rate in evaluation.) Uses the "dropout" random stream.

    Attributes:
        rate: probability of dropping the branch.
    """

    rate: float

    @nn.compact
    def __call__(self, x, train: bool):
        if not train or self.rate == 0:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, shape)
        return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)


def block_drop_rate(rate: float, index: int, blocks: int, keep_first: bool = False) -> float:
    """Return the probability of dropping the branch of block `index` = 1, …, `blocks`.

    It grows linearly to `rate`: by index / blocks (Huang et al. 2016, section 3), or with `keep_first` by
    (index - 1) / (blocks - 1), as in timm.
    """
    if keep_first:
        return rate * (index - 1) / max(blocks - 1, 1)
    return rate * index / blocks


def require_images(
    images: jax.Array, minimum: int, model: str, fixed_size: int | tuple[int, int] | None = None
) -> None:
    """Check the shape of a batch of images.

    Args:
        images: batch of images.
        minimum: smallest height and width that the model accepts.
        model: name of the model, with which error messages begin.
        fixed_size: the only height and width that the model accepts, or its only side, if its dense layers fix it.

    Raises:
        ValueError: if the images are not [B, H, W, C] or of an unsuitable size.
    """
    if images.ndim != 4:
        raise ValueError(f"{model} takes images [B, H, W, C]; got an array of shape {tuple(images.shape)}")
    height, width = images.shape[1:3]
    if min(height, width) < minimum:
        raise ValueError(f"{model} needs images of at least {minimum}x{minimum} pixels; got {height}x{width}")
    fixed = (fixed_size, fixed_size) if isinstance(fixed_size, int) else fixed_size
    if fixed is not None and (height, width) != fixed:
        raise ValueError(
            f"{model} takes images of exactly {fixed[0]}x{fixed[1]} pixels, the size of its dense layers; "
            f"got {height}x{width} (resize the images, or create the model with image_size={height})"
        )


def require_channels(layer: nn.Module, channels: int, kernel: Any, positions: int = 1) -> None:
    """Check that an existing kernel accepts the channels of the input.

    Args:
        layer: module that the kernel belongs to, named in the error message.
        channels: number of input channels.
        kernel: [..., C, F], or None while parameters are initialised.
        positions: number of positions that a dense layer on flattened images reads.

    Raises:
        ValueError: if the kernel was made for another number of channels.
    """
    if kernel is not None and kernel.shape[-2] != channels * positions:
        where, wanted = "/".join(layer.path) or "the first layer", kernel.shape[-2] // positions
        raise ValueError(f"{where} takes {wanted} channel{'s' * (wanted != 1)}; got {channels}")


#: Uniform initialisation between ±1 / sqrt(fan-in), PyTorch's default for the kernels of linear layers.
uniform_head = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def scale_width(features: int, width: float) -> int:
    """Return features * width rounded to a multiple of 8, at least 8; `features` unchanged at width 1."""
    return features if width == 1 else max(8, 8 * round(features * width / 8))


#: Activations that fields of models name.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"relu": nn.relu, "tanh": jnp.tanh, "sigmoid": nn.sigmoid}


def find_activation(name: str, choices: Sequence[str] = tuple(ACTIVATIONS)) -> Callable[[jax.Array], jax.Array]:
    """Return the activation of this name.

    Raises:
        ValueError: listing `choices`, if it is not one of them.
    """
    if name not in choices:
        raise ValueError(f"activation {name!r} is not one of {', '.join(choices)}")
    return ACTIVATIONS[name]


def require_stem(stem: str, model: str) -> None:
    """Raise ValueError unless the stem is "imagenet" or "small"."""
    if stem not in ("imagenet", "small"):
        raise ValueError(f"{model} has the stems imagenet and small (for 28 to 64 pixels); got {stem!r}")


def maybe_remat(block: type[nn.Module], remat: bool) -> type[nn.Module]:
    """Return the block, wrapped in `nn.remat` if `remat` is set.

    A wrapped block recomputes its activations in the backward pass, which saves memory. It must be called with two
    positional arguments, (x, train).
    """
    return nn.remat(block, static_argnums=(2,)) if remat else block


def classify(
    features: jax.Array,
    endpoints: dict[str, jax.Array],
    num_classes: int | None,
    train: bool,
    *,
    dropout: float = 0.0,
    kernel_init: Initializer = uniform_head,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Apply the last layers of a classifier inside the calling module: dropout and a dense layer called "head".

    Args:
        features: [B, D].
        endpoints: activations of the stages.
        num_classes: number of classes, or None for no head.
        train: apply dropout.
        dropout: rate of the dropout before the head.
        kernel_init: initialiser of the kernel of the head.
        dtype: type of the computation.

    Returns:
        (logits, endpoints), or (features, endpoints) without a head. Logits are float32 [B, num_classes]. The endpoints
        now include "features" and, with a head, "logits".
    """
    endpoints = {**endpoints, "features": features}
    if num_classes is None:
        return features, endpoints
    x = nn.Dropout(dropout, deterministic=not train, name="dropout")(features)
    logits = Dense(num_classes, kernel_init=kernel_init, dtype=dtype, name="head")(x).astype(jnp.float32)
    return logits, {**endpoints, "logits": logits}
