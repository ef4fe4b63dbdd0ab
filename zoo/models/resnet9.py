"""ResNet-9, the small residual network of speed records on CIFAR-10.

Page 2018, "How to train your ResNet", myrtle.ai (a series of articles with code; Stanford's DAWNBench of that year):
a 3x3 convolution, three stages that each double the channels with another one and halve the map by max-pooling, and a
block of two 3x3 convolutions with a shortcut after the pooling of the first and the third stage.

Differs from the code: the head has a bias, as those of all networks here, so that there are `num_classes` more
parameters; the last pooling is over all positions, which at 32x32 pixels is the code's 4x4, so that any size from 8x8
on is accepted; convolutions are initialised from a normal distribution over the fan-out, as in the other residual
networks.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from zoo.models.layers import BatchNorm, ConvNorm, classify, maybe_remat, require_images
from zoo.models.operations import max_pool, relu


class Block(nn.Module):
    """x + relu(norm(conv(relu(norm(conv(x)))))): the ReLU comes before the sum. Keeps the shape [B, H, W, C].

    Children: conv1, conv2.
    """

    conv_norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, train: bool):
        branch = self.conv_norm(x.shape[-1], 3, name="conv1")(x, train)
        return x + self.conv_norm(x.shape[-1], 3, name="conv2")(branch, train)


class ResNet9(nn.Module):
    """ResNet-9 (Page 2018); 6,573,130 parameters, of which the head's bias is 10.

    Stages: stem, stage1, stage2, stage3, head.

    Attributes:
        width: channels of the stem, 64 in the code; the stages have twice, four and eight times as many.
        logit_scale: factor on the features before the head, which keeps early logits small.
        epsilon: added to the variance by batch norms.
        num_classes: number of classes, or None for no head.
        axis_name: pmap axis over which batch statistics are shared.
        dtype: type of the computation.
        remat: recompute activations of the blocks in the backward pass.
    """

    width: int = 64
    logit_scale: float = 0.125
    epsilon: float = 1e-5
    num_classes: int | None = 10
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    family = "resnet9"
    model_parallel = (
        r"stage3_(conv|block/conv\d)/conv/kernel",
        r"head/(kernel|bias)",
    )
    paper = "Page 2018, How to train your ResNet, myrtle.ai"
    stages = ("stem", "stage1", "stage2", "stage3", "head")
    input_shape = (32, 32, 3)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_images(images, 8, "ResNet-9")
        norm = partial(BatchNorm, epsilon=self.epsilon, axis_name=self.axis_name)
        conv_norm = partial(ConvNorm, norm=norm, act=relu, dtype=self.dtype)
        block = maybe_remat(Block, self.remat)

        ends = {}
        x = images.astype(self.dtype)  # [B, 32, 32, 3]
        ends["stem"] = x = conv_norm(self.width, 3, name="stem")(x, train)  # [B, 32, 32, 64]
        for i in (1, 2, 3):  # [B, 16, 16, 128], [B, 8, 8, 256], [B, 4, 4, 512]
            x = max_pool(conv_norm(self.width * 2**i, 3, name=f"stage{i}_conv")(x, train), 2, 2)
            if i != 2:
                x = block(conv_norm, name=f"stage{i}_block")(x, train)
            ends[f"stage{i}"] = x
        features = x.max(axis=(1, 2)) * self.logit_scale
        return classify(features, ends, self.num_classes, train, dtype=self.dtype)
