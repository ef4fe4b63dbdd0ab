"""BiT: pre-activation residual networks with group normalisation and weight standardisation.

Kolesnikov, Beyer, Zhai, Puigcerver, Yung, Gelly and Houlsby 2019, "Big transfer (BiT): general visual representation
learning", arXiv:1912.11370, section 3.1: the blocks of resnet_v2.py, with group norm (Wu and He 2018,
arXiv:1803.08494) in place of batch norm, standardised kernels (Qiao et al. 2019, arXiv:1903.10520) and all channels
multiplied by 1 to 4 (`bit_r50x1` is the paper's R50x1).

The function is that of the released weights (google-research/big_transfer, and timm's `resnetv2_50x1_bit`). Differs
from the paper: nothing known. Not stated in the paper, taken from the released code: 32 groups with an epsilon of
1e-5; the stem has no norm, as the blocks activate first; its max pooling is padded with zeros; the head starts at zero;
the stride is in the 3x3 convolution. Differs from the released code: kernels are standardised with an epsilon of 1e-8
as in timm, for 1e-10; they are initialised over the fan-out.

The small-image form (`stem="small"`) is not in the paper: a 3x3 stem without pooling, as in resnet_v2.py.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from zoo.models.group_norm import GroupNorm, StandardizedConv
from zoo.models.layers import block_drop_rate, classify, maybe_remat, require_images, require_stem
from zoo.models.operations import global_avg_pool, max_pool, relu
from zoo.models.resnet_v2 import Block

BIT50: dict[str, Any] = {"blocks": (3, 4, 6, 3)}
BIT101: dict[str, Any] = {"blocks": (3, 4, 23, 3)}
BIT152: dict[str, Any] = {"blocks": (3, 8, 36, 3)}


class BiT(nn.Module):
    """BiT's ResNet (Kolesnikov et al. 2019, arXiv:1912.11370); R50x1 by default: 25,549,352 parameters.

    Stages: stem (after its pooling), stage1, …, norm (the activation after the last block), head.

    Attributes:
        blocks: number of blocks in each stage.
        widen: the paper's width multiplier: factor of all channels.
        width: channels of the stem and of the first stage's 3x3 convolutions before widening, doubled in each later
            stage; a stage outputs four times as many.
        stem: "imagenet" (7x7 and max pooling) divides the image by 4; "small" (3x3) keeps its size.
        stochastic_depth: probability of dropping the branch of the last block in training; it grows linearly from the
            first block (Huang et al. 2016, arXiv:1603.09382).
        keep_first: never drop the first branch: the probability grows from 0 at the first of L blocks, as in timm, and
            not from 1 / L of the last.
        epsilon: added to the variance by group norms.
        num_classes: number of classes, or None for no head.
        dtype: type of the computation.
        remat: recompute activations of the blocks in the backward pass.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    widen: int = 1
    width: int = 64
    stem: str = "imagenet"
    stochastic_depth: float = 0.0
    keep_first: bool = False
    epsilon: float = 1e-5
    num_classes: int | None = 1000
    dtype: Any = jnp.float32
    remat: bool = False

    added_fields = ("keep_first",)
    family = "bit"
    model_parallel = (
        r"stage4_block\d+/conv\d/kernel",
        r"head/(kernel|bias)",
    )
    paper = "Kolesnikov et al. 2019, Big transfer: general visual representation learning, arXiv:1912.11370"

    @property
    def stages(self) -> tuple[str, ...]:
        return ("stem", *(f"stage{i}" for i in range(1, len(self.blocks) + 1)), "norm", "head")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (32, 32, 3) if self.stem == "small" else (224, 224, 3)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_stem(self.stem, "BiT")
        require_images(images, 2 ** (len(self.blocks) - 1) * (1 if self.stem == "small" else 4), "this BiT")
        norm = partial(GroupNorm, epsilon=self.epsilon)
        block = maybe_remat(Block, self.remat)
        width = self.width * self.widen

        x = images.astype(self.dtype)  # [B, 224, 224, 3]
        kernel_size, stride = (3, 1) if self.stem == "small" else (7, 2)
        x = StandardizedConv(width, kernel_size, stride, dtype=self.dtype, name="stem")(x)  # [B, 112, 112, 64 widen]
        if self.stem != "small":
            x = max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2)  # [B, 56, 56, 64 widen]
        ends = {"stem": x}
        index = 0
        # With widen 1: [B, 56, 56, 256], [B, 28, 28, 512], [B, 14, 14, 1024], [B, 7, 7, 2048]
        for i, count in enumerate(self.blocks):
            for j in range(count):
                index += 1
                rate = block_drop_rate(self.stochastic_depth, index, sum(self.blocks), self.keep_first)
                x = block(
                    width=width * 2**i, stride=2 if i > 0 and j == 0 else 1, project=j == 0, norm=norm,
                    conv_bias=False, drop_path_rate=rate,
                    zero_init=False, dtype=self.dtype, conv=StandardizedConv, name=f"stage{i + 1}_block{j + 1}",
                )(x, train)  # fmt: skip
            ends[f"stage{i + 1}"] = x
        ends["norm"] = x = relu(norm(name="norm")(x, not train))
        return classify(
            global_avg_pool(x), ends, self.num_classes, train, kernel_init=nn.initializers.zeros, dtype=self.dtype
        )
