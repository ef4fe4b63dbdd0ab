"""Inception-ResNet-v2."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from zoo.models.inception_v4 import InceptionV4, ReductionA, _branch, _head, _join, _mean, _unit
from zoo.models.layers import (
    Conv,
    max_pool,
    rematerialised,
    require_images,
    require_stem,
)

# Figures 16, 17 and 19 as released: (factor of the branch, branches).
INCEPTION_RESNETS = {
    "inceptionresnetA": (
        0.17,
        (
            ("branch1x1", (32, 1)),
            ("branch3x3", (32, 1), (32, 3)),
            ("branch3x3dbl", (32, 1), (48, 3), (64, 3)),
        ),
    ),
    "inceptionresnetB": (
        0.1,
        (
            ("branch1x1", (192, 1)),
            ("branch7x7", (128, 1), (160, (1, 7)), (192, (7, 1))),
        ),
    ),
    "inceptionresnetC": (
        0.2,
        (
            ("branch1x1", (192, 1)),
            ("branch3x3", (192, 1), (224, (1, 3)), (256, (3, 1))),
        ),
    ),
}


class StemResNetV2(nn.Module):
    """Inception-v3's stem and the module mixed_5b. [B, 299, 299, C] -> [B, 35, 35, 320]; 32 -> 15 pixels if `small`."""

    conv: Callable[..., nn.Module]
    small: bool

    @nn.compact
    def __call__(self, x, train: bool):
        branch, cut = partial(_branch, self.conv), None if self.small else 0
        x = branch(x, train, "conv1", (32, 3, 1 if self.small else 2, cut))  # [B, 149, 149, 32]
        x = branch(x, train, "conv2", (32, 3, 1, cut))  # [B, 147, 147, 32]
        x = max_pool(branch(x, train, "conv3", (64, 3)), 3, 2)  # [B, 73, 73, 64]
        x = branch(x, train, "conv4", (80, 1))  # [B, 73, 73, 80]
        x = branch(x, train, "conv5", (192, 3, 1, cut))  # [B, 71, 71, 192]
        x = x if self.small else max_pool(x, 3, 2)  # [B, 35, 35, 192]
        return _join(
            branch(x, train, "mixed5b_branch1x1", (96, 1)),
            branch(x, train, "mixed5b_branch5x5", (48, 1), (64, 5)),
            branch(x, train, "mixed5b_branch3x3dbl", (64, 1), (96, 3), (96, 3)),
            branch(_mean(x), train, "mixed5b_branch_pool", (64, 1)),
        )


class InceptionResNet(nn.Module):
    """act(x + scale * branches), the branches brought to the channels of x by a 1x1 convolution with bias, `expand`."""

    conv: Callable[..., nn.Module]
    branches: tuple[tuple[Any, ...], ...]
    scale: float
    act: Callable | None
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        mixed = _join(*(_branch(self.conv, x, train, name, *layers) for name, *layers in self.branches))
        init = nn.initializers.he_normal()
        expanded = Conv(x.shape[-1], 1, kernel_init=init, dtype=self.dtype, name="expand")(mixed)
        x = x + self.scale * expanded
        return x if self.act is None else self.act(x)


class ReductionBResNetV2(nn.Module):
    """Figure 18 as released: [B, 17, 17, 1088] -> [B, 8, 8, 2080]."""

    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, train: bool):
        branch = partial(_branch, self.conv)
        return _join(
            branch(x, train, "branch3x3a", (256, 1), (384, 3, 2, 0)),
            branch(x, train, "branch3x3b", (256, 1), (288, 3, 2, 0)),
            branch(x, train, "branch3x3dbl", (256, 1), (288, 3), (320, 3, 2, 0)),
            max_pool(x, 3, 2),
        )


class InceptionResNetV2(nn.Module):
    """The released Inception-ResNet-v2: 55,843,464 parameters with 1,000 classes; timm's `inception_resnet_v2`.

    `blocks`: how many of Inception-ResNet-A, -B, -C; the last C adds its branch unscaled and without ReLU.
    `stem`: "imagenet", for images from 75 pixels up, or "small", from 15. `width` multiplies all channels.
    Stages: stem (with mixed_5b), each run of blocks, each reduction, conv7b (the last 1x1 convolution), head.
    """

    num_classes: int | None = 1000
    blocks: tuple[int, int, int] = (10, 20, 10)
    stem: str = "imagenet"
    width: float = 1.0
    dropout: float = 0.2
    epsilon: float = 1e-3
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    family = "inception_resnet_v2"
    model_parallel = (r"head/(kernel|bias)",)
    paper = InceptionV4.paper
    stages = ("stem", "inceptionresnetA", "reductionA", "inceptionresnetB", "reductionB", "inceptionresnetC", "conv7b",
              "head")  # fmt: skip

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (32, 32, 3) if self.stem == "small" else (299, 299, 3)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_stem(self.stem, "inception_resnet_v2")
        small = self.stem == "small"
        require_images(images, 15 if small else 75, "inception_resnet_v2")
        conv = _unit(self)
        block = rematerialised(InceptionResNet, self.remat)

        def repeated(count, x, name):
            scale, branches = INCEPTION_RESNETS[name]
            for i in range(1, count + 1):
                plain = name == "inceptionresnetC" and i == count
                x = block(conv, branches, 1.0 if plain else scale, None if plain else nn.relu, self.dtype,
                          name=f"{name}{i}")(x, train)  # fmt: skip
            return x

        count_a, count_b, count_c = self.blocks
        ends = {}
        x = images.astype(self.dtype)  # [B, 299, 299, 3]
        ends["stem"] = x = rematerialised(StemResNetV2, self.remat)(conv, small, name="stem")(x, train)
        ends["inceptionresnetA"] = x = repeated(count_a, x, "inceptionresnetA")  # [B, 35, 35, 320]
        ends["reductionA"] = x = ReductionA(conv, (256, 256, 384, 384), name="reductionA")(x, train)
        ends["inceptionresnetB"] = x = repeated(count_b, x, "inceptionresnetB")  # [B, 17, 17, 1088]
        ends["reductionB"] = x = ReductionBResNetV2(conv, name="reductionB")(x, train)
        ends["inceptionresnetC"] = x = repeated(count_c, x, "inceptionresnetC")  # [B, 8, 8, 2080]
        ends["conv7b"] = x = conv(1536, 1, name="conv7b")(x, train)  # [B, 8, 8, 1536]
        return _head(self, x, ends, train)
