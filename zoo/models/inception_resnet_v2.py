"""Inception-ResNet-v2.

Szegedy, Ioffe, Vanhoucke and Alemi 2016, "Inception-v4, Inception-ResNet and the impact of residual connections on
learning", arXiv:1602.07261, figures 15 to 19.

This is the network whose weights the authors released (TF-Slim 2016; also in timm and Keras). Differs from the paper:

- the stem is that of Inception-v3 and ends in a module of its kind (mixed_5b), where the paper uses figure 3 again;
- 10, 20 and 10 blocks instead of 5, 10 and 5, and slightly different widths;
- every block but the last ends in ReLU; the last adds its branch unscaled; a 1x1 convolution to 1536 channels follows;
- branches are scaled by 0.17, 0.1 and 0.2, within the range 0.1 to 0.3 of section 3.3.

Not specified in the paper, and the small-image form: as in inception_v4.py. TF-Slim trained with an auxiliary head that
the paper does not have; it is left out.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.models.branches import Branch, Branches, Pool, Unit, chain, run_branches, unit_constructor
from zoo.models.inception_v4 import COLUMN3, COLUMN7, MEAN, REDUCE, ROW3, ROW7, reduction_a
from zoo.models.layers import Conv, classify, maybe_remat, require_images, require_stem
from zoo.models.operations import global_avg_pool, relu


class ResidualBlock(NamedTuple):
    """A row of INCEPTION_RESNETS: the factor of the residual branch, and its parallel branches."""

    scale: float
    branches: tuple[Branch, ...]


# Figures 16, 17 and 19 as released.
INCEPTION_RESNETS = {
    "inceptionresnetA": ResidualBlock(
        0.17,
        (
            chain("branch1x1", (32, 1)),
            chain("branch3x3", (32, 1), (32, 3)),
            chain("branch3x3dbl", (32, 1), (48, 3), (64, 3)),
        ),
    ),
    "inceptionresnetB": ResidualBlock(
        0.1,
        (
            chain("branch1x1", (192, 1)),
            chain("branch7x7", (128, 1), (160, ROW7), (192, COLUMN7)),
        ),
    ),
    "inceptionresnetC": ResidualBlock(
        0.2,
        (
            chain("branch1x1", (192, 1)),
            chain("branch3x3", (192, 1), (224, ROW3), (256, COLUMN3)),
        ),
    ),
}
# Mixed_5b of Inception-v3, at the end of the stem: [B, 35, 35, 192] -> [B, 35, 35, 320].
MIXED_5B: tuple[Branch, ...] = (
    chain("mixed5b_branch1x1", (96, 1)),
    chain("mixed5b_branch5x5", (48, 1), (64, 5)),
    chain("mixed5b_branch3x3dbl", (64, 1), (96, 3), (96, 3)),
    (MEAN, *chain("mixed5b_branch_pool", (64, 1))),
)
# Figure 18 as released: [B, 17, 17, 1088] -> [B, 8, 8, 2080].
REDUCTION_B: tuple[Branch, ...] = (
    chain("branch3x3a", (256, 1), (384, 3, 2, True)),
    chain("branch3x3b", (256, 1), (288, 3, 2, True)),
    chain("branch3x3dbl", (256, 1), (288, 3), (320, 3, 2, True)),
    (REDUCE,),
)


class StemResNetV2(nn.Module):
    """Stem of Inception-v3 and mixed_5b: [B, 299, 299, C] -> [B, 35, 35, 320]; 32 -> 15 pixels if `small`."""

    conv: Callable[..., nn.Module]
    small: bool

    @nn.compact
    def __call__(self, x, train: bool):
        def run(x, *branches: Branch):
            return run_branches(branches, self.conv, x, train)

        valid, stride = not self.small, 1 if self.small else 2
        x = run(x, (Unit("conv1", 32, 3, stride, valid),))  # [B, 149, 149, 32]
        x = run(x, (Unit("conv2", 32, 3, 1, valid),))  # [B, 147, 147, 32]
        x = run(x, (Unit("conv3", 64, 3), REDUCE))  # [B, 73, 73, 64]
        x = run(x, (Unit("conv4", 80, 1),))  # [B, 73, 73, 80]
        x = run(x, (Unit("conv5", 192, 3, 1, valid),))  # [B, 71, 71, 192]
        x = x if self.small else run(x, (Pool("max", 2, valid=True),))  # [B, 35, 35, 192]
        return run(x, *MIXED_5B)


class InceptionResNet(nn.Module):
    """Residual Inception block: act(x + scale * expand(branches(x))), of the shape of x.

    Children: the units of the branches, and expand, a 1x1 convolution with bias to the channels of x.

    Attributes:
        conv: constructor of the units.
        branches: table of parallel branches.
        scale: factor of the residual branch.
        act: activation of the sum, or None.
        dtype: type of the computation.
    """

    conv: Callable[..., nn.Module]
    branches: tuple[Branch, ...]
    scale: float
    act: Callable | None
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        mixed = run_branches(self.branches, self.conv, x, train)
        init = nn.initializers.he_normal()
        expanded = Conv(x.shape[-1], 1, kernel_init=init, dtype=self.dtype, name="expand")(mixed)
        x = x + self.scale * expanded
        return x if self.act is None else self.act(x)


def block_runner(
    model: Any, tables: Mapping[str, ResidualBlock], conv: Callable[..., nn.Module], train: bool
) -> Callable[..., jax.Array]:
    """Return a function that applies the blocks NAME1 … NAME`count` of one kind to x.

    Args:
        model: the network, within its `__call__`; its `remat` and `dtype` are used.
        tables: kinds of blocks by name.
        conv: constructor of the units.
        train: as in `__call__`.
    """
    block = maybe_remat(InceptionResNet, model.remat)

    def run_blocks(name: str, count: int, x: jax.Array, last_is_linear: bool = False) -> jax.Array:
        scale, branches = tables[name]
        for i in range(1, count + 1):
            linear = last_is_linear and i == count
            act = None if linear else relu
            x = block(conv, branches, 1.0 if linear else scale, act, model.dtype, name=f"{name}{i}")(x, train)
        return x

    return run_blocks


class InceptionResNetV2(nn.Module):
    """The released Inception-ResNet-v2: 55,843,464 parameters with 1,000 classes; timm's `inception_resnet_v2`.

    Stages: stem (with mixed_5b), each run of blocks, each reduction, conv7b (the last 1x1 convolution), head.

    Attributes:
        num_classes: number of classes, or None for no head.
        blocks: number of Inception-ResNet-A, -B and -C blocks. The last C adds its branch unscaled, without ReLU.
        stem: "imagenet", for images from 75 pixels up, or "small", from 15.
        width: factor of all channels.
        dropout: rate before the head; 0.2 in the paper, which keeps 0.8.
        epsilon: added to the variance by batch norms.
        axis_name: pmap axis over which batch statistics are shared.
        dtype: type of the computation.
        remat: recompute activations of the blocks in the backward pass.
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
    paper = "Szegedy et al. 2016, Inception-v4, Inception-ResNet and the impact of residual connections on learning"
    paper += " (arXiv:1602.07261)"
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
        conv = unit_constructor(self, nn.initializers.he_normal())
        run_blocks = block_runner(self, INCEPTION_RESNETS, conv, train)

        count_a, count_b, count_c = self.blocks
        ends = {}
        x = images.astype(self.dtype)  # [B, 299, 299, 3]
        ends["stem"] = x = maybe_remat(StemResNetV2, self.remat)(conv, small, name="stem")(x, train)
        ends["inceptionresnetA"] = x = run_blocks("inceptionresnetA", count_a, x)  # [B, 35, 35, 320]
        ends["reductionA"] = x = Branches(reduction_a(256, 256, 384, 384), conv, name="reductionA")(x, train)
        ends["inceptionresnetB"] = x = run_blocks("inceptionresnetB", count_b, x)  # [B, 17, 17, 1088]
        ends["reductionB"] = x = Branches(REDUCTION_B, conv, name="reductionB")(x, train)
        ends["inceptionresnetC"] = x = run_blocks("inceptionresnetC", count_c, x, True)  # [B, 8, 8, 2080]
        ends["conv7b"] = x = conv(1536, 1, name="conv7b")(x, train)  # [B, 8, 8, 1536]
        return classify(global_avg_pool(x), ends, self.num_classes, train, dropout=self.dropout, dtype=self.dtype)
