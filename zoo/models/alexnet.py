"""AlexNet, in two towers and in one.

Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep convolutional neural networks": two towers,
one per GPU, with local response normalisation and overlapping pooling. Krizhevsky 2014, "One weird trick for
parallelizing convolutional neural networks", arXiv:1404.5997: one tower, in the form of torchvision, which `AlexNetOWT`
compares with the paper's.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.models.layers import Conv, Dense, Initializer, classify, require_images, require_stem, scale_width
from zoo.models.operations import adaptive_avg_pool, local_response_norm, max_pool, relu

# Section 3.5, figure 2: (features, kernel size, groups, initial bias). Convolutions 2, 4 and 5 read only the channels
# of their own tower, which makes two groups. All but the first, 11x11 with stride 4, are padded to keep the size.
TWO_TOWERS = {
    "conv1": (96, 11, 1, 0.0),
    "conv2": (256, 5, 2, 1.0),
    "conv3": (384, 3, 1, 0.0),
    "conv4": (384, 3, 2, 1.0),
    "conv5": (256, 3, 2, 1.0),
}
# torchvision's alexnet: (features, kernel size). The paper's conv4 has 384 features.
ONE_TOWER = {"conv1": (64, 11), "conv2": (192, 5), "conv3": (384, 3), "conv4": (256, 3), "conv5": (256, 3)}


# Connections of a unit of each layer in the paper's network, at 227 pixels and full width.
FAN_IN = {
    "conv1": 363, "conv2": 1200, "conv3": 2304, "conv4": 1728, "conv5": 1728, "dense6": 9216, "dense7": 4096,
    "head": 4096,
}  # fmt: skip


def normal_as_in(layer: str, deviation: float = 0.01) -> Initializer:
    """Return an initialiser with the outputs' variance of N(0, deviation) in the paper's network.

    With fewer connections than the layer has there, in a narrow network or for smaller images, the deviation grows with
    the root of the ratio; otherwise activations would shrink from layer to layer and training would not begin.
    """

    def init(key, shape, dtype=jnp.float32):
        scale = (FAN_IN[layer] / math.prod(shape[:-1])) ** 0.5
        return deviation * scale * jax.random.normal(key, shape, dtype)

    return init


def normalise_within_towers(x):
    """Apply local response normalisation to the channels of each tower separately: [B, H, W, C] -> [B, H, W, C].

    The formula and constants of section 3.3; the author's code divides alpha by 5 (see `local_response_norm`). The
    towers are placed side by side, as one image of twice the width.
    """
    batch, height, width, channels = x.shape
    return local_response_norm(x.reshape(batch, height, 2 * width, channels // 2)).reshape(x.shape)


class AlexNet(nn.Module):
    """AlexNet of 2012: 60,965,224 parameters with 227x227 pixels and 1,000 classes.

    Images have 227 pixels, not 224 as in the text: figure 2 has 55 positions after an 11x11 convolution with stride 4.
    The first layers keep to one tower each, so normalisation does too; Caffe's one-tower copy normalises across both.
    Both towers' halves of the dense layers form one layer. Kernels are initialised from N(0, 0.01), biases of conv2,
    conv4, conv5 and the hidden dense layers at 1 (section 5); in narrow networks and for smaller images, kernels are
    larger, see `normal_as_in`. Inputs are pixels in 0..255 less their mean by default (section 2), for which this is
    made: with inputs of unit variance training does not begin (docs/training.md). The mean is one per channel, the
    paper's one per pixel. Caffe's bvlc_alexnet starts those biases at 0.1, draws the hidden dense layers from
    N(0, 0.005), and normalises with k = 1 and a fifth of alpha. The endpoints conv1 … conv5 are taken after the ReLU,
    before normalisation and pooling.

    Attributes:
        num_classes: number of classes, or None for no head.
        stem: "imagenet" or "small", which begins with a 5x5 convolution with stride 1, for 28 to 64 pixels. The small
            form is not in the paper. Its kernels are initialised after He et al. 2015, for inputs of unit variance.
        width: factor of all channels.
        dropout: rate after each hidden dense layer.
        image_size: height and width of the images, which fix the dense layers: at least 67, or 15 with the small stem.
        dtype: type of the computation.
    """

    num_classes: int | None = 1000
    stem: str = "imagenet"
    width: float = 1.0
    dropout: float = 0.5
    image_size: int = 227
    dtype: Any = jnp.float32

    family = "alexnet"
    model_parallel = (r"(dense6|dense7|head)/(kernel|bias)",)
    paper = "Krizhevsky et al. 2012, ImageNet classification with deep convolutional neural networks"
    stages = (*TWO_TOWERS, "dense6", "dense7", "head")

    @property
    def normalisation(self) -> str:
        """Default of the recipe field: the paper subtracts the mean from values in 0..255 (section 2)."""
        return "centre" if self.stem == "imagenet" else "standardise"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (self.image_size, self.image_size, 3)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_stem(self.stem, "alexnet")
        small = self.stem == "small"
        require_images(images, 15 if small else 67, "alexnet", fixed_size=self.image_size)
        init = {name: nn.initializers.he_normal() if small else normal_as_in(name) for name in FAN_IN}
        ends = {}
        x = images.astype(self.dtype)  # [B, 227, 227, 3]
        for name, (features, kernel_size, groups, bias) in TWO_TOWERS.items():
            stride, padding = 1, None
            if name == "conv1":
                kernel_size, stride, padding = (5, 1, None) if small else (kernel_size, 4, 0)
            bias_init = nn.initializers.constant(0 if small else bias)
            x = Conv(scale_width(features, self.width), kernel_size, stride, padding, groups, kernel_init=init[name],
                     bias_init=bias_init, dtype=self.dtype, name=name)(x)  # fmt: skip
            ends[name] = x = relu(x)  # [B, 55, 55, 96], [B, 27, 27, 256], [B, 13, 13, 384] twice, [B, 13, 13, 256]
            if name in ("conv1", "conv2"):
                x = normalise_within_towers(x)
            if name in ("conv1", "conv2", "conv5"):
                x = max_pool(x, 3, 2)  # [B, 27, 27, 96], [B, 13, 13, 256], [B, 6, 6, 256]
        x = x.reshape(x.shape[0], -1)
        for name in ("dense6", "dense7"):
            bias_init = nn.initializers.constant(0 if small else 1)
            x = Dense(scale_width(4096, self.width), kernel_init=init[name], bias_init=bias_init, dtype=self.dtype,
                         name=name)(x)  # fmt: skip
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout_{name}")(relu(x))
            ends[name] = x
        return classify(x, ends, self.num_classes, train, kernel_init=init["head"], dtype=self.dtype)


class AlexNetOWT(nn.Module):
    """AlexNet in one tower, torchvision's `alexnet`: 61,100,840 parameters with 1,000 classes.

    Differs from the paper, where it is silent from the author's configuration (cuda-convnet2,
    layers-imagenet-1gpu.cfg):

    - the paper has 384 filters in conv4; torchvision and the configuration have 256;
    - no local response normalisation, which the configuration has after conv1 and conv2;
    - conv1 is padded by 2 pixels on 224; the configuration does not pad;
    - adaptive average pooling after conv5, so that images may have any size;
    - dropout before each hidden dense layer instead of after it;
    - softmax cross-entropy for the paper's 1,000 independent logistic units; the configuration has a softmax, whose
      biases start at -7;
    - convolutions and dense layers are initialised after He et al. 2015, biases at 0, the head as in PyTorch; the
      configuration draws from N(0, 0.01) or, in conv3 to conv5, N(0, 0.03), with biases of 1 in conv2, conv4, conv5 and
      the hidden dense layers.

    The endpoints conv1 … conv5 are taken after the ReLU, before pooling.

    Attributes:
        num_classes: number of classes, or None for no head.
        stem: "imagenet", for images from 63 pixels up, or "small", from 15, as in `AlexNet`.
        width: factor of all channels.
        dropout: rate before each hidden dense layer.
        pool_size: height and width after the adaptive pooling.
        dtype: type of the computation.
    """

    num_classes: int | None = 1000
    stem: str = "imagenet"
    width: float = 1.0
    dropout: float = 0.5
    pool_size: int = 6
    dtype: Any = jnp.float32

    family = "alexnet"
    model_parallel = (r"(dense6|dense7|head)/(kernel|bias)",)
    paper = "Krizhevsky 2014, One weird trick for parallelizing convolutional neural networks"
    stages = (*ONE_TOWER, "dense6", "dense7", "head")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (32, 32, 3) if self.stem == "small" else (224, 224, 3)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_stem(self.stem, "alexnet_owt")
        small = self.stem == "small"
        require_images(images, 15 if small else 63, "alexnet_owt")
        init = nn.initializers.he_normal()
        ends = {}
        x = images.astype(self.dtype)  # [B, 224, 224, 3]
        for name, (features, kernel_size) in ONE_TOWER.items():
            stride, padding = 1, None
            if name == "conv1":
                kernel_size, stride, padding = (5, 1, None) if small else (kernel_size, 4, 2)
            x = Conv(scale_width(features, self.width), kernel_size, stride, padding, kernel_init=init,
                     dtype=self.dtype, name=name)(x)  # fmt: skip
            ends[name] = x = relu(x)  # [B, 55, 55, 64], [B, 27, 27, 192], [B, 13, 13, 384], [B, 13, 13, 256] twice
            if name in ("conv1", "conv2", "conv5"):
                x = max_pool(x, 3, 2)  # [B, 27, 27, 64], [B, 13, 13, 192], [B, 6, 6, 256]
        x = adaptive_avg_pool(x, (self.pool_size, self.pool_size)).reshape(x.shape[0], -1)
        for name in ("dense6", "dense7"):
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout_{name}")(x)
            x = Dense(scale_width(4096, self.width), kernel_init=init, dtype=self.dtype, name=name)(x)
            ends[name] = x = relu(x)  # [B, 4096]
        return classify(x, ends, self.num_classes, train, dtype=self.dtype)
