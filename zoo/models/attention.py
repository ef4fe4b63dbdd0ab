"""Channel attention of residual branches: squeeze-and-excitation, efficient channel attention."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from zoo.models.layers import Dense
from zoo.models.operations import Shape, global_avg_pool, relu


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2017, figure 2): scale each channel by a gate computed from all channel means.

    [B, H, W, C] -> [B, H, W, C]. Children: reduce, expand.

    Attributes:
        squeeze: reduction ratio of the hidden layer.
        multiple: the hidden layer is rounded to a multiple of this, and has at least as many channels; 8 in timm.
        dtype: type of the computation.
    """

    squeeze: int
    multiple: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        hidden = channels // self.squeeze
        hidden = max(self.multiple, (hidden + self.multiple // 2) // self.multiple * self.multiple)
        gate = global_avg_pool(x)
        gate = relu(Dense(hidden, dtype=self.dtype, name="reduce")(gate))
        gate = nn.sigmoid(Dense(channels, dtype=self.dtype, name="expand")(gate))
        return x * gate[:, None, None]


class EfficientChannelAttention(nn.Module):
    """Efficient channel attention (Wang et al. 2019, arXiv:1910.03151): gates from the means of neighbouring channels.

    The channel means are convolved along the channels, with zeros beyond the ends; a sigmoid gives the gates.
    [B, H, W, C] -> [B, H, W, C]. Parameters: kernel [k], k growing with C (see `eca_kernel_size`).

    Attributes:
        dtype: type of the computation.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        size = eca_kernel_size(channels)
        uniform = nn.initializers.uniform(2 / math.sqrt(size))  # PyTorch's default: between ±1 / sqrt(fan-in)
        kernel = self.param("kernel", lambda *args: uniform(*args) - 1 / math.sqrt(size), (size,), jnp.float32)
        kernel = kernel.astype(self.dtype)
        means = jnp.pad(global_avg_pool(x), ((0, 0), (size // 2, size // 2)))
        gate = nn.sigmoid(sum(kernel[i] * lax.slice_in_dim(means, i, i + channels, axis=1) for i in range(size)))
        return x * gate[:, None, None]

    def positions(self, shape: Shape) -> int:
        """Return the number of positions per image at which the convolution is computed: the channels.

        Args:
            shape: shape of the input, [B, H, W, C].
        """
        return shape[-1]


def eca_kernel_size(channels: int) -> int:
    """Return the kernel size of section 3.3: the odd number at or after (log2(channels) + 1) / 2, at least 3."""
    size = int((math.log2(channels) + 1) / 2)
    return max(size if size % 2 else size + 1, 3)
