"""AlexNet, in two towers and in one.

Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep convolutional neural networks" (two towers,
one per GPU, local response normalisation, overlapping pooling); Krizhevsky 2014, "One weird trick for parallelizing
convolutional neural networks", arXiv:1404.5997 (one tower, no normalisation), in the form of torchvision.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from zoo.models.layers import (
    Conv,
    adaptive_avg_pool,
    local_response_norm,
    max_pool,
    require_images,
    require_stem,
    scale_width,
    uniform_head,
)

# Section 3.5, figure 2. Convolutions 2, 4 and 5 see only the maps of their own tower: two groups.
# name -> (features, kernel, groups, bias at the start); padding keeps the size but in the first one, 11x11 / 4.
TWO_TOWERS = {
    "conv1": (96, 11, 1, 0.0),
    "conv2": (256, 5, 2, 1.0),
    "conv3": (384, 3, 1, 0.0),
    "conv4": (384, 3, 2, 1.0),
    "conv5": (256, 3, 2, 1.0),
}
ONE_TOWER = {"conv1": (64, 11), "conv2": (192, 5), "conv3": (384, 3), "conv4": (256, 3), "conv5": (256, 3)}


def _normalise_within_towers(x):
    """Local response normalisation over each tower's maps: two towers side by side are one image twice as wide."""
    batch, height, width, channels = x.shape
    return local_response_norm(x.reshape(batch, height, 2 * width, channels // 2)).reshape(x.shape)


class AlexNet(nn.Module):
    """The network of 2012: 60,965,224 parameters with 227x227 pixels and 1,000 classes.

    Its images are 227 pixels wide, not 224 as the text says: 55 maps wide after an 11x11 convolution with stride 4 is
    what figure 2 needs. No pool adapts: the dense layers are bound to `image_size` (at least 67; 15 with the small
    stem). Normalisation stays within a tower, since the towers exchange maps only before conv3 and the dense layers;
    Caffe's copy in one tower normalises across both. The two towers' halves of the dense layers are one layer.
    Weights start from N(0, 0.01), biases of conv2, conv4, conv5 and the hidden dense layers from 1 (section 5).
    `stem`: "small" takes a 5x5 convolution with stride 1 first, for 28 to 64 pixels; the paper has no such form, and
    it starts from He et al. 2015, since from N(0, 0.01) it takes epochs to leave the first plateau.
    `width` multiplies all channels.
    Endpoints conv1 … conv5 are taken after the ReLU, before normalisation and pooling.
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
    def input_shape(self) -> tuple[int, int, int]:
        return (self.image_size, self.image_size, 3)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_stem(self.stem, "alexnet")
        small = self.stem == "small"
        require_images(images, 15 if small else 67, "alexnet", bound_to=self.image_size)
        init = nn.initializers.he_normal() if small else nn.initializers.normal(0.01)
        ends = {}
        x = images.astype(self.dtype)  # [B, 227, 227, 3]
        for name, (features, kernel, groups, bias) in TWO_TOWERS.items():
            stride, padding = 1, None
            if name == "conv1":
                kernel, stride, padding = (5, 1, None) if small else (kernel, 4, 0)
            bias_init = nn.initializers.constant(0 if small else bias)
            x = Conv(scale_width(features, self.width), kernel, stride, padding, groups, kernel_init=init,
                     bias_init=bias_init, dtype=self.dtype, name=name)(x)  # fmt: skip
            ends[name] = x = nn.relu(x)  # [B, 55, 55, 96], [B, 27, 27, 256], [B, 13, 13, 384] twice, [B, 13, 13, 256]
            if name in ("conv1", "conv2"):
                x = _normalise_within_towers(x)
            if name in ("conv1", "conv2", "conv5"):
                x = max_pool(x, 3, 2)  # [B, 27, 27, 96], [B, 13, 13, 256], [B, 6, 6, 256]
        x = x.reshape(x.shape[0], -1)
        for name in ("dense6", "dense7"):
            bias_init = nn.initializers.constant(0 if small else 1)
            x = nn.Dense(scale_width(4096, self.width), kernel_init=init, bias_init=bias_init, dtype=self.dtype,
                         name=name)(x)  # fmt: skip
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout_{name}")(nn.relu(x))
            ends[name] = x
        ends["features"] = x
        if self.num_classes is not None:
            x = nn.Dense(self.num_classes, kernel_init=init, dtype=self.dtype, name="head")(x)
            ends["logits"] = x = x.astype(jnp.float32)
        return x, ends


class AlexNetOWT(nn.Module):
    """AlexNet in one tower, torchvision's `alexnet`: 61,100,840 parameters with 1,000 classes.

    After conv5 an adaptive mean brings the maps to `pool_size` x `pool_size` cells, so the dense layers are bound to no
    image size: any from 63 pixels up (15 with the small stem). Differs from the paper: adaptive pool, and dropout
    before each of the two hidden dense layers instead of after. Initialisation: He et al. 2015, the head as in
    PyTorch; the paper gives none.
    `stem`, `width` and the endpoints as in AlexNet.
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
        for name, (features, kernel) in ONE_TOWER.items():
            stride, padding = 1, None
            if name == "conv1":
                kernel, stride, padding = (5, 1, None) if small else (kernel, 4, 2)
            x = Conv(scale_width(features, self.width), kernel, stride, padding, kernel_init=init, dtype=self.dtype,
                     name=name)(x)  # fmt: skip
            ends[name] = x = nn.relu(x)  # [B, 55, 55, 64], [B, 27, 27, 192], [B, 13, 13, 384], [B, 13, 13, 256] twice
            if name in ("conv1", "conv2", "conv5"):
                x = max_pool(x, 3, 2)  # [B, 27, 27, 64], [B, 13, 13, 192], [B, 6, 6, 256]
        x = adaptive_avg_pool(x, (self.pool_size, self.pool_size)).reshape(x.shape[0], -1)
        for name in ("dense6", "dense7"):
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout_{name}")(x)
            x = nn.Dense(scale_width(4096, self.width), kernel_init=init, dtype=self.dtype, name=name)(x)
            ends[name] = x = nn.relu(x)  # [B, 4096]
        ends["features"] = x
        if self.num_classes is not None:
            x = nn.Dense(self.num_classes, kernel_init=uniform_head, dtype=self.dtype, name="head")(x)
            ends["logits"] = x = x.astype(jnp.float32)
        return x, ends
