"""Residual networks, and what came of them by changing one number or one layer.

He, Zhang, Ren and Sun 2015, "Deep residual learning for image recognition", arXiv:1512.03385 (ResNet). The rest of
the line keeps its figure and its table 1, and is here as fields of the same class:

- Section 4.2 of the same paper (ResNet-20 to 1202 for CIFAR-10): three stages that begin at 16 channels behind a 3x3
  (`width`, `stem="small"`), shortcuts of option A, zero-padded (`shortcut="pad"`; "conv" is option B);
- Xie et al. 2016, "Aggregated residual transformations", arXiv:1611.05431 (ResNeXt): `groups`, `widen`;
- Zagoruyko and Komodakis 2016, "Wide residual networks", arXiv:1605.07146, section 3.4 (WRN-50-2): `widen`. Their
  networks for small images are in wide_resnet.py;
- Hu et al. 2017, "Squeeze-and-excitation networks", arXiv:1709.01507 (SE-ResNet): `squeeze`;
- He et al. 2018, "Bag of tricks", arXiv:1812.01187, figure 2 (ResNet-D): `stem="deep"`, `shortcut="pool"`;
- Huang et al. 2016, "Deep networks with stochastic depth", arXiv:1603.09382: `stochastic_depth`.

Differs from the papers: by default the stride of a bottleneck sits in its 3x3 convolution (called v1.5, as in
torchvision); `stride_in="1x1"` is the paper's. Where option A puts the zeros the paper does not say. Convolutions
start from a normal distribution over the fan-out (the 2015 paper cites arXiv:1502.01852 without saying which fan), the
head from PyTorch's uniform one. The small-image forms are not in the papers: `stem="small"` is a 3x3 convolution
without pooling, as the CIFAR networks of section 4.2 begin; of ResNet-D it leaves the pooled shortcuts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.models.layers import (
    BatchNorm,
    ConvNorm,
    StochasticDepth,
    avg_pool,
    global_avg_pool,
    max_pool,
    relu,
    rematerialised,
    require_images,
    uniform_head,
)

# Table 1: blocks in the four stages, by depth.
RESNET18: dict[str, Any] = {"blocks": (2, 2, 2, 2), "bottleneck": False}
RESNET34: dict[str, Any] = {"blocks": (3, 4, 6, 3), "bottleneck": False}
RESNET50: dict[str, Any] = {"blocks": (3, 4, 6, 3), "bottleneck": True}
RESNET101: dict[str, Any] = {"blocks": (3, 4, 23, 3), "bottleneck": True}
RESNET152: dict[str, Any] = {"blocks": (3, 8, 36, 3), "bottleneck": True}

STEMS = ("imagenet", "deep", "small")
SHORTCUTS = ("conv", "pool", "pad")
STRIDES = ("3x3", "1x1")


def cifar(depth: int) -> dict[str, Any]:
    """The fields of section 4.2's network of 6n + 2 layers: n blocks of two 3x3 with 16, 32 and 64 channels."""
    n = (depth - 2) // 6
    return {
        "blocks": (n, n, n), "bottleneck": False, "width": 16, "stem": "small", "shortcut": "pad", "num_classes": 10,
    }  # fmt: skip


