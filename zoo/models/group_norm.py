"""Group normalisation and convolutions with standardised kernels, which need no statistics of the batch."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from zoo.models.layers import Initializer, he_normal_fan_out, require_channels
from zoo.models.operations import Padding, conv2d, explicit_padding

GROUPS = 32


class GroupNorm(nn.Module):
    """Group normalisation (Wu and He 2018, arXiv:1803.08494): mean and variance over a group of channels of one image.

    32 groups, the paper's default; narrow forms, whose channels 32 does not divide, have the greatest common divisor.
    Called like `BatchNorm`, so that networks can exchange them. Parameters: scale [C], bias [C].

    Attributes:
        epsilon: added to the variance.
        scale_init: initialiser of the scale.
    """

    epsilon: float = 1e-5
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x, use_running_average: bool = True):
        del use_running_average  # training and evaluation compute the same function
        channels = x.shape[-1]
        groups = math.gcd(GROUPS, channels)
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        exact = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(*x.shape[:3], groups, channels // groups)
        mean = exact.mean((1, 2, 4), keepdims=True)
        var = jnp.square(exact - mean).mean((1, 2, 4), keepdims=True)
        normal = ((exact - mean) * lax.rsqrt(var + self.epsilon)).reshape(x.shape)
        return (normal * scale + bias).astype(x.dtype)


class StandardizedConv(nn.Module):
    """Convolution without bias whose kernel is standardised for each output (Qiao et al. 2019, arXiv:1903.10520).

    Parameters: kernel [kh, kw, C, F], stored as it was before standardisation.

    Attributes:
        features, kernel_size, stride, padding, kernel_init, dtype: see `zoo.models.layers.Conv`.
        epsilon: added to the variance of a kernel; 1e-10 in the code of BiT, 1e-8 in timm.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: Padding | None = None
    epsilon: float = 1e-8
    kernel_init: Initializer = he_normal_fan_out
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        require_channels(self, x.shape[-1], self.get_variable("params", "kernel"))
        size = self.kernel_size
        kernel = self.param("kernel", self.kernel_init, (size, size, x.shape[-1], self.features), jnp.float32)
        padding = (size - 1) // 2 if self.padding is None else self.padding
        pads = explicit_padding(padding, x.shape[1:3], (self.stride,) * 2, (size, size))
        kernel = standardize(kernel, self.epsilon).astype(self.dtype)
        return conv2d(x.astype(self.dtype), kernel, (self.stride,) * 2, pads)


def standardize(kernel: jax.Array, epsilon: float) -> jax.Array:
    """Return the kernel [kh, kw, C, F] with mean 0 and variance 1 for each of its F outputs."""
    mean = kernel.mean((0, 1, 2))
    var = jnp.square(kernel - mean).mean((0, 1, 2))
    return (kernel - mean) * lax.rsqrt(var + epsilon)
