"""Layers shared by several architectures: convolution, batch norm, pooling, stochastic depth, and heads."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from zoo.models.operations import (
    Padding,
    Shape,
    batch_norm,
    batch_norm_of_batch,
    conv2d,
    conv_pool,
    dot_general,
    explicit_padding,
    relu,
)

Initializer = Callable[..., jax.Array]

#: Normal initialisation with variance 2 / fan-out (He et al. 2015, arXiv:1502.01852), as in torchvision's ResNets.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


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
    """`flax.linen.Dense` by way of `zoo.models.operations.dot_general`."""

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
    images: jax.Array,
    minimum: int,
    model: str,
    fixed_size: int | tuple[int, int] | None = None,
    size_fields: Sequence[str] = ("image_size",),
) -> None:
    """Check the shape of a batch of images.

    Args:
        images: batch of images.
        minimum: smallest height and width that the model accepts.
        model: name of the model, with which error messages begin.
        fixed_size: the only height and width that the model accepts, or its only side, if its dense layers fix it.
        size_fields: fields of the model that set the fixed size: none, one for both, or those of height and width.

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
        advice = "resize the images"
        if len(size_fields) == 2 or (size_fields and height == width):
            settings = (f"{field}={side}" for field, side in zip(size_fields, (height, width), strict=False))
            advice += f", or create the model with {', '.join(settings)}"
        raise ValueError(
            f"{model} takes images of exactly {fixed[0]}x{fixed[1]} pixels, the size of its dense layers; "
            f"got {height}x{width} ({advice})"
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


def require_blocks(blocks: Sequence[int], largest: Sequence[int], model: str) -> None:
    """Raise ValueError unless the counts of blocks are at most those of the published network, whose blocks differ."""
    if any(count > most for count, most in zip(blocks, largest, strict=True)):
        raise ValueError(
            f"{model} has at most blocks={tuple(largest)}, those of the published network; got {tuple(blocks)}"
        )


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