class SqueezeExcite(nn.Module):
    """Each channel times a gate computed from the means of all: [B, H, W, C] -> the same (Hu et al. 2017, figure 2)."""

    squeeze: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        gate = global_avg_pool(x)
        gate = nn.relu(nn.Dense(channels // self.squeeze, dtype=self.dtype, name="reduce")(gate))
        gate = nn.sigmoid(nn.Dense(channels, dtype=self.dtype, name="expand")(gate))
        return x * gate[:, None, None]


class Block(nn.Module):
    """relu(shortcut(x) + branch(x)); the branch is a chain of convolutions (features, kernel, stride, groups).

    Two 3x3 make the basic block, 1x1 - 3x3 - 1x1 the bottleneck (figure 5). Children: conv1, conv2, …, se, shortcut.
    """

    convs: tuple[tuple[int, int, int, int], ...]
    norm: Callable[..., nn.Module]
    shortcut: str
    squeeze: int | None
    drop: float
    zero_init: bool
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        conv_norm = partial(ConvNorm, dtype=self.dtype)
        features, strides = self.convs[-1][0], [stride for _, _, stride, _ in self.convs]
        last_norm = partial(self.norm, scale_init=nn.initializers.zeros) if self.zero_init else self.norm
        branch = shortcut = x
        for i, (width, kernel, stride, groups) in enumerate(self.convs, 1):
            last = i == len(self.convs)
            branch = conv_norm(width, kernel, last_norm if last else self.norm, stride, groups=groups,
                               act=None if last else relu, name=f"conv{i}")(branch, train)  # fmt: skip
        if self.squeeze is not None:
            branch = SqueezeExcite(self.squeeze, self.dtype, name="se")(branch)
        branch = StochasticDepth(self.drop, name="drop")(branch, train)
        stride = max(strides)
        if self.shortcut == "pad":
            shortcut = _subsampled_and_padded(x, features, stride)
        elif stride > 1 or x.shape[-1] != features:
            if self.shortcut == "pool" and stride > 1:  # every pixel is read, where a strided 1x1 skips three of four
                shortcut, stride = _mean_of_four(x), 1
            shortcut = conv_norm(features, 1, self.norm, stride, act=None, name="shortcut")(shortcut, train)
        return relu(shortcut + branch)


def _subsampled_and_padded(x: jax.Array, features: int, stride: int) -> jax.Array:
    """Option A: every stride-th pixel, zeros as the channels that are missing, half of them on either side."""
    missing = features - x.shape[-1]
    channels = (missing // 2, missing - missing // 2)
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), channels))


