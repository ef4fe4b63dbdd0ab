"""The network of airbench94, which held the speed record on CIFAR-10.

Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv:2404.00498), section 3, after Page 2018 (How to
train your ResNet, myrtle.ai): a 2x2 convolution that whitens the patches of the images, then three stages of two 3x3
convolutions, the first of which is followed by max-pooling. Norms have no scale, activations are GELUs, and 3x3
convolutions start as partial identities.

Differs from the code of the paper: the head has a bias, as those of all networks here; the last pooling is over all
positions, which at 32x32 pixels is the code's 3x3, so that any size from 9x9 on is accepted; the bias of the whitening
convolution starts at 0; norms have the momentum and the epsilon of PyTorch. What the recipe does otherwise than the
code is in docs/recipes.md.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.models.layers import BatchNorm, Conv, classify, maybe_remat, require_images
from zoo.models.operations import max_pool

#: Added to the second moment of the patches in each direction: weak directions, which hold noise, stay weak.
WHITENING_EPSILON = 5e-4

gelu = partial(nn.gelu, approximate=False)


def partial_identity(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Initialise a kernel [kh, kw, C, F]: the first min(C, F) outputs copy an input, the others are drawn at random.

    The others have PyTorch's default distribution for convolutions, uniform within 1 / sqrt(fan-in).
    """
    height, width, channels, features = shape
    bound = (height * width * channels) ** -0.5
    kernel = jax.random.uniform(key, shape, dtype, -bound, bound)
    copies = min(channels, features)
    kernel = kernel.at[..., :copies].set(0)
    return kernel.at[height // 2, width // 2, :, :copies].set(jnp.eye(channels, copies, dtype=dtype))


class Stage(nn.Module):
    """Two 3x3 convolutions, each with norm and GELU; 2x2 max-pooling before the first norm.

    [B, H, W, C] -> [B, H // 2, W // 2, features]. Children: conv1, norm1, conv2, norm2.
    """

    features: int
    norm: Callable[..., nn.Module]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        conv = partial(Conv, self.features, 3, use_bias=False, kernel_init=partial_identity, dtype=self.dtype)
        x = max_pool(conv(name="conv1")(x), 2, 2)
        x = gelu(self.norm(name="norm1")(x, not train))
        return gelu(self.norm(name="norm2")(conv(name="conv2")(x), not train))


class Airbench(nn.Module):
    """The network of airbench94 (Jordan 2024, arXiv:2404.00498); 1,971,650 parameters, of which the head's bias is 10.

    Stages: whiten, stage1, stage2, stage3, head. Training from scratch calls `initialise_from_images` first.

    Attributes:
        width: channels of the first stage, 64 in the paper; the second and the third have four times as many.
        filters: channels of the first convolution. Two for each of the 12 principal components of a 2x2 patch of three
            colours are 24; if there are fewer components, the other filters start at random.
        logit_scale: factor on the features before the head, which keeps early logits small.
        epsilon: added to the variance by batch norms.
        num_classes: number of classes, or None for no head.
        axis_name: pmap axis over which batch statistics are shared.
        dtype: type of the computation.
        remat: recompute activations of the stages in the backward pass.
    """

    width: int = 64
    filters: int = 24
    logit_scale: float = 1 / 9
    epsilon: float = 1e-5
    num_classes: int | None = 10
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    family = "airbench"
    model_parallel = (r"stage[23]/conv[12]/kernel", r"head/(kernel|bias)")
    paper = "Jordan 2024, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, arXiv:2404.00498"
    stages = ("whiten", "stage1", "stage2", "stage3", "head")
    input_shape = (32, 32, 3)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        require_images(images, 9, "airbench")
        norm = partial(BatchNorm, epsilon=self.epsilon, use_scale=False, axis_name=self.axis_name)
        stage = maybe_remat(Stage, self.remat)

        ends = {}
        x = images.astype(self.dtype)  # [B, 32, 32, 3]
        x = Conv(self.filters, 2, padding=0, dtype=self.dtype, name="whiten")(x)
        ends["whiten"] = x = gelu(x)  # [B, 31, 31, 24]
        for i, factor in enumerate((1, 4, 4), 1):  # [B, 15, 15, 64], [B, 7, 7, 256], [B, 3, 3, 256]
            x = stage(factor * self.width, norm, self.dtype, name=f"stage{i}")(x, train)
            ends[f"stage{i}"] = x
        features = x.max(axis=(1, 2)) * self.logit_scale
        return classify(features, ends, self.num_classes, train, dtype=self.dtype)

    def initialise_from_images(self, variables: dict, images: np.ndarray) -> dict:
        """Return the variables with a first convolution that whitens 2x2 patches of such images.

        Its outputs are the projections of a patch on the eigenvectors of the second moments of patches (without
        subtracting the mean, as in the paper's code), each divided by its root mean square, and their negatives, since
        the GELU after them keeps one sign only (section 3.2 of the paper). Directions of large moments come first.

        Args:
            variables: as initialised.
            images: normalised images [N, H, W, C], of which there should be hundreds.
        """
        images = np.asarray(images, np.float64)
        channels, (height, width) = images.shape[-1], (side - 1 for side in images.shape[1:3])
        patches = np.stack([images[:, i : i + height, j : j + width] for i in (0, 1) for j in (0, 1)], axis=3)
        patches = patches.reshape(-1, 4 * channels)
        moments, directions = np.linalg.eigh(patches.T @ patches / len(patches))
        largest = np.take_along_axis(directions, np.abs(directions).argmax(0)[None], 0)
        directions = directions * np.sign(largest)  # libraries differ in the sign
        filters = (directions / np.sqrt(moments + WHITENING_EPSILON))[:, ::-1][:, : self.filters // 2]
        whitening = np.concatenate([filters, -filters], axis=1).reshape(2, 2, channels, -1)
        params = variables["params"]
        kernel = np.array(params["whiten"]["kernel"])
        kernel[..., : whitening.shape[-1]] = whitening
        return {**variables, "params": {**params, "whiten": {**params["whiten"], "kernel": kernel}}}
