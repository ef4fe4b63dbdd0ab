"""Residual networks with pre-activation.

He, Zhang, Ren and Sun 2016, "Identity mappings in deep residual networks", arXiv:1603.05027: norm and ReLU precede each
convolution (figure 4e), so that the shortcuts carry the signal unchanged.

The paper's own networks are `resnet164` and `resnet1001` for CIFAR-10, with three stages of bottlenecks, and
`resnet200_v2` for ImageNet. As in its appendix, norm and ReLU follow the first convolution of `resnet200_v2`, before
the pooling, and its first block begins without them (`stem_norm=True`); its stride is in the 3x3 convolution, as in
fb.resnet.torch, which has this network. The CIFAR networks are those of the authors' resnet-1k-layers: no norm in the
stem, whose output the first block activates for both of its paths, and the stride in the first 1x1 convolution
(`stride_in="1x1"`).

`resnet18_v2` to `resnet152_v2` are the depths of 2015 in the form of timm's `resnetv2_50`: no norm in the stem, stride
in the 3x3 convolution. Of these, the paper trained ResNet-152 only, with the stem of its ResNet-200
(`stem_norm=True`); it has no pre-activated networks of basic blocks for ImageNet. Other forms are fields:

- Keras's ResNet50V2 computes a different function with nearly the same layers: `stride_at="last", conv_bias=True,
  pool_padding="zeros", epsilon=1.001e-5`;
- timm's `resnetv2_50d` and its like have the changes of He et al. 2018, arXiv:1812.01187: `stem="deep",
  shortcut="pool"`; `resnetv2_50d_gn` has `norm="group"` as well.

Not specified in the paper: convolutions are initialised from a normal distribution over the fan-out, as in both codes;
the head uniformly, as in PyTorch. The small-image form (`stem="small"`) of ImageNet networks has the 3x3 stem of the
CIFAR networks.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from zoo.models.layers import (
    Conv,
    StochasticDepth,
    block_drop_rate,
    classify,
    he_normal_fan_out,
    maybe_remat,
    require_images,
)
from zoo.models.operations import global_avg_pool, max_pool, relu
from zoo.models.resnet import NORMS, STRIDES, halve

# Number of blocks in each of the four stages, by depth (table 1 of arXiv:1512.03385).
RESNET18_V2: dict[str, Any] = {"blocks": (2, 2, 2, 2), "bottleneck": False}
RESNET34_V2: dict[str, Any] = {"blocks": (3, 4, 6, 3), "bottleneck": False}
RESNET50_V2: dict[str, Any] = {"blocks": (3, 4, 6, 3)}
RESNET101_V2: dict[str, Any] = {"blocks": (3, 4, 23, 3)}
RESNET152_V2: dict[str, Any] = {"blocks": (3, 8, 36, 3)}
RESNET200_V2: dict[str, Any] = {"blocks": (3, 24, 36, 3), "stem_norm": True}

STEMS = ("imagenet", "deep", "small")
SHORTCUTS = ("conv", "pool")


def cifar_v2(depth: int) -> dict[str, Any]:
    """Return the fields of the paper's CIFAR-10 network: `depth` = 9n + 2, n bottlenecks in each stage."""
    n = (depth - 2) // 9
    return {"blocks": (n, n, n), "width": 16, "stem": "small", "stride_in": "1x1", "num_classes": 10}


