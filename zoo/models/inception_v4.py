"""Inception-v4 and Inception-ResNet-v2.

Szegedy, Ioffe, Vanhoucke and Alemi 2016, "Inception-v4, Inception-ResNet and the impact of residual connections on
learning", arXiv:1602.07261. Figures 3 to 9 are Inception-v4, figures 15 to 19 Inception-ResNet-v2.

`InceptionV4` is the paper's network. `InceptionResNetV2` is the network whose weights the authors released (TF-Slim,
2016; timm and Keras have it too), which is not quite the one of the figures:
- the stem is Inception-v3's and ends in a module of its kind (mixed_5b), where the paper has figure 3 here too;
- 10, 20 and 10 blocks instead of 5, 10 and 5, and slightly other widths;
- every block but the last ends in ReLU; the last adds its branch unscaled; a 1x1 convolution to 1536 maps follows;
- branches are scaled by 0.17, 0.1 and 0.2, inside the range 0.1 to 0.3 of section 3.3.
TF-Slim trained both with auxiliary heads that the paper does not have; none here.

Initialisation: the paper does not say; He et al. 2015 over the fan-in, as in TF-Slim. Means near the border leave the
padding out, as TensorFlow's do. Norms have epsilon 1e-3.
The small-image forms (`stem="small"`): the first convolution has stride 1, nothing in the stem but its first reduction
cuts the image, and the second reduction keeps its size; so 32 pixels become 15, 7 and 3. All blocks are the same.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from zoo.models.layers import (
    BatchNorm,
    ConvNorm,
    avg_pool,
    global_avg_pool,
    max_pool,
    rematerialised,
    require_images,
    require_stem,
    scale_width,
    uniform_head,
)

# (features, kernel[, stride, padding]) of a convolution; padding is half the kernel unless it is given.
Layer = tuple[Any, ...]


def _branch(conv: Callable[..., nn.Module], x, train: bool, name: str, *layers: Layer):
    """Convolutions one after another: `name`_1, `name`_2, …, or plain `name` if there is one."""
    for i, layer in enumerate(layers, 1):
        x = conv(*layer, name=name if len(layers) == 1 else f"{name}_{i}")(x, train)
    return x


def _mean(x):
    return avg_pool(x, 3, 1, padding=1, count_include_pad=False)


def _join(*branches):
    return jnp.concatenate(branches, axis=-1)


# --- Inception-v4 ----------------------------------------------------------------------------------------------


class StemV4(nn.Module):
    """Figure 3. [B, 299, 299, C] -> [B, 35, 35, 384]; [B, 32, 32, C] -> [B, 15, 15, 384] if `small`."""

    conv: Callable[..., nn.Module]
    small: bool

    @nn.compact
    def __call__(self, x, train: bool):
        branch, cut = partial(_branch, self.conv), None if self.small else 0
        x = branch(x, train, "conv1", (32, 3, 1 if self.small else 2, cut))  # [B, 149, 149, 32]
        x = branch(x, train, "conv2", (32, 3, 1, cut))  # [B, 147, 147, 32]
        x = branch(x, train, "conv3", (64, 3))  # [B, 147, 147, 64]
        x = _join(max_pool(x, 3, 2), branch(x, train, "mixed3a_conv", (96, 3, 2, 0)))  # [B, 73, 73, 160]
        x = _join(
            branch(x, train, "mixed4a_branch3x3", (64, 1), (96, 3, 1, cut)),
            branch(x, train, "mixed4a_branch7x7", (64, 1), (64, (1, 7)), (64, (7, 1)), (96, 3, 1, cut)),
        )  # [B, 71, 71, 192]
        conv = branch(x, train, "mixed5a_conv", (192, 3, 1, None) if self.small else (192, 3, 2, 0))
        return _join(conv, max_pool(x, 3, 1, padding=1) if self.small else max_pool(x, 3, 2))  # [B, 35, 35, 384]


class InceptionA(nn.Module):
    """Figure 4: [B, 35, 35, 384] -> the same."""

    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, train: bool):
        branch = partial(_branch, self.conv)
        return _join(
            branch(x, train, "branch1x1", (96, 1)),
            branch(x, train, "branch3x3", (64, 1), (96, 3)),
            branch(x, train, "branch3x3dbl", (64, 1), (96, 3), (96, 3)),
            branch(_mean(x), train, "branch_pool", (96, 1)),
        )


class ReductionA(nn.Module):
    """Figure 7: [B, 35, 35, C] -> [B, 17, 17, C + n + m]. `filters`: k, l, m, n of table 1."""

    conv: Callable[..., nn.Module]
    filters: tuple[int, int, int, int]

    @nn.compact
    def __call__(self, x, train: bool):
        reduced, inner, double, single = self.filters
        return _join(
            _branch(self.conv, x, train, "branch3x3", (single, 3, 2, 0)),
            _branch(self.conv, x, train, "branch3x3dbl", (reduced, 1), (inner, 3), (double, 3, 2, 0)),
            max_pool(x, 3, 2),
        )


class InceptionB(nn.Module):
    """Figure 5: [B, 17, 17, 1024] -> the same."""

    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, train: bool):
        branch, row, column = partial(_branch, self.conv), (1, 7), (7, 1)
        return _join(
            branch(x, train, "branch1x1", (384, 1)),
            branch(x, train, "branch7x7", (192, 1), (224, row), (256, column)),
            branch(x, train, "branch7x7dbl", (192, 1), (192, column), (224, row), (224, column), (256, row)),
            branch(_mean(x), train, "branch_pool", (128, 1)),
        )


class ReductionB(nn.Module):
    """Figure 8: [B, 17, 17, 1024] -> [B, 8, 8, 1536]."""

    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, train: bool):
        branch = partial(_branch, self.conv)
        return _join(
            branch(x, train, "branch3x3", (192, 1), (192, 3, 2, 0)),
            branch(x, train, "branch7x7x3", (256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3, 2, 0)),
            max_pool(x, 3, 2),
        )


class InceptionC(nn.Module):
    """Figure 6: [B, 8, 8, 1536] -> the same. Two branches end in a row and a column side by side."""

    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, train: bool):
        branch, row, column = partial(_branch, self.conv), (1, 3), (3, 1)
        single = branch(x, train, "branch3x3_1", (384, 1))
        double = branch(x, train, "branch3x3dbl_1", (384, 1))
        double = branch(double, train, "branch3x3dbl_2", (448, column))
        double = branch(double, train, "branch3x3dbl_3", (512, row))
        return _join(
            branch(x, train, "branch1x1", (256, 1)),
            branch(single, train, "branch3x3_2a", (256, row)),
            branch(single, train, "branch3x3_2b", (256, column)),
            branch(double, train, "branch3x3dbl_4a", (256, row)),
            branch(double, train, "branch3x3dbl_4b", (256, column)),
            branch(_mean(x), train, "branch_pool", (256, 1)),
        )


class InceptionV4(nn.Module):
    """Figure 9: 42,679,816 parameters with 1,000 classes; timm's `inception_v4`.

    `blocks`: how many of Inception-A, -B, -C. `stem`: "imagenet", for images from 75 pixels up, or "small", from 15.
    `width` multiplies all channels. Stages: stem, then each run of blocks and each reduction.
    """

    num_classes: int | None = 1000
    blocks: tuple[int, int, int] = (4, 7, 3)
    stem: str = "imagenet"
    width: float = 1.0
    dropout: float = 0.2
    epsilon: float = 1e-3
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    family = "inception_v4"
    model_parallel = (r"head/(kernel|bias)",)
    paper = "Szegedy et al. 2016, Inception-v4, Inception-ResNet and the impact of residual connections on learning"
    paper += " (arXiv:1602.07261)"
    stages = ("stem", "inceptionA", "reductionA", "inceptionB", "reductionB", "inceptionC", "head")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (32, 32, 3) if self.stem == "small" else (299, 299, 3)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_stem(self.stem, "inception_v4")
        small = self.stem == "small"
        require_images(images, 15 if small else 75, "inception_v4")
        conv = _unit(self)
        block = {kind: rematerialised(kind, self.remat) for kind in (InceptionA, InceptionB, InceptionC)}

        def repeated(kind, count, x, name):
            for i in range(1, count + 1):
                x = block[kind](conv, name=f"{name}{i}")(x, train)
            return x

        count_a, count_b, count_c = self.blocks
        ends = {}
        x = images.astype(self.dtype)  # [B, 299, 299, 3]
        ends["stem"] = x = rematerialised(StemV4, self.remat)(conv, small, name="stem")(x, train)  # [B, 35, 35, 384]
        ends["inceptionA"] = x = repeated(InceptionA, count_a, x, "inceptionA")
        ends["reductionA"] = x = ReductionA(conv, (192, 224, 256, 384), name="reductionA")(x, train)
        ends["inceptionB"] = x = repeated(InceptionB, count_b, x, "inceptionB")  # [B, 17, 17, 1024]
        ends["reductionB"] = x = ReductionB(conv, name="reductionB")(x, train)
        ends["inceptionC"] = x = repeated(InceptionC, count_c, x, "inceptionC")  # [B, 8, 8, 1536]
        return _head(self, x, ends, train)


# --- what the two share ----------------------------------------------------------------------------------------


def _unit(model: nn.Module) -> Callable[..., nn.Module]:
    """conv(features, kernel, stride, padding, name=): convolution, norm, ReLU, at the model's width."""
    norm = partial(BatchNorm, epsilon=model.epsilon, axis_name=model.axis_name)

    def conv(features, kernel, stride=1, padding=None, *, name):
        return ConvNorm(scale_width(features, model.width), kernel, norm, stride, padding,
                        kernel_init=nn.initializers.he_normal(), dtype=model.dtype, name=name)  # fmt: skip

    return conv


def _head(model: nn.Module, x, ends: dict, train: bool):
    """Mean over all positions, dropout (the paper keeps 0.8), logits -> (logits or features, endpoints)."""
    ends["features"] = x = global_avg_pool(x)  # [B, 1536]
    if model.num_classes is not None:
        x = nn.Dropout(model.dropout, deterministic=not train, name="dropout")(x)
        x = nn.Dense(model.num_classes, kernel_init=uniform_head, dtype=model.dtype, name="head")(x)
        ends["logits"] = x = x.astype(jnp.float32)
    return x, ends
