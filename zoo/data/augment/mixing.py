"""Augmentations that cover a part of an image or combine it with its neighbour: cutout, mixup and CutMix.

The functions have the form that ops.py describes. mixup and cutmix combine each example with its neighbour,
`index ^ 1`. The stream is shuffled, so the neighbour is random, and a shard that starts at an even position and has an
even length holds both. An example without its neighbour beside it (the last of an odd batch) is unchanged.
"""

import jax
import jax.numpy as jnp
from jax import Array

from zoo.data.augment.pixels import box_mask


def draw_centre(key: Array, height: int, width: int) -> Array:
    """Draw a pixel (row, column), int32 [2], uniformly over the image."""
    return jax.random.randint(key, (2,), 0, jnp.array([height, width]))


def cutout(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, size: int = 16
) -> tuple[Array, Array]:
    """Cover a square of `size` pixels around a random pixel with fill (DeVries and Taylor 2017, arXiv:1708.04552).

    As in the paper, the square may extend over the edge. The paper's best sizes are 16 for CIFAR-10, 8 for CIFAR-100
    and 20 for SVHN.
    """
    height, width = images.shape[1:3]
    centre = jax.vmap(lambda key: draw_centre(key, height, width))(keys)
    mask = box_mask(centre, jnp.full_like(centre, size), height, width)
    return jnp.where(mask[..., None], fill, images), targets


def swap_neighbours(x: Array) -> Array:
    """Return rows 1, 0, 3, 2, ...; the last of an odd number stays in place."""
    even = len(x) // 2 * 2
    swapped = x[:even].reshape(even // 2, 2, *x.shape[1:])[:, ::-1].reshape(even, *x.shape[1:])
    return jnp.concatenate([swapped, x[even:]])


def _pair_keys(keys: Array) -> Array:
    """Return the key of the first example of each pair for both, [B]."""
    return jnp.repeat(keys[::2], 2, axis=0)[: len(keys)]


def _has_neighbour(index: Array) -> Array:
    """Return True for examples whose neighbour is beside them, bool [B]."""
    return swap_neighbours(index) == index ^ 1


def blend_neighbours(images: Array, targets: Array, weight: Array) -> tuple[Array, Array]:
    """Blend images and targets with the neighbour's; example b has the weight weight[b], in 0..1."""
    own, other = weight[:, None, None, None], 1 - weight[:, None, None, None]
    blended = own * images + other * swap_neighbours(images)
    return blended, own[:, :, 0, 0] * targets + other[:, :, 0, 0] * swap_neighbours(targets)


def draw_weight(key: Array, alpha: float) -> Array:
    """Draw a weight ~ Beta(alpha, alpha), in steps of 2**-16, so that blends of whole-number pixels are exact."""
    return jnp.round(jax.random.beta(key, alpha, alpha) * 2**16) / 2**16


def mixup(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, alpha: float = 0.2
) -> tuple[Array, Array]:
    """Blend pairs of examples and targets with a weight ~ Beta(alpha, alpha): mixup (Zhang et al. 2017).

    Both examples of a pair use the same weight for themselves, so that each counts once in the batch. The paper
    (arXiv:1710.09412) uses alpha 1 for CIFAR and 0.2 to 0.4 for ImageNet; 0 turns mixup off.
    """
    if alpha == 0:
        return images, targets
    weight = jax.vmap(lambda key: draw_weight(key, alpha))(_pair_keys(keys))
    return blend_neighbours(images, targets, jnp.where(_has_neighbour(index), weight, 1))


def draw_cutmix(key: Array, alpha: float, height: int, width: int) -> tuple[Array, Array]:
    """Draw the centre and extent of a box, both int32 [2].

    Its area before clipping, as a share of the image, is 1 - weight with weight ~ Beta(alpha, alpha).
    """
    weight_key, centre_key = jax.random.split(key)
    side = jnp.sqrt(1 - jax.random.beta(weight_key, alpha, alpha))
    extent = jnp.floor(side * jnp.array([height, width], jnp.float32)).astype(jnp.int32)
    return draw_centre(centre_key, height, width), extent


def paste_neighbours(images: Array, targets: Array, mask: Array) -> tuple[Array, Array]:
    """Replace the pixels under mask, bool [B, H, W], by the neighbour's; mix targets by the share of pixels."""
    share = mask.sum((1, 2), dtype=jnp.float32)[:, None] / (mask.shape[1] * mask.shape[2])
    pasted = jnp.where(mask[..., None], swap_neighbours(images), images)
    return pasted, (1 - share) * targets + share * swap_neighbours(targets)


def cutmix(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, alpha: float = 1.0
) -> tuple[Array, Array]:
    """Exchange a random box between pairs of examples: CutMix (Yun et al. 2019, arXiv:1905.04899).

    Targets are mixed by the number of exchanged pixels, so that every pixel of the batch counts once. The paper uses
    alpha 1; 0 turns CutMix off.
    """
    if alpha == 0:
        return images, targets
    height, width = images.shape[1:3]
    centre, extent = jax.vmap(lambda key: draw_cutmix(key, alpha, height, width))(_pair_keys(keys))
    return paste_neighbours(
        images, targets, box_mask(centre, extent, height, width) & _has_neighbour(index)[:, None, None]
    )


def draw_mixture(key: Array, mixup: float, cutmix: float, height: int, width: int) -> tuple[Array, Array]:
    """Draw the weight of each pixel of an example against its neighbour, [H, W] in 0..1, and the mean weight.

    With equal probability this is a constant from `draw_weight`, or 1 outside the box of `draw_cutmix` and 0 inside.
    """
    coin_key, weight_key, box_key = jax.random.split(key, 3)
    centre, extent = draw_cutmix(box_key, cutmix, height, width)
    outside = ~box_mask(centre[None], extent[None], height, width)[0]
    blending = jax.random.bernoulli(coin_key)
    weight = jnp.where(blending, draw_weight(weight_key, mixup), outside.sum(dtype=jnp.float32) / outside.size)
    return jnp.where(blending, weight, outside), weight


apply_mixup, apply_cutmix = mixup, cutmix  # the next function has parameters of these names


def mixup_or_cutmix(
    keys: Array, index: Array, images: Array, targets: Array, fill: Array, *, mixup: float = 0.2, cutmix: float = 1.0
) -> tuple[Array, Array]:
    """Apply `mixup` or `cutmix` with equal probability (Wightman et al. 2021, arXiv:2110.00476).

    `mixup` and `cutmix` are their alphas; if one is 0, the other operation is always applied. Each pair draws its own
    choice, whereas timm and torchvision draw one for the batch, so that an example's result depends on its pair alone.
    """
    if mixup == 0 or cutmix == 0:
        only, alpha = (apply_cutmix, cutmix) if mixup == 0 else (apply_mixup, mixup)
        return only(keys, index, images, targets, fill, alpha=alpha)
    height, width = images.shape[1:3]
    weights, mean = jax.vmap(lambda key: draw_mixture(key, mixup, cutmix, height, width))(_pair_keys(keys))
    weights = jnp.where(_has_neighbour(index)[:, None, None], weights, 1)[..., None]
    mean = jnp.where(_has_neighbour(index), mean, 1)[:, None]
    mixed = weights * images + (1 - weights) * swap_neighbours(images)
    return mixed, mean * targets + (1 - mean) * swap_neighbours(targets)