class Block(nn.Module):
    """Pre-activation block (figure 4e): convolutions, each after norm and ReLU, and a shortcut.

    1x1, 3x3 and 1x1 convolutions to 4 width channels, or two 3x3 convolutions to width channels if not `bottleneck`.
    [B, H, W, C] -> [B, H / stride, W / stride, F]. A projection reads the first activation; the identity shortcut
    passes every `stride`-th pixel of x. Children: norm1, conv1, norm2, conv2, norm3, conv3, shortcut.

    Attributes:
        width: channels of the inner convolutions.
        stride: stride of the block.
        project: project the shortcut.
        norm: constructor of the norms.
        conv_bias: add biases to the last convolution and the shortcut.
        drop_path_rate: probability of dropping the branch in training.
        zero_init: start the branch at zero.
        dtype: type of the computation.
        conv: constructor of the convolutions.
        bottleneck: three convolutions rather than two.
        stride_in: the convolution of a bottleneck that has the stride, "3x3" or "1x1".
        pooled: average over 2x2 before a projection with stride.
        activated: x is activated already; there is no norm1.
    """

    width: int
    stride: int
    project: bool
    norm: Callable[..., nn.Module]
    conv_bias: bool
    drop_path_rate: float
    zero_init: bool
    dtype: Any
    conv: Callable[..., nn.Module] = partial(Conv, use_bias=False)
    bottleneck: bool = True
    stride_in: str = "3x3"
    pooled: bool = False
    activated: bool = False

    @nn.compact
    def __call__(self, x, train: bool):
        conv = partial(self.conv, dtype=self.dtype)
        bias = {"use_bias": True} if self.conv_bias else {}
        last_init = nn.initializers.zeros if self.zero_init else he_normal_fan_out
        features = 4 * self.width if self.bottleneck else self.width

        def activate(x, name):
            return relu(self.norm(name=name)(x, not train))

        branch = x if self.activated else activate(x, "norm1")
        if self.project:
            pooled = self.pooled and self.stride > 1
            source, stride = (halve(branch), 1) if pooled else (branch, self.stride)
            shortcut = conv(features, 1, stride, **bias, name="shortcut")(source)
        else:
            shortcut = x[:, :: self.stride, :: self.stride]
        if self.bottleneck:
            stride1, stride2 = (self.stride, 1) if self.stride_in == "1x1" else (1, self.stride)
            branch = activate(conv(self.width, 1, stride1, name="conv1")(branch), "norm2")
            branch = activate(conv(self.width, 3, stride2, name="conv2")(branch), "norm3")
            branch = conv(features, 1, **bias, kernel_init=last_init, name="conv3")(branch)
        else:
            branch = activate(conv(self.width, 3, self.stride, name="conv1")(branch), "norm2")
            branch = conv(features, 3, **bias, kernel_init=last_init, name="conv2")(branch)
        return shortcut + StochasticDepth(self.drop_path_rate, name="drop")(branch, train)


