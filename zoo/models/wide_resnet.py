"""Wide residual networks for small images.

Zagoruyko and Komodakis 2016, "Wide residual networks", arXiv:1605.07146: few, wide, pre-activated blocks of two 3x3
convolutions. Their ImageNet network, WRN-50-2, is a ResNet with wide bottlenecks and is in resnet.py.

A projection reads the first activation of its block, as in the authors' code. Differs from that code: convolutions are
initialised from a normal distribution over the fan-out, as in the residual networks; the code draws over the fan-in
since September 2016, and drew over the fan-out before. The head is initialised uniformly, as in PyTorch. Dropout is off
by default: the paper uses 0.3 on CIFAR and 0.4 on SVHN, as the authors' scripts do.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from zoo.models.layers import (
    BatchNorm,
    Conv,
    StochasticDepth,
    block_drop_rate,
    classify,
    he_normal_fan_out,
    maybe_remat,
    require_images,
)
from zoo.models.operations import global_avg_pool, relu


class Block(nn.Module):
    """Block B(3,3) of section 2: norm, ReLU, 3x3, norm, ReLU, dropout, 3x3, and a shortcut (figures 1c and 1d).

    [B, H, W, C] -> [B, H / stride, W / stride, width]. Children: norm1, conv1, norm2, conv2, shortcut.
    """

    width: int
    stride: int
    norm: Callable[..., nn.Module]
    dropout: float
    drop_path_rate: float
    zero_init: bool
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        conv = partial(Conv, self.width, use_bias=False, dtype=self.dtype)
        last_init = nn.initializers.zeros if self.zero_init else he_normal_fan_out
        shortcut = x
        x = relu(self.norm(name="norm1")(x, not train))
        if shortcut.shape[-1] != self.width or self.stride > 1:
            shortcut = conv(1, self.stride, name="shortcut")(x)
        x = conv(3, self.stride, name="conv1")(x)
        x = relu(self.norm(name="norm2")(x, not train))
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        x = conv(3, kernel_init=last_init, name="conv2")(x)
        return shortcut + StochasticDepth(self.drop_path_rate, name="drop")(x, train)


class WideResNet(nn.Module):
    """WRN-depth-widen (Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 1); WRN-28-10: 36,479,194 parameters.

    Stages: stem, stage1, stage2, stage3, norm (the activation after the last block), head.

    Attributes:
        depth: 6n + 4, for n blocks in each of the three stages.
        widen: the paper's k; the stages have 16k, 32k and 64k channels.
        width: channels of the stem, 16 in the paper.
        dropout: rate between the two convolutions of a block (section 2.4; 0.3 on CIFAR, 0.4 on SVHN in the paper).
        stochastic_depth: probability of dropping the branch of the last block in training; it grows linearly from the
            first block (Huang et al. 2016, arXiv:1603.09382).
        keep_first: never drop the first branch: the probability grows from 0 at the first of L blocks, as in timm, and
            not from 1 / L of the last.
        zero_init: start every branch at zero.
        epsilon: added to the variance by batch norms.
        num_classes: number of classes, or None for no head.
        axis_name: pmap axis over which batch statistics are shared.
        dtype: type of the computation.
        remat: recompute activations of the blocks in the backward pass.
    """

    depth: int = 28
    widen: int = 10
    width: int = 16
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    keep_first: bool = False
    zero_init: bool = False
    epsilon: float = 1e-5
    num_classes: int | None = 10
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    added_fields = ("keep_first",)
    family = "wide_resnet"
    model_parallel = (
        r"stage3_block\d+/conv\d/kernel",
        r"head/(kernel|bias)",
    )
    paper = "Zagoruyko and Komodakis 2016, Wide residual networks, arXiv:1605.07146"
    stages = ("stem", "stage1", "stage2", "stage3", "norm", "head")
    input_shape = (32, 32, 3)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"WideResNet's depth must be 6n + 4 (10, 16, 22, 28, 40, …); got {self.depth}")
        require_images(images, 4, "this WideResNet")
        norm = partial(BatchNorm, epsilon=self.epsilon, axis_name=self.axis_name)
        block = maybe_remat(Block, self.remat)
        count = (self.depth - 4) // 6

        x = images.astype(self.dtype)  # [B, 32, 32, 3]
        ends = {}
        ends["stem"] = x = Conv(self.width, 3, use_bias=False, dtype=self.dtype, name="stem")(x)  # [B, 32, 32, 16]
        for i in range(3):  # [B, 32, 32, 16k], [B, 16, 16, 32k], [B, 8, 8, 64k]
            for j in range(count):
                rate = block_drop_rate(self.stochastic_depth, count * i + j + 1, 3 * count, self.keep_first)
                x = block(
                    width=self.width * self.widen * 2**i, stride=2 if i > 0 and j == 0 else 1, norm=norm,
                    dropout=self.dropout, drop_path_rate=rate,
                    zero_init=self.zero_init, dtype=self.dtype, name=f"stage{i + 1}_block{j + 1}",
                )(x, train)  # fmt: skip
            ends[f"stage{i + 1}"] = x
        ends["norm"] = x = relu(norm(name="norm")(x, not train))
        return classify(global_avg_pool(x), ends, self.num_classes, train, dtype=self.dtype)
