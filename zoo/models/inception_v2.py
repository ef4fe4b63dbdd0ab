"""Inception-v2, also called BN-Inception.

Ioffe and Szegedy 2015, "Batch normalization: accelerating deep network training by reducing internal covariate shift",
arXiv:1502.03167, figure 5.

Differs from the paper: the pool projections of 4c and 4d have 96 features instead of 128. With 128 the filters of the
figure add up to 608 channels, while its output sizes say 576 and module 4e needs 576. The authors' TensorFlow model has
96 too. There are no auxiliary heads: figure 5 shows none. Running averages keep 0.9 of their value in a step; TF-Slim
keeps 0.9997 in all its Inceptions.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from zoo.models.branches import Branch, Branches, Pool, Unit, unit_constructor
from zoo.models.layers import (
    BatchNorm,
    Conv,
    classify,
    maybe_remat,
    require_blocks,
    require_images,
    require_stem,
    scale_width,
)
from zoo.models.operations import global_avg_pool, max_pool, relu

# Figure 5: #1x1, #3x3 reduce, #3x3, double #3x3 reduce, double #3x3, pool, pool proj. A module without #1x1 has stride
# 2 and no projection after its pool.
INCEPTIONS = {
    "inception3a": (64, 64, 64, 64, 96, "avg", 32),
    "inception3b": (64, 64, 96, 64, 96, "avg", 64),
    "inception3c": (0, 128, 160, 64, 96, "max", 0),
    "inception4a": (224, 64, 96, 96, 128, "avg", 128),
    "inception4b": (192, 96, 128, 96, 128, "avg", 128),
    "inception4c": (160, 128, 160, 128, 160, "avg", 96),
    "inception4d": (96, 128, 192, 160, 192, "avg", 96),
    "inception4e": (0, 128, 192, 192, 256, "max", 0),
    "inception5a": (352, 192, 320, 160, 224, "avg", 128),
    "inception5b": (352, 192, 320, 192, 224, "max", 128),
}
# Rows 3a…, 4a… and 5a… without stride
LARGEST = tuple(sum(name[-2] == stage and row[0] > 0 for name, row in INCEPTIONS.items()) for stage in "345")
STEM = ("conv1", "conv2_reduce", "conv2")
DEPTH_MULTIPLIER = 8  # appendix: of the separable first convolution


def module_names(blocks: tuple[int, int, int]) -> tuple[str, ...]:
    """Return the names of the first modules 3a…, 4a… and 5a…, `blocks` of each, and of the strided ones, 3c and 4e.

    Raises:
        ValueError: if the figure has fewer.
    """
    require_blocks(blocks, LARGEST, "inception_v2")
    return tuple(
        name for name, row in INCEPTIONS.items() if row[0] == 0 or "abcde".index(name[-1]) < blocks[int(name[-2]) - 3]
    )


def inception(f1, f3_reduce, f3, double_reduce, double, pool, projection) -> tuple[Branch, ...]:
    """Return the branches of a module from its row of INCEPTIONS."""
    stride = 1 if f1 else 2
    kind = "avg_inside" if pool == "avg" else "max"
    straight = ((Unit("branch1x1", f1, 1),),) if f1 else ()
    pooled = (Pool(kind), Unit("branch_pool", projection, 1)) if projection else (Pool(kind, 2),)
    return (
        *straight,
        (Unit("branch3x3_reduce", f3_reduce, 1), Unit("branch3x3", f3, 3, stride)),
        (
            Unit("branch3x3dbl_reduce", double_reduce, 1),
            Unit("branch3x3dbl_1", double, 3),
            Unit("branch3x3dbl_2", double, 3, stride),
        ),
        pooled,
    )


class SeparableConv(nn.Module):
    """The first convolution: 8 kernels for each channel separately, a 1x1 convolution, norm and ReLU.

    Children: depthwise, pointwise, norm.
    """

    features: int
    kernel_size: int
    stride: int
    norm: Any
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        channels = x.shape[-1]
        x = Conv(DEPTH_MULTIPLIER * channels, self.kernel_size, self.stride, groups=channels, use_bias=False,
                 dtype=self.dtype, name="depthwise")(x)  # fmt: skip
        x = Conv(self.features, 1, use_bias=False, dtype=self.dtype, name="pointwise")(x)
        return relu(self.norm(name="norm")(x, not train))


class InceptionV2(nn.Module):
    """Inception-v2 (figure 5): 11,188,288 parameters with 1,000 classes; no auxiliary heads, no dropout.

    The 13.6 million parameters of section 4.2 do not follow from the figure. The first convolution is separable, as in
    the appendix. Not specified in the paper: strided layers pad by half their kernel, and the two pools of the stem
    round up as in GoogLeNet; average pools in the modules do not count their padding and epsilon is 1e-3, as in the
    authors' TensorFlow model; convolutions are initialised over the fan-out (He et al. 2015).

    Attributes:
        num_classes: number of classes, or None for no head.
        stem: "imagenet", for images from 7 pixels up, or "small", from 8: a 3x3 convolution with stride 1, and no
            second pool (not in the paper).
        width: factor of all channels.
        blocks: number of modules 3a…, 4a… and 5a…, at most those of the figure, not counting the strided ones, 3c and
            4e, which are always present.
        dropout: rate before the head.
        epsilon: added to the variance by batch norms.
        axis_name: pmap axis over which batch statistics are shared.
        dtype: type of the computation.
        remat: recompute activations of the modules in the backward pass.
    """

    num_classes: int | None = 1000
    stem: str = "imagenet"
    width: float = 1.0
    blocks: tuple[int, int, int] = (2, 4, 2)
    dropout: float = 0.0
    epsilon: float = 1e-3
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    family = "inception_v2"
    model_parallel = (r"head/(kernel|bias)",)
    paper = "Ioffe and Szegedy 2015, Batch normalization (arXiv:1502.03167)"

    @property
    def stages(self) -> tuple[str, ...]:
        return (*STEM, *module_names(self.blocks), "head")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (32, 32, 3) if self.stem == "small" else (224, 224, 3)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_stem(self.stem, "inception_v2")
        small = self.stem == "small"
        require_images(images, 8 if small else 7, "inception_v2")
        norm = partial(BatchNorm, epsilon=self.epsilon, axis_name=self.axis_name)
        conv = unit_constructor(self)
        kernel_size, stride = (3, 1) if small else (7, 2)
        conv1 = SeparableConv(scale_width(64, self.width), kernel_size, stride, norm, self.dtype, name="conv1")
        block = partial(maybe_remat(Branches, self.remat), conv=conv)
        ends = {}
        x = images.astype(self.dtype)  # [B, 224, 224, 3]
        ends["conv1"] = x = conv1(x, train)  # [B, 112, 112, 64]
        x = max_pool(x, 3, 2, ceil=True)  # [B, 56, 56, 64]
        ends["conv2_reduce"] = x = conv(64, 1, name="conv2_reduce")(x, train)
        ends["conv2"] = x = conv(192, 3, name="conv2")(x, train)
        x = x if small else max_pool(x, 3, 2, ceil=True)  # [B, 28, 28, 192]
        for name in module_names(self.blocks):  # 3c: [B, 14, 14, 576], 4e: [B, 7, 7, 1024]
            ends[name] = x = block(inception(*INCEPTIONS[name]), name=name)(x, train)
        features = global_avg_pool(x)  # [B, 1024]
        return classify(features, ends, self.num_classes, train, dropout=self.dropout,
                        kernel_init=nn.initializers.lecun_normal(), dtype=self.dtype)  # fmt: skip
