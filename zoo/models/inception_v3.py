"""Inception-v3.

Szegedy, Vanhoucke, Ioffe, Shlens and Wojna 2015, "Rethinking the Inception architecture for computer vision",
arXiv:1512.00567, in the form of torchvision, which is that of the authors' TensorFlow model.

Differs from the paper: table 1 only sketches the network, with another stem and other sizes between the modules.
Differs from the authors' model (TF-Slim): its average pools do not count their padding (`pool_padding="nothing"`), and
its running averages keep 0.9997 of their value in a step, here 0.9 as in PyTorch. timm's `tf_in1k` and `tf_adv_in1k`
come from that model and are used with torchvision's pools, as in timm.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from zoo.models.branches import Branch, Branches, Pool, Unit, unit_constructor
from zoo.models.layers import (
    Dense,
    classify,
    maybe_remat,
    require_blocks,
    require_images,
    require_stem,
    uniform_head,
)
from zoo.models.operations import adaptive_avg_pool, avg_pool, global_avg_pool, max_pool


def inception_a(mean: Pool, projection: int) -> tuple[Branch, ...]:
    """Return the table of figure 5, with a 5x5 convolution in one branch as released."""
    return (
        (Unit("branch1x1", 64, 1),),
        (Unit("branch5x5_reduce", 48, 1), Unit("branch5x5", 64, 5)),
        (Unit("branch3x3dbl_reduce", 64, 1), Unit("branch3x3dbl_1", 96, 3), Unit("branch3x3dbl_2", 96, 3)),
        (mean, Unit("branch_pool", projection, 1)),
    )


def reduction_a() -> tuple[Branch, ...]:
    """Return the table of figure 10: convolutions and pooling with stride 2, side by side."""
    return (
        (Unit("branch3x3", 384, 3, 2, valid=True),),
        (
            Unit("branch3x3dbl_reduce", 64, 1),
            Unit("branch3x3dbl_1", 96, 3),
            Unit("branch3x3dbl_2", 96, 3, 2, valid=True),
        ),
        (Pool("max", 2, valid=True),),
    )


def inception_b(mean: Pool, inner: int) -> tuple[Branch, ...]:
    """Return the table of figure 6: 7x7 convolutions as 1x7 and 7x1, with `inner` features in between."""
    return (
        (Unit("branch1x1", 192, 1),),
        (
            Unit("branch7x7_reduce", inner, 1),
            Unit("branch7x7_1", inner, (1, 7)),
            Unit("branch7x7_2", 192, (7, 1)),
        ),
        (
            Unit("branch7x7dbl_reduce", inner, 1),
            Unit("branch7x7dbl_1", inner, (7, 1)),
            Unit("branch7x7dbl_2", inner, (1, 7)),
            Unit("branch7x7dbl_3", inner, (7, 1)),
            Unit("branch7x7dbl_4", 192, (1, 7)),
        ),
        (mean, Unit("branch_pool", 192, 1)),
    )


def reduction_b() -> tuple[Branch, ...]:
    """Return the table of the second reduction, which the paper does not draw."""
    return (
        (Unit("branch3x3_reduce", 192, 1), Unit("branch3x3", 320, 3, 2, valid=True)),
        (
            Unit("branch7x7x3_reduce", 192, 1),
            Unit("branch7x7x3_1", 192, (1, 7)),
            Unit("branch7x7x3_2", 192, (7, 1)),
            Unit("branch7x7x3_3", 192, 3, 2, valid=True),
        ),
        (Pool("max", 2, valid=True),),
    )


def inception_c(mean: Pool) -> tuple[Branch, ...]:
    """Return the table of figure 7: branches end in 1x3 and 3x1 convolutions side by side."""
    return (
        (Unit("branch1x1", 320, 1),),
        (Unit("branch3x3_reduce", 384, 1), (Unit("branch3x3_a", 384, (1, 3)), Unit("branch3x3_b", 384, (3, 1)))),
        (
            Unit("branch3x3dbl_reduce", 448, 1),
            Unit("branch3x3dbl_1", 384, 3),
            (Unit("branch3x3dbl_a", 384, (1, 3)), Unit("branch3x3dbl_b", 384, (3, 1))),
        ),
        (mean, Unit("branch_pool", 192, 1)),
    )


def modules(blocks: tuple[int, int, int], mean: Pool) -> dict[str, tuple[Branch, ...]]:
    """Return the tables of the modules by name, as in the authors' model.

    Args:
        blocks: number of modules of figures 5, 6 and 7; the reductions are always present.
        mean: average pool of the modules, one of MEANS.

    Raises:
        ValueError: if the authors' model has fewer modules.
    """
    require_blocks(blocks, tuple(map(len, KINDS)), "inception_v3")
    a, b, c = blocks
    tables = {
        "mixed5b": inception_a(mean, 32),
        "mixed5c": inception_a(mean, 64),
        "mixed5d": inception_a(mean, 64),
        "mixed6a": reduction_a(),
        "mixed6b": inception_b(mean, 128),
        "mixed6c": inception_b(mean, 160),
        "mixed6d": inception_b(mean, 160),
        "mixed6e": inception_b(mean, 192),
        "mixed7a": reduction_b(),
        "mixed7b": inception_c(mean),
        "mixed7c": inception_c(mean),
    }
    omitted = {*KINDS[0][a:], *KINDS[1][b:], *KINDS[2][c:]}
    return {name: branches for name, branches in tables.items() if name not in omitted}


MEANS = {"zeros": Pool("avg"), "nothing": Pool("avg_inside")}
KINDS = (
    ("mixed5b", "mixed5c", "mixed5d"),
    ("mixed6b", "mixed6c", "mixed6d", "mixed6e"),
    ("mixed7b", "mixed7c"),
)
STEM = ("conv1a", "conv2a", "conv2b", "conv3b", "conv4a")


class AuxiliaryHead(nn.Module):
    """Auxiliary classifier (section 4, figure 8): pooling to 5x5 cells, 1x1 and 5x5 convolution, mean, logits.

    The pooling averages over 5x5 with stride 3 if that leaves at least 5x5 cells, as for images of 299 pixels and more;
    smaller images are averaged over 5x5 nearly equal cells.
    """

    num_classes: int
    conv: Any
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        large = all((side - 5) // 3 + 1 >= 5 for side in x.shape[1:3])
        x = avg_pool(x, 5, 3) if large else adaptive_avg_pool(x, (5, 5))  # [B, 5, 5, 768]
        x = self.conv(128, 1, 1, 0, name="conv0")(x, train)
        x = self.conv(768, 5, 1, 0, kernel_init=nn.initializers.normal(0.01), name="conv1")(x, train)  # [B, 1, 1, 768]
        head = Dense(self.num_classes, kernel_init=nn.initializers.normal(0.001), dtype=self.dtype, name="head")
        return head(global_avg_pool(x)).astype(jnp.float32)


class InceptionV3(nn.Module):
    """torchvision's `inception_v3`: 23,834,568 parameters with 1,000 classes, 27,161,264 with the auxiliary head.

    Convolutions and the head are initialised from N(0, 0.1), the last two layers of the auxiliary head from N(0, 0.01)
    and N(0, 0.001). The endpoint aux1 holds the auxiliary logits, computed from the input of mixed7a.

    Attributes:
        num_classes: number of classes, or None for no head.
        stem: "imagenet", for images from 75 pixels up, or "small", from 13: strides 1, with padding, without the second
            pool, and with a uniformly initialised head (not in the paper).
        width: factor of all channels.
        blocks: number of modules of figures 5, 6 and 7, at most (3, 4, 2).
        aux_heads: add the auxiliary head.
        dropout: rate before the head.
        pool_padding: padding of the average pools, "zeros", or "nothing" to leave it uncounted, as in Keras.
        epsilon: added to the variance by batch norms.
        axis_name: pmap axis over which batch statistics are shared.
        dtype: type of the computation.
        remat: recompute activations of the modules in the backward pass.
    """

    num_classes: int | None = 1000
    stem: str = "imagenet"
    width: float = 1.0
    blocks: tuple[int, int, int] = (3, 4, 2)
    aux_heads: bool = True
    dropout: float = 0.5
    pool_padding: str = "zeros"
    epsilon: float = 1e-3
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    family = "inception_v3"
    model_parallel = (
        r"aux1/conv1/conv/kernel",
        r"(aux1/head|head)/(kernel|bias)",
    )
    paper = "Szegedy et al. 2015, Rethinking the Inception architecture for computer vision (arXiv:1512.00567)"

    @property
    def stages(self) -> tuple[str, ...]:
        return (*STEM, *modules(self.blocks, MEANS["zeros"]), "head")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (32, 32, 3) if self.stem == "small" else (299, 299, 3)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_stem(self.stem, "inception_v3")
        if self.pool_padding not in MEANS:
            raise ValueError(f"pool_padding {self.pool_padding!r} is not one of {', '.join(MEANS)}")
        small = self.stem == "small"
        require_images(images, 13 if small else 75, "inception_v3")
        conv = unit_constructor(self, nn.initializers.normal(0.1))
        stride, padding = (1, None) if small else (2, 0)
        ends = {}
        x = images.astype(self.dtype)  # [B, 299, 299, 3]
        ends["conv1a"] = x = conv(32, 3, stride, padding, name="conv1a")(x, train)  # [B, 149, 149, 32]
        ends["conv2a"] = x = conv(32, 3, 1, padding, name="conv2a")(x, train)  # [B, 147, 147, 32]
        ends["conv2b"] = x = conv(64, 3, name="conv2b")(x, train)  # [B, 147, 147, 64]
        x = max_pool(x, 3, 2, padding=1 if small else 0)  # [B, 73, 73, 64]
        ends["conv3b"] = x = conv(80, 1, name="conv3b")(x, train)
        ends["conv4a"] = x = conv(192, 3, 1, padding, name="conv4a")(x, train)  # [B, 71, 71, 192]
        x = x if small else max_pool(x, 3, 2)  # [B, 35, 35, 192]
        inception = partial(maybe_remat(Branches, self.remat), conv=conv)
        # 6a: [B, 17, 17, 768], 7a: [B, 8, 8, 1280], 7b: [B, 8, 8, 2048]
        for name, branches in modules(self.blocks, MEANS[self.pool_padding]).items():
            if name == "mixed7a" and self.aux_heads and self.num_classes is not None:
                ends["aux1"] = AuxiliaryHead(self.num_classes, conv, self.dtype, name="aux1")(x, train)
            ends[name] = x = inception(branches, name=name)(x, train)
        features = global_avg_pool(x)  # [B, 2048]
        init = uniform_head if small else nn.initializers.normal(0.1)
        return classify(features, ends, self.num_classes, train, dropout=self.dropout,
                        kernel_init=init, dtype=self.dtype)  # fmt: skip