class DeepStem(nn.Module):
    """Three 3x3 convolutions, the last without norm: [B, H, W, C] -> [B, H / 2, W / 2, width].

    Children: conv1, norm1, conv2, norm2, conv3.
    """

    width: int
    norm: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, train: bool):
        x = relu(self.norm(name="norm1")(self.conv(self.width // 2, 3, 2, name="conv1")(x), not train))
        x = relu(self.norm(name="norm2")(self.conv(self.width // 2, 3, name="conv2")(x), not train))
        return self.conv(self.width, 3, name="conv3")(x)


class ResNetV2(nn.Module):
    """Pre-activation ResNet (He et al. 2016, arXiv:1603.05027), 50 layers by default: 25,549,352 parameters.

    Stages: stem (after its pooling), stage1, …, norm (the activation after the last block), head.

    Attributes:
        blocks: number of blocks in each stage.
        bottleneck: use bottlenecks, which output four times as many channels, rather than basic blocks.
        width: channels of the stem and of the first stage's 3x3 convolutions, doubled in each later stage.
        norm: "batch" or "group" (32 groups).
        stem: "imagenet" (7x7 and max pooling) or "deep" (three 3x3 and max pooling) divides the image by 4; "small"
            (3x3) keeps its size.
        stem_norm: apply norm and ReLU after the stem's convolution, and none at the beginning of the first block.
        shortcut: "conv" (strided 1x1 convolution) or "pool" (average pooling, then 1x1 convolution).
        stride_in: the convolution of a bottleneck that has the stride, "3x3" or "1x1".
        stride_at: "first", the first block of stages 2, 3, …, or "last", the last block of every stage but the last.
        conv_bias: add biases to the convolutions that no norm follows (stem, conv3 and shortcut).
        pool_padding: padding of the stem's max pooling, "nothing" (never wins) or "zeros". They differ because no ReLU
            precedes the pooling.
        stochastic_depth: probability of dropping the branch of the last block in training; it grows linearly from the
            first block (Huang et al. 2016, arXiv:1603.09382).
        keep_first: never drop the first branch: the probability grows from 0 at the first of L blocks, as in timm, and
            not from 1 / L of the last.
        zero_init: start every branch at zero, through its last convolution since no norm follows it.
        epsilon: added to the variance by norms.
        num_classes: number of classes, or None for no head.
        axis_name: pmap axis over which batch statistics are shared.
        dtype: type of the computation.
        remat: recompute activations of the blocks in the backward pass.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    width: int = 64
    norm: str = "batch"
    stem: str = "imagenet"
    stem_norm: bool = False
    shortcut: str = "conv"
    stride_in: str = "3x3"
    stride_at: str = "first"
    conv_bias: bool = False
    pool_padding: str = "nothing"
    stochastic_depth: float = 0.0
    keep_first: bool = False
    zero_init: bool = False
    epsilon: float = 1e-5
    num_classes: int | None = 1000
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    added_fields = ("bottleneck", "norm", "stem_norm", "shortcut", "stride_in", "keep_first")
    family = "resnet_v2"
    model_parallel = (
        r"stage4_block\d+/conv\d/kernel",
        r"head/(kernel|bias)",
    )

    @property
    def paper(self) -> str:
        if self.shortcut == "pool" or self.stem == "deep":
            return "He et al. 2018, Bag of tricks for image classification, arXiv:1812.01187"
        return "He et al. 2016, Identity mappings in deep residual networks, arXiv:1603.05027"

    @property
    def stages(self) -> tuple[str, ...]:
        return ("stem", *(f"stage{i}" for i in range(1, len(self.blocks) + 1)), "norm", "head")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (32, 32, 3) if self.stem == "small" else (224, 224, 3)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        self._check_fields()
        require_images(images, 2 ** (len(self.blocks) - 1) * (1 if self.stem == "small" else 4), "this ResNetV2")
        batch_options = {"axis_name": self.axis_name} if self.norm == "batch" else {}
        norm = partial(NORMS[self.norm], epsilon=self.epsilon, **batch_options)
        block = maybe_remat(Block, self.remat)

        x = self._apply_stem(images.astype(self.dtype), norm, train)  # [B, 224, 224, 3] -> [B, 56, 56, 64]
        ends = {"stem": x}
        index = 0
        # [B, 56, 56, 256], [B, 28, 28, 512], [B, 14, 14, 1024], [B, 7, 7, 2048]
        for i, count in enumerate(self.blocks):
            for j in range(count):
                index += 1
                if self.stride_at == "first":
                    strided = i > 0 and j == 0
                else:
                    strided = i < len(self.blocks) - 1 and j == count - 1
                # The first basic block has as many channels as the stem, and so needs no projection.
                project = j == 0 and (self.bottleneck or i > 0)
                rate = block_drop_rate(self.stochastic_depth, index, sum(self.blocks), self.keep_first)
                x = block(
                    width=self.width * 2**i, stride=2 if strided else 1, project=project, norm=norm,
                    conv_bias=self.conv_bias, drop_path_rate=rate,
                    zero_init=self.zero_init, dtype=self.dtype, bottleneck=self.bottleneck, stride_in=self.stride_in,
                    pooled=self.shortcut == "pool", activated=self.stem_norm and index == 1,
                    name=f"stage{i + 1}_block{j + 1}",
                )(x, train)  # fmt: skip
            ends[f"stage{i + 1}"] = x
        ends["norm"] = x = relu(norm(name="norm")(x, not train))
        return classify(global_avg_pool(x), ends, self.num_classes, train, dtype=self.dtype)

    @nn.nowrap  # no scope of its own: paths in the trace are those of the parameters
    def _apply_stem(self, x, norm: Callable[..., nn.Module], train: bool):
        """Apply the stem and its pooling."""
        conv = partial(Conv, use_bias=self.conv_bias, dtype=self.dtype)
        if self.stem == "deep":
            x = DeepStem(self.width, norm, conv, name="stem")(x, train)
        else:
            x = conv(self.width, *((3, 1) if self.stem == "small" else (7, 2)), name="stem")(x)
        if self.stem_norm:
            x = relu(norm(name="stem_norm")(x, not train))
        if self.stem == "small":
            return x
        if self.pool_padding == "zeros":
            return max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2)
        return max_pool(x, 3, 2, 1)

    def _check_fields(self) -> None:
        choices = (
            ("stem", STEMS), ("shortcut", SHORTCUTS), ("norm", NORMS), ("stride_in", STRIDES),
            ("stride_at", ("first", "last")), ("pool_padding", ("nothing", "zeros")),
        )  # fmt: skip
        for field, known in choices:
            if getattr(self, field) not in known:
                raise ValueError(f"ResNetV2's {field} {getattr(self, field)!r} is not one of {', '.join(known)}")
        if self.stem == "deep" and self.width < 2:
            raise ValueError(f"ResNetV2's stem='deep' needs width=2 at least; got {self.width}")
        if not self.bottleneck and self.stride_in != "3x3":
            raise ValueError("ResNetV2's stride_in applies to bottlenecks only; set bottleneck=True")