def _mean_of_four(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C]; a cell that hangs over the edge is the mean of what it has."""
    odd = ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0))
    return avg_pool(jnp.pad(x, odd, mode="edge"), 2, 2)


class DeepStem(nn.Module):
    """Three 3x3 in place of the 7x7 (He et al. 2018, figure 2b): [B, H, W, C] -> [B, H / 2, W / 2, width]."""

    width: int
    norm: Callable[..., nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        conv_norm = partial(ConvNorm, kernel=3, norm=self.norm, dtype=self.dtype)
        x = conv_norm(self.width // 2, stride=2, name="conv1")(x, train)
        x = conv_norm(self.width // 2, name="conv2")(x, train)
        return conv_norm(self.width, name="conv3")(x, train)


class ResNet(nn.Module):
    """ResNet, v1.5 (He et al. 2015, arXiv:1512.03385) and its descendants; ResNet-50 by default.

    `blocks`: number of blocks in each stage. `bottleneck`: 1x1 - 3x3 - 1x1 rather than two 3x3. `width`: channels of
    the stem and the first stage, doubled in every later one (a bottleneck puts out four times as many). `widen`: how
    many times wider a bottleneck's 3x3 is, `groups`: into how many groups it is cut. `squeeze`: reduction of
    squeeze-and-excitation, None without. `stem`: "imagenet" (7x7) and "deep" (three 3x3) are followed by max pooling
    and divide the image by 4, "small" (one 3x3) leaves its size. `shortcut`, where the shape changes: "conv" (strided
    1x1), "pool" (mean, then 1x1) or "pad" (zeros for the channels that are missing, no parameters). `stride_in`: the
    convolution of a bottleneck that has the stride, "3x3" or "1x1". `stochastic_depth`: probability of dropping the
    last block's branch in training, growing linearly from the first (Huang et al., section 3).
    `zero_init`: every branch starts at zero (Goyal et al. 2017, arXiv:1706.02677, section 5.1).

    Stages: stem (after its pooling), stage1, …, head. Images: any size from one pixel in the last stage.
    Raises ValueError for field values that no network of the line has.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    width: int = 64
    widen: int = 1
    groups: int = 1
    squeeze: int | None = None
    stem: str = "imagenet"
    shortcut: str = "conv"
    stride_in: str = "3x3"
    stochastic_depth: float = 0.0
    zero_init: bool = False
    epsilon: float = 1e-5
    num_classes: int | None = 1000
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    family = "resnet"
    model_parallel = (
        r"stage4_block\d+/conv\d/conv/kernel",
        r"head/(kernel|bias)",
    )

    @property
    def paper(self) -> str:
        if self.squeeze is not None:
            return "Hu et al. 2017, Squeeze-and-excitation networks, arXiv:1709.01507"
        if self.shortcut == "pool":
            return "He et al. 2018, Bag of tricks for image classification, arXiv:1812.01187"
        if self.groups > 1:
            return "Xie et al. 2016, Aggregated residual transformations for deep neural networks, arXiv:1611.05431"
        if self.widen > 1:
            return "Zagoruyko and Komodakis 2016, Wide residual networks, arXiv:1605.07146"
        return "He et al. 2015, Deep residual learning for image recognition, arXiv:1512.03385"

    @property
    def stages(self) -> tuple[str, ...]:
        return ("stem", *(f"stage{i}" for i in range(1, len(self.blocks) + 1)), "head")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (32, 32, 3) if self.stem == "small" else (224, 224, 3)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        self._check_fields()
        require_images(images, 2 ** (len(self.blocks) - 1) * (1 if self.stem == "small" else 4), "this ResNet")
        norm = partial(BatchNorm, epsilon=self.epsilon, axis_name=self.axis_name)
        block = rematerialised(Block, self.remat)

        x = images.astype(self.dtype)  # ResNet-50: [B, 224, 224, 3]
        if self.stem == "deep":
            x = DeepStem(self.width, norm, self.dtype, name="stem")(x, train)
        else:
            kernel, stride = (3, 1) if self.stem == "small" else (7, 2)
            x = ConvNorm(self.width, kernel, norm, stride, dtype=self.dtype, name="stem")(x, train)  # [B, 112, 112, 64]
        if self.stem != "small":
            x = max_pool(x, 3, 2, 1)  # [B, 56, 56, 64]
        ends = {"stem": x}
        seen = 0
        # [B, 56, 56, 256], [B, 28, 28, 512], [B, 14, 14, 1024], [B, 7, 7, 2048]
        for i, count in enumerate(self.blocks):
            for j in range(count):
                seen += 1
                x = block(
                    convs=self._convs(self.width * 2**i, stride=2 if i > 0 and j == 0 else 1),
                    norm=norm, shortcut=self.shortcut, squeeze=self.squeeze,
                    drop=self.stochastic_depth * seen / sum(self.blocks),
                    zero_init=self.zero_init, dtype=self.dtype, name=f"stage{i + 1}_block{j + 1}",
                )(x, train)  # fmt: skip
            ends[f"stage{i + 1}"] = x
        ends["features"] = x = global_avg_pool(x)
        if self.num_classes is not None:
            x = nn.Dense(self.num_classes, kernel_init=uniform_head, dtype=self.dtype, name="head")(x)
            ends["logits"] = x = x.astype(jnp.float32)
        return x, ends

    def _convs(self, width: int, stride: int) -> tuple[tuple[int, int, int, int], ...]:
        """(features, kernel, stride, groups) of the convolutions of a block."""
        if not self.bottleneck:
            return ((width, 3, stride, 1), (width, 3, 1, 1))
        first, second = (stride, 1) if self.stride_in == "1x1" else (1, stride)
        inner = width * self.widen
        return ((inner, 1, first, 1), (inner, 3, second, self.groups), (4 * width, 1, 1, 1))

    def _check_fields(self) -> None:
        for field, known in (("stem", STEMS), ("shortcut", SHORTCUTS), ("stride_in", STRIDES)):
            if getattr(self, field) not in known:
                raise ValueError(f"ResNet's {field} {getattr(self, field)!r} is not one of {', '.join(known)}")
        if not self.bottleneck and (self.widen, self.groups, self.stride_in) != (1, 1, "3x3"):
            raise ValueError("ResNet's widen, groups and stride_in are about bottlenecks; set bottleneck=True")
        if self.width * self.widen % self.groups:
            raise ValueError(f"ResNet's {self.groups} groups do not divide its {self.width * self.widen} channels")
