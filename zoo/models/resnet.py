"""Residual networks and their close descendants.

He, Zhang, Ren and Sun 2015, "Deep residual learning for image recognition", arXiv:1512.03385 (ResNet). Later papers
kept its figure and its table 1, so their networks are fields of the same class:

- Section 4.2 of the same paper (ResNet-20 to 1202 for CIFAR-10): three stages that begin with 16 channels after a 3x3
  convolution (`width`, `stem="small"`), shortcuts of option A, zero-padded (`shortcut="pad"`; "conv" is option B);
- Xie et al. 2016, "Aggregated residual transformations", arXiv:1611.05431 (ResNeXt): `groups`, `widen`;
- Zagoruyko and Komodakis 2016, "Wide residual networks", arXiv:1605.07146, section 3.4 (WRN-50-2): `widen`. Their
  networks for small images are in wide_resnet.py;
- Hu et al. 2017, "Squeeze-and-excitation networks", arXiv:1709.01507 (SE-ResNet): `squeeze`;
- Wu and He 2018, "Group normalization", arXiv:1803.08494: `norm="group"`;
- He et al. 2018, "Bag of tricks", arXiv:1812.01187, figure 2: `stem="deep"` (ResNet-C), with `shortcut="pool"`
  (ResNet-D). GluonCV's ResNet-S has `stem="wide"`, timm's networks in T `stem="tiered"`, which no paper describes;
- Wang et al. 2019, "ECA-Net", arXiv:1910.03151 (ECA-ResNet): `eca`;
- Bello et al. 2021, "Revisiting ResNets", arXiv:2103.07579 (ResNet-RS): ResNet-D with `squeeze=4` and
  `stem_pool="conv"`, and dropout and stochastic depth in training. Its networks were trained at 128 to 320 pixels; the
  size of released weights is in their card;
- Huang et al. 2016, "Deep networks with stochastic depth", arXiv:1603.09382: `stochastic_depth`.

Differs from the papers: the stride of a bottleneck is in its 3x3 convolution by default (v1.5, as in torchvision);
`stride_in="1x1"` is the paper's, and that of the released SE-ResNets, which also have Caffe's pooling
(`stem_pool="ceil"`). SE-ResNet-18 and -34 have at least 8 hidden
channels, as in timm (`squeeze_multiple=8`), where the ratio of 16 leaves 4 in the first stage. The paper's ECA-ResNets
are plain ResNets with gates (`eca_resnet50`); timm's have the stem and the shortcuts of ResNet-D.

Not specified in the papers: option A pads half of its zeros on either side; convolutions are initialised from a normal
distribution over the fan-out (the 2015 paper cites arXiv:1502.01852 without naming the fan), the head uniformly, as in
PyTorch. The small-image forms of ImageNet networks are not in the papers: `stem="small"` is a 3x3 convolution without
pooling, as in the CIFAR networks; of ResNet-D it keeps the pooled shortcuts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from zoo.models.attention import EfficientChannelAttention, SqueezeExcite
from zoo.models.group_norm import GroupNorm
from zoo.models.layers import (
    BatchNorm,
    ConvNorm,
    StochasticDepth,
    block_drop_rate,
    classify,
    maybe_remat,
    require_images,
)
from zoo.models.operations import avg_pool, global_avg_pool, max_pool, relu

# Table 1: number of blocks in each of the four stages, by depth.
RESNET18: dict[str, Any] = {"blocks": (2, 2, 2, 2), "bottleneck": False}
RESNET34: dict[str, Any] = {"blocks": (3, 4, 6, 3), "bottleneck": False}
RESNET50: dict[str, Any] = {"blocks": (3, 4, 6, 3), "bottleneck": True}
RESNET101: dict[str, Any] = {"blocks": (3, 4, 23, 3), "bottleneck": True}
RESNET152: dict[str, Any] = {"blocks": (3, 8, 36, 3), "bottleneck": True}
# Bello et al. 2021, section 6: blocks of ResNet-RS by depth; up to 200 those of ResNet.
RESNET_RS = {
    50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3), 270: (4, 29, 53, 4),
    350: (4, 36, 72, 4), 420: (4, 44, 87, 4),
}  # fmt: skip

#: Channels of the three 3x3 convolutions of a deep stem, as eighths of the width.
DEEP_STEMS = {"deep": (4, 4, 8), "tiered": (3, 4, 8), "wide": (8, 8, 16)}
STEMS = ("imagenet", *DEEP_STEMS, "small")
NORMS: dict[str, type[nn.Module]] = {"batch": BatchNorm, "group": GroupNorm}
STRIDES = ("3x3", "1x1")
STEM_POOLS = ("max", "conv", "ceil")


def cifar(depth: int) -> dict[str, Any]:
    """Return the fields of the network of section 4.2: `depth` = 6n + 2, n basic blocks with 16, 32 and 64 channels."""
    n = (depth - 2) // 6
    return {
        "blocks": (n, n, n), "bottleneck": False, "width": 16, "stem": "small", "shortcut": "pad", "num_classes": 10,
    }  # fmt: skip


def projection_shortcut(x, features: int, stride: int, conv_norm: Callable[..., nn.Module], train: bool):
    """Project x with a strided 1x1 convolution and norm if its shape changes (option B); otherwise return x."""
    if stride == 1 and x.shape[-1] == features:
        return x
    return conv_norm(features, 1, stride=stride, act=None, name="shortcut")(x, train)


def pooled_shortcut(x, features: int, stride: int, conv_norm: Callable[..., nn.Module], train: bool):
    """Average over 2x2 before the projection (ResNet-D); a strided 1x1 convolution would skip three of four pixels."""
    if stride == 1:
        return projection_shortcut(x, features, stride, conv_norm, train)
    return conv_norm(features, 1, act=None, name="shortcut")(halve(x), train)


def padded_shortcut(x, features: int, stride: int, conv_norm: Callable[..., nn.Module], train: bool):
    """Subsample x and add channels of zeros, half of them on either side (option A); no parameters."""
    missing = features - x.shape[-1]
    channels = (missing // 2, missing - missing // 2)
    for axis in (1, 2):
        x = lax.slice_in_dim(x, 0, None, stride, axis)  # x[:, ::stride] is a gather where the batch size is free
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), channels))


def halve(x: jax.Array) -> jax.Array:
    """Average over 2x2, at odd edges over fewer pixels: [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C]."""
    for axis in (1, 2):
        if x.shape[axis] % 2:
            x = jnp.concatenate([x, lax.slice_in_dim(x, -1, None, axis=axis)], axis)
    return avg_pool(x, 2, 2)


SHORTCUTS: dict[str, Callable] = {"conv": projection_shortcut, "pool": pooled_shortcut, "pad": padded_shortcut}


class BlockOptions(NamedTuple):
    """Settings shared by all blocks of a network; see the fields of `ResNet`."""

    norm: Callable[..., nn.Module]
    shortcut: str = "conv"
    squeeze: int | None = None
    squeeze_multiple: int = 1
    eca: bool = False
    zero_init: bool = False
    dtype: Any = jnp.float32

    @property
    def conv_norm(self) -> Callable[..., nn.Module]:
        """Constructor of a convolution with norm and ReLU."""
        return partial(ConvNorm, norm=self.norm, act=relu, dtype=self.dtype)

    @property
    def last_norm(self) -> Callable[..., nn.Module]:
        """Constructor of the last norm of a residual branch."""
        return partial(self.norm, scale_init=nn.initializers.zeros) if self.zero_init else self.norm


def add_shortcut(branch, x, stride: int, options: BlockOptions, drop_path_rate: float, train: bool):
    """Apply channel attention and stochastic depth to the branch, and return relu(shortcut(x) + branch)."""
    if options.squeeze is not None:
        branch = SqueezeExcite(options.squeeze, options.squeeze_multiple, options.dtype, name="se")(branch)
    if options.eca:
        branch = EfficientChannelAttention(options.dtype, name="eca")(branch)
    branch = StochasticDepth(drop_path_rate, name="drop")(branch, train)
    shortcut = SHORTCUTS[options.shortcut](x, branch.shape[-1], stride, options.conv_norm, train)
    return relu(shortcut + branch)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (figure 5, left).

    [B, H, W, C] -> [B, H / stride, W / stride, width]. Children: conv1, conv2, se or eca, shortcut.
    """

    width: int
    stride: int
    options: BlockOptions
    drop_path_rate: float = 0.0

    @nn.compact
    def __call__(self, x, train: bool):
        conv_norm = self.options.conv_norm
        branch = conv_norm(self.width, 3, stride=self.stride, name="conv1")(x, train)
        branch = conv_norm(self.width, 3, norm=self.options.last_norm, act=None, name="conv2")(branch, train)
        return add_shortcut(branch, x, self.stride, self.options, self.drop_path_rate, train)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (figure 5, right).

    [B, H, W, C] -> [B, H / stride, W / stride, 4 width]. Children: conv1, conv2, conv3, se or eca, shortcut.
    """

    width: int
    stride: int
    options: BlockOptions
    drop_path_rate: float = 0.0
    widen: int = 1
    groups: int = 1
    stride_in: str = "3x3"

    @nn.compact
    def __call__(self, x, train: bool):
        conv_norm = self.options.conv_norm
        inner = self.width * self.widen
        stride1, stride2 = (self.stride, 1) if self.stride_in == "1x1" else (1, self.stride)
        branch = conv_norm(inner, 1, stride=stride1, name="conv1")(x, train)
        branch = conv_norm(inner, 3, stride=stride2, groups=self.groups, name="conv2")(branch, train)
        branch = conv_norm(4 * self.width, 1, norm=self.options.last_norm, act=None, name="conv3")(branch, train)
        return add_shortcut(branch, x, self.stride, self.options, self.drop_path_rate, train)


class DeepStem(nn.Module):
    """Three 3x3 convolutions instead of a 7x7 (He et al. 2018, figure 2b): [B, H, W, C] -> [B, H / 2, W / 2, F].

    Children: conv1, conv2, conv3.

    Attributes:
        widths: channels of the three convolutions; F is the last.
        norm: constructor of the norms.
        dtype: type of the computation.
    """

    widths: tuple[int, int, int]
    norm: Callable[..., nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        conv_norm = partial(ConvNorm, kernel_size=3, norm=self.norm, dtype=self.dtype)
        for i, width in enumerate(self.widths, 1):
            x = conv_norm(width, stride=2 if i == 1 else 1, name=f"conv{i}")(x, train)
        return x


class ResNet(nn.Module):
    """ResNet v1.5 (He et al. 2015, arXiv:1512.03385) and its descendants; ResNet-50 by default.

    Images may have any size that leaves one pixel in the last stage. Stages: stem (after its pooling), stage1, …, head.

    Attributes:
        blocks: number of blocks in each stage.
        bottleneck: use `Bottleneck` rather than `BasicBlock`.
        width: channels of the stem and of the first stage, doubled in each later stage; a bottleneck outputs four times
            as many.
        widen: factor of the channels of a bottleneck's 3x3 convolution.
        groups: number of groups of a bottleneck's 3x3 convolution.
        squeeze: reduction ratio of squeeze-and-excitation; None for none.
        squeeze_multiple: the hidden layer of squeeze-and-excitation is rounded to a multiple of this; 8 in timm, which
            matters below 128 channels only.
        eca: apply efficient channel attention.
        norm: "batch" or "group" (32 groups).
        stem: "imagenet" (7x7), "deep" (three 3x3), "tiered" (deep with channels that grow) or "wide" (deep with twice
            the channels), each followed by pooling, divide the image by 4; "small" (one 3x3) keeps its size.
        stem_pool: the stem's pooling, "max", "ceil" (max without padding, whose last window may overlap the edge, as in
            Caffe) or "conv" (3x3 convolution with stride 2, norm and ReLU).
        shortcut: "conv" (strided 1x1 convolution), "pool" (average pooling, then 1x1 convolution) or "pad" (zeros for
            the missing channels, no parameters), used where the shape changes.
        stride_in: the convolution of a bottleneck that has the stride, "3x3" or "1x1".
        stochastic_depth: probability of dropping the branch of the last block in training; it grows linearly from the
            first block (Huang et al. 2016, section 3).
        keep_first: never drop the first branch: the probability grows from 0 at the first of L blocks, as in timm, and
            not from 1 / L of the last.
        dropout: rate before the head.
        zero_init: start every branch at zero (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
        epsilon: added to the variance by norms.
        num_classes: number of classes, or None for no head.
        axis_name: pmap axis over which batch statistics are shared.
        dtype: type of the computation.
        remat: recompute activations of the blocks in the backward pass.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    width: int = 64
    widen: int = 1
    groups: int = 1
    squeeze: int | None = None
    squeeze_multiple: int = 1
    eca: bool = False
    norm: str = "batch"
    stem: str = "imagenet"
    stem_pool: str = "max"
    shortcut: str = "conv"
    stride_in: str = "3x3"
    stochastic_depth: float = 0.0
    keep_first: bool = False
    dropout: float = 0.0
    zero_init: bool = False
    epsilon: float = 1e-5
    num_classes: int | None = 1000
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    added_fields = ("squeeze_multiple", "eca", "norm", "stem_pool", "keep_first", "dropout")
    family = "resnet"
    model_parallel = (
        r"stage4_block\d+/conv\d/conv/kernel",
        r"head/(kernel|bias)",
    )

    @property
    def paper(self) -> str:
        if self.stem_pool == "conv":
            return "Bello et al. 2021, Revisiting ResNets: improved training and scaling strategies, arXiv:2103.07579"
        if self.eca:
            return "Wang et al. 2019, ECA-Net: efficient channel attention, arXiv:1910.03151"
        if self.squeeze is not None:
            return "Hu et al. 2017, Squeeze-and-excitation networks, arXiv:1709.01507"
        if self.norm == "group":
            return "Wu and He 2018, Group normalization, arXiv:1803.08494"
        if self.shortcut == "pool" or self.stem in DEEP_STEMS:
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
        batch_options = {"axis_name": self.axis_name} if self.norm == "batch" else {}
        norm = partial(NORMS[self.norm], epsilon=self.epsilon, **batch_options)
        options = BlockOptions(
            norm, self.shortcut, self.squeeze, self.squeeze_multiple, self.eca, self.zero_init, self.dtype
        )
        block: Callable[..., nn.Module] = maybe_remat(BasicBlock, self.remat)
        if self.bottleneck:
            block = maybe_remat(Bottleneck, self.remat)
            block = partial(block, widen=self.widen, groups=self.groups, stride_in=self.stride_in)

        x = self._apply_stem(images.astype(self.dtype), norm, train)  # ResNet-50: [B, 224, 224, 3] -> [B, 56, 56, 64]
        ends = {"stem": x}
        index = 0
        # [B, 56, 56, 256], [B, 28, 28, 512], [B, 14, 14, 1024], [B, 7, 7, 2048]
        for i, count in enumerate(self.blocks):
            for j in range(count):
                index += 1
                rate = block_drop_rate(self.stochastic_depth, index, sum(self.blocks), self.keep_first)
                stride = 2 if i > 0 and j == 0 else 1
                name = f"stage{i + 1}_block{j + 1}"
                x = block(self.width * 2**i, stride, options, rate, name=name)(x, train)
            ends[f"stage{i + 1}"] = x
        features = global_avg_pool(x)
        return classify(features, ends, self.num_classes, train, dropout=self.dropout, dtype=self.dtype)

    @nn.nowrap  # no scope of its own: paths in the trace are those of the parameters
    def _apply_stem(self, x, norm: Callable[..., nn.Module], train: bool):
        """Apply the stem and its pooling."""
        if self.stem in DEEP_STEMS:
            first, second, last = (eighths * self.width // 8 for eighths in DEEP_STEMS[self.stem])
            x = DeepStem((first, second, last), norm, self.dtype, name="stem")(x, train)
        else:
            kernel_size, stride = (3, 1) if self.stem == "small" else (7, 2)
            x = ConvNorm(self.width, kernel_size, norm, stride, dtype=self.dtype, name="stem")(x, train)
        if self.stem == "small":
            return x
        if self.stem_pool == "conv":
            return ConvNorm(x.shape[-1], 3, norm, stride=2, dtype=self.dtype, name="stem_pool")(x, train)
        return max_pool(x, 3, 2, ceil=True) if self.stem_pool == "ceil" else max_pool(x, 3, 2, 1)

    def _check_fields(self) -> None:
        choices = (
            ("stem", STEMS), ("stem_pool", STEM_POOLS), ("shortcut", SHORTCUTS), ("stride_in", STRIDES),
            ("norm", NORMS),
        )  # fmt: skip
        for field, known in choices:
            if getattr(self, field) not in known:
                raise ValueError(f"ResNet's {field} {getattr(self, field)!r} is not one of {', '.join(known)}")
        if not self.bottleneck and (self.widen, self.groups, self.stride_in) != (1, 1, "3x3"):
            raise ValueError("ResNet's widen, groups and stride_in apply to bottlenecks only; set bottleneck=True")
        if self.shortcut == "pad" and self.stem == "wide":
            raise ValueError(
                "ResNet's stem='wide' has more channels than the first stage; shortcut='pad' cannot follow"
            )
        narrowest = -(-8 // min(DEEP_STEMS.get(self.stem, (8,))))  # whose stem has a channel in each convolution
        if self.width < narrowest:
            raise ValueError(f"ResNet's stem={self.stem!r} needs width={narrowest} at least; got {self.width}")
        if self.width * self.widen % self.groups:
            raise ValueError(f"ResNet's {self.groups} groups do not divide its {self.width * self.widen} channels")
