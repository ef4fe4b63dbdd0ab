"""Inception-v4.

Szegedy, Ioffe, Vanhoucke and Alemi 2016, "Inception-v4, Inception-ResNet and the impact of residual connections on
learning", arXiv:1602.07261, figures 3 to 9. The Inception-ResNet of the same paper is in inception_resnet_v2.py.

Not specified in the paper: convolutions are initialised from a normal distribution over the fan-in (He et al. 2015), as
in TF-Slim; average pools do not count their padding, as in TensorFlow; batch norms have epsilon 1e-3. TF-Slim trained
with an auxiliary head that the paper does not have; it is left out. TF-Slim's running averages keep 0.9997 of their
value in a step, here 0.9.

The small-image form (`stem="small"`) is not in the paper: the first convolution has stride 1, the stem reduces only
once, and the second reduction keeps its size, so that 32 pixels become 15, 7 and 3. All blocks are unchanged.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from zoo.models.branches import Branch, Branches, Pool, Step, Unit, chain, run_branches, unit_constructor
from zoo.models.layers import classify, maybe_remat, require_images, require_stem
from zoo.models.operations import global_avg_pool

ROW3, COLUMN3, ROW7, COLUMN7 = (1, 3), (3, 1), (1, 7), (7, 1)  # kernel (height, width)
MEAN = Pool("avg_inside")
REDUCE = Pool("max", 2, valid=True)

# Figure 4: [B, 35, 35, 384] -> the same.
INCEPTION_A: tuple[Branch, ...] = (
    chain("branch1x1", (96, 1)),
    chain("branch3x3", (64, 1), (96, 3)),
    chain("branch3x3dbl", (64, 1), (96, 3), (96, 3)),
    (MEAN, *chain("branch_pool", (96, 1))),
)
# Figure 5: [B, 17, 17, 1024] -> the same.
INCEPTION_B: tuple[Branch, ...] = (
    chain("branch1x1", (384, 1)),
    chain("branch7x7", (192, 1), (224, ROW7), (256, COLUMN7)),
    chain("branch7x7dbl", (192, 1), (192, COLUMN7), (224, ROW7), (224, COLUMN7), (256, ROW7)),
    (MEAN, *chain("branch_pool", (128, 1))),
)
# Figure 8: [B, 17, 17, 1024] -> [B, 8, 8, 1536].
REDUCTION_B: tuple[Branch, ...] = (
    chain("branch3x3", (192, 1), (192, 3, 2, True)),
    chain("branch7x7x3", (256, 1), (256, ROW7), (320, COLUMN7), (320, 3, 2, True)),
    (REDUCE,),
)


def reduction_a(k: int, l: int, m: int, n: int) -> tuple[Branch, ...]:  # noqa: E741, the paper's names
    """Return the table of figure 7: [B, 35, 35, C] -> [B, 17, 17, C + n + m]; k, l, m and n as in table 1."""
    return (
        chain("branch3x3", (n, 3, 2, True)),
        chain("branch3x3dbl", (k, 1), (l, 3), (m, 3, 2, True)),
        (REDUCE,),
    )


class StemV4(nn.Module):
    """The stem of figure 3: [B, 299, 299, C] -> [B, 35, 35, 384]; [B, 32, 32, C] -> [B, 15, 15, 384] if `small`."""

    conv: Callable[..., nn.Module]
    small: bool

    @nn.compact
    def __call__(self, x, train: bool):
        def run(x, *branches: Branch):
            return run_branches(branches, self.conv, x, train)

        valid, stride = not self.small, 1 if self.small else 2
        x = run(x, (Unit("conv1", 32, 3, stride, valid),))  # [B, 149, 149, 32]
        x = run(x, (Unit("conv2", 32, 3, 1, valid),))  # [B, 147, 147, 32]
        x = run(x, (Unit("conv3", 64, 3),))  # [B, 147, 147, 64]
        x = run(x, (REDUCE,), (Unit("mixed3a_conv", 96, 3, 2, valid=True),))  # [B, 73, 73, 160]
        x = run(
            x,
            chain("mixed4a_branch3x3", (64, 1), (96, 3, 1, valid)),
            chain("mixed4a_branch7x7", (64, 1), (64, ROW7), (64, COLUMN7), (96, 3, 1, valid)),
        )  # [B, 71, 71, 192]
        return run(x, (Unit("mixed5a_conv", 192, 3, stride, valid),), (Pool("max", stride, valid),))  # [B, 35, 35, 384]


class InceptionC(nn.Module):
    """The module of figure 6, of two branches that end in a row and a column: [B, 8, 8, 1536] -> the same."""

    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, train: bool):
        def run(x, *branch: Step):
            return run_branches((branch,), self.conv, x, train)

        single = run(x, Unit("branch3x3_1", 384, 1))
        double = run(x, *chain("branch3x3dbl", (384, 1), (448, COLUMN3), (512, ROW3)))
        outputs = [
            run(x, Unit("branch1x1", 256, 1)),
            run(single, Unit("branch3x3_2a", 256, ROW3)),
            run(single, Unit("branch3x3_2b", 256, COLUMN3)),
            run(double, Unit("branch3x3dbl_4a", 256, ROW3)),
            run(double, Unit("branch3x3dbl_4b", 256, COLUMN3)),
            run(x, MEAN, Unit("branch_pool", 256, 1)),
        ]
        return jnp.concatenate(outputs, axis=-1)


class InceptionV4(nn.Module):
    """Inception-v4 (figure 9): 42,679,816 parameters with 1,000 classes; timm's `inception_v4`.

    Stages: stem, then each run of blocks and each reduction, head.

    Attributes:
        num_classes: number of classes, or None for no head.
        blocks: number of Inception-A, -B and -C blocks.
        stem: "imagenet", for images from 75 pixels up, or "small", from 15.
        width: factor of all channels.
        dropout: rate before the head; 0.2 in the paper, which keeps 0.8.
        epsilon: added to the variance by batch norms.
        axis_name: pmap axis over which batch statistics are shared.
        dtype: type of the computation.
        remat: recompute activations of the blocks in the backward pass.
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
        conv = unit_constructor(self, nn.initializers.he_normal())
        inception, inception_c = maybe_remat(Branches, self.remat), maybe_remat(InceptionC, self.remat)

        def repeat(block, count, x, name):
            for i in range(1, count + 1):
                x = block(conv=conv, name=f"{name}{i}")(x, train)
            return x

        count_a, count_b, count_c = self.blocks
        ends = {}
        x = images.astype(self.dtype)  # [B, 299, 299, 3]
        ends["stem"] = x = maybe_remat(StemV4, self.remat)(conv, small, name="stem")(x, train)  # [B, 35, 35, 384]
        ends["inceptionA"] = x = repeat(partial(inception, INCEPTION_A), count_a, x, "inceptionA")
        ends["reductionA"] = x = Branches(reduction_a(192, 224, 256, 384), conv, name="reductionA")(x, train)
        ends["inceptionB"] = x = repeat(partial(inception, INCEPTION_B), count_b, x, "inceptionB")  # [B, 17, 17, 1024]
        ends["reductionB"] = x = Branches(REDUCTION_B, conv, name="reductionB")(x, train)
        ends["inceptionC"] = x = repeat(inception_c, count_c, x, "inceptionC")  # [B, 8, 8, 1536]
        return classify(global_avg_pool(x), ends, self.num_classes, train, dropout=self.dropout, dtype=self.dtype)
