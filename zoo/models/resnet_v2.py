"""Residual networks with pre-activation.

He, Zhang, Ren and Sun 2016, "Identity mappings in deep residual networks", arXiv:1603.05027: norm and ReLU precede each
convolution (figure 4e), so that the shortcuts carry the signal unchanged.

Differs from the paper: the ImageNet network of its section 5 has 200 layers; these have the depths of 2015, as in later
implementations. The stride of a block is in its 3x3 convolution (v1.5). The defaults are timm's `resnetv2_50`. Keras's
ResNet50V2 computes a different function with nearly the same layers, selected by four fields: `stride_at="last",
conv_bias=True, pool_padding="zeros", epsilon=1.001e-5`. The small-image form (`stem="small"`) has the 3x3 stem of the
CIFAR networks.
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
    classify,
    global_avg_pool,
    he_normal_fan_out,
    max_pool,
    maybe_remat,
    require_images,
    require_stem,
)

# Number of blocks in each of the four stages, by depth (table 1 of arXiv:1512.03385).
RESNET50_V2: dict[str, Any] = {"blocks": (3, 4, 6, 3)}
RESNET101_V2: dict[str, Any] = {"blocks": (3, 4, 23, 3)}
RESNET152_V2: dict[str, Any] = {"blocks": (3, 8, 36, 3)}


class Block(nn.Module):
    """Pre-activation bottleneck: 1x1, 3x3 and 1x1 convolutions, each after norm and ReLU, and a shortcut (figure 4e).

    [B, H, W, C] -> [B, H / stride, W / stride, 4 width]. A projection reads the first activation; the identity shortcut
    passes every `stride`-th pixel of x. Children: norm1, conv1, norm2, conv2, norm3, conv3, shortcut.
    """

    width: int
    stride: int
    project: bool
    norm: Callable[..., nn.Module]
    conv_bias: bool
    drop_path_rate: float
    zero_init: bool
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        conv = partial(Conv, use_bias=False, dtype=self.dtype)
        last_init = nn.initializers.zeros if self.zero_init else he_normal_fan_out

        def activate(x, name):
            return nn.relu(self.norm(name=name)(x, not train))

        branch = activate(x, "norm1")
        if self.project:
            shortcut = conv(4 * self.width, 1, self.stride, use_bias=self.conv_bias, name="shortcut")(branch)
        else:
            shortcut = x[:, :: self.stride, :: self.stride]
        branch = activate(conv(self.width, 1, name="conv1")(branch), "norm2")
        branch = activate(conv(self.width, 3, self.stride, name="conv2")(branch), "norm3")
        branch = conv(4 * self.width, 1, use_bias=self.conv_bias, kernel_init=last_init, name="conv3")(branch)
        return shortcut + StochasticDepth(self.drop_path_rate, name="drop")(branch, train)


class ResNetV2(nn.Module):
    """Pre-activation ResNet (He et al. 2016, arXiv:1603.05027), 50 layers by default: 25,549,352 parameters.

    Stages: stem (after its pooling), stage1, …, norm (the activation after the last block), head.

    Attributes:
        blocks: number of blocks in each stage.
        width: channels of the stem and of the first stage's 3x3 convolutions, doubled in each later stage; a stage
            outputs four times as many.
        stem: "imagenet" (7x7 and max pooling) divides the image by 4; "small" (3x3) keeps its size.
        stride_at: "first", the first block of stages 2, 3, …, or "last", the last block of every stage but the last.
        conv_bias: add biases to the convolutions that no norm follows (stem, conv3 and shortcut).
        pool_padding: padding of the stem's max pooling, "nothing" (never wins) or "zeros". They differ because no ReLU
            precedes the pooling.
        stochastic_depth: probability of dropping the branch of the last block in training; it grows linearly from the
            first block (Huang et al. 2016, arXiv:1603.09382).
        zero_init: start every branch at zero, through its last convolution since no norm follows it.
        epsilon: added to the variance by batch norms.
        num_classes: number of classes, or None for no head.
        axis_name: pmap axis over which batch statistics are shared.
        dtype: type of the computation.
        remat: recompute activations of the blocks in the backward pass.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    stem: str = "imagenet"
    stride_at: str = "first"
    conv_bias: bool = False
    pool_padding: str = "nothing"
    stochastic_depth: float = 0.0
    zero_init: bool = False
    epsilon: float = 1e-5
    num_classes: int | None = 1000
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    family = "resnet_v2"
    model_parallel = (
        r"stage4_block\d+/conv\d/kernel",
        r"head/(kernel|bias)",
    )
    paper = "He et al. 2016, Identity mappings in deep residual networks, arXiv:1603.05027"

    @property
    def stages(self) -> tuple[str, ...]:
        return ("stem", *(f"stage{i}" for i in range(1, len(self.blocks) + 1)), "norm", "head")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (32, 32, 3) if self.stem == "small" else (224, 224, 3)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_stem(self.stem, "ResNetV2")
        if self.stride_at not in ("first", "last"):
            raise ValueError(f"ResNetV2's stride_at {self.stride_at!r} is not one of first, last")
        if self.pool_padding not in ("nothing", "zeros"):
            raise ValueError(f"ResNetV2's pool_padding {self.pool_padding!r} is not one of nothing, zeros")
        require_images(images, 2 ** (len(self.blocks) - 1) * (1 if self.stem == "small" else 4), "this ResNetV2")
        norm = partial(BatchNorm, epsilon=self.epsilon, axis_name=self.axis_name)
        conv = partial(Conv, use_bias=self.conv_bias, dtype=self.dtype)
        block = maybe_remat(Block, self.remat)

        x = images.astype(self.dtype)  # [B, 224, 224, 3]
        if self.stem == "small":
            x = conv(self.width, 3, name="stem")(x)
        else:
            x = conv(self.width, 7, 2, name="stem")(x)  # [B, 112, 112, 64]
            if self.pool_padding == "zeros":
                x = max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2)
            else:
                x = max_pool(x, 3, 2, 1)  # [B, 56, 56, 64]
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
                x = block(
                    width=self.width * 2**i, stride=2 if strided else 1, project=j == 0, norm=norm,
                    conv_bias=self.conv_bias, drop_path_rate=self.stochastic_depth * index / sum(self.blocks),
                    zero_init=self.zero_init, dtype=self.dtype, name=f"stage{i + 1}_block{j + 1}",
                )(x, train)  # fmt: skip
            ends[f"stage{i + 1}"] = x
        ends["norm"] = x = nn.relu(norm(name="norm")(x, not train))
        return classify(global_avg_pool(x), ends, self.num_classes, train, dtype=self.dtype)
