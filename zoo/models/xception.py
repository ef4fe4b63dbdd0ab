"""Xception. Chollet 2016, "Xception: deep learning with depthwise separable convolutions", arXiv:1610.02357, figure 5.

A separable convolution is a 3x3 over each channel by itself, then a 1x1, with nothing in between; norm follows it.

The defaults are timm's `legacy_xception`. Keras's Xception, the author's own, differs where an image of even size is
pooled (TensorFlow pads only below and to the right) and in the norms' epsilon, and is given by two fields:
`pool_padding="same", epsilon=1e-3`. Dropout 0.5 before the head is the paper's for ImageNet.
Initialisation: the paper does not say; He et al. 2015 over the fan-in (of a depthwise kernel: its 9 numbers).
The small-image form (`stem="small"`): neither of the stem's convolutions cuts the image; 32 pixels become 4 in the
middle flow.
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
    global_avg_pool,
    max_pool,
    rematerialised,
    require_images,
    require_stem,
    scale_width,
    uniform_head,
)


class SeparableConvNorm(nn.Module):
    """3x3 over each channel, 1x1, norm: [B, H, W, C] -> [B, H, W, features]. Children: depthwise, pointwise, norm."""

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
    """Separable convolutions, each after a ReLU (the very first without), and a shortcut around them.

    With `pool` the block ends in a 3x3 maximum with stride 2, and its shortcut is a strided 1x1 convolution with norm.
    Children: sepconv1, sepconv2, …, shortcut.
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
            branch = nn.relu(branch) if i > 1 or self.relu_first else branch
            branch = self.separable(features, name=f"sepconv{i}")(branch, train)
        if self.pool is None:
            return branch + x
        return self.pool(branch) + self.shortcut(self.features[-1], name="shortcut")(x, train)


def _pool_symmetric(x):
    return max_pool(x, 3, 2, padding=1)


def _pool_same(x):
    """TensorFlow's padding: an image of even size gets a row only below and a column only to the right."""
    pads = lax.padtype_to_pads(x.shape[1:3], (3, 3), (2, 2), "SAME")
    return max_pool(jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf), 3, 2)


POOLS = {"symmetric": _pool_symmetric, "same": _pool_same}


class Xception(nn.Module):
    """Figure 5: 22,855,952 parameters with 1,000 classes.

    `blocks`: how many in the middle flow. `stem`: "imagenet", for images from 7 pixels up, or "small", from 9.
    `width` multiplies all channels. `pool_padding`: "symmetric" (timm) or "same" (Keras).
    Stages: stem (the two convolutions), the three blocks of the entry flow, middle, exit, head.
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
        require_images(images, 9 if small else 7, "xception")  # from 9 pixels each of the four pools has some to merge
        channels = partial(scale_width, width=self.width)
        norm = partial(BatchNorm, epsilon=self.epsilon, axis_name=self.axis_name)
        conv = partial(ConvNorm, norm=norm, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)
        separable = partial(SeparableConvNorm, norm=norm, dtype=self.dtype)
        pool = POOLS[self.pool_padding]

        def block(*features, name, **fields):
            return rematerialised(Block, self.remat)(
                tuple(map(channels, features)), separable, partial(conv, kernel=1, stride=2, act=None), name=name,
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
        x = nn.relu(separable(channels(1536), name="exit_sepconv1")(x, train))  # [B, 10, 10, 1536]
        ends["exit"] = x = nn.relu(separable(channels(2048), name="exit_sepconv2")(x, train))  # [B, 10, 10, 2048]
        ends["features"] = x = global_avg_pool(x)  # [B, 2048]
        if self.num_classes is not None:
            x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
            x = nn.Dense(self.num_classes, kernel_init=uniform_head, dtype=self.dtype, name="head")(x)
            ends["logits"] = x = x.astype(jnp.float32)
        return x, ends
