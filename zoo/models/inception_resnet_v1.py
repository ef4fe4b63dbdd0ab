"""Inception-ResNet-v1.

Szegedy, Ioffe, Vanhoucke and Alemi 2016, "Inception-v4, Inception-ResNet and the impact of residual connections on
learning", arXiv:1602.07261, figures 7 and 10 to 15, with 5, 10 and 5 blocks. The authors released no weights of it.

Not specified in the paper: the factors of the residual branches; here those of the released Inception-ResNet-v2,
0.17, 0.1 and 0.2, within the range 0.1 to 0.3 of section 3.3. Convolutions and batch norms are as in inception_v4.py;
the 1x1 convolution that ends a branch has a bias and neither norm nor activation. The networks of the project FaceNet
(davidsandberg/facenet and facenet-pytorch) have the same layers up to the last block, followed by one more block
without ReLU and an embedding in place of the classifier.

The small-image form (`stem="small"`) is not in the paper: the stem reduces once and the second reduction keeps its
size, so that 32 pixels become 15, 7 and 3. All blocks are unchanged.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from zoo.models.branches import Branch, Branches, Unit, chain, run_branches, unit_constructor
from zoo.models.inception_resnet_v2 import ResidualBlock, block_runner
from zoo.models.inception_v4 import COLUMN3, COLUMN7, REDUCE, ROW3, ROW7, reduction_a
from zoo.models.layers import classify, maybe_remat, require_images, require_stem
from zoo.models.operations import global_avg_pool

# Figures 10, 11 and 13.
INCEPTION_RESNETS = {
    "inceptionresnetA": ResidualBlock(
        0.17,
        (
            chain("branch1x1", (32, 1)),
            chain("branch3x3", (32, 1), (32, 3)),
            chain("branch3x3dbl", (32, 1), (32, 3), (32, 3)),
        ),
    ),
    "inceptionresnetB": ResidualBlock(
        0.1,
        (
            chain("branch1x1", (128, 1)),
            chain("branch7x7", (128, 1), (128, ROW7), (128, COLUMN7)),
        ),
    ),
    "inceptionresnetC": ResidualBlock(
        0.2,
        (
            chain("branch1x1", (192, 1)),
            chain("branch3x3", (192, 1), (192, ROW3), (192, COLUMN3)),
        ),
    ),
}
# Figure 12: [B, 17, 17, 896] -> [B, 8, 8, 1792].
REDUCTION_B: tuple[Branch, ...] = (
    chain("branch3x3a", (256, 1), (384, 3, 2, True)),
    chain("branch3x3b", (256, 1), (256, 3, 2, True)),
    chain("branch3x3dbl", (256, 1), (256, 3), (256, 3, 2, True)),
    (REDUCE,),
)


class StemResNetV1(nn.Module):
    """Stem of figure 14: [B, 299, 299, C] -> [B, 35, 35, 256]; [B, 32, 32, C] -> [B, 15, 15, 256] if `small`."""

    conv: Any
    small: bool

    @nn.compact
    def __call__(self, x, train: bool):
        valid, stride = not self.small, 1 if self.small else 2
        steps: Branch = (
            Unit("conv1", 32, 3, stride, valid),  # [B, 149, 149, 32]
            Unit("conv2", 32, 3, 1, valid),  # [B, 147, 147, 32]
            Unit("conv3", 64, 3),
            REDUCE,  # [B, 73, 73, 64]
            Unit("conv4", 80, 1),
            Unit("conv5", 192, 3, 1, valid),  # [B, 71, 71, 192]
            Unit("conv6", 256, 3, stride, valid),  # [B, 35, 35, 256]
        )
        return run_branches((steps,), self.conv, x, train)


class InceptionResNetV1(nn.Module):
    """Inception-ResNet-v1 (figure 15): 22,756,328 parameters with 1,000 classes.

    Stages: stem, each run of blocks, each reduction, head.

    Attributes:
        num_classes: number of classes, or None for no head.
        blocks: number of Inception-ResNet-A, -B and -C blocks.
        stem: "imagenet", for images from 75 pixels up, or "small", from 15.
        width: factor of all channels.
        dropout: rate before the head; 0.2 in the paper, which keeps 0.8.
        epsilon: added to the variance by batch norms.
        axis_name: pmap axis over which batch statistics are shared.
        dtype: type of the computation.
        remat: recompute activations of the blocks in the backward pass.
    """

    num_classes: int | None = 1000
    blocks: tuple[int, int, int] = (5, 10, 5)
    stem: str = "imagenet"
    width: float = 1.0
    dropout: float = 0.2
    epsilon: float = 1e-3
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    family = "inception_resnet_v1"
    model_parallel = (r"head/(kernel|bias)",)
    paper = "Szegedy et al. 2016, Inception-v4, Inception-ResNet and the impact of residual connections on learning"
    paper += " (arXiv:1602.07261)"
    stages = ("stem", "inceptionresnetA", "reductionA", "inceptionresnetB", "reductionB", "inceptionresnetC", "head")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (32, 32, 3) if self.stem == "small" else (299, 299, 3)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_stem(self.stem, "inception_resnet_v1")
        small = self.stem == "small"
        require_images(images, 15 if small else 75, "inception_resnet_v1")
        conv = unit_constructor(self, nn.initializers.he_normal())
        run_blocks = block_runner(self, INCEPTION_RESNETS, conv, train)

        count_a, count_b, count_c = self.blocks
        ends = {}
        x = images.astype(self.dtype)  # [B, 299, 299, 3]
        ends["stem"] = x = maybe_remat(StemResNetV1, self.remat)(conv, small, name="stem")(x, train)
        ends["inceptionresnetA"] = x = run_blocks("inceptionresnetA", count_a, x)  # [B, 35, 35, 256]
        ends["reductionA"] = x = Branches(reduction_a(192, 192, 256, 384), conv, name="reductionA")(x, train)
        ends["inceptionresnetB"] = x = run_blocks("inceptionresnetB", count_b, x)  # [B, 17, 17, 896]
        ends["reductionB"] = x = Branches(REDUCTION_B, conv, name="reductionB")(x, train)
        ends["inceptionresnetC"] = x = run_blocks("inceptionresnetC", count_c, x)  # [B, 8, 8, 1792]
        return classify(global_avg_pool(x), ends, self.num_classes, train, dropout=self.dropout, dtype=self.dtype)
