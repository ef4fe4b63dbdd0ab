"""Xception.

Chollet 2016, "Xception: deep learning with depthwise separable convolutions", arXiv:1610.02357, figure 5. A separable
convolution is a 3x3 convolution of each channel by itself followed by a 1x1 convolution, with nothing in between.

The defaults are timm's `legacy_xception`. Keras's Xception, by the author, differs in how images of even size are
pooled (TensorFlow pads only below and on the right) and in the epsilon of the norms: `pool_padding="same",
epsilon=1e-3`. Dropout 0.5 before the head is the paper's for ImageNet (section 4.3). Not specified in the paper:
convolutions are initialised over the fan-in (He et al. 2015), which for a depthwise kernel is its 9 weights; running
averages keep 0.9 of their value in a step, as in PyTorch, where Keras's batch norm keeps 0.99.

The small-image form (`stem="small"`) is not in the paper: neither convolution of the stem reduces the image; 32 pixels
become 4 in the middle flow.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from zoo.models.layers import (
    BatchNorm,
    Conv,
    ConvNorm,
    classify,
    maybe_remat,
    require_images,
    require_stem,
    scale_width,
)
from zoo.models.operations import global_avg_pool, max_pool, relu


class SeparableConvNorm(nn.Module):
    """Separable 3x3 convolution and norm: [B, H, W, C] -> [B, H, W, features].

    Children: depthwise, pointwise, norm.
    """

    features: int
    norm: Callable[..., nn.Module]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        channels = x.shape[-1]
        conv = partial(Conv, use_bias=False, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)
        x = conv(channels, 3, groups=channels, name="depthwise")(x)
        x = conv(self.features, 1, name="pointwise")(x)
        return self.norm(name="norm")(x, not train)


class Block(nn.Module):
    """Separable convolutions, each after a ReLU, and a shortcut.

    Children: sepconv1, sepconv2, …, shortcut.

    Attributes:
        features: channels of each separable convolution.
        separable: constructor of a separable convolution.
        shortcut: constructor of the shortcut's strided 1x1 convolution with norm.
        pool: pooling with stride 2 at the end of the branch, or None for an identity shortcut.
        relu_first: apply ReLU before the first convolution.
    """

    features: tuple[int, ...]
    separable: Callable[..., nn.Module]
    shortcut: Callable[..., nn.Module]
    pool: Callable | None = None
    relu_first: bool = True

    @nn.compact
    def __call__(self, x, train: bool):
        branch = x
        for i, features in enumerate(self.features, 1):
            branch = relu(branch) if i > 1 or self.relu_first else branch
            branch = self.separable(features, name=f"sepconv{i}")(branch, train)
        if self.pool is None:
            return branch + x
        return self.pool(branch) + self.shortcut(self.features[-1], name="shortcut")(x, train)


def _pool_symmetric(x):
    return max_pool(x, 3, 2, padding=1)


def _pool_same(x):
    """Pool with TensorFlow's padding: images of even size are padded only below and on the right."""
    pads = lax.padtype_to_pads(x.shape[1:3], (3, 3), (2, 2), "SAME")
    return max_pool(jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf), 3, 2)


POOLS = {"symmetric": _pool_symmetric, "same": _pool_same}


class Xception(nn.Module):
    """Xception (figure 5): 22,855,952 parameters with 1,000 classes.

    Stages: stem (its two convolutions), the three blocks of the entry flow, middle, exit, head.

    Attributes:
        num_classes: number of classes, or None for no head.
        blocks: (number of blocks in the middle flow,).
        stem: "imagenet", for images from 7 pixels up, or "small", from 9.
        width: factor of all channels.
        pool_padding: "symmetric" (timm) or "same" (Keras).
        dropout: rate before the head.
        epsilon: added to the variance by batch norms.
        axis_name: pmap axis over which batch statistics are shared.
        dtype: type of the computation.
        remat: recompute activations of the blocks in the backward pass.
    """

    num_classes: int | None = 1000
    blocks: tuple[int] = (8,)
    stem: str = "imagenet"
    width: float = 1.0
    pool_padding: str = "symmetric"
    dropout: float = 0.5
    epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    family = "xception"
    model_parallel = (
        r"exit_\w+/pointwise/kernel",
        r"head/(kernel|bias)",
    )
    paper = "Chollet 2016, Xception: deep learning with depthwise separable convolutions (arXiv:1610.02357)"
    stages = ("stem", "entry_block1", "entry_block2", "entry_block3", "middle", "exit", "head")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (32, 32, 3) if self.stem == "small" else (299, 299, 3)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_stem(self.stem, "xception")
        if self.pool_padding not in POOLS:
            raise ValueError(f"xception's pool_padding {self.pool_padding!r} is not one of {', '.join(POOLS)}")
        small = self.stem == "small"
        require_images(images, 9 if small else 7, "xception")  # 9: each of the four pools then reduces the image
        channels = partial(scale_width, width=self.width)
        norm = partial(BatchNorm, epsilon=self.epsilon, axis_name=self.axis_name)
        conv = partial(ConvNorm, norm=norm, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)
        separable = partial(SeparableConvNorm, norm=norm, dtype=self.dtype)
        pool = POOLS[self.pool_padding]

        def block(*features, name, **fields):
            return maybe_remat(Block, self.remat)(
                tuple(map(channels, features)), separable, partial(conv, kernel_size=1, stride=2, act=None), name=name,
                **fields,
            )  # fmt: skip

        ends = {}
        x = images.astype(self.dtype)  # [B, 299, 299, 3]
        stride, padding = (1, 1) if small else (2, 0)
        x = conv(channels(32), 3, stride=stride, padding=padding, name="stem_conv1")(x, train)  # [B, 149, 149, 32]
        ends["stem"] = x = conv(channels(64), 3, padding=padding, name="stem_conv2")(x, train)  # [B, 147, 147, 64]
        # [B, 74, 74, 128], [B, 37, 37, 256], [B, 19, 19, 728]
        for i, width in enumerate((128, 256, 728), 1):
            name = f"entry_block{i}"
            ends[name] = x = block(width, width, pool=pool, relu_first=i > 1, name=name)(x, train)
        for i in range(1, self.blocks[0] + 1):
            x = block(728, 728, 728, name=f"middle_block{i}")(x, train)
        ends["middle"] = x  # [B, 19, 19, 728]
        x = block(728, 1024, pool=pool, name="exit_block")(x, train)  # [B, 10, 10, 1024]
        x = relu(separable(channels(1536), name="exit_sepconv1")(x, train))  # [B, 10, 10, 1536]
        ends["exit"] = x = relu(separable(channels(2048), name="exit_sepconv2")(x, train))  # [B, 10, 10, 2048]
        features = global_avg_pool(x)  # [B, 2048]
        return classify(features, ends, self.num_classes, train, dropout=self.dropout, dtype=self.dtype)
