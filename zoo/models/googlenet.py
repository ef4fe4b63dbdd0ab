"""GoogLeNet.

Szegedy et al. 2014, "Going deeper with convolutions", arXiv:1409.4842. `GoogLeNet` is the network of the paper;
`GoogLeNetBN` is torchvision's `googlenet`, a different function under the same name.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from zoo.models.branches import unit_constructor
from zoo.models.layers import (
    Conv,
    Dense,
    Initializer,
    classify,
    maybe_remat,
    require_blocks,
    require_images,
    require_stem,
    scale_width,
)
from zoo.models.operations import adaptive_avg_pool, avg_pool, global_avg_pool, local_response_norm, max_pool, relu

# Table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
INCEPTIONS = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
LARGEST = tuple(sum(name[-2] == stage for name in INCEPTIONS) for stage in "345")  # rows 3a…, 4a… and 5a…
# Section 5: the auxiliary classifiers read the outputs of 4a and 4d; the weight of their losses in training is 0.3.
AUX_AFTER = {"inception4a": "aux1", "inception4d": "aux2"}
STEM = ("conv1", "conv2_reduce", "conv2")


class ConvRelu(nn.Module):
    """Convolution with bias, and ReLU; called with (x, train), as `ConvNorm`. Child: conv."""

    features: int
    kernel_size: int
    stride: int = 1
    kernel_init: Initializer = nn.initializers.he_normal()
    bias_init: Initializer = nn.initializers.zeros
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        x = Conv(self.features, self.kernel_size, self.stride, kernel_init=self.kernel_init, bias_init=self.bias_init,
                 dtype=self.dtype, name="conv")(x)  # fmt: skip
        return relu(x)


class Inception(nn.Module):
    """Inception module (figure 2b): 1x1, 3x3, 5x5 and pooling branches. [B, H, W, C] -> [B, H, W, F].

    Attributes:
        filters: a row of table 1. F is the sum of #1x1, #3x3, #5x5 and pool proj.
        conv: constructor of a convolution, conv(features, kernel_size, name=…).
        kernel_size5: kernel size of the 5x5 branch.
    """

    filters: tuple[int, ...]
    conv: Callable[..., nn.Module]
    kernel_size5: int = 5

    @nn.compact
    def __call__(self, x, train: bool):
        f1, f3_reduce, f3, f5_reduce, f5, f_pool = self.filters
        branch1 = self.conv(f1, 1, name="branch1x1")(x, train)
        branch3 = self.conv(f3_reduce, 1, name="branch3x3_reduce")(x, train)
        branch3 = self.conv(f3, 3, name="branch3x3")(branch3, train)
        branch5 = self.conv(f5_reduce, 1, name="branch5x5_reduce")(x, train)
        branch5 = self.conv(f5, self.kernel_size5, name="branch5x5")(branch5, train)
        pooled = self.conv(f_pool, 1, name="branch_pool")(max_pool(x, 3, 1, padding=1), train)
        return jnp.concatenate([branch1, branch3, branch5, pooled], axis=-1)


class AuxiliaryHead(nn.Module):
    """Auxiliary classifier (section 5): pooling to 4x4 cells, 1x1 convolution, hidden layer, dropout, logits.

    Children: conv, dense, head.

    Attributes:
        num_classes: number of classes.
        conv: constructor of a convolution.
        dense: constructor of a dense layer.
        pool: function [B, H, W, C] -> [B, 4, 4, C].
        hidden: units of the hidden layer.
        dropout: rate after the hidden layer.
    """

    num_classes: int
    conv: Callable[..., nn.Module]
    dense: Callable[..., nn.Module]
    pool: Callable
    hidden: int
    dropout: float

    @nn.compact
    def __call__(self, x, train: bool):
        x = self.pool(x)  # [B, 4, 4, C]
        x = self.conv(128, 1, name="conv")(x, train)  # [B, 4, 4, 128]
        x = relu(self.dense(self.hidden, name="dense")(x.reshape(x.shape[0], -1)))  # [B, 1024]
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        return self.dense(self.num_classes, bias_init=nn.initializers.zeros, name="head")(x).astype(jnp.float32)


def pool_to_4x4(x):
    """Average over 5x5 with stride 3, as in the paper, if that gives 4x4 cells; otherwise over nearly equal cells."""
    if all((side - 5) // 3 + 1 == 4 for side in x.shape[1:3]):
        return avg_pool(x, 5, 3)
    return adaptive_avg_pool(x, (4, 4))


def module_names(blocks: tuple[int, int, int]) -> tuple[str, ...]:
    """Return the names of the first modules 3a…, 4a… and 5a…, `blocks` of each.

    Raises:
        ValueError: if the table has fewer.
    """
    require_blocks(blocks, LARGEST, "googlenet")
    return tuple(name for name in INCEPTIONS if "abcde".index(name[-1]) < blocks[int(name[-2]) - 3])


def run_modules(x, train: bool, blocks, inception: Callable, last_pool: int, aux: Callable | None):
    """Apply modules 3a to 5b and the pools between them: [B, 28, 28, 192] -> [B, 7, 7, 1024].

    Args:
        x: activations of the stem.
        train: training mode.
        blocks: number of modules 3a…, 4a… and 5a….
        inception: constructor of a module, inception(filters, name=…).
        last_pool: side of the pooling window before 5a.
        aux: constructor of an auxiliary head, aux(name=…), or None.

    Returns:
        (activations, endpoints); endpoints include the auxiliary logits.
    """
    ends = {}
    for name in module_names(blocks):
        if name == "inception4a":
            x = max_pool(x, 3, 2, ceil=True)  # [B, 14, 14, 480]
        if name == "inception5a":
            x = max_pool(x, last_pool, 2, ceil=True)  # [B, 7, 7, 832]
        ends[name] = x = inception(INCEPTIONS[name], name=name)(x, train)
        if aux is not None and name in AUX_AFTER:
            ends[AUX_AFTER[name]] = aux(name=AUX_AFTER[name])(x, train)
    return x, ends


class GoogLeNet(nn.Module):
    """GoogLeNet of the paper: 6,998,552 parameters with 1,000 classes, 13,378,280 with both auxiliary heads.

    5x5 convolutions, biases, local response normalisation in the stem, no batch norm. Not specified in the paper, and
    taken from its reproduction in Caffe: response normalisation over 5 channels with k = 1, alpha = 2e-5 (1e-4 in
    Caffe, which divides it by 5) and beta = 0.75; pools that round up; uniform initialisation with variance 1 / fan-in,
    biases at 0.2. Inputs are pixels in 0..255 less their mean by default, as in Caffe. The endpoints aux1 and aux2 hold
    the auxiliary logits.

    Attributes:
        num_classes: number of classes, or None for no head.
        stem: "imagenet", for images from 31 pixels up, or "small", from 8: a 3x3 convolution with stride 1, no second
            pool, and initialisation after He et al. 2015 for inputs of unit variance (not in the paper).
        width: factor of all channels.
        blocks: number of modules 3a…, 4a… and 5a…, at most those of table 1.
        aux_heads: add the auxiliary heads. At other sizes than 224 they pool to 4x4 nearly equal cells.
        dropout: rate before the head.
        aux_dropout: rate in the auxiliary heads.
        dtype: type of the computation.
        remat: recompute activations of the modules in the backward pass.
    """

    num_classes: int | None = 1000
    stem: str = "imagenet"
    width: float = 1.0
    blocks: tuple[int, int, int] = (2, 5, 2)
    aux_heads: bool = True
    dropout: float = 0.4
    aux_dropout: float = 0.7
    dtype: Any = jnp.float32
    remat: bool = False

    family = "googlenet"
    model_parallel = (r"(aux\d/dense|aux\d/head|head)/(kernel|bias)",)
    paper = "Szegedy et al. 2014, Going deeper with convolutions (arXiv:1409.4842)"

    @property
    def stages(self) -> tuple[str, ...]:
        return (*STEM, *module_names(self.blocks), "head")

    @property
    def normalisation(self) -> str:
        """Default of the recipe field: the mean is subtracted from values in 0..255 (section 5, and Caffe)."""
        return "centre" if self.stem == "imagenet" else "standardise"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (32, 32, 3) if self.stem == "small" else (224, 224, 3)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_stem(self.stem, "googlenet")
        small = self.stem == "small"
        require_images(images, 8 if small else 31, "googlenet")
        init = nn.initializers.he_normal() if small else nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        bias = nn.initializers.constant(0 if small else 0.2)
        dense = partial(Dense, kernel_init=init, bias_init=bias, dtype=self.dtype)
        normalise = partial(local_response_norm, size=5, alpha=2e-5, beta=0.75, k=1.0)

        def conv(features, kernel_size, stride=1, *, name):
            return ConvRelu(scale_width(features, self.width), kernel_size, stride, init, bias, self.dtype, name=name)

        aux = None
        if self.aux_heads and self.num_classes is not None:
            aux = partial(AuxiliaryHead, self.num_classes, conv, dense, pool_to_4x4, scale_width(1024, self.width),
                          self.aux_dropout)  # fmt: skip
        ends = {}
        x = images.astype(self.dtype)  # [B, 224, 224, 3]
        ends["conv1"] = x = (conv(64, 3, name="conv1") if small else conv(64, 7, 2, name="conv1"))(x, train)
        x = normalise(max_pool(x, 3, 2, ceil=True))  # [B, 56, 56, 64]
        ends["conv2_reduce"] = x = conv(64, 1, name="conv2_reduce")(x, train)
        ends["conv2"] = x = conv(192, 3, name="conv2")(x, train)
        x = normalise(x)
        x = x if small else max_pool(x, 3, 2, ceil=True)  # [B, 28, 28, 192]
        inception = partial(maybe_remat(Inception, self.remat), conv=conv)
        x, module_ends = run_modules(x, train, self.blocks, inception, 3, aux)
        ends |= module_ends
        features = global_avg_pool(x)  # [B, 1024]
        return classify(
            features, ends, self.num_classes, train, dropout=self.dropout, kernel_init=init, dtype=self.dtype
        )


class GoogLeNetBN(nn.Module):
    """torchvision's `googlenet`: 6,624,904 parameters with 1,000 classes, 13,004,888 with both auxiliary heads.

    Differs from the paper: batch norm after every convolution instead of biases, no local response normalisation, a 3x3
    kernel in the branch called 5x5, a 2x2 pool before module 5a, auxiliary heads that pool to 4x4 nearly equal cells at
    every size, dropout 0.2. Kernels are initialised from N(0, 0.01) as in torchvision, dense biases at 0.

    Attributes:
        num_classes: number of classes, or None for no head.
        stem: "imagenet", for images from 15 pixels up, or "small", from 4, as in `GoogLeNet`.
        width: factor of all channels.
        blocks: number of modules 3a…, 4a… and 5a…, at most those of table 1.
        aux_heads: add the auxiliary heads.
        dropout: rate before the head.
        aux_dropout: rate in the auxiliary heads.
        epsilon: added to the variance by batch norms.
        axis_name: pmap axis over which batch statistics are shared.
        dtype: type of the computation.
        remat: recompute activations of the modules in the backward pass.
    """

    num_classes: int | None = 1000
    stem: str = "imagenet"
    width: float = 1.0
    blocks: tuple[int, int, int] = (2, 5, 2)
    aux_heads: bool = True
    dropout: float = 0.2
    aux_dropout: float = 0.7
    epsilon: float = 1e-3
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    family = "googlenet"
    model_parallel = (r"(aux\d/dense|aux\d/head|head)/(kernel|bias)",)
    paper = "Szegedy et al. 2014, Going deeper with convolutions (arXiv:1409.4842)"

    @property
    def stages(self) -> tuple[str, ...]:
        return (*STEM, *module_names(self.blocks), "head")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (32, 32, 3) if self.stem == "small" else (224, 224, 3)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_stem(self.stem, "googlenet_bn")
        small = self.stem == "small"
        require_images(images, 4 if small else 15, "googlenet_bn")
        gaussian = nn.initializers.normal(0.01)
        dense = partial(Dense, kernel_init=gaussian, dtype=self.dtype)
        conv = unit_constructor(self, gaussian)
        aux = None
        if self.aux_heads and self.num_classes is not None:
            aux = partial(AuxiliaryHead, self.num_classes, conv, dense, partial(adaptive_avg_pool, size=(4, 4)),
                          scale_width(1024, self.width), self.aux_dropout)  # fmt: skip
        ends = {}
        x = images.astype(self.dtype)  # [B, 224, 224, 3]
        ends["conv1"] = x = (conv(64, 3, name="conv1") if small else conv(64, 7, 2, name="conv1"))(x, train)
        x = max_pool(x, 3, 2, ceil=True)  # [B, 56, 56, 64]
        ends["conv2_reduce"] = x = conv(64, 1, name="conv2_reduce")(x, train)
        ends["conv2"] = x = conv(192, 3, name="conv2")(x, train)
        x = x if small else max_pool(x, 3, 2, ceil=True)  # [B, 28, 28, 192]
        inception = partial(maybe_remat(Inception, self.remat), conv=conv, kernel_size5=3)
        x, module_ends = run_modules(x, train, self.blocks, inception, 2, aux)
        ends |= module_ends
        features = global_avg_pool(x)  # [B, 1024]
        return classify(features, ends, self.num_classes, train, dropout=self.dropout,
                        kernel_init=gaussian, dtype=self.dtype)  # fmt: skip
